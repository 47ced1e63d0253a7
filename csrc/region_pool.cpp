// SPDX-License-Identifier: BSD-3-Clause
// region_pool between its doors and its kernels: checks, layouts, results.
#include "region_pool.h"

#include <cstdlib>

#include "huge_pages.h"
#include "ops.h"
#include "place.h"

namespace fastseg {
namespace {

LabelKind label_kind_of(const Tensor& regions) {
  switch (regions.scalar_type()) {
    case ScalarType::Byte:
      return LabelKind::kUint8;
    case ScalarType::Char:
      return LabelKind::kInt8;
    case ScalarType::UInt16:
      return LabelKind::kUint16;
    case ScalarType::Short:
      return LabelKind::kInt16;
    case ScalarType::UInt32:
      return LabelKind::kUint32;
    case ScalarType::Int:
      return LabelKind::kInt32;
    case ScalarType::UInt64:
      return LabelKind::kUint64;
    default:
      check_type(regions.scalar_type() == ScalarType::Long, "regions must be of an integer dtype, got ",
                 regions.scalar_type());
      return LabelKind::kInt64;
  }
}

// regions must be contiguous.
RegionLabels labels_of(const Tensor& regions, int64_t channels, int64_t num_regions, Layout layout) {
  check(num_regions >= 1 && num_regions <= INT32_MAX, "num_regions must be from 1 to 2**31 - 1, got ",
        num_regions);
  return {regions.data_ptr(), label_kind_of(regions),         regions.size(0), channels, regions.numel(1),
          num_regions,        layout == Layout::kChannelsLast};
}

// The tensors a kernel reads, in one layout, and the parameters that point into them.
struct Prepared {
  Tensor features, regions;
  Layout layout;
  RegionLabels labels{};
  RegionFeatures inputs{};
};

Prepared prepare(const Tensor& features, const Tensor& regions, int64_t num_regions) {
  check_floating("features", features);
  check_volume("features", features);
  label_kind_of(regions);
  check_device("regions", regions, "features", features);
  Shape expected = features.shape();
  expected.erase(expected.begin() + 1);
  check_shape("regions", regions, "(B, *S)", expected);
  const Layout layout = layout_of(features);
  Prepared prepared{contiguous(features, layout), contiguous(regions), layout};
  prepared.labels = labels_of(prepared.regions, features.size(1), num_regions, layout);
  prepared.inputs = {prepared.features.data_ptr(), kind_of(features)};
  return prepared;
}

// The tensors of the results; those that the reduction does not ask for are absent.
struct Results {
  Tensor count, mean, variance, minimum, maximum, argmin, argmax;
  RegionResults pointers;
};

Results make_results(const Prepared& prepared, RegionReduce reduce) {
  const RegionLabels& in = prepared.labels;
  const ScalarType real = real_type(prepared.features);
  const bool stats = reduce == RegionReduce::kStats;
  const bool sums = reduce == RegionReduce::kSum || reduce == RegionReduce::kMean;
  const bool variance = stats || reduce == RegionReduce::kVariance;
  const bool minimum = stats || reduce == RegionReduce::kMin, maximum = stats || reduce == RegionReduce::kMax;
  const auto table = [&](bool wanted, ScalarType type) {
    return wanted ? empty_on(prepared.features, {in.batch, in.num_regions, prepared.features.size(1)}, type)
                  : Tensor::absent(prepared.features, type);
  };
  Results results{empty_on(prepared.features, {in.batch, in.num_regions}, ScalarType::Long),
                  table(sums || variance, real),
                  table(variance, real),
                  table(minimum, real),
                  table(maximum, real),
                  table(minimum, ScalarType::Long),
                  table(maximum, ScalarType::Long),
                  {}};
  const auto pointer = [](const Tensor& tensor) { return tensor.numel() ? tensor.data_ptr() : nullptr; };
  results.pointers = {static_cast<int64_t*>(pointer(results.count)),
                      pointer(results.mean),
                      pointer(results.variance),
                      pointer(results.minimum),
                      pointer(results.maximum),
                      static_cast<int64_t*>(pointer(results.argmin)),
                      static_cast<int64_t*>(pointer(results.argmax))};
  return results;
}

// Without channels the voxels are still counted: one channel of anything will do.
Prepared with_a_channel(const Prepared& prepared) {
  if (prepared.labels.channels > 0) return prepared;
  Prepared filled = prepared;
  filled.features = empty_on(prepared.features, {prepared.labels.batch, prepared.labels.voxels},
                             prepared.features.scalar_type());
  filled.inputs.features = filled.features.data_ptr();
  filled.labels.channels = 1;
  filled.labels.channels_last = false;
  return filled;
}

void* pointer(const OptionalTensor& tensor) { return tensor ? tensor->data_ptr() : nullptr; }

void divide_by_counts(const Place& place, const RegionLabels& labels, ScalarKind kind,
                      const RegionShares& shares) {
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    place.launch("region_pool",
                 [&](cudaStream_t stream) { return region_shares_cuda(labels, kind, shares, stream); });
    return;
  }
#endif
  place.for_ranges(labels.batch * labels.num_regions, 256,
                   [&](int64_t begin, int64_t end) { region_shares_cpu(labels, kind, shares, begin, end); });
}

void write_gradient(const Place& place, const RegionLabels& labels, const RegionFeatures& inputs,
                    const RegionGradient& gradient, const Tensor& grad_features) {
  if (grad_features.numel() == 0) return;
  void* const out = grad_features.data_ptr();
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    place.launch("region_pool", [&](cudaStream_t stream) {
      return region_gradient_cuda(labels, inputs, gradient, out, stream);
    });
    return;
  }
#endif
  prefer_huge_pages(out, grad_features.numel() * grad_features.element_size());
  place.for_ranges(region_gradient_tasks_cpu(labels), 1, [&](int64_t begin, int64_t end) {
    region_gradient_cpu(labels, inputs, gradient, begin, end, out);
  });
  if (gradient.grad_minimum == nullptr && gradient.grad_maximum == nullptr) return;
  place.for_ranges(labels.batch * labels.num_regions, 256, [&](int64_t begin, int64_t end) {
    region_gradient_extrema_cpu(labels, inputs, gradient, begin, end, out);
  });
}

}  // namespace

