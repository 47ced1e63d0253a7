// SPDX-License-Identifier: BSD-3-Clause
// region_pool between its doors and its kernels, backward.
#include "huge_pages.h"
#include "region_pool_inputs.h"

namespace fastseg {
namespace {

// A table as the kernels read it, or none.
OptionalTensor table_of(const char* name, const OptionalTensor& table, const Shape& shape,
                        const Tensor& regions, ScalarType type) {
  if (!table) return std::nullopt;
  check_device(name, *table, "regions", regions);
  check_shape(name, *table, "(B, R, C)", shape);
  return contiguous(to(*table, type));
}

void* pointer(const OptionalTensor& tensor) { return tensor ? tensor->data_ptr() : nullptr; }

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

// The gradient of a sum. kind is a ScalarKind, that of the result.
Tensor region_gather(const Tensor& table, const Tensor& regions, int64_t kind, bool channels_last) {
  constexpr ScalarType kTypes[] = {ScalarType::Byte, ScalarType::Float, ScalarType::Double,
                                   ScalarType::BFloat16, ScalarType::Half};
  const Place place(regions);
  check(kind >= 1 && kind <= 4, "kind must be 1 (float32), 2 (float64), 3 (bfloat16) or 4 (float16), got ",
        kind);
  check(table.dim() == 3, "table must be (B, R, C), got ", table);
  check(regions.dim() >= 2 && regions.dim() <= 4, "regions must be (B, *S) with 1 to 3 spatial axes, got ",
        regions);
  check(!channels_last || regions.dim() >= 3, "channels_last needs 2 or 3 spatial axes");
  const Layout layout = channels_last ? Layout::kChannelsLast : Layout::kContiguous;
  const Tensor lying = contiguous(regions);
  const int64_t batch = regions.size(0), num_regions = table.size(1), channels = table.size(2);
  const RegionLabels labels = labels_of(lying, channels, num_regions, layout);
  const OptionalTensor base =
      table_of("table", table, {batch, num_regions, channels}, regions, real_type(kTypes[kind]));
  RegionGradient gradient{};
  gradient.base = pointer(base);
  Shape shape = regions.shape();
  shape.insert(shape.begin() + 1, channels);
  const Tensor grad_features = empty_on(regions, shape, kTypes[kind], layout);
  write_gradient(place, labels, {nullptr, ScalarKind(kind)}, gradient, grad_features);
  return grad_features;
}

// The tables are those of RegionGradient.
Tensor region_pool_backward(const Tensor& features, const Tensor& regions, int64_t num_regions,
                            const OptionalTensor& base, const OptionalTensor& slope,
                            const OptionalTensor& mean, const OptionalTensor& grad_minimum,
                            const OptionalTensor& grad_maximum, const OptionalTensor& argmin,
                            const OptionalTensor& argmax) {
  const Place place(features);
  const RegionPrepared prepared = prepare_regions(features, regions, num_regions);
  check(!slope || mean, "slope needs mean");
  check(!grad_minimum || argmin, "grad_minimum needs argmin");
  check(!grad_maximum || argmax, "grad_maximum needs argmax");
  const auto table = [&](const char* name, const OptionalTensor& given, ScalarType type) {
    return table_of(name, given, {features.size(0), num_regions, features.size(1)}, regions, type);
  };
  const ScalarType real = real_type(features);
  const OptionalTensor tables[] = {table("base", base, real),
                                   table("slope", slope, real),
                                   table("mean", mean, real),
                                   table("grad_minimum", grad_minimum, real),
                                   table("grad_maximum", grad_maximum, real),
                                   table("argmin", argmin, ScalarType::Long),
                                   table("argmax", argmax, ScalarType::Long)};
  const RegionGradient gradient{pointer(tables[0]),
                                pointer(tables[1]),
                                pointer(tables[2]),
                                pointer(tables[3]),
                                pointer(tables[4]),
                                static_cast<const int64_t*>(pointer(tables[5])),
                                static_cast<const int64_t*>(pointer(tables[6]))};
  const Tensor grad_features = empty_on(features, features.shape(), features.scalar_type(), prepared.layout);
  write_gradient(place, prepared.labels, prepared.inputs, gradient, grad_features);
  return grad_features;
}

}  // namespace fastseg
