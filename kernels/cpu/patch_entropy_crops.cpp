// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy_crops on the CPU: rows of a patch are copied whole; backward each plane of the volume adds up
// the rows of the patches that hold it, in the order of the patches, so that threads share no voxel.
#include "../patch_entropy_crops.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../cpu_utils.h"

namespace fastseg {
namespace {

template <class Element>
void copy_row(const char* from, int64_t stride, int count, char* to) {
  const auto* source = reinterpret_cast<const Element*>(from);
  auto* target = reinterpret_cast<Element*>(to);
  for (int i = 0; i < count; ++i) target[i] = source[i * stride];
}

void copy_strided_row(const char* from, int64_t stride, int64_t element_size, int count, char* to) {
  switch (element_size) {
    case 1:
      return copy_row<uint8_t>(from, stride, count, to);
    case 2:
      return copy_row<uint16_t>(from, stride, count, to);
    case 4:
      return copy_row<uint32_t>(from, stride, count, to);
    case 8:
      return copy_row<uint64_t>(from, stride, count, to);
    default:
      for (int i = 0; i < count; ++i) {
        std::memcpy(to + i * element_size, from + i * stride * element_size, element_size);
      }
  }
}

// Adds the patches to the plane (sample, channel, z), in Real.
template <class Real>
void add_plane(const PatchCrops& in, ScalarKind kind, const void* grad, int64_t plane, std::vector<Real>& sum,
               std::vector<Real>& row, void* grad_volume) {
  const int32_t z = int32_t(plane % in.size[0]);
  const int64_t channel = plane / in.size[0] % in.channels, sample = plane / in.size[0] / in.channels;
  const int32_t width = in.size[2], patch_width = in.patch[2];
  std::fill(sum.begin(), sum.end(), Real(0));
  for (int64_t number = 0; number < in.patches; ++number) {
    int32_t corner[3];
    if (!in.locate(sample, number, corner) || z < corner[0] || z >= corner[0] + in.patch[0]) continue;
    const int64_t patch = (sample * in.patches + number) * in.channels + channel;
    const int64_t from = patch * in.patch_voxels() + int64_t(z - corner[0]) * in.patch[1] * patch_width;
    for (int32_t y = 0; y < in.patch[1]; ++y) {
      read_values(grad, kind, from + int64_t(y) * patch_width, patch_width, row.data());
      Real* target = sum.data() + int64_t(corner[1] + y) * width + corner[2];
      for (int32_t x = 0; x < patch_width; ++x) target[x] += row[x];
    }
  }
  for (int32_t y = 0; y < in.size[1]; ++y) {
    write_values(sum.data() + int64_t(y) * width, kind, (plane * in.size[1] + y) * width, width, grad_volume);
  }
}

template <class Real>
void add_planes(const PatchCrops& in, ScalarKind kind, const void* grad, int64_t begin, int64_t end,
                void* grad_volume) {
  std::vector<Real> sum(int64_t(in.size[1]) * in.size[2]), row(in.patch[2]);
  for (int64_t plane = begin; plane < end; ++plane) add_plane(in, kind, grad, plane, sum, row, grad_volume);
}

}  // namespace

void patch_crops_cpu(const PatchCrops& in, int64_t element_size, const void* volume, int64_t begin,
                     int64_t end, void* result) {
  const int64_t bytes = in.patch_voxels() * element_size, row_bytes = in.patch[2] * element_size;
  for (int64_t number = begin; number < end; ++number) {
    const int64_t channel = number % in.channels, patch = number / in.channels;
    const int64_t sample = patch / in.patches;
    char* target = static_cast<char*>(result) + number * bytes;
    int32_t corner[3];
    if (!in.locate(sample, patch % in.patches, corner)) {
      std::memset(target, 0, bytes);
      continue;
    }
    const int64_t first = sample * in.strides[0] + channel * in.strides[1] + corner[2] * in.strides[4];
    for (int32_t z = 0; z < in.patch[0]; ++z) {
      for (int32_t y = 0; y < in.patch[1]; ++y, target += row_bytes) {
        const int64_t at = first + (corner[0] + z) * in.strides[2] + (corner[1] + y) * in.strides[3];
        const char* source = static_cast<const char*>(volume) + at * element_size;
        if (in.strides[4] == 1) {
          std::memcpy(target, source, row_bytes);
        } else {
          copy_strided_row(source, in.strides[4], element_size, in.patch[2], target);
        }
      }
    }
  }
}

void patch_crops_backward_cpu(const PatchCrops& in, ScalarKind kind, const void* grad, int64_t begin,
                              int64_t end, void* grad_volume) {
  if (kind == ScalarKind::kFloat64) {
    add_planes<double>(in, kind, grad, begin, end, grad_volume);
  } else {
    add_planes<float>(in, kind, grad, begin, end, grad_volume);
  }
}

}  // namespace fastseg