RegionPool region_pool(const Tensor& features, const Tensor& regions, int64_t num_regions, int64_t reduce) {
  const Place place(features);
  const RegionReduce mode = check_option("reduce", reduce, RegionReduce::kStats);
  const Prepared given = prepare(features, regions, num_regions);
  const Results results = make_results(given, mode);
  const Prepared prepared = with_a_channel(given);
  const RegionLabels& labels = prepared.labels;
  const RegionPool found{results.mean,  results.variance, results.minimum, results.maximum,
                         results.count, results.argmin,   results.argmax};
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    const auto bytes = int64_t(region_pool_scratch_cuda(labels, prepared.inputs, mode));
    const Tensor scratch = empty_on(features, {bytes}, ScalarType::Byte);
    place.launch("region_pool", [&](cudaStream_t stream) {
      return region_pool_cuda(labels, prepared.inputs, mode, results.pointers, scratch.data_ptr(), stream);
    });
    return found;
  }
#endif
  const RegionUnits units = region_pool_units_cpu(labels, prepared.inputs, mode);
  const std::unique_ptr<char, void (*)(void*)> tables(
      static_cast<char*>(std::aligned_alloc(64, std::max<size_t>(64, units.units * units.unit_bytes))),
      std::free);
  if (tables == nullptr) throw std::bad_alloc();
  place.for_ranges(units.units, 1, [&](int64_t begin, int64_t end) {
    region_pool_cpu(labels, prepared.inputs, mode, units, begin, end, tables.get());
  });
  place.for_ranges(labels.batch * num_regions, 256, [&](int64_t begin, int64_t end) {
    region_pool_merge_cpu(labels, prepared.inputs, mode, units, tables.get(), results.pointers, begin, end);
  });
  return found;
}

