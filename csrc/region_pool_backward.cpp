// SPDX-License-Identifier: BSD-3-Clause
// Torch glue of region_pool, backward: schemas, allocation, and the CPU and CUDA registrations.
#include "huge_pages.h"
#include "region_pool_inputs.h"

namespace fastseg {
namespace {

// What a gradient is written into, and from which tables.
struct Gradient {
  Tensor features, regions, grad_features;
  std::vector<Tensor> tables;
  RegionLabels labels{};
  RegionFeatures inputs{};
  RegionGradient pointers{};
};

const void* add_table(Gradient& gradient, const char* name, const OptionalTensor& table, const Shape& shape,
                      ScalarType type) {
  if (!table) return nullptr;
  check(table->device() == gradient.regions.device(), name, " must be on the device of regions");
  check_shape(name, *table, "(B, R, C)", shape);
  gradient.tables.push_back(stable::contiguous(stable::to(*table, type)));
  return gradient.tables.back().data_ptr();
}

Gradient prepare_gather(const Tensor& table, const Tensor& regions, int64_t kind, bool channels_last) {
  constexpr ScalarType kTypes[] = {ScalarType::Byte, ScalarType::Float, ScalarType::Double,
                                   ScalarType::BFloat16, ScalarType::Half};
  check(kind >= 1 && kind <= 4, "kind must be 1 (float32), 2 (float64), 3 (bfloat16) or 4 (float16), got ",
        kind);
  check(table.dim() == 3, "table must be (B, R, C), got ", table);
  check(regions.dim() >= 2 && regions.dim() <= 4, "regions must be (B, *S) with 1 to 3 spatial axes, got ",
        regions);
  check(!channels_last || regions.dim() >= 3, "channels_last needs 2 or 3 spatial axes");
  Gradient gradient;
  gradient.regions = stable::contiguous(regions);
  Shape shape = shape_of(regions);
  const Shape table_shape = {shape[0], table.size(1), table.size(2)};
  shape.insert(shape.begin() + 1, table.size(2));
  gradient.labels = labels_of(gradient.regions, table.size(2), table.size(1), channels_last);
  gradient.inputs = {nullptr, ScalarKind(kind)};
  gradient.pointers.base = add_table(gradient, "table", table, table_shape, real_type(kTypes[kind]));
  gradient.grad_features =
      empty_on(regions, shape, kTypes[kind], format_of(channels_last, int64_t(shape.size())));
  return gradient;
}

Gradient prepare_gradient(const Tensor& features, const Tensor& regions, int64_t num_regions,
                          const OptionalTensor& base, const OptionalTensor& slope, const OptionalTensor& mean,
                          const OptionalTensor& grad_minimum, const OptionalTensor& grad_maximum,
                          const OptionalTensor& argmin, const OptionalTensor& argmax) {
  const Prepared prepared = prepare(features, regions, num_regions);
  check(!slope || mean, "slope needs mean");
  check(!grad_minimum || argmin, "grad_minimum needs argmin");
  check(!grad_maximum || argmax, "grad_maximum needs argmax");
  Gradient gradient;
  gradient.features = prepared.features;
  gradient.regions = prepared.regions;
  gradient.labels = prepared.labels;
  gradient.inputs = prepared.inputs;
  const Shape shape = {features.size(0), num_regions, features.size(1)};
  const ScalarType real = real_type(features.scalar_type());
  RegionGradient& to = gradient.pointers;
  to.base = add_table(gradient, "base", base, shape, real);
  to.slope = add_table(gradient, "slope", slope, shape, real);
  to.mean = add_table(gradient, "mean", mean, shape, real);
  to.grad_minimum = add_table(gradient, "grad_minimum", grad_minimum, shape, real);
  to.grad_maximum = add_table(gradient, "grad_maximum", grad_maximum, shape, real);
  to.argmin = static_cast<const int64_t*>(add_table(gradient, "argmin", argmin, shape, ScalarType::Long));
  to.argmax = static_cast<const int64_t*>(add_table(gradient, "argmax", argmax, shape, ScalarType::Long));
  gradient.grad_features = empty_on(features, shape_of(features), features.scalar_type(), prepared.format);
  return gradient;
}

Tensor write_gradient_cpu(const Gradient& gradient) {
  const RegionLabels& labels = gradient.labels;
  void* out = gradient.grad_features.data_ptr();
  if (gradient.grad_features.numel() == 0) return gradient.grad_features;
  prefer_huge_pages(out, gradient.grad_features.numel() * gradient.grad_features.element_size());
  stable::parallel_for(0, region_gradient_tasks_cpu(labels), 1, [&](int64_t begin, int64_t end) {
    region_gradient_cpu(labels, gradient.inputs, gradient.pointers, begin, end, out);
  });
  if (gradient.pointers.grad_minimum || gradient.pointers.grad_maximum) {
    stable::parallel_for(0, labels.batch * labels.num_regions, 256, [&](int64_t begin, int64_t end) {
      region_gradient_extrema_cpu(labels, gradient.inputs, gradient.pointers, begin, end, out);
    });
  }
  return gradient.grad_features;
}

Tensor region_gather_cpu_op(const Tensor& table, const Tensor& regions, int64_t kind, bool channels_last) {
  return write_gradient_cpu(prepare_gather(table, regions, kind, channels_last));
}

Tensor region_pool_backward_cpu_op(const Tensor& features, const Tensor& regions, int64_t num_regions,
                                   const OptionalTensor& base, const OptionalTensor& slope,
                                   const OptionalTensor& mean, const OptionalTensor& grad_minimum,
                                   const OptionalTensor& grad_maximum, const OptionalTensor& argmin,
                                   const OptionalTensor& argmax) {
  return write_gradient_cpu(prepare_gradient(features, regions, num_regions, base, slope, mean, grad_minimum,
                                             grad_maximum, argmin, argmax));
}

#if defined(FASTSEG_WITH_CUDA)
Tensor write_gradient_cuda(const Gradient& gradient) {
  if (gradient.grad_features.numel() > 0) {
    check_launch("region_pool",
                 region_gradient_cuda(gradient.labels, gradient.inputs, gradient.pointers,
                                      gradient.grad_features.data_ptr(), stream_of(gradient.regions)));
  }
  return gradient.grad_features;
}

Tensor region_gather_cuda_op(const Tensor& table, const Tensor& regions, int64_t kind, bool channels_last) {
  const stable::accelerator::DeviceGuard guard(regions.get_device_index());
  return write_gradient_cuda(prepare_gather(table, regions, kind, channels_last));
}

Tensor region_pool_backward_cuda_op(const Tensor& features, const Tensor& regions, int64_t num_regions,
                                    const OptionalTensor& base, const OptionalTensor& slope,
                                    const OptionalTensor& mean, const OptionalTensor& grad_minimum,
                                    const OptionalTensor& grad_maximum, const OptionalTensor& argmin,
                                    const OptionalTensor& argmax) {
  const stable::accelerator::DeviceGuard guard(features.get_device_index());
  return write_gradient_cuda(prepare_gradient(features, regions, num_regions, base, slope, mean, grad_minimum,
                                              grad_maximum, argmin, argmax));
}
#endif

}  // namespace

// kind is a ScalarKind; the tables are those of RegionGradient. region_gather is the gradient of a sum.
STABLE_TORCH_LIBRARY_FRAGMENT(fastseg, library) {
  library.def("region_gather(Tensor table, Tensor regions, int kind, bool channels_last) -> Tensor");
  library.def(
      "region_pool_backward(Tensor features, Tensor regions, int num_regions, Tensor? base, Tensor? slope, "
      "Tensor? mean, Tensor? grad_minimum, Tensor? grad_maximum, Tensor? argmin, Tensor? argmax) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, library) {
  library.impl("region_gather", TORCH_BOX(&region_gather_cpu_op));
  library.impl("region_pool_backward", TORCH_BOX(&region_pool_backward_cpu_op));
}

#if defined(FASTSEG_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, library) {
  library.impl("region_gather", TORCH_BOX(&region_gather_cuda_op));
  library.impl("region_pool_backward", TORCH_BOX(&region_pool_backward_cuda_op));
}
#endif

}  // namespace fastseg
