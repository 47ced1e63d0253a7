// SPDX-License-Identifier: BSD-3-Clause
// The rows of region_contrast as its CPU kernels want them: those that take part, one after the other in
// float32 or float64, with ids and groups recoded to 0, 1, 2, ...
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "ops.h"
#include "place.h"
#include "region_contrast.h"
#include "region_contrast_tiles.h"

namespace fastseg {

struct ContrastOptions {
  ContrastSimilarity similarity;
  ContrastDenominator denominator;
  ContrastReduction reduction;
  double temperature;

  ContrastOptions(const OptionalTensor& temperature_tensor, double temperature_number, int64_t similarity,
                  int64_t denominator, int64_t reduction)
      : similarity(check_option("similarity", similarity, ContrastSimilarity::kNegMse)),
        denominator(check_option("denominator", denominator, ContrastDenominator::kNegatives)),
        reduction(check_option("reduction", reduction, ContrastReduction::kNone)),
        temperature(temperature_number) {
    if (!temperature_tensor) return;
    temperature = *static_cast<const double*>(to(*temperature_tensor, ScalarType::Double).data_ptr());
  }

  // Of z = factor * dot + offsets.
  double factor(int64_t size) const {
    return similarity == ContrastSimilarity::kNegMse ? 2 / (double(size) * temperature) : 1 / temperature;
  }
};

inline std::vector<int64_t> contrast_labels(const Tensor& labels) {
  const Tensor lying = contiguous(to(labels, ScalarType::Long));
  const auto* values = static_cast<const int64_t*>(lying.data_ptr());
  return {values, values + labels.size(0)};
}

inline Tensor zeros_on(const Tensor& like, const Shape& shape, ScalarType type) {
  const Tensor zeros = empty_on(like, shape, type);
  if (zeros.numel() > 0) std::memset(zeros.data_ptr(), 0, zeros.numel() * zeros.element_size());
  return zeros;
}

template <class Real>
struct ContrastRows {
  Tensor source;                      // (M, D) as given, contiguous
  Tensor data;                        // (K, D) Real
  std::vector<int64_t> kept;          // which of the M take part
  std::vector<int64_t> label, group;  // as given, of those K
  std::vector<int32_t> ids, groups;   // recoded
  std::vector<Real> scale, offset;
  int64_t count = 0, size = 0;
  bool packed = false;  // data is a copy

  ContrastRows(const Tensor& rows, const Tensor& row_ids, const OptionalTensor& row_groups)
      : source(contiguous(rows)), data(source), size(rows.size(1)) {
    const std::vector<int64_t> all_ids = contrast_labels(row_ids);
    std::vector<int64_t> all_groups(all_ids.size(), 0);
    if (row_groups) all_groups = contrast_labels(*row_groups);
    for (size_t i = 0; i < all_ids.size(); ++i) {
      if (all_ids[i] < 0) continue;
      kept.push_back(int64_t(i));
      label.push_back(all_ids[i]);
      group.push_back(all_groups[i]);
    }
    count = int64_t(kept.size());
    packed = count != rows.size(0) || rows.scalar_type() != kTypeOf<Real>;
    if (!packed) return;
    data = empty_on(rows, {count, size}, kTypeOf<Real>);
    Place(source).for_ranges(count, grain(), [&](int64_t begin, int64_t end) {
      contrast_pack_rows_cpu(source.data_ptr(), kind_of(source), kept.data(), size, begin, end,
                             static_cast<Real*>(data.data_ptr()));
    });
  }

  int64_t grain() const { return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, size)); }
  const Real* values() const { return static_cast<const Real*>(data.data_ptr()); }
  ContrastSide<Real> side() const { return {scale.data(), offset.data(), ids.data(), groups.data()}; }

  void measure(ContrastSimilarity similarity, double temperature) {
    scale.resize(count);
    offset.resize(count);
    Place(source).for_ranges(count, grain(), [&](int64_t begin, int64_t end) {
      contrast_measure_rows_cpu(similarity, values(), size, temperature, begin, end, scale.data(),
                                offset.data());
    });
  }

  // (M, D) zeros as the gradient of all rows, and the (K, D) array to sum up that of those that take part.
  Tensor zeros_like_data() const { return zeros_on(source, {count, size}, kTypeOf<Real>); }
  Tensor spread(const Tensor& gradient) const {
    if (!packed) return gradient;
    const Tensor result = zeros_on(source, {source.size(0), size}, source.scalar_type());
    Place(source).for_ranges(count, grain(), [&](int64_t begin, int64_t end) {
      contrast_unpack_rows_cpu(static_cast<const Real*>(gradient.data_ptr()), kept.data(), size, begin, end,
                               kind_of(source), result.data_ptr());
    });
    return result;
  }
};

