// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy_crops: cuts equal patches out of a volume, and adds patches up to a volume. The contract
// between the torch glue and the kernels. A patch that does not lie wholly inside is 0 and adds nothing.
#pragma once

#include <cstdint>

#include "contract.h"
#include "elementary.h"

namespace fastseg {

struct PatchCrops {
  const int64_t* corners;  // (batch, patches, axes): the first voxel of each, of the last `axes` of d, h, w
  int64_t batch, patches, channels;
  int32_t axes;
  int32_t size[3], patch[3];
  int64_t strides[5];  // of the volume (batch, channels, d, h, w), in elements

  FASTSEG_HOST_DEVICE int64_t patch_voxels() const { return int64_t(patch[0]) * patch[1] * patch[2]; }

  // Where patch `number` of a sample begins; false if it is not wholly inside.
  FASTSEG_HOST_DEVICE bool locate(int64_t sample, int64_t number, int32_t (&corner)[3]) const {
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) {
      const int from = axis - (3 - axes);
      const int64_t at = from < 0 ? 0 : corners[(sample * patches + number) * axes + from];
      inside = inside && at >= 0 && at <= size[axis] - patch[axis];
      corner[axis] = int32_t(at);
    }
    return inside;
  }
};

// CPU. Forward: patches [begin, end) of (batch, patches, channels, *patch), elements of element_size bytes.
// Backward: planes [begin, end) of the gradient (batch, channels, d, h, w), contiguous; `kind` of both.
void patch_crops_cpu(const PatchCrops& crops, int64_t element_size, const void* volume, int64_t begin,
                     int64_t end, void* result);
void patch_crops_backward_cpu(const PatchCrops& crops, ScalarKind kind, const void* grad, int64_t begin,
                              int64_t end, void* grad_volume);

#if defined(FASTSEG_WITH_CUDA) || defined(FASTSEG_CUDA_EMULATION)
cudaError_t patch_crops_cuda(const PatchCrops& crops, int64_t element_size, const void* volume, void* result,
                             cudaStream_t stream);
cudaError_t patch_crops_backward_cuda(const PatchCrops& crops, ScalarKind kind, const void* grad,
                                      void* grad_volume, cudaStream_t stream);
#endif

}  // namespace fastseg
