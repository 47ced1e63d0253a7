// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy_crops on CUDA. Forward: a thread per stretch of 16 bytes of the result, or per element where
// patches are no multiple of that. Backward: a thread per voxel of the volume, which adds up the patches that
// hold it in their order, from a list that its block makes of them; no atomics.
#include "../cuda_utils.cuh"
#include "../patch_entropy_crops.h"
#include "tuning.h"

namespace fastseg {
namespace {

// kCount neighbours along w, which lie in one row of one patch.
template <class Element, int kCount, int kThreads>
__global__ void __launch_bounds__(kThreads)
    crop_kernel(PatchCrops crops, const Element* volume, Element* result, int64_t count) {
  const int64_t depth = crops.patch[0], height = crops.patch[1], width = crops.patch[2];
  for (int64_t number = blockIdx.x * int64_t(kThreads) + threadIdx.x; number < count;
       number += int64_t(gridDim.x) * kThreads) {
    const int64_t at = number * kCount;
    const int64_t line = quotient(at, width), x = at - line * width;
    const int64_t slice = quotient(line, height), y = line - slice * height;
    const int64_t plane = quotient(slice, depth), z = slice - plane * depth;
    const int64_t patch = quotient(plane, crops.channels), channel = plane - patch * crops.channels;
    const int64_t sample = quotient(patch, crops.patches);
    int32_t corner[3];
    Lanes<Element, kCount> out = {};
    if (crops.locate(sample, patch - sample * crops.patches, corner)) {
      const Element* from = volume + sample * crops.strides[0] + channel * crops.strides[1] +
                            (corner[0] + z) * crops.strides[2] + (corner[1] + y) * crops.strides[3] +
                            (corner[2] + x) * crops.strides[4];
      if (kCount > 1 && crops.strides[4] == 1 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
        out = *reinterpret_cast<const Lanes<Element, kCount>*>(from);
      } else {
        for (int i = 0; i < kCount; ++i) out.value[i] = from[i * crops.strides[4]];
      }
    }
    *reinterpret_cast<Lanes<Element, kCount>*>(result + at) = out;
  }
}

constexpr int kVoxels = 4;  // of a thread

struct Placed {
  int64_t offset;  // of the patch's first voxel of the plane in the gradient
  int32_t y, x;
};

// A unit is kThreads * kVoxels voxels of one plane (sample, channel, z).
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    crop_gradient_kernel(PatchCrops crops, const T* grad, T* grad_volume, int64_t units_per_plane) {
  using Real = RealOf<T>;
  __shared__ Placed listed[kThreads];
  __shared__ int of_warp[kThreads / 32];
  const int64_t area = int64_t(crops.size[1]) * crops.size[2];
  const int64_t units = crops.batch * crops.channels * crops.size[0] * units_per_plane;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t plane = quotient(unit, units_per_plane);
    const int64_t first = (unit - plane * units_per_plane) * (kThreads * kVoxels) + threadIdx.x;
    const int64_t map = quotient(plane, crops.size[0]), sample = quotient(map, crops.channels);
    const int32_t z = int32_t(plane - map * crops.size[0]);
    int32_t y[kVoxels], x[kVoxels];
    Real sum[kVoxels] = {};
    for (int i = 0; i < kVoxels; ++i) {
      const int64_t voxel = first + i * kThreads;
      y[i] = int32_t(quotient(voxel, crops.size[2]));
      x[i] = int32_t(voxel - int64_t(y[i]) * crops.size[2]);
    }
    for (int64_t begin = 0; begin < crops.patches; begin += kThreads) {
      const int64_t number = begin + threadIdx.x;
      int32_t corner[3] = {};
      const bool holds = number < crops.patches && crops.locate(sample, number, corner) && z >= corner[0] &&
                         z < corner[0] + crops.patch[0];
      const unsigned votes = __ballot_sync(0xffffffffu, holds);
      if (lane == 0) of_warp[warp] = __popc(votes);
      __syncthreads();  // the warps' counts are in
      int place = __popc(votes & ((1u << lane) - 1)), count = 0;
      for (int i = 0; i < kThreads / 32; ++i) {
        place += i < warp ? of_warp[i] : 0;
        count += of_warp[i];
      }
      if (holds) {
        const int64_t patch =
            (sample * crops.patches + number) * crops.channels + (map - sample * crops.channels);
        listed[place] = {
            patch * crops.patch_voxels() + int64_t(z - corner[0]) * crops.patch[1] * crops.patch[2],
            corner[1], corner[2]};
      }
      __syncthreads();  // the list is complete
      for (int entry = 0; entry < count; ++entry) {
        const Placed patch = listed[entry];
        for (int i = 0; i < kVoxels; ++i) {
          const int32_t down = y[i] - patch.y, across = x[i] - patch.x;
          if (down >= 0 && down < crops.patch[1] && across >= 0 && across < crops.patch[2]) {
            sum[i] += to_real<Real>(grad[patch.offset + int64_t(down) * crops.patch[2] + across]);
          }
        }
      }
      __syncthreads();  // the list is read
    }
    for (int i = 0; i < kVoxels; ++i) {
      const int64_t voxel = first + i * kThreads;
      if (voxel < area) grad_volume[plane * area + voxel] = from_real<T>(sum[i]);
    }
  }
}

cudaError_t blocks_for(int64_t units, int blocks_per_processor, int* blocks) {
  const cudaError_t status = resident_blocks(blocks_per_processor, blocks);
  *blocks = int(std::min<int64_t>(units, *blocks));
  return status;
}

template <class Element, int kCount>
cudaError_t start_crops(const PatchCrops& crops, const void* volume, void* result, cudaStream_t stream) {
  const int64_t count = crops.batch * crops.patches * crops.channels * crops.patch_voxels() / kCount;
  return tuning::crop([&](auto choice) {
    using Choice = decltype(choice);
    constexpr int kThreads = Choice::kThreads;
    int blocks = 0;
    const cudaError_t status =
        blocks_for((count + kThreads - 1) / kThreads, Choice::kBlocksPerProcessor, &blocks);
    if (status != cudaSuccess || blocks == 0) return status;
    return launch(crop_kernel<Element, kCount, kThreads>, blocks, kThreads, 0, stream, crops,
                  static_cast<const Element*>(volume), static_cast<Element*>(result), count);
  });
}

template <class Element>
cudaError_t crops_of(const PatchCrops& crops, const void* volume, void* result, cudaStream_t stream) {
  constexpr int kCount = 16 / sizeof(Element);
  return crops.patch[2] % kCount == 0 && is_aligned(result)
             ? start_crops<Element, kCount>(crops, volume, result, stream)
             : start_crops<Element, 1>(crops, volume, result, stream);
}

struct Complex128 {
  uint64_t word[2];
};

}  // namespace

