// SPDX-License-Identifier: BSD-3-Clause
// region_contrast between its doors and its CPU kernels: checks, and the way through the tiles. The GPU
// kernels are registered from Python.
#include "region_contrast.h"

#include <limits>
#include <tuple>

#include "ops.h"
#include "place.h"
#include "region_contrast_rows.h"
#include "region_contrast_tiles.h"

namespace fastseg {
namespace {

bool is_label(ScalarType type) {
  return type == ScalarType::Long || type == ScalarType::Int || type == ScalarType::Short ||
         type == ScalarType::Char || type == ScalarType::Byte;
}

void check_labels(const char* name, const Tensor& labels, const char* rows_name, const Tensor& rows,
                  const Tensor& anchors) {
  check_type(is_label(labels.scalar_type()), name, " must be int64, int32, int16, int8 or uint8, got ",
             labels.scalar_type());
  check_device(name, labels, "anchors", anchors);
  check(has_shape(labels, {rows.size(0)}), name, " must be one per row of ", rows_name, ", ",
        Shape{rows.size(0)}, ", got ", labels);
}

void check_rows(const char* name, const Tensor& rows, const Tensor& anchors) {
  check_floating(name, rows);
  check_device(name, rows, "anchors", anchors);
  check(rows.dim() == 2 && rows.size(1) > 0, name, " must be (rows, D) with D at least 1, got ", rows);
}

void check_arguments(const Tensor& anchors, const OptionalTensor& bank, const Tensor& anchor_ids,
                     const OptionalTensor& bank_ids, const OptionalTensor& anchor_groups,
                     const OptionalTensor& bank_groups, const OptionalTensor& temperature,
                     std::optional<int64_t> self_offset) {
  check(anchors.device().type == DeviceType::CPU, "region_contrast of C++ runs on the CPU, got anchors on ",
        anchors.device(), ": Triton has the GPU's kernels");
  check_rows("anchors", anchors, anchors);
  check_labels("anchor_ids", anchor_ids, "anchors", anchors, anchors);
  if (anchor_groups) check_labels("anchor_groups", *anchor_groups, "anchors", anchors, anchors);
  if (bank) {
    check(bank_ids.has_value(), "bank_ids must be given with bank, got None");
    check(anchor_groups.has_value() == bank_groups.has_value(), anchor_groups ? "bank" : "anchor",
          "_groups must be given too, as both or neither of the groups, got None");
    check_rows("bank", *bank, anchors);
    check_labels("bank_ids", *bank_ids, "bank", *bank, anchors);
    if (bank_groups) check_labels("bank_groups", *bank_groups, "bank", *bank, anchors);
    check(bank->size(1) == anchors.size(1), "bank must be (N, D) with the D of anchors, ", anchors.size(1),
          ", got ", *bank);
    check(bank->scalar_type() == anchors.scalar_type(), "bank must be of the dtype of anchors, ",
          anchors.scalar_type(), ", got ", bank->scalar_type());
  } else {
    check(!bank_ids, "bank_ids must be None without a bank, got Tensor");
    check(!bank_groups, "bank_groups must be None without a bank, got Tensor");
    check(!self_offset, "self_offset must be None without a bank, got int");
  }
  if (!temperature) return;
  check(temperature->dim() == 0 && is_floating(temperature->scalar_type()),
        "temperature must be a number or a floating tensor with no axes, got ", temperature->scalar_type(),
        " ", *temperature);
  check_device("temperature", *temperature, "anchors", anchors);
}

// Whether the products are left for the backward pass, which spares it a third of the multiplications: where
// they take no more than a tile.
bool keeps_products(int64_t rows, int64_t candidates) {
  return rows * candidates <= kContrastBlock * kContrastBlock;
}

// The products of two blocks of rows, in `values`: those in `kept`, if given, or new ones, which are left
// there.
template <class Real>
ContrastTile<Real> multiply_tile(const ContrastPairs<Real>& pairs, const ContrastBlocks& row_blocks,
                                 const ContrastBlocks& col_blocks, int64_t row_block, int64_t col_block,
                                 Real* values, Real* kept, bool are_there) {
  const ContrastTile<Real> tile{values,
                                row_blocks.begin(row_block),
                                row_blocks.end(row_block),
                                col_blocks.begin(col_block),
                                col_blocks.end(col_block),
                                pairs.self.data()};
  const int64_t size = pairs.anchors.size;
  const int64_t height = tile.row_end - tile.row_begin, width = tile.col_end - tile.col_begin;
  if (kept) kept += tile.row_begin * pairs.candidates().count + height * tile.col_begin;
  if (!are_there) {
    multiply_rows(pairs.anchors.values() + tile.row_begin * size,
                  pairs.candidates().values() + tile.col_begin * size, height, width, size,
                  kept ? kept : values);
  }
  if (kept) std::copy_n(kept, height * width, values);
  return tile;
}

template <class Real>
Contrast forward(const ContrastPairs<Real>& pairs, const ContrastOptions& options, bool with_tilt) {
  const ContrastRows<Real>& anchors = pairs.anchors;
  const Tensor& source = anchors.source;
  const Place place(source);
  const ContrastSide<Real> rows = anchors.side(), candidates = pairs.candidates().side();
  const ContrastRelations<Real> row_blocks(anchors), col_blocks(pairs.candidates());
  const Real factor = Real(options.factor(anchors.size));
  const ContrastSums<Real> none{-std::numeric_limits<Real>::infinity(), 0, 0, 0, 0};
  std::vector<ContrastSums<Real>> sums(anchors.count, none);
  const TileBuffers<Real> buffers(place, source, row_blocks, col_blocks);
  const int64_t all = source.size(0), all_candidates = pairs.candidates().source.size(0);
  Tensor kept = Tensor::absent(source, kTypeOf<Real>);
  if (keeps_products(all, all_candidates)) {
    kept = zeros_on(source, {all * all_candidates}, kTypeOf<Real>);  // which not all products fill
  }
  const auto add_pair = [&](int64_t row_block, int64_t col_block) {
    if (row_blocks.unrelated(row_block, col_blocks, col_block)) return;
    const ContrastTile<Real> tile =
        multiply_tile(pairs, row_blocks, col_blocks, row_block, col_block, buffers.of_this_thread(),
                      static_cast<Real*>(kept.data_ptr()), false);
    const bool both = !pairs.bank && row_block != col_block;
    contrast_add_tile_cpu(tile, rows, candidates, factor, options.denominator, with_tilt, sums.data(),
                          both ? sums.data() : nullptr);
  };
  pairs.bank ? for_each_pair(place, row_blocks, col_blocks, add_pair)
             : for_each_unordered_pair(place, row_blocks, add_pair);

  // Of the rows that take part, then of all.
  std::vector<Real> kept_losses(anchors.count), kept_stats(kContrastStats * anchors.count);
  int64_t count = 0;
  const double total = contrast_finish_rows_cpu(sums.data(), pairs.positives.data(), options.temperature,
                                                options.denominator, 0, anchors.count, kept_losses.data(),
                                                kept_stats.data(), anchors.count, &count);
  Tensor stats = zeros_on(source, {kContrastStats, all}, kTypeOf<Real>);
  Tensor rows_counted = empty_on(source, {}, kTypeOf<Real>);
  const bool per_row = options.reduction == ContrastReduction::kNone;
  Tensor loss = zeros_on(source, per_row ? Shape{all} : Shape{}, kTypeOf<Real>);
  Real* losses = static_cast<Real*>(loss.data_ptr());
  Real* all_stats = static_cast<Real*>(stats.data_ptr());
  std::fill_n(all_stats + kContrastExcess * all, all, -std::numeric_limits<Real>::infinity());
  for (int64_t k = 0; k < anchors.count; ++k) {
    for (int stat = 0; stat < kContrastStats; ++stat) {
      all_stats[stat * all + anchors.kept[k]] = kept_stats[stat * anchors.count + k];
    }
    if (per_row) losses[anchors.kept[k]] = kept_losses[k];
  }
  const bool mean = options.reduction == ContrastReduction::kMean;
  if (!per_row) *losses = Real(total / (mean ? double(std::max<int64_t>(count, 1)) : 1.0));
  *static_cast<Real*>(rows_counted.data_ptr()) = Real(count);
  return {loss, stats, rows_counted, kept};
}

template <class Real>
Three backward(const ContrastPairs<Real>& pairs, const ContrastOptions& options, const Tensor& grad,
               const Tensor& stats, const Tensor& rows_counted, Real* kept, bool need_anchors,
               bool need_bank) {
  const ContrastRows<Real>& anchors = pairs.anchors;
  const ContrastRows<Real>& others = pairs.candidates();
  const Place place(anchors.source);
  const ContrastSide<Real> rows = anchors.side(), candidates = others.side();
  const ContrastRelations<Real> row_blocks(anchors), col_blocks(others);
  const int64_t size = anchors.size, count = anchors.count, all = stats.size(1);
  const Real factor = Real(options.factor(size));

  const bool mean = options.reduction == ContrastReduction::kMean;
  const double counted = *static_cast<const Real*>(rows_counted.data_ptr());
  const double grad_scale = mean ? 1 / std::max(counted, 1.0) : 1.0;
  const bool per_row = options.reduction == ContrastReduction::kNone;
  const auto* grads = static_cast<const Real*>(grad.data_ptr());
  const auto* all_stats = static_cast<const Real*>(stats.data_ptr());
  std::vector<Real> kept_grads(per_row ? count : 1, *grads), kept_stats(kContrastStats * count);
  double grad_temperature = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t i = anchors.kept[k];
    for (int stat = 0; stat < kContrastStats; ++stat) {
      kept_stats[stat * count + k] = all_stats[stat * all + i];
    }
    if (per_row) kept_grads[k] = grads[i];
    const Real tilt = all_stats[kContrastTilt * all + i];
    if (tilt != 0) grad_temperature += grad_scale * double(kept_grads[per_row ? k : 0]) * double(tilt);
  }
  std::vector<Real> scratch(4 * count);
  const ContrastUpstream<Real> upstream{scratch.data(), scratch.data() + count, scratch.data() + 2 * count,
                                        scratch.data() + 3 * count};
  contrast_prepare_upstream_cpu(kept_stats.data(), count, kept_grads.data(), per_row, grad_scale,
                                options.denominator, 0, count, upstream);

