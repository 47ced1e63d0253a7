// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy between its doors and its kernels: checks, and the sequence of passes.
#include "patch_entropy.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "ops.h"
#include "place.h"

namespace fastseg {
namespace {

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
  check_volume("confidence", values, "(B, K, *S)");
  const int64_t axes = values.dim() - 2, batch = values.size(0), channels = values.size(1);
  check(channels >= 1 || !categorical,
        "confidence must have at least one class for mode=\"categorical\", got ", values);
  for (const auto& [name, sizes] : {std::pair{"patch_size", &patch_size}, std::pair{"stride", &stride}}) {
    check(int64_t(sizes->size()) == axes, name, " must have ", axes, " entries, got ", *sizes);
  }
  const Shape shape = values.shape(), spatial(shape.begin() + 2, shape.end());
  Prepared prepared{contiguous(values), {}, {}, {}};
  PatchEntropyInputs& inputs = prepared.inputs;
  for (int64_t axis = 0; axis < 3; ++axis) {
    const int64_t from = axis - (3 - axes);  // missing axes come first
    if (from < 0) {
      inputs.axis[axis] = make_window_axis(1, 1, 1, longest_cell);
      continue;
    }
    const int64_t size = values.size(from + 2), patch = patch_size[from], step = stride[from];
    check(size < kUnsplit, "confidence must have fewer than 2**31 - 1 voxels on each axis, got ", values);
    check(patch >= 1, "patch_size must be at least 1, got ", patch_size);
    check(patch <= size, "patch_size must fit in ", spatial, ", got ", patch_size);
    check(step >= 1 && step < kUnsplit, "stride must be at least 1, got ", stride);
    inputs.axis[axis] = make_window_axis(size, patch, step, longest_cell);
  }
  if (mask) {
    check_byte("mask", *mask);
    check_device("mask", *mask, "confidence", values);
    check_map("mask", *mask, categorical ? "(B, 1, *S)" : "(B, 1 or K, *S)", values, categorical);
    prepared.mask = contiguous(*mask);
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

// Entropy and counts have a channel for all classes of a categorical map.
Shape map_shape(const Prepared& prepared, bool of_entropy) {
  const PatchEntropyInputs& inputs = prepared.inputs;
  Shape shape = {inputs.batch, of_entropy && inputs.categorical ? 1 : inputs.channels};
  for (int64_t axis = 5 - prepared.values.dim(); axis < 3; ++axis) {
    shape.push_back(inputs.axis[axis].windows);
  }
  return shape;
}

int64_t grain_of(int64_t work_per_unit) { return std::max<int64_t>(1, kGrain / (work_per_unit + 1)); }

void run_pass(const Place& place, const BoxPass& pass, bool is_double, const void* source, void* target) {
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    place.launch("patch_entropy",
                 [&](cudaStream_t stream) { return box_sum_cuda(pass, is_double, source, target, stream); });
    return;
  }
#endif
  const int64_t work = std::min<int64_t>(pass.inner, 128) * 2 * pass.many;
  place.for_ranges(box_sum_units_cpu(pass), grain_of(work), [&](int64_t begin, int64_t end) {
    box_sum_cpu(pass, is_double, begin, end, source, target);
  });
}

int64_t target_size(const BoxPass& pass) { return pass.outer * pass.target_length * pass.inner; }

}  // namespace

// Means over the windows, entropy (B, K or 1, *W) and confidence (B, K, *W), and with a mask the counts of
// valid voxels, as entropy.
Three patch_entropy(const Tensor& values, const OptionalTensor& mask, const Shape& patch_size,
                    const Shape& stride, bool categorical, bool from_logits, int64_t min_count) {
  const Place place(values);
  const Prepared prepared =
      prepare(values, mask, patch_size, stride, categorical, from_logits, min_count, kLongestCell);
  const PatchEntropyInputs& inputs = prepared.inputs;
  const bool is_double = prepared.real == ScalarType::Double;
  const int64_t real_size = is_double ? sizeof(double) : sizeof(float);
  const auto scratch = [&](int64_t elements) { return Scratch(place, values, elements * real_size); };
  const Three maps{empty_on(values, map_shape(prepared, true), prepared.real),
                   empty_on(values, map_shape(prepared, false), prepared.real),
                   mask ? empty_on(values, map_shape(prepared, true), prepared.real)
                        : Tensor::absent(values, prepared.real)};
  const auto& [entropy, confidence, counts] = maps;
  const PatchEntropyMeans means{entropy.data_ptr(), confidence.data_ptr(),
                                mask ? counts.data_ptr() : nullptr};
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda() && patch_entropy_has_few_cells(inputs)) {
    const Scratch cells = scratch(inputs.planes() * inputs.cells());
    place.launch("patch_entropy", [&](cudaStream_t stream) {
      const cudaError_t status = patch_entropy_cells_cuda(inputs, 1.0, cells.data(), stream);
      if (status != cudaSuccess) return status;
      return patch_entropy_windows_cuda(inputs, cells.data(), means, stream);
    });
    return maps;
  }
#endif
  // On the CPU the cells of a row are added up along w at once.
  std::vector<BoxPass> passes = passes_to_windows(inputs, place.is_cuda());
  const double scale = passes.empty() ? window_scale(inputs) : 1.0;
  const WindowAxis &d = inputs.axis[0], &h = inputs.axis[1], &w = inputs.axis[2];
  if (passes.empty()) {
    passes.push_back(forward_pass(d, inputs.planes(), int64_t(h.windows) * w.windows, 1.0));
  } else {
    passes.back().scale = window_scale(inputs);
  }
  Scratch sums = scratch(inputs.planes() * d.cells * h.cells * (place.is_cuda() ? w.cells : w.windows));
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    place.launch("patch_entropy", [&](cudaStream_t stream) {
      return patch_entropy_cells_cuda(inputs, scale, sums.data(), stream);
    });
  } else
