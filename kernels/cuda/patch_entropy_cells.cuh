// SPDX-License-Identifier: BSD-3-Clause
// How the forward CUDA kernels of patch_entropy share out cells: which thread reads what, and the sum of a
// cell over the threads that read it, in a fixed order.
#pragma once

#include "../cuda_utils.cuh"
#include "../patch_entropy.h"

namespace fastseg {

cudaError_t patch_entropy_categorical_cells(const PatchEntropyInputs& in, double scale, void* cells,
                                            cudaStream_t stream);
cudaError_t patch_entropy_categorical_gradient(const PatchEntropyInputs& in, const void* grad_cells,
                                               void* grad_values, cudaStream_t stream);

namespace {

constexpr int kBlocksPerProcessor = 8;

// A unit of work is a stretch of cells along w, at most as wide as the block's threads reach, in a few rows
// of cells. A thread stands for `lanes` neighbouring positions and takes every `parts`-th row of voxels of
// its row of cells.
struct CellTiling {
  int32_t lanes;
  int32_t run;        // cells between which there is no gap too wide for a stretch
  int32_t stretch;    // cells
  int32_t per_run;    // stretches
  int32_t stretches;  // of a row
  int32_t vectors;    // threads side by side along w
  int32_t parts;      // threads that share the rows of voxels of a cell
  int32_t cell_rows;  // of a unit
  int32_t rows;       // of cells, of all samples and channels
  int32_t bundles;    // of cell_rows rows; a unit is a stretch of a bundle

  __host__ __device__ void cells_of(int32_t number, const WindowAxis& w, int32_t* first,
                                    int32_t* last) const {
    const int32_t which = number / per_run;
    const int32_t begin = which * run, end = begin + run < w.cells ? begin + run : w.cells;
    *first = begin + (number - which * per_run) * stretch;
    *last = *first + stretch < end ? *first + stretch : end;
  }
  // The first position that the unit's threads stand for.
  __host__ __device__ int32_t origin(int32_t first_voxel) const { return first_voxel / lanes * lanes; }
};

inline CellTiling make_cell_tiling(const PatchEntropyInputs& in, int threads, int lanes) {
  const WindowAxis& w = in.axis[2];
  CellTiling tiling{};
  tiling.lanes = lanes;
  tiling.rows = int32_t(patch_entropy_cell_rows(in));
  if (tiling.rows == 0 || w.cells == 0) return tiling;
  const int32_t reach = (threads - 1) * lanes;  // wherever in its first vector a stretch begins
  const bool periods = w.stride <= reach;       // a stretch is of whole periods, or of a part of one
  tiling.run = periods ? w.cells : w.per_stride;
  tiling.stretch = periods ? std::min(w.cells, reach / w.stride * w.per_stride)
                           : std::min<int32_t>(w.per_stride, reach / int32_t(kLongestCell));
  tiling.per_run = (tiling.run + tiling.stretch - 1) / tiling.stretch;
  tiling.stretches = (w.cells + tiling.run - 1) / tiling.run * tiling.per_run;
  const int32_t looked_at = std::min(tiling.stretches, 4096);
  for (int32_t number = 0; number < looked_at; ++number) {
    int32_t first = 0, last = 0;
    tiling.cells_of(number, w, &first, &last);
    if (first >= last) continue;
    const int32_t span = w.end(last - 1) - tiling.origin(w.begin(first));
    tiling.vectors = std::max(tiling.vectors, (span + lanes - 1) / lanes);
  }
  if (looked_at < tiling.stretches) tiling.vectors = threads;
  const auto longest = [](const WindowAxis& axis) { return std::max(axis.head_length, axis.tail_length); };
  const int32_t groups = threads / tiling.vectors;
  tiling.parts = std::min(groups, longest(in.axis[0]) * longest(in.axis[1]));
  tiling.cell_rows = groups / tiling.parts;
  tiling.bundles = (tiling.rows - 1) / tiling.cell_rows + 1;
  return tiling;
}

// One thread's place in a unit, and its row of cells.
struct CellPlace {
  int32_t first, last;          // cells
  int32_t origin;               // position along w
  int32_t position;             // of this thread
  int32_t part;                 // of the rows of voxels
  bool active;                  // the others stand beyond the last row or position
  int32_t first_row;            // of the unit
  int32_t group;                // sample, and channel unless categorical
  int32_t z, y, depth, height;  // voxels of the row of cells
};

__device__ __forceinline__ int32_t locate_row(const PatchEntropyInputs& in, int32_t row, int32_t* cell_d,
                                              int32_t* cell_h) {
  const int32_t slice = row / in.axis[1].cells, group = slice / in.axis[0].cells;
  *cell_h = row - slice * in.axis[1].cells;
  *cell_d = slice - group * in.axis[0].cells;
  return group;
}

__device__ __forceinline__ CellPlace place_in(const PatchEntropyInputs& in, const CellTiling& tiling,
                                              int32_t bundle, int32_t stretch) {
  CellPlace place;
  tiling.cells_of(stretch, in.axis[2], &place.first, &place.last);
  place.first_row = bundle * tiling.cell_rows;
  const bool any = place.first < place.last;
  const int32_t end = any ? in.axis[2].end(place.last - 1) : 0;
  place.origin = any ? tiling.origin(in.axis[2].begin(place.first)) : 0;
  const int32_t group = int32_t(threadIdx.x) / tiling.vectors;
  place.position = place.origin + (int32_t(threadIdx.x) - group * tiling.vectors) * tiling.lanes;
  const int32_t local = group / tiling.parts;
  place.part = group - local * tiling.parts;
  const int32_t row = place.first_row + local;
  place.active = local < tiling.cell_rows && row < tiling.rows && place.position < end;
  int32_t cell_d = 0, cell_h = 0;
  place.group = locate_row(in, place.active ? row : 0, &cell_d, &cell_h);
  place.z = in.axis[0].begin(cell_d);
  place.y = in.axis[1].begin(cell_h);
  place.depth = in.axis[0].end(cell_d) - place.z;
  place.height = in.axis[1].end(cell_h) - place.y;
  return place;
}

// Writes scale * the sum of a cell of one quantity for the cells that this thread is to add up; `partial` are
// the sums of every position and part, `plane` is that of the group 0 and `planes_apart` its next one's.
template <class Real>
__device__ __forceinline__ void write_cells(const PatchEntropyInputs& in, const CellTiling& tiling,
                                            const CellPlace& place, const Real* partial, int64_t plane,
                                            int64_t planes_apart, double scale, Real* cells) {
  const int32_t across = place.last - place.first;
  const int32_t width = tiling.vectors * tiling.lanes;
  for (int32_t number = threadIdx.x; number < tiling.cell_rows * across; number += blockDim.x) {
    const int32_t local = number / across, cell = place.first + (number - local * across);
    const int32_t row = place.first_row + local;
    if (row >= tiling.rows) continue;
    const int32_t begin = in.axis[2].begin(cell) - place.origin;
    const int32_t end = in.axis[2].end(cell) - place.origin;
    double sum = 0;
    for (int32_t part = 0; part < tiling.parts; ++part) {
      const Real* values = partial + (local * tiling.parts + part) * width;
      for (int32_t i = begin; i < end; ++i) sum += double(values[i]);
    }
    int32_t cell_d = 0, cell_h = 0;
    const int64_t group = locate_row(in, row, &cell_d, &cell_h);
    const int64_t to =
        ((plane + group * planes_apart) * in.axis[0].cells + cell_d) * in.axis[1].cells + cell_h;
    cells[to * in.axis[2].cells + cell] = Real(scale * sum);
  }
}

// The map that a block works on, by blockIdx.z: of entropy, confidence or counts.
template <class Real>
struct MapOfBlock {
  Real* windows;          // null where the map is not given
  int64_t planes, first;  // of the map; so many planes of other maps come before
  uint32_t of_count;      // planes of the map for each plane of counts

