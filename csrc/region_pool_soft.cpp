// SPDX-License-Identifier: BSD-3-Clause
// Torch glue of soft region_pool: schemas, checks, allocation, and the CPU and CUDA registrations.
#include "region_pool_soft.h"

#include <tuple>

#include "checks.h"
#include "huge_pages.h"

#if defined(FASTSEG_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace fastseg {
namespace {

namespace stable = torch::stable;

using Three = std::tuple<Tensor, Tensor, Tensor>;

MemoryFormat layout_of(const Tensor& tensor) {
  return tensor.is_contiguous() || !is_channels_last(tensor) ? MemoryFormat::Contiguous
         : tensor.dim() == 4                                 ? MemoryFormat::ChannelsLast
                                                             : MemoryFormat::ChannelsLast3d;
}

// The tensors a kernel reads, each in its own layout, and the parameters that point into them.
struct Prepared {
  Tensor features, grey, assignment;
  MemoryFormat layouts[3];
  SoftInputs inputs{};
  ScalarType real;
};

void check_like_features(const char* name, const Tensor& tensor, const Tensor& features) {
  check_floating(name, tensor);
  check(tensor.device() == features.device(), name, " must be on the device of features");
  Shape expected = shape_of(features);
  if (tensor.dim() > 1) expected[1] = tensor.size(1);
  check_shape(name, tensor, "(B, any, *S)", expected);
}

Prepared prepare(const Tensor& features, const OptionalTensor& grey, const Tensor& assignment,
                 bool from_logits, bool variance) {
  check_floating("features", features);
  check(features.dim() >= 3 && features.dim() <= 5,
        "features must be (B, C, *S) with 1 to 3 spatial axes, got ", features);
  check_like_features("assignment", assignment, features);
  if (grey) check_like_features("grey", *grey, features);
  check(assignment.size(1) >= 1 && assignment.size(1) <= kMaxSoftParts, "assignment must have 1 to ",
        kMaxSoftParts, " parts, got ", assignment.size(1));
  Prepared prepared{};
  const auto lay_out = [&](const Tensor& tensor, Tensor& kept, MemoryFormat& layout) -> SoftMap {
    layout = layout_of(tensor);
    kept = stable::contiguous(tensor, layout);
    return {kept.data_ptr(), kind_of(tensor), tensor.size(1), layout != MemoryFormat::Contiguous};
  };
  SoftInputs& in = prepared.inputs;
  in.features = lay_out(features, prepared.features, prepared.layouts[0]);
  in.grey = {nullptr, ScalarKind::kFloat32, 0, false};
  if (grey) in.grey = lay_out(*grey, prepared.grey, prepared.layouts[1]);
  in.assignment = lay_out(assignment, prepared.assignment, prepared.layouts[2]);
  in.batch = features.size(0);
  in.voxels = 1;
  for (int64_t axis = 2; axis < features.dim(); ++axis) in.voxels *= features.size(axis);
  in.channels = in.features.rows + in.grey.rows;
  in.parts = in.assignment.rows;
  in.plain = variance ? 0 : in.features.rows;  // a grey image always has its variance
  in.from_logits = from_logits;
  in.wide = in.features.kind == ScalarKind::kFloat64 || in.assignment.kind == ScalarKind::kFloat64 ||
            in.grey.kind == ScalarKind::kFloat64;
  prepared.real = in.wide ? ScalarType::Double : ScalarType::Float;
  return prepared;
}

struct Results {
  Tensor mass, mean, variance;
  SoftResults pointers;
};

Results make_results(const Prepared& prepared) {
  const SoftInputs& in = prepared.inputs;
  const auto table = [&](const Shape& shape) { return empty_on(prepared.features, shape, prepared.real); };
  Results results{table({in.batch, in.parts}),
                  table({in.batch, in.parts, in.channels}),
                  table({in.batch, in.parts, in.channels - in.plain}),
                  {}};
  results.pointers = {results.mass.data_ptr(), results.mean.data_ptr(), results.variance.data_ptr()};
  return results;
}

Three soft_region_pool_cpu(const Tensor& features, const OptionalTensor& grey, const Tensor& assignment,
                           bool from_logits, bool variance) {
  const Prepared prepared = prepare(features, grey, assignment, from_logits, variance);
  const Results results = make_results(prepared);
  const SoftUnits units = soft_pool_units_cpu(prepared.inputs);
  std::vector<double> tables(units.units * units.unit_doubles);
  stable::parallel_for(0, units.units, 1, [&](int64_t begin, int64_t end) {
    soft_pool_cpu(prepared.inputs, units, begin, end, tables.data());
  });
  soft_pool_merge_cpu(prepared.inputs, units, tables.data(), results.pointers);
  return {results.mass, results.mean, results.variance};
}

// The tables of the gradient as the kernels want them, and the tensors it is written into.
struct Gradient {
  Tensor direct, curved, shift, offset;
  Tensor grads[3];
  SoftGradient pointers;
};

Gradient prepare_gradient(const Prepared& prepared, const Tensor& direct, const Tensor& curved,
                          const Tensor& shift, const Tensor& offset, bool of_features, bool of_grey,
                          bool of_assignment) {
  const SoftInputs& in = prepared.inputs;
  const auto table = [&](const char* name, const Tensor& tensor, const Shape& shape) {
    check(tensor.device() == prepared.features.device(), name, " must be on the device of features");
    check_shape(name, tensor, "a table", shape);
    return stable::contiguous(stable::to(tensor, prepared.real));
  };
  check(!of_grey || in.grey.values, "there is no grey to give a gradient for");
  Gradient gradient{table("direct", direct, {in.batch, in.parts, in.channels}),
                    table("curved", curved, {in.batch, in.parts, in.channels - in.plain}),
                    table("shift", shift, {in.batch, in.channels}),
                    table("offset", offset, {in.batch, in.parts}),
                    {},
                    {}};
  const Tensor* tensors[3] = {&prepared.features, &prepared.grey, &prepared.assignment};
  const bool wanted[3] = {of_features, of_grey, of_assignment};
  void* pointers[3] = {};
  for (int i = 0; i < 3; ++i) {
    if (!wanted[i]) {
      gradient.grads[i] = empty_on(prepared.features, {0}, prepared.real);
      continue;
    }
    gradient.grads[i] =
        empty_on(*tensors[i], shape_of(*tensors[i]), tensors[i]->scalar_type(), prepared.layouts[i]);
    pointers[i] = gradient.grads[i].data_ptr();
  }
  gradient.pointers = {gradient.direct.data_ptr(),
                       gradient.curved.data_ptr(),
                       gradient.shift.data_ptr(),
                       gradient.offset.data_ptr(),
                       pointers[0],
                       pointers[1],
                       pointers[2]};
  return gradient;
}

Three soft_region_pool_backward_cpu(const Tensor& features, const OptionalTensor& grey,
                                    const Tensor& assignment, bool from_logits, bool variance,
                                    const Tensor& direct, const Tensor& curved, const Tensor& shift,
                                    const Tensor& offset, bool of_features, bool of_grey,
                                    bool of_assignment) {
  const Prepared prepared = prepare(features, grey, assignment, from_logits, variance);
  const Gradient gradient =
      prepare_gradient(prepared, direct, curved, shift, offset, of_features, of_grey, of_assignment);
  for (const Tensor& grad : gradient.grads) {
    if (grad.numel() > 0) prefer_huge_pages(grad.data_ptr(), grad.numel() * grad.element_size());
  }
  stable::parallel_for(0, soft_gradient_tasks_cpu(prepared.inputs), 1, [&](int64_t begin, int64_t end) {
    soft_gradient_cpu(prepared.inputs, gradient.pointers, begin, end);
  });
  return {gradient.grads[0], gradient.grads[1], gradient.grads[2]};
}

#if defined(FASTSEG_WITH_CUDA)
Three soft_region_pool_cuda(const Tensor& features, const OptionalTensor& grey, const Tensor& assignment,
                            bool from_logits, bool variance) {
  const stable::accelerator::DeviceGuard guard(features.get_device_index());
  const Prepared prepared = prepare(features, grey, assignment, from_logits, variance);
  const Results results = make_results(prepared);
  const Tensor scratch =
      empty_on(features, {int64_t(soft_pool_scratch_cuda(prepared.inputs))}, ScalarType::Byte);
  check_launch("region_pool",
               soft_pool_cuda(prepared.inputs, results.pointers, scratch.data_ptr(), stream_of(features)));
  return {results.mass, results.mean, results.variance};
}

Three soft_region_pool_backward_cuda(const Tensor& features, const OptionalTensor& grey,
                                     const Tensor& assignment, bool from_logits, bool variance,
                                     const Tensor& direct, const Tensor& curved, const Tensor& shift,
                                     const Tensor& offset, bool of_features, bool of_grey,
                                     bool of_assignment) {
  const stable::accelerator::DeviceGuard guard(features.get_device_index());
  const Prepared prepared = prepare(features, grey, assignment, from_logits, variance);
  const Gradient gradient =
      prepare_gradient(prepared, direct, curved, shift, offset, of_features, of_grey, of_assignment);
  const Tensor scratch =
      empty_on(features, {int64_t(soft_gradient_scratch_cuda(prepared.inputs))}, ScalarType::Byte);
  check_launch("region_pool", soft_gradient_cuda(prepared.inputs, gradient.pointers, scratch.data_ptr(),
                                                 stream_of(features)));
  return {gradient.grads[0], gradient.grads[1], gradient.grads[2]};
}
#endif

}  // namespace

