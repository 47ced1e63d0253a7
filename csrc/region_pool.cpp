// SPDX-License-Identifier: BSD-3-Clause
// Torch glue of region_pool: schemas, checks, allocation, and the CPU and CUDA registrations.
#include "region_pool.h"

#include <torch/csrc/stable/library.h>

#include <memory>
#include <tuple>

#include "checks.h"
#include "huge_pages.h"

#if defined(FASTSEG_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace fastseg {
namespace {

namespace stable = torch::stable;

using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

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
      check(regions.scalar_type() == ScalarType::Long, "regions must be of an integer dtype, got ",
            torch::headeronly::toString(regions.scalar_type()));
      return LabelKind::kInt64;
  }
}

ScalarType real_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

MemoryFormat format_of(bool channels_last, int64_t dim) {
  return !channels_last ? MemoryFormat::Contiguous
         : dim == 4     ? MemoryFormat::ChannelsLast
                        : MemoryFormat::ChannelsLast3d;
}

RegionLabels labels_of(const Tensor& regions, int64_t channels, int64_t num_regions, bool channels_last) {
  check(num_regions >= 1 && num_regions <= INT32_MAX, "num_regions must be from 1 to 2^31 - 1, got ",
        num_regions);
  int64_t voxels = 1;
  for (int64_t axis = 1; axis < regions.dim(); ++axis) voxels *= regions.size(axis);
  return {regions.data_ptr(), label_kind_of(regions), regions.size(0), channels, voxels,
          num_regions,        channels_last};
}

// The tensors a kernel reads, in one layout, and the parameters that point into them.
struct Prepared {
  Tensor features, regions;
  MemoryFormat format;
  RegionLabels labels;
  RegionFeatures inputs;
};

Prepared prepare(const Tensor& features, const Tensor& regions, int64_t num_regions) {
  check_floating("features", features);
  check(features.dim() >= 3 && features.dim() <= 5,
        "features must be (B, C, *S) with 1 to 3 spatial axes, got ", to_string(shape_of(features)));
  check(regions.device() == features.device(), "regions must be on the device of features");
  Shape expected = shape_of(features);
  expected.erase(expected.begin() + 1);
  check_shape("regions", regions, "(B, *S)", expected);
  const bool channels_last = !features.is_contiguous() && is_channels_last(features);
  const MemoryFormat format = format_of(channels_last, features.dim());
  Prepared prepared{stable::contiguous(features, format), stable::contiguous(regions), format, {}, {}};
  prepared.labels = labels_of(prepared.regions, features.size(1), num_regions, channels_last);
  prepared.inputs = {prepared.features.data_ptr(), kind_of(features)};
  return prepared;
}

// The tensors of the results; those that the reduction does not ask for are empty.
struct Results {
  Tensor count, mean, variance, minimum, maximum, argmin, argmax;
  RegionResults pointers;
};