// What each gradient needs stands with the schema, in library.cpp.
Tensor region_pool_backward(const Tensor& regions, int64_t kind, bool channels_last,
                            const OptionalTensor& features, const OptionalTensor& mean,
                            const OptionalTensor& count, const OptionalTensor& argmin,
                            const OptionalTensor& argmax, const OptionalTensor& grad_mean,
                            const OptionalTensor& grad_variance, const OptionalTensor& grad_minimum,
                            const OptionalTensor& grad_maximum) {
  constexpr ScalarType kTypes[] = {ScalarType::Byte, ScalarType::Float, ScalarType::Double,
                                   ScalarType::BFloat16, ScalarType::Half};
  const Place place(regions);
  check(kind >= 1 && kind <= 4, "kind must be 1 (float32), 2 (float64), 3 (bfloat16) or 4 (float16), got ",
        kind);
  check(regions.dim() >= 2 && regions.dim() <= 4, "regions must be (B, *S) with 1 to 3 spatial axes, got ",
        regions);
  check(!channels_last || regions.dim() >= 3, "channels_last needs 2 or 3 spatial axes");
  const OptionalTensor* given = nullptr;
  for (const auto* grad : {&grad_mean, &grad_variance, &grad_minimum, &grad_maximum}) {
    if (*grad && given == nullptr) given = grad;
  }
  check(given != nullptr, "one of the gradients must be given");
  check((*given)->dim() == 3, "gradients must be (B, R, C), got ", **given);
  check(!grad_variance || (features && mean && count), "grad_variance needs features, mean and count");
  check(!grad_minimum || argmin, "grad_minimum needs argmin");
  check(!grad_maximum || argmax, "grad_maximum needs argmax");

  const ScalarType type = kTypes[kind], real = real_type(type);
  const Layout layout = channels_last ? Layout::kChannelsLast : Layout::kContiguous;
  const Tensor lying = contiguous(regions);
  const Shape rows{regions.size(0), (*given)->size(1)}, entries{rows[0], rows[1], (*given)->size(2)};
  const RegionLabels labels = labels_of(lying, entries[2], entries[1], layout);
  const auto table = [&](const char* name, const OptionalTensor& found, ScalarType of, const Shape& shape,
                         const char* meaning) -> OptionalTensor {
    if (!found) return std::nullopt;
    check_device(name, *found, "regions", regions);
    check_shape(name, *found, meaning, shape);
    return contiguous(to(*found, of));
  };
  const auto of_channels = [&](const char* name, const OptionalTensor& found, ScalarType of) {
    return table(name, found, of, entries, "(B, R, C)");
  };
  const OptionalTensor tables[] = {of_channels("grad_mean", grad_mean, real),
                                   of_channels("grad_variance", grad_variance, real),
                                   of_channels("mean", mean, real),
                                   of_channels("grad_minimum", grad_minimum, real),
                                   of_channels("grad_maximum", grad_maximum, real),
                                   of_channels("argmin", argmin, ScalarType::Long),
                                   of_channels("argmax", argmax, ScalarType::Long),
                                   table("count", count, ScalarType::Long, rows, "(B, R)")};
  RegionGradient gradient{pointer(tables[0]),
                          pointer(tables[1]),
                          pointer(tables[2]),
                          pointer(tables[3]),
                          pointer(tables[4]),
                          static_cast<const int64_t*>(pointer(tables[5])),
                          static_cast<const int64_t*>(pointer(tables[6]))};
  std::optional<Scratch> shares;
  if (count && (grad_mean || grad_variance)) {
    const int64_t size = real == ScalarType::Double ? 8 : 4;
    const int64_t bytes = (rows[0] * rows[1] * entries[2] * size + 63) / 64 * 64;
    shares.emplace(place, regions, 2 * bytes);
    auto* const base = static_cast<char*>(shares->data());
    divide_by_counts(
        place, labels, ScalarKind(kind),
        {static_cast<const int64_t*>(pointer(tables[7])), gradient.base, gradient.slope, base, base + bytes});
    if (grad_mean) gradient.base = base;
    if (grad_variance) gradient.slope = base + bytes;
  }
  Shape shape = regions.shape();
  shape.insert(shape.begin() + 1, entries[2]);
  OptionalTensor values;
  if (grad_variance) {
    check_type(features->scalar_type() == type, "features must be ", type, ", got ", features->scalar_type());
    check_device("features", *features, "regions", regions);
    check_shape("features", *features, "(B, C, *S)", shape);
    values = contiguous(*features, layout);
  }
  const Tensor grad_features = empty_on(regions, shape, type, layout);
  write_gradient(place, labels, {pointer(values), ScalarKind(kind)}, gradient, grad_features);
  return grad_features;
}

}  // namespace fastseg
