// SPDX-License-Identifier: BSD-3-Clause
// Torch glue of patch_entropy_crops: schemas, checks, allocation, and the CPU and CUDA registrations.
#include "patch_entropy_crops.h"

#include <algorithm>
#include <limits>

#include "checks.h"

namespace fastseg {
namespace {

namespace stable = torch::stable;

constexpr int64_t kGrain = 32768;  // bytes, or additions, that are worth a thread

// corners must outlive what this returns.
PatchCrops prepare(const Tensor& corners, const Shape& spatial, const Shape& patch_size, int64_t channels) {
  const int64_t axes = int64_t(spatial.size());
  check(axes >= 1 && axes <= 3, "volume must be (B, C, *S) with 1 to 3 spatial axes, got ", axes, " axes");
  check(int64_t(patch_size.size()) == axes, "patch_size must have ", axes, " entries, got ", patch_size);
  check(corners.scalar_type() == ScalarType::Long && corners.is_contiguous(),
        "corners must be contiguous and int64");
  check(corners.dim() == 3 && corners.size(2) == axes, "corners must be (B, n, ", axes, "), got ", corners);
  PatchCrops crops{};
  crops.corners = static_cast<const int64_t*>(corners.data_ptr());
  crops.batch = corners.size(0);
  crops.patches = corners.size(1);
  crops.channels = channels;
  crops.axes = int32_t(axes);
  for (int64_t axis = 0; axis < 3; ++axis) {
    const int64_t from = axis - (3 - axes);
    const int64_t size = from < 0 ? 1 : spatial[from], patch = from < 0 ? 1 : patch_size[from];
    check(patch >= 1 && patch <= size && size < std::numeric_limits<int32_t>::max(),
          "patch_size must be at least 1 and fit in ", spatial, ", got ", patch_size);
    crops.size[axis] = int32_t(size);
    crops.patch[axis] = int32_t(patch);
  }
  return crops;
}

PatchCrops prepare_volume(const Tensor& volume, const Tensor& corners, const Shape& patch_size) {
  check(volume.dim() >= 3 && volume.dim() <= 5, "volume must be (B, C, *S) with 1 to 3 spatial axes, got ",
        volume);
  check(corners.device() == volume.device(), "corners must be on the device of volume");
  const Shape shape = shape_of(volume);
  PatchCrops crops = prepare(corners, Shape(shape.begin() + 2, shape.end()), patch_size, volume.size(1));
  check(crops.batch == volume.size(0), "corners must have the batch of volume, ", volume.size(0), ", got ",
        crops.batch);
  for (int64_t axis = 0; axis < 5; ++axis) {
    const int64_t missing = 5 - volume.dim();
    const int64_t from = axis < 2 ? axis : axis - missing;
    crops.strides[axis] = axis >= 2 && axis < 2 + missing ? 0 : volume.stride(from);
  }
  return crops;
}

Tensor empty_patches(const Tensor& volume, const PatchCrops& crops, const Shape& patch_size) {
  Shape shape = {crops.batch, crops.patches, crops.channels};
  shape.insert(shape.end(), patch_size.begin(), patch_size.end());
  return empty_on(volume, shape, volume.scalar_type());
}

// For a gradient (batch, n, channels, *patch); fills in `shape`, that of the volume.
PatchCrops prepare_grad(const Tensor& grad, const Tensor& corners, const Shape& spatial, Shape* shape) {
  check_floating("grad", grad);
  check(grad.is_contiguous(), "grad must be contiguous");
  check(grad.dim() == 3 + int64_t(spatial.size()), "grad must be (B, n, C, *patch), got ", grad);
  check(corners.device() == grad.device(), "corners must be on the device of grad");
  const Shape of_grad = shape_of(grad);
  const PatchCrops crops = prepare(corners, spatial, Shape(of_grad.begin() + 3, of_grad.end()), grad.size(2));
  check(crops.batch == grad.size(0) && crops.patches == grad.size(1),
        "grad must have a patch per corner, got ", of_grad, " for corners ", corners);
  *shape = {crops.batch, crops.channels};
  shape->insert(shape->end(), spatial.begin(), spatial.end());
  return crops;
}

Tensor patch_entropy_crops_cpu(const Tensor& volume, const Tensor& corners, const Shape& patch_size) {
  const PatchCrops crops = prepare_volume(volume, corners, patch_size);
  Tensor patches = empty_patches(volume, crops, patch_size);
  const int64_t element_size = volume.element_size();
  const int64_t grain = std::max<int64_t>(1, kGrain / (crops.patch_voxels() * element_size));
  stable::parallel_for(
      0, crops.batch * crops.patches * crops.channels, grain, [&](int64_t begin, int64_t end) {
        patch_crops_cpu(crops, element_size, volume.data_ptr(), begin, end, patches.data_ptr());
      });
  return patches;
}

Tensor patch_entropy_crops_backward_cpu(const Tensor& grad, const Tensor& corners, const Shape& spatial) {
  Shape shape;
  const PatchCrops crops = prepare_grad(grad, corners, spatial, &shape);
  Tensor grad_volume = empty_on(grad, shape, grad.scalar_type());
  const int64_t voxels = int64_t(crops.size[1]) * crops.size[2];
  stable::parallel_for(0, crops.batch * crops.channels * crops.size[0],
                       std::max<int64_t>(1, kGrain / (voxels + 1)), [&](int64_t begin, int64_t end) {
                         patch_crops_backward_cpu(crops, kind_of(grad), grad.data_ptr(), begin, end,
                                                  grad_volume.data_ptr());
                       });
  return grad_volume;
}

#if defined(FASTSEG_WITH_CUDA)
Tensor patch_entropy_crops_cuda(const Tensor& volume, const Tensor& corners, const Shape& patch_size) {
  const stable::accelerator::DeviceGuard guard(volume.get_device_index());
  const PatchCrops crops = prepare_volume(volume, corners, patch_size);
  Tensor patches = empty_patches(volume, crops, patch_size);
  check_launch("patch_entropy_crops", patch_crops_cuda(crops, volume.element_size(), volume.data_ptr(),
                                                       patches.data_ptr(), stream_of(volume)));
  return patches;
}

Tensor patch_entropy_crops_backward_cuda(const Tensor& grad, const Tensor& corners, const Shape& spatial) {
  const stable::accelerator::DeviceGuard guard(grad.get_device_index());
  Shape shape;
  const PatchCrops crops = prepare_grad(grad, corners, spatial, &shape);
  Tensor grad_volume = empty_on(grad, shape, grad.scalar_type());
  check_launch("patch_entropy_crops", patch_crops_backward_cuda(crops, kind_of(grad), grad.data_ptr(),
                                                                grad_volume.data_ptr(), stream_of(grad)));
  return grad_volume;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastseg, library) {
  library.def("patch_entropy_crops(Tensor volume, Tensor corners, int[] patch_size) -> Tensor");
  library.def("patch_entropy_crops_backward(Tensor grad, Tensor corners, int[] spatial) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, library) {
  library.impl("patch_entropy_crops", TORCH_BOX(&patch_entropy_crops_cpu));
  library.impl("patch_entropy_crops_backward", TORCH_BOX(&patch_entropy_crops_backward_cpu));
}

#if defined(FASTSEG_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, library) {
  library.impl("patch_entropy_crops", TORCH_BOX(&patch_entropy_crops_cuda));
  library.impl("patch_entropy_crops_backward", TORCH_BOX(&patch_entropy_crops_backward_cuda));
}
#endif

}  // namespace fastseg