// Numbers of any size to 0, 1, 2, ..., the same for the same number on either side.
inline std::vector<int64_t> contrast_values(const std::vector<int64_t>& one,
                                            const std::vector<int64_t>& other) {
  std::vector<int64_t> values(one);
  values.insert(values.end(), other.begin(), other.end());
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

inline std::vector<int32_t> recode(const std::vector<int64_t>& labels, const std::vector<int64_t>& values) {
  std::vector<int32_t> codes(labels.size());
  std::transform(labels.begin(), labels.end(), codes.begin(), [&](int64_t label) {
    return int32_t(std::lower_bound(values.begin(), values.end(), label) - values.begin());
  });
  return codes;
}

// Blocks of rows, and the lowest and highest id and group of each: two blocks that share none have no pair of
// positives or negatives.
template <class Real>
struct ContrastRelations : ContrastBlocks {
  std::vector<std::array<int32_t, 4>> ranges;

  explicit ContrastRelations(const ContrastRows<Real>& rows) : ContrastBlocks(rows.count) {
    for (int64_t block = 0; block < count; ++block) {
      const auto [id_low, id_high] =
          std::minmax_element(&rows.ids[begin(block)], rows.ids.data() + end(block));
      const auto [group_low, group_high] =
          std::minmax_element(&rows.groups[begin(block)], rows.groups.data() + end(block));
      ranges.push_back({*id_low, *id_high, *group_low, *group_high});
    }
  }

  bool unrelated(int64_t block, const ContrastRelations& others, int64_t other) const {
    const auto &mine = ranges[block], &its = others.ranges[other];
    return (mine[1] < its[0] || its[1] < mine[0]) && (mine[3] < its[2] || its[3] < mine[2]);
  }
};

// Anchors and candidates, with what relates them. Without a bank both are the same rows.
template <class Real>
struct ContrastPairs {
  ContrastRows<Real> anchors;
  std::optional<ContrastRows<Real>> bank;
  std::vector<int64_t> self;       // the candidate that an anchor itself is, or -1
  std::vector<int64_t> positives;  // of every anchor

  ContrastPairs(const Tensor& anchor_rows, const OptionalTensor& bank_rows, const Tensor& anchor_ids,
                const OptionalTensor& bank_ids, const OptionalTensor& anchor_groups,
                const OptionalTensor& bank_groups, std::optional<int64_t> self_offset,
                ContrastSimilarity similarity, double temperature)
      : anchors(anchor_rows, anchor_ids, anchor_groups) {
    if (bank_rows) bank.emplace(*bank_rows, *bank_ids, bank_groups);
    ContrastRows<Real>& others = bank ? *bank : anchors;
    const auto id_values = contrast_values(anchors.label, others.label);
    const auto group_values = contrast_values(anchors.group, others.group);
    for (ContrastRows<Real>* rows : {&anchors, &others}) {
      rows->ids = recode(rows->label, id_values);
      rows->groups = recode(rows->group, group_values);
      rows->measure(similarity, temperature);
      if (rows == &others) break;
    }
    find_selves(bank ? self_offset : std::optional<int64_t>(0));
    std::vector<int64_t> of_id(id_values.size(), 0);
    for (const int32_t id : others.ids) ++of_id[id];
    for (int64_t i = 0; i < anchors.count; ++i) {
      const bool among_them = self[i] >= 0 && others.ids[self[i]] == anchors.ids[i];
      positives.push_back(of_id[anchors.ids[i]] - among_them);
    }
  }

  const ContrastRows<Real>& candidates() const { return bank ? *bank : anchors; }

  void find_selves(std::optional<int64_t> self_offset) {
    self.assign(anchors.count, -1);
    if (!self_offset) return;
    const std::vector<int64_t>& kept = candidates().kept;
    for (int64_t i = 0; i < anchors.count; ++i) {
      const auto found = std::lower_bound(kept.begin(), kept.end(), anchors.kept[i] + *self_offset);
      if (found != kept.end() && *found == anchors.kept[i] + *self_offset) self[i] = found - kept.begin();
    }
  }
};

}  // namespace fastseg
