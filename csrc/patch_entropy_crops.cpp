// SPDX-License-Identifier: BSD-3-Clause
// extract_patches between its doors and its kernels.
#include "patch_entropy_crops.h"

#include <algorithm>
#include <limits>

#include "ops.h"
#include "place.h"

namespace fastseg {
namespace {

constexpr int64_t kGrain = 32768;  // bytes, or additions, that are worth a thread

// corners, contiguous, must outlive what this returns.
PatchCrops prepare(const Tensor& corners, const Shape& spatial, const Shape& patch_size, int64_t channels) {
  const int64_t axes = int64_t(spatial.size());
  check(axes >= 1 && axes <= 3, "volume must be (B, C, *S) with 1 to 3 spatial axes, got ", axes, " axes");
  check(int64_t(patch_size.size()) == axes, "patch_size must have ", axes, " entries, got ", patch_size);
  check(corners.scalar_type() == ScalarType::Long, "corners must be int64, got ", corners.scalar_type());
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
    check(patch >= 1, "patch_size must be at least 1, got ", patch_size);
    check(patch <= size && size < std::numeric_limits<int32_t>::max(), "patch_size must fit in ", spatial,
          ", got ", patch_size);
    crops.size[axis] = int32_t(size);
    crops.patch[axis] = int32_t(patch);
  }
  return crops;
}

PatchCrops prepare_volume(const Tensor& volume, const Tensor& corners, const Shape& patch_size) {
  check_volume("volume", volume);
  check_device("corners", corners, "volume", volume);
  const Shape shape = volume.shape();
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
  check(grad.dim() == 3 + int64_t(spatial.size()), "grad must be (B, n, C, *patch), got ", grad);
  check_device("corners", corners, "grad", grad);
  const Shape of_grad = grad.shape();
  const PatchCrops crops = prepare(corners, spatial, Shape(of_grad.begin() + 3, of_grad.end()), grad.size(2));
  check(crops.batch == grad.size(0) && crops.patches == grad.size(1),
        "grad must have a patch per corner, got ", of_grad, " for corners ", corners);
  *shape = {crops.batch, crops.channels};
  shape->insert(shape->end(), spatial.begin(), spatial.end());
  return crops;
}

}  // namespace

Tensor patch_entropy_crops(const Tensor& volume, const Tensor& given_corners, const Shape& patch_size) {
  const Place place(volume);
  const Tensor corners = contiguous(given_corners);
  const PatchCrops crops = prepare_volume(volume, corners, patch_size);
  const Tensor patches = empty_patches(volume, crops, patch_size);
  const int64_t element_size = volume.element_size();
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    place.launch("patch_entropy_crops", [&](cudaStream_t stream) {
      return patch_crops_cuda(crops, element_size, volume.data_ptr(), patches.data_ptr(), stream);
    });
    return patches;
  }
#endif
  const int64_t grain = std::max<int64_t>(1, kGrain / (crops.patch_voxels() * element_size));
  place.for_ranges(crops.batch * crops.patches * crops.channels, grain, [&](int64_t begin, int64_t end) {
    patch_crops_cpu(crops, element_size, volume.data_ptr(), begin, end, patches.data_ptr());
  });
  return patches;
}

Tensor patch_entropy_crops_backward(const Tensor& grad, const Tensor& given_corners, const Shape& spatial) {
  const Place place(grad);
  Shape shape;
  const Tensor lying = contiguous(grad), corners = contiguous(given_corners);
  const PatchCrops crops = prepare_grad(lying, corners, spatial, &shape);
  const Tensor grad_volume = empty_on(grad, shape, grad.scalar_type());
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    place.launch("patch_entropy_crops", [&](cudaStream_t stream) {
      return patch_crops_backward_cuda(crops, kind_of(grad), lying.data_ptr(), grad_volume.data_ptr(),
                                       stream);
    });
    return grad_volume;
  }
#endif
  const int64_t voxels = int64_t(crops.size[1]) * crops.size[2];
  place.for_ranges(crops.batch * crops.channels * crops.size[0], std::max<int64_t>(1, kGrain / (voxels + 1)),
                   [&](int64_t begin, int64_t end) {
                     patch_crops_backward_cpu(crops, kind_of(grad), lying.data_ptr(), begin, end,
                                              grad_volume.data_ptr());
                   });
  return grad_volume;
}

}  // namespace fastseg
