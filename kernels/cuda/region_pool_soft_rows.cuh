// SPDX-License-Identifier: BSD-3-Clause
// How soft region_pool on CUDA reads rows of maps, a part or a channel each, of any dtype and layout, into
// registers: consecutive voxels by 16-byte loads, all of them under way before the first is needed.
#pragma once

#include "region_pool_soft_maps.cuh"

namespace fastseg {
namespace {

// One row of a sample. Null: there is no such row, and it reads as 0.
struct Row {
  const char* values;
  ScalarKind kind;
  int step;  // elements from voxel to voxel

  __device__ __forceinline__ int bytes() const { return kind == ScalarKind::kFloat32 ? 4 : 2; }
};

__device__ __forceinline__ Row row_of_map(const SoftMap& map, int64_t voxels, int64_t sample, int64_t j) {
  const int64_t bytes = map.kind == ScalarKind::kFloat32 ? 4 : 2;
  const char* values = static_cast<const char*>(map.values);
  return {j < map.rows ? values + offset_of(map, voxels, sample, j, 0) * bytes : nullptr, map.kind,
          map.last ? int(map.rows) : 1};
}

// Channel c counts on from the features to the grey image.
__device__ __forceinline__ Row row_of_channel(const SoftInputs& in, int64_t sample, int64_t c) {
  const bool grey = c >= in.features.rows;
  return row_of_map(grey ? in.grey : in.features, in.voxels, sample, grey ? c - in.features.rows : c);
}

// Whether all rows can be read 16 bytes at a time, from voxels that are a multiple of 8.
inline bool rows_are_aligned(const SoftInputs& in) {
  const auto aligned = [&](const SoftMap& map) {
    return map.rows == 0 || (!map.last && in.voxels % 8 == 0 && is_aligned(map.values));
  };
  return aligned(in.features) && aligned(in.grey) && aligned(in.assignment);
}

__device__ __forceinline__ float float_of_bits(uint32_t bits, ScalarKind kind, bool upper) {
  if (kind == ScalarKind::kBFloat16) return __uint_as_float(upper ? bits & 0xffff0000u : bits << 16);
  const auto half = uint16_t(upper ? bits >> 16 : bits);
  return __half2float(reinterpret_cast<const __half&>(half));
}

// kCount consecutive voxels of a row, 4 or 8, as they lie in memory.
template <int kCount>
struct Voxels {
  Lanes<uint32_t, 4> words[kCount / 4];

  __device__ __forceinline__ void load(const Row& row, int64_t voxel) {
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) words[i] = {};
    if (!row.values) return;
    const char* at = row.values + voxel * row.bytes();
    if (row.kind == ScalarKind::kFloat32) {
#pragma unroll
      for (int i = 0; i < kCount / 4; ++i) words[i] = reinterpret_cast<const Lanes<uint32_t, 4>*>(at)[i];
    } else {
      const auto half = *reinterpret_cast<const Lanes<uint32_t, kCount / 2>*>(at);
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) words[0].value[i] = half.value[i];
    }
  }

  __device__ __forceinline__ void convert(ScalarKind kind, float (&values)[kCount]) const {
    if (kind == ScalarKind::kFloat32) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = __uint_as_float(words[i / 4].value[i % 4]);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        values[i] = float_of_bits(words[0].value[i / 2], kind, i % 2 == 1);
      }
    }
  }
};

// The same one by one, with 0 beyond the end.
template <int kCount>
__device__ __forceinline__ void read_singly(const Row& row, int64_t voxel, int64_t end,
                                            float (&values)[kCount]) {
  const SoftMap map{row.values, row.kind, 0, false};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = row.values && voxel + i < end ? read_value<float>(map, (voxel + i) * row.step) : 0.0f;
  }
}

// Rows from `voxel` on; `whole`: all rows are aligned, and none of the warp's voxels lies beyond the end.
template <int kRows, int kCount>
__device__ __forceinline__ void read_rows(const Row (&rows)[kRows], int64_t voxel, int64_t end, bool whole,
                                          float (&values)[kRows][kCount]) {
  if (whole) {
    Voxels<kCount> loaded[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) loaded[i].load(rows[i], voxel);
#pragma unroll
    for (int i = 0; i < kRows; ++i) loaded[i].convert(rows[i].kind, values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kRows; ++i) read_singly(rows[i], voxel, end, values[i]);
  }
}

}  // namespace
}  // namespace fastseg