Results make_results(const Prepared& prepared, RegionReduce reduce) {
  const RegionLabels& in = prepared.labels;
  const ScalarType real = real_type(prepared.features.scalar_type());
  const bool stats = reduce == RegionReduce::kStats;
  const bool sums = reduce == RegionReduce::kSum || reduce == RegionReduce::kMean;
  const bool variance = stats || reduce == RegionReduce::kVariance;
  const bool minimum = stats || reduce == RegionReduce::kMin, maximum = stats || reduce == RegionReduce::kMax;
  const auto table = [&](bool wanted, ScalarType type) {
    return empty_on(prepared.features,
                    wanted ? Shape{in.batch, in.num_regions, prepared.features.size(1)} : Shape{0}, type);
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

RegionReduce reduce_of(int64_t reduce) {
  check(reduce >= 0 && reduce <= int64_t(RegionReduce::kStats),
        "reduce must be 0 (sum), 1 (mean), 2 (var), 3 (min), 4 (max) or 5 (all), got ", reduce);
  return RegionReduce(reduce);
}

Seven as_tuple(const Results& r) {
  return {r.mean, r.variance, r.minimum, r.maximum, r.count, r.argmin, r.argmax};
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

Seven region_pool_cpu_op(const Tensor& features, const Tensor& regions, int64_t num_regions, int64_t mode) {
  const RegionReduce reduce = reduce_of(mode);
  const Prepared given = prepare(features, regions, num_regions);
  const Results results = make_results(given, reduce);
  const Prepared prepared = with_a_channel(given);
  const RegionLabels& labels = prepared.labels;
  const RegionUnits units = region_pool_units_cpu(labels, prepared.inputs, reduce);
  const std::unique_ptr<char, void (*)(void*)> tables(
      static_cast<char*>(std::aligned_alloc(64, std::max<size_t>(64, units.units * units.unit_bytes))),
      std::free);
  check(tables != nullptr, "region_pool: no memory for ", units.units * units.unit_bytes, " bytes");
  stable::parallel_for(0, units.units, 1, [&](int64_t begin, int64_t end) {
    region_pool_cpu(labels, prepared.inputs, reduce, units, begin, end, tables.get());
  });
  stable::parallel_for(0, labels.batch * num_regions, 256, [&](int64_t begin, int64_t end) {
    region_pool_merge_cpu(labels, prepared.inputs, reduce, units, tables.get(), results.pointers, begin, end);
  });
  return as_tuple(results);
}

// What a gradient is written into, and from which tables.
struct Gradient {
  Tensor features, regions, grad_features;
  std::vector<Tensor> tables;
  RegionLabels labels;
  RegionFeatures inputs;
  RegionGradient pointers;
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
  check(table.dim() == 3, "table must be (B, R, C), got ", to_string(shape_of(table)));
  check(regions.dim() >= 2 && regions.dim() <= 4, "regions must be (B, *S) with 1 to 3 spatial axes, got ",
        to_string(shape_of(regions)));
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
void check_launch(cudaError_t status) {
  check(status == cudaSuccess, "region_pool: CUDA launch failed: ", cudaGetErrorString(status));
}

cudaStream_t stream_of(const Tensor& tensor) {
  return static_cast<cudaStream_t>(current_cuda_stream(tensor.get_device_index()));
}

Seven region_pool_cuda_op(const Tensor& features, const Tensor& regions, int64_t num_regions, int64_t mode) {
  const stable::accelerator::DeviceGuard guard(features.get_device_index());
  const RegionReduce reduce = reduce_of(mode);
  const Prepared given = prepare(features, regions, num_regions);
  const Results results = make_results(given, reduce);
  const Prepared prepared = with_a_channel(given);
  const size_t bytes = region_pool_scratch_cuda(prepared.labels, prepared.inputs, reduce);
  const Tensor scratch = empty_on(features, {int64_t(bytes)}, ScalarType::Byte);
  check_launch(region_pool_cuda(prepared.labels, prepared.inputs, reduce, results.pointers,
                                scratch.data_ptr(), stream_of(features)));
  return as_tuple(results);
}

Tensor write_gradient_cuda(const Gradient& gradient) {
  if (gradient.grad_features.numel() > 0) {
    check_launch(region_gradient_cuda(gradient.labels, gradient.inputs, gradient.pointers,
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

// reduce is a RegionReduce, kind a ScalarKind. Results that reduce does not ask for have shape (0,); `mean`
// is the sum for kSum. The gradient's tables are those of RegionGradient.
STABLE_TORCH_LIBRARY_FRAGMENT(fastseg, library) {
  library.def(
      "region_pool(Tensor features, Tensor regions, int num_regions, int reduce) -> (Tensor mean, Tensor "
      "variance, Tensor minimum, Tensor maximum, Tensor count, Tensor argmin, Tensor argmax)");
  library.def("region_gather(Tensor table, Tensor regions, int kind, bool channels_last) -> Tensor");
  library.def(
      "region_pool_backward(Tensor features, Tensor regions, int num_regions, Tensor? base, Tensor? slope, "
      "Tensor? mean, Tensor? grad_minimum, Tensor? grad_maximum, Tensor? argmin, Tensor? argmax) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, library) {
  library.impl("region_pool", TORCH_BOX(&region_pool_cpu_op));
  library.impl("region_gather", TORCH_BOX(&region_gather_cpu_op));
  library.impl("region_pool_backward", TORCH_BOX(&region_pool_backward_cpu_op));
}

#if defined(FASTSEG_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, library) {
  library.impl("region_pool", TORCH_BOX(&region_pool_cuda_op));
  library.impl("region_gather", TORCH_BOX(&region_gather_cuda_op));
  library.impl("region_pool_backward", TORCH_BOX(&region_pool_backward_cuda_op));
}
#endif

}  // namespace fastseg