// mean has the channels of features and then those of grey; variance only those of grey unless asked for. The
// tables of the gradient are those of SoftGradient; gradients that are not wanted have shape (0,).
STABLE_TORCH_LIBRARY_FRAGMENT(fastseg, library) {
  library.def(
      "soft_region_pool(Tensor features, Tensor? grey, Tensor assignment, bool from_logits, bool variance) "
      "-> "
      "(Tensor mass, Tensor mean, Tensor variance)");
  library.def(
      "soft_region_pool_backward(Tensor features, Tensor? grey, Tensor assignment, bool from_logits, bool "
      "variance, Tensor direct, Tensor curved, Tensor shift, Tensor offset, bool of_features, bool of_grey, "
      "bool "
      "of_assignment) -> (Tensor grad_features, Tensor grad_grey, Tensor grad_assignment)");
}

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, library) {
  library.impl("soft_region_pool", TORCH_BOX(&soft_region_pool_cpu));
  library.impl("soft_region_pool_backward", TORCH_BOX(&soft_region_pool_backward_cpu));
}

#if defined(FASTSEG_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, library) {
  library.impl("soft_region_pool", TORCH_BOX(&soft_region_pool_cuda));
  library.impl("soft_region_pool_backward", TORCH_BOX(&soft_region_pool_backward_cuda));
}
#endif

}  // namespace fastseg