  const bool neg_mse = options.similarity == ContrastSimilarity::kNegMse;
  std::vector<Real> row_totals(neg_mse ? count : 0), col_totals(neg_mse && pairs.bank ? others.count : 0);
  Real* of_rows = neg_mse ? row_totals.data() : nullptr;
  Real* of_cols = !neg_mse ? nullptr : pairs.bank ? col_totals.data() : of_rows;
  Tensor grad_anchors = need_anchors ? anchors.zeros_like_data() : Tensor::absent(grad, kTypeOf<Real>);
  Tensor grad_bank = need_bank ? others.zeros_like_data() : Tensor::absent(grad, kTypeOf<Real>);
  auto* anchor_sums = static_cast<Real*>(grad_anchors.data_ptr());
  auto* other_sums = pairs.bank ? static_cast<Real*>(grad_bank.data_ptr()) : anchor_sums;
  const TileBuffers<Real> buffers(place, anchors.source, row_blocks, col_blocks);
  const auto add_pair = [&](int64_t row_block, int64_t col_block) {
    if (row_blocks.unrelated(row_block, col_blocks, col_block)) return;
    const ContrastTile<Real> tile = multiply_tile(pairs, row_blocks, col_blocks, row_block, col_block,
                                                  buffers.of_this_thread(), kept, kept != nullptr);
    const bool diagonal = !pairs.bank && row_block == col_block;
    contrast_coefficients_cpu(tile, rows, candidates, factor, upstream, pairs.bank ? nullptr : &upstream,
                              of_rows, diagonal ? nullptr : of_cols);
    const int64_t height = tile.row_end - tile.row_begin, width = tile.col_end - tile.col_begin;
    if (need_anchors) {
      add_weighted_rows(tile.values, height, width, false, others.values() + tile.col_begin * size, size,
                        anchor_sums + tile.row_begin * size);
    }
    if (pairs.bank ? need_bank : !diagonal) {
      add_weighted_rows(tile.values, height, width, true, anchors.values() + tile.row_begin * size, size,
                        other_sums + tile.col_begin * size);
    }
  };
  if (need_anchors || need_bank) {
    pairs.bank ? for_each_pair(place, row_blocks, col_blocks, add_pair)
               : for_each_unordered_pair(place, row_blocks, add_pair);
  }
  const auto finish = [&](const ContrastRows<Real>& of, Tensor& gradient, const Real* totals) {
    place.for_ranges(of.count, of.grain(), [&](int64_t begin, int64_t end) {
      contrast_finish_gradient_cpu(options.similarity, of.values(), of.scale.data(), totals, size, begin, end,
                                   static_cast<Real*>(gradient.data_ptr()));
    });
    gradient = of.spread(gradient);
  };
  if (need_anchors) finish(anchors, grad_anchors, of_rows);
  if (need_bank) finish(others, grad_bank, of_cols);
  Tensor of_temperature = empty_on(grad, {}, kTypeOf<Real>);
  *static_cast<Real*>(of_temperature.data_ptr()) = Real(grad_temperature);
  return {grad_anchors, grad_bank, of_temperature};
}

}  // namespace