#endif
  {
    const int64_t rows = patch_entropy_cell_rows(inputs);
    const int64_t voxels_per_row = rows == 0 ? 0 : inputs.batch * inputs.channels * inputs.voxels() / rows;
    place.for_ranges(rows, grain_of(8 * voxels_per_row), [&](int64_t begin, int64_t end) {
      patch_entropy_cells_cpu(inputs, begin, end, scale, sums.data());
    });
  }
  BoxPass last = passes.back();
  passes.pop_back();
  for (const BoxPass& pass : passes) {
    Scratch target = scratch(target_size(pass));
    run_pass(place, pass, is_double, sums.data(), target.data());
    sums = std::move(target);
  }
  // From the planes of all maps to each map.
  const int64_t of_plane = inputs.planes() == 0 ? 0 : last.outer / inputs.planes();
  const char* source = static_cast<const char*>(sums.data());
  for (const auto& [map, planes] : {std::pair{means.entropy, inputs.entropy_planes()},
                                    std::pair{means.confidence, inputs.confidence_planes()},
                                    std::pair{means.counts, inputs.count_planes()}}) {
    last.outer = planes * of_plane;
    run_pass(place, last, is_double, source, map);
    source += last.outer * last.length * last.inner * real_size;
  }
  if (!mask) return maps;
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    place.launch("patch_entropy",
                 [&](cudaStream_t stream) { return patch_entropy_divide_cuda(inputs, means, stream); });
    return maps;
  }
#endif
  place.for_ranges((inputs.entropy_planes() + inputs.confidence_planes()) * inputs.windows(), kGrain,
                   [&](int64_t begin, int64_t end) { patch_entropy_divide_cpu(inputs, begin, end, means); });
  return maps;
}

// A gradient that is not given is one of zeros.
Tensor patch_entropy_backward(const OptionalTensor& grad_entropy, const OptionalTensor& grad_confidence,
                              const Tensor& values, const OptionalTensor& mask, const OptionalTensor& counts,
                              const Shape& patch_size, const Shape& stride, bool categorical,
                              bool from_logits, int64_t min_count) {
  const Place place(values);
  const Prepared prepared =
      prepare(values, mask, patch_size, stride, categorical, from_logits, min_count, kUnsplit);
  const PatchEntropyInputs& inputs = prepared.inputs;
  const bool is_double = prepared.real == ScalarType::Double;
  const int64_t real_size = is_double ? sizeof(double) : sizeof(float);
  const auto scratch = [&](int64_t elements) { return Scratch(place, values, elements * real_size); };
  check(counts.has_value() == mask.has_value(), "counts must be given if, and only if, mask is");
  std::vector<Tensor> kept;
  const auto given = [&](const char* name, const OptionalTensor& map, bool of_entropy) -> const void* {
    if (!map) return nullptr;
    check_device(name, *map, "confidence", values);
    check_shape(name, *map, "the shape of its result", map_shape(prepared, of_entropy));
    check_type(map->scalar_type() == prepared.real, name, " must be ", prepared.real, ", got ",
               map->scalar_type());
    kept.push_back(contiguous(*map));
    return kept.back().data_ptr();
  };
  const PatchEntropyUpstream upstream{given("grad_entropy", grad_entropy, true),
                                      given("grad_confidence", grad_confidence, false),
                                      given("counts", counts, true)};
#if defined(FASTSEG_WITH_CUDA)
  const bool few_cells = place.is_cuda() && patch_entropy_has_few_cells(inputs);
#else
  constexpr bool few_cells = false;
#endif
  const int64_t elements = (inputs.entropy_planes() + inputs.confidence_planes()) *
                           (few_cells ? inputs.cells() : inputs.windows());
  Scratch sums = scratch(elements);
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    place.launch("patch_entropy", [&](cudaStream_t stream) {
      return few_cells ? patch_entropy_grad_cells_cuda(inputs, upstream, sums.data(), stream)
                       : patch_entropy_upstream_cuda(inputs, upstream, sums.data(), stream);
    });
  } else
#endif
  {
    place.for_ranges(elements, kGrain, [&](int64_t begin, int64_t end) {
      patch_entropy_upstream_cpu(inputs, upstream, begin, end, sums.data());
    });
  }
  const auto steps = few_cells ? std::vector<std::vector<BoxPass>>{} : passes_to_cells(inputs);
  for (const auto& step : steps) {
    Scratch target = scratch(target_size(step.front()));
    for (const BoxPass& pass : step) run_pass(place, pass, is_double, sums.data(), target.data());
    sums = std::move(target);
  }
  const Tensor grad_values = empty_on(values, values.shape(), values.scalar_type());
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    place.launch("patch_entropy", [&](cudaStream_t stream) {
      return patch_entropy_gradient_cuda(inputs, sums.data(), grad_values.data_ptr(), stream);
    });
    return grad_values;
  }
#endif
  const int64_t voxels_per_row = inputs.axis[2].size * (categorical ? inputs.channels : 1);
  place.for_ranges(patch_entropy_voxel_rows(inputs), grain_of(8 * voxels_per_row),
                   [&](int64_t begin, int64_t end) {
                     patch_entropy_gradient_cpu(inputs, sums.data(), begin, end, grad_values.data_ptr());
                   });
  return grad_values;
}

}  // namespace fastseg