cudaError_t patch_crops_cuda(const PatchCrops& crops, int64_t element_size, const void* volume, void* result,
                             cudaStream_t stream) {
  switch (element_size) {
    case 1:
      return crops_of<uint8_t>(crops, volume, result, stream);
    case 2:
      return crops_of<uint16_t>(crops, volume, result, stream);
    case 4:
      return crops_of<uint32_t>(crops, volume, result, stream);
    case 8:
      return crops_of<uint64_t>(crops, volume, result, stream);
    case 16:
      return start_crops<Complex128, 1>(crops, volume, result, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t patch_crops_backward_cuda(const PatchCrops& crops, ScalarKind kind, const void* grad,
                                      void* grad_volume, cudaStream_t stream) {
  const int64_t area = int64_t(crops.size[1]) * crops.size[2];
  return tuning::crop_gradient([&](auto choice) {
    using Choice = decltype(choice);
    constexpr int kThreads = Choice::kThreads;
    const int64_t units_per_plane = (area + kThreads * kVoxels - 1) / (kThreads * kVoxels);
    const int64_t units = crops.batch * crops.channels * crops.size[0] * units_per_plane;
    int blocks = 0;
    const cudaError_t status = blocks_for(units, Choice::kBlocksPerProcessor, &blocks);
    if (status != cudaSuccess || blocks == 0) return status;
    return with_type(kind, [&](auto type) {
      using T = decltype(type);
      return launch(crop_gradient_kernel<T, kThreads>, blocks, kThreads, 0, stream, crops,
                    static_cast<const T*>(grad), static_cast<T*>(grad_volume), units_per_plane);
    });
  });
}

}  // namespace fastseg