// What the options mean stands with the schema, in library.cpp.
Contrast region_contrast(const Tensor& anchors, const OptionalTensor& bank, const Tensor& anchor_ids,
                         const OptionalTensor& bank_ids, const OptionalTensor& anchor_groups,
                         const OptionalTensor& bank_groups, const OptionalTensor& temperature,
                         double fixed_temperature, std::optional<int64_t> self_offset, int64_t similarity,
                         int64_t denominator, int64_t reduction, bool with_tilt) {
  check_arguments(anchors, bank, anchor_ids, bank_ids, anchor_groups, bank_groups, temperature, self_offset);
  const ContrastOptions options(temperature, fixed_temperature, similarity, denominator, reduction);
  const auto run = [&](auto zero) {
    const ContrastPairs<decltype(zero)> pairs(anchors, bank, anchor_ids, bank_ids, anchor_groups, bank_groups,
                                              self_offset, options.similarity, options.temperature);
    return forward(pairs, options, with_tilt);
  };
  return real_type(anchors) == ScalarType::Double ? run(0.0) : run(0.0f);
}

Three region_contrast_backward(const Tensor& grad, const Tensor& anchors, const OptionalTensor& bank,
                               const Tensor& anchor_ids, const OptionalTensor& bank_ids,
                               const OptionalTensor& anchor_groups, const OptionalTensor& bank_groups,
                               const OptionalTensor& temperature, const Tensor& stats,
                               const Tensor& rows_counted, const OptionalTensor& measured,
                               double fixed_temperature, std::optional<int64_t> self_offset,
                               int64_t similarity, int64_t denominator, int64_t reduction, bool need_anchors,
                               bool need_bank) {
  check_arguments(anchors, bank, anchor_ids, bank_ids, anchor_groups, bank_groups, temperature, self_offset);
  const ContrastOptions options(temperature, fixed_temperature, similarity, denominator, reduction);
  const ScalarType real = real_type(anchors);
  check(!need_bank || bank, "need_bank must be false without a bank");
  check_shape("stats", stats, "(6, M)", {kContrastStats, anchors.size(0)});
  for (const Tensor* kept : {&stats, &rows_counted}) {
    check(kept->scalar_type() == real && kept->is_contiguous() && kept->device() == anchors.device(),
          "stats and rows must be as region_contrast returned them");
  }
  check_shape("rows", rows_counted, "one number", {});
  check_device("grad", grad, "anchors", anchors);
  check_shape("grad", grad, "the shape of loss",
              options.reduction == ContrastReduction::kNone ? Shape{anchors.size(0)} : Shape{});
  const int64_t candidates = (bank ? *bank : anchors).size(0);
  const bool keeps = keeps_products(anchors.size(0), candidates);
  check(!keeps || (measured && has_shape(*measured, {anchors.size(0) * candidates}) &&
                   measured->scalar_type() == real && measured->is_contiguous() &&
                   measured->device() == anchors.device()),
        "measured must be as region_contrast returned it");
  const Tensor grads = contiguous(to(grad, real));
  const auto run = [&](auto zero) {
    const ContrastPairs<decltype(zero)> pairs(anchors, bank, anchor_ids, bank_ids, anchor_groups, bank_groups,
                                              self_offset, options.similarity, options.temperature);
    auto* kept = static_cast<decltype(zero)*>(keeps ? measured->data_ptr() : nullptr);
    return backward(pairs, options, grads, stats, rows_counted, kept, need_anchors, need_bank);
  };
  return real == ScalarType::Double ? run(0.0) : run(0.0f);
}

}  // namespace fastseg