  template <class Void>
  __device__ __forceinline__ MapOfBlock(const PatchEntropyInputs& in, const PatchEntropyMaps<Void>& maps)
      : windows(static_cast<Real*>(blockIdx.z == 0   ? maps.entropy
                                   : blockIdx.z == 1 ? maps.confidence
                                                     : maps.counts)),
        planes(blockIdx.z == 0   ? in.entropy_planes()
               : blockIdx.z == 1 ? in.confidence_planes()
                                 : in.count_planes()),
        first(blockIdx.z == 0   ? 0
              : blockIdx.z == 1 ? in.entropy_planes()
                                : in.entropy_planes() + in.confidence_planes()),
        of_count(blockIdx.z == 1 && in.categorical ? uint32_t(in.channels) : 1) {}
  __device__ __forceinline__ int64_t count_plane(int64_t plane) const {
    return of_count == 1 ? plane : int64_t(uint32_t(plane) / of_count);
  }
};

// A thread per window or cell of a plane; blockIdx.y goes over planes, blockIdx.z over the first so many
// maps.
inline dim3 map_grid(const PatchEntropyInputs& in, int64_t elements, int threads, unsigned maps) {
  return dim3(unsigned((elements + threads - 1) / threads),
              unsigned(std::min<int64_t>(in.confidence_planes(), 65535)), maps);
}

// A block per unit, as far as a grid reaches.
inline cudaError_t cell_grid(const CellTiling& tiling, int turns, dim3* grid) {
#if defined(FASTSEG_CUDA_EMULATION)
  constexpr int64_t kMostBlocks = 3;
#else
  constexpr int64_t kMostBlocks = 65535;
#endif
  grid->x = unsigned(tiling.bundles);
  grid->y = unsigned(std::min(int64_t(tiling.stretches) * turns, kMostBlocks));
  grid->z = 1;
  return cudaSuccess;
}

}  // namespace
}  // namespace fastseg
