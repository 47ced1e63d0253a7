// SPDX-License-Identifier: BSD-3-Clause
// Torch glue of patch_entropy: schemas, checks, the sequence of passes, and the CPU and CUDA registrations.
#include "patch_entropy.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "checks.h"

namespace fastseg {
namespace {

namespace stable = torch::stable;

constexpr int64_t kUnsplit = std::numeric_limits<int32_t>::max();
constexpr int64_t kGrain = 32768;  // additions that are worth a thread

// The tensors a kernel reads, contiguous, and the parameters that point into them.
struct Prepared {
  Tensor values;
  OptionalTensor mask;
  PatchEntropyInputs inputs;
  ScalarType real;
};

Prepared prepare(const Tensor& values, const OptionalTensor& mask, const Shape& patch_size,
                 const Shape& stride, bool categorical, bool from_logits, int64_t min_count,
                 int64_t longest_cell) {
  check_floating("confidence", values);
  check(values.dim() >= 3 && values.dim() <= 5,
        "confidence must be (B, K, *S) with 1 to 3 spatial axes, got ", values);
  const int64_t axes = values.dim() - 2, batch = values.size(0), channels = values.size(1);
  for (const auto& [name, sizes] : {std::pair{"patch_size", &patch_size}, std::pair{"stride", &stride}}) {
    check(int64_t(sizes->size()) == axes, name, " must have ", axes, " entries, got ", *sizes);
  }
  Prepared prepared{stable::contiguous(values), {}, {}, {}};
  PatchEntropyInputs& inputs = prepared.inputs;
  for (int64_t axis = 0; axis < 3; ++axis) {
    const int64_t from = axis - (3 - axes);  // missing axes come first
    if (from < 0) {
      inputs.axis[axis] = make_window_axis(1, 1, 1, longest_cell);
      continue;
    }
    const int64_t size = values.size(from + 2), patch = patch_size[from], step = stride[from];
    check(size < kUnsplit, "confidence must have fewer than 2**31 - 1 voxels on each axis, got ", values);
    check(patch >= 1 && patch <= size, "patch_size must be at least 1 and fit in ", values, ", got ",
          patch_size);
    check(step >= 1 && step < kUnsplit, "stride must be at least 1, got ", stride);
    inputs.axis[axis] = make_window_axis(size, patch, step, longest_cell);
  }
  if (mask) {
    check(mask->device() == values.device(), "mask must be on the device of confidence");
    Shape expected = shape_of(values);
    if (categorical || (mask->dim() > 1 && mask->size(1) == 1)) expected[1] = 1;
    check_shape("mask", *mask, categorical ? "(B, 1, *S)" : "(B, 1 or K, *S)", expected);
    check(is_byte(*mask), "mask must be uint8 or bool, got ", mask->scalar_type());
    prepared.mask = stable::contiguous(*mask);
  }
  inputs.values = prepared.values.data_ptr();
  inputs.mask = mask ? static_cast<const uint8_t*>(prepared.mask->data_ptr()) : nullptr;
  inputs.mask_per_channel = mask && mask->size(1) == channels;
  inputs.kind = kind_of(values);
  inputs.from_logits = from_logits;
  inputs.categorical = categorical;
  inputs.batch = batch;
  inputs.channels = channels;
  inputs.min_count = std::max<int64_t>(min_count, 1);
  check(std::max(patch_entropy_cell_rows(inputs), 2 * batch * channels) < kUnsplit,
        "confidence must have fewer than 2**31 - 1 rows of cells, got ", values);
  prepared.real = inputs.kind == ScalarKind::kFloat64 ? ScalarType::Double : ScalarType::Float;
  return prepared;
}

bool is_identity(const WindowAxis& axis) { return axis.per_stride == 1 && axis.per_window == 1; }

// From cells to windows, axis after axis; `along_w`: unless that is done already. The last one scales.
std::vector<BoxPass> passes_to_windows(const PatchEntropyInputs& inputs, bool along_w) {
  const WindowAxis &d = inputs.axis[0], &h = inputs.axis[1], &w = inputs.axis[2];
  const int64_t planes = inputs.planes();
  std::vector<BoxPass> passes;
  if (along_w && !is_identity(w)) passes.push_back(forward_pass(w, planes * d.cells * h.cells, 1, 1.0));
  if (!is_identity(h)) passes.push_back(forward_pass(h, planes * d.cells, w.windows, 1.0));
  if (!is_identity(d)) passes.push_back(forward_pass(d, planes, int64_t(h.windows) * w.windows, 1.0));
  return passes;
}

double window_scale(const PatchEntropyInputs& inputs) {
  return inputs.mask ? 1.0 : 1.0 / double(inputs.patch_voxels());
}

// From windows to cells. The passes of one axis write to one array, each its own part of it.
std::vector<std::vector<BoxPass>> passes_to_cells(const PatchEntropyInputs& inputs) {
  const int64_t planes = inputs.entropy_planes() + inputs.confidence_planes();
  std::vector<std::vector<BoxPass>> steps;
  int64_t outer = planes, inner = inputs.windows();
  for (const WindowAxis& axis : inputs.axis) {
    inner = axis.windows == 0 ? 0 : inner / axis.windows;
    if (!is_identity(axis)) {
      steps.emplace_back();
      if (axis.head_parts > 0) steps.back().push_back(adjoint_pass(axis, true, outer, inner));
      if (axis.tail_parts > 0) steps.back().push_back(adjoint_pass(axis, false, outer, inner));
    }
    outer *= axis.cells;
  }
  return steps;
}

Tensor empty_target(const Tensor& like, const BoxPass& pass, ScalarType type) {
  return empty_on(like, {pass.outer * pass.target_length * pass.inner}, type);
}

Shape result_shape(const Prepared& prepared) {
  Shape shape = {prepared.inputs.planes()};
  for (int64_t axis = 5 - prepared.values.dim(); axis < 3; ++axis) {
    shape.push_back(prepared.inputs.axis[axis].windows);
  }
  return shape;
}

// The upstream gradient and the means as the kernels want them.
PatchEntropyUpstream upstream_of(const Prepared& prepared, const Tensor& grad, const OptionalTensor& means) {
  const Shape expected = result_shape(prepared);
  check_shape("grad", grad, "the shape of the result", expected);
  check(grad.scalar_type() == prepared.real && grad.is_contiguous(), "grad must be contiguous and ",
        prepared.real);
  check(means.has_value() == prepared.mask.has_value(), "means must be given if, and only if, mask is");
  if (means) {
    check_shape("means", *means, "the shape of the result", expected);
    check(means->scalar_type() == prepared.real && means->is_contiguous(), "means must be contiguous and ",
          prepared.real);
  }
  return {grad.data_ptr(), means ? means->data_ptr() : nullptr};
}

int64_t grain_of(int64_t work_per_unit) { return std::max<int64_t>(1, kGrain / (work_per_unit + 1)); }

void run_pass_cpu(const BoxPass& pass, bool is_double, const Tensor& source, const Tensor& target) {
  const int64_t units = box_sum_units_cpu(pass);
  const int64_t work = std::min<int64_t>(pass.inner, 128) * 2 * pass.many;
  stable::parallel_for(0, units, grain_of(work), [&](int64_t begin, int64_t end) {
    box_sum_cpu(pass, is_double, begin, end, source.data_ptr(), target.data_ptr());
  });
}

Tensor patch_entropy_cpu(const Tensor& values, const OptionalTensor& mask, const Shape& patch_size,
                         const Shape& stride, bool categorical, bool from_logits, int64_t min_count) {
  const Prepared prepared =
      prepare(values, mask, patch_size, stride, categorical, from_logits, min_count, kLongestCell);
  const PatchEntropyInputs& inputs = prepared.inputs;
  const bool is_double = prepared.real == ScalarType::Double;
  std::vector<BoxPass> passes = passes_to_windows(inputs, false);
  if (!passes.empty()) passes.back().scale = window_scale(inputs);
  const WindowAxis &d = inputs.axis[0], &h = inputs.axis[1], &w = inputs.axis[2];
  Tensor sums = empty_on(values, {inputs.planes() * d.cells * h.cells * w.windows}, prepared.real);
  const int64_t rows = patch_entropy_cell_rows(inputs);
  const int64_t voxels_per_row = rows == 0 ? 0 : inputs.batch * inputs.channels * inputs.voxels() / rows;
  stable::parallel_for(0, rows, grain_of(8 * voxels_per_row), [&](int64_t begin, int64_t end) {
    patch_entropy_cells_cpu(inputs, begin, end, passes.empty() ? window_scale(inputs) : 1.0, sums.data_ptr());
  });
  for (const BoxPass& pass : passes) {
    Tensor target = empty_target(values, pass, prepared.real);
    run_pass_cpu(pass, is_double, sums, target);
    sums = target;
  }
  if (mask) {
    const int64_t means = (inputs.entropy_planes() + inputs.confidence_planes()) * inputs.windows();
    stable::parallel_for(0, means, kGrain, [&](int64_t begin, int64_t end) {
      patch_entropy_divide_cpu(inputs, begin, end, sums.data_ptr());
    });
  }
  return stable::view(sums, result_shape(prepared));
}

Tensor patch_entropy_backward_cpu(const Tensor& grad, const Tensor& values, const OptionalTensor& mask,
                                  const OptionalTensor& means, const Shape& patch_size, const Shape& stride,
                                  bool categorical, bool from_logits, int64_t min_count) {
  const Prepared prepared =
      prepare(values, mask, patch_size, stride, categorical, from_logits, min_count, kUnsplit);
  const PatchEntropyInputs& inputs = prepared.inputs;
  const bool is_double = prepared.real == ScalarType::Double;
  const PatchEntropyUpstream upstream = upstream_of(prepared, grad, means);
  const int64_t elements = (inputs.entropy_planes() + inputs.confidence_planes()) * inputs.windows();
  Tensor sums = empty_on(values, {elements}, prepared.real);
  stable::parallel_for(0, elements, kGrain, [&](int64_t begin, int64_t end) {
    patch_entropy_upstream_cpu(inputs, upstream, begin, end, sums.data_ptr());
  });
  for (const auto& step : passes_to_cells(inputs)) {
    Tensor target = empty_target(values, step.front(), prepared.real);
    for (const BoxPass& pass : step) run_pass_cpu(pass, is_double, sums, target);
    sums = target;
  }
  Tensor grad_values = empty_on(values, shape_of(values), values.scalar_type());
  const int64_t voxels_per_row = inputs.axis[2].size * (categorical ? inputs.channels : 1);
  stable::parallel_for(
      0, patch_entropy_voxel_rows(inputs), grain_of(8 * voxels_per_row), [&](int64_t begin, int64_t end) {
        patch_entropy_gradient_cpu(inputs, sums.data_ptr(), begin, end, grad_values.data_ptr());
      });
  return grad_values;
}

#if defined(FASTSEG_WITH_CUDA)
Tensor patch_entropy_cuda(const Tensor& values, const OptionalTensor& mask, const Shape& patch_size,
                          const Shape& stride, bool categorical, bool from_logits, int64_t min_count) {
  const stable::accelerator::DeviceGuard guard(values.get_device_index());
  const Prepared prepared =
      prepare(values, mask, patch_size, stride, categorical, from_logits, min_count, kLongestCell);
  const PatchEntropyInputs& inputs = prepared.inputs;
  const bool is_double = prepared.real == ScalarType::Double;
  const cudaStream_t stream = stream_of(values);
  if (patch_entropy_has_few_cells(inputs)) {
    Tensor cells = empty_on(values, {inputs.planes() * inputs.cells()}, prepared.real);
    Tensor means = empty_on(values, result_shape(prepared), prepared.real);
    check_launch("patch_entropy", patch_entropy_cells_cuda(inputs, 1.0, cells.data_ptr(), stream));
    check_launch("patch_entropy",
                 patch_entropy_windows_cuda(inputs, cells.data_ptr(), means.data_ptr(), stream));
    return means;
  }
  std::vector<BoxPass> passes = passes_to_windows(inputs, true);
  if (!passes.empty()) passes.back().scale = window_scale(inputs);
  Tensor sums = empty_on(values, {inputs.planes() * inputs.cells()}, prepared.real);
  check_launch("patch_entropy", patch_entropy_cells_cuda(inputs, passes.empty() ? window_scale(inputs) : 1.0,
                                                         sums.data_ptr(), stream));
  for (const BoxPass& pass : passes) {
    Tensor target = empty_target(values, pass, prepared.real);
    check_launch("patch_entropy", box_sum_cuda(pass, is_double, sums.data_ptr(), target.data_ptr(), stream));
    sums = target;
  }
  if (mask) check_launch("patch_entropy", patch_entropy_divide_cuda(inputs, sums.data_ptr(), stream));
  return stable::view(sums, result_shape(prepared));
}

Tensor patch_entropy_backward_cuda(const Tensor& grad, const Tensor& values, const OptionalTensor& mask,
                                   const OptionalTensor& means, const Shape& patch_size, const Shape& stride,
                                   bool categorical, bool from_logits, int64_t min_count) {
  const stable::accelerator::DeviceGuard guard(values.get_device_index());
  const Prepared prepared =
      prepare(values, mask, patch_size, stride, categorical, from_logits, min_count, kUnsplit);
  const PatchEntropyInputs& inputs = prepared.inputs;
  const bool is_double = prepared.real == ScalarType::Double;
  const cudaStream_t stream = stream_of(values);
  const PatchEntropyUpstream upstream = upstream_of(prepared, grad, means);
  const int64_t planes = inputs.entropy_planes() + inputs.confidence_planes();
  const bool few = patch_entropy_has_few_cells(inputs);
  Tensor sums = empty_on(values, {planes * (few ? inputs.cells() : inputs.windows())}, prepared.real);
  if (few) {
    check_launch("patch_entropy", patch_entropy_grad_cells_cuda(inputs, upstream, sums.data_ptr(), stream));
  } else {
    check_launch("patch_entropy", patch_entropy_upstream_cuda(inputs, upstream, sums.data_ptr(), stream));
    for (const auto& step : passes_to_cells(inputs)) {
      Tensor target = empty_target(values, step.front(), prepared.real);
      for (const BoxPass& pass : step) {
        check_launch("patch_entropy",
                     box_sum_cuda(pass, is_double, sums.data_ptr(), target.data_ptr(), stream));
      }
      sums = target;
    }
  }
  Tensor grad_values = empty_on(values, shape_of(values), values.scalar_type());
  check_launch("patch_entropy",
               patch_entropy_gradient_cuda(inputs, sums.data_ptr(), grad_values.data_ptr(), stream));
  return grad_values;
}
#endif

}  // namespace

// The result holds the planes that patch_entropy.h lists: (B * K entropies, or B; B * K confidences; with a
// mask the counts of valid voxels, as many as entropies) x windows.
STABLE_TORCH_LIBRARY_FRAGMENT(fastseg, library) {
  library.def(
      "patch_entropy(Tensor values, Tensor? mask, int[] patch_size, int[] stride, bool categorical, "
      "bool from_logits, int min_count) -> Tensor");
  library.def(
      "patch_entropy_backward(Tensor grad, Tensor values, Tensor? mask, Tensor? means, int[] patch_size, "
      "int[] stride, bool categorical, bool from_logits, int min_count) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, library) {
  library.impl("patch_entropy", TORCH_BOX(&patch_entropy_cpu));
  library.impl("patch_entropy_backward", TORCH_BOX(&patch_entropy_backward_cpu));
}

#if defined(FASTSEG_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, library) {
  library.impl("patch_entropy", TORCH_BOX(&patch_entropy_cuda));
  library.impl("patch_entropy_backward", TORCH_BOX(&patch_entropy_backward_cuda));
}
#endif

}  // namespace fastseg
