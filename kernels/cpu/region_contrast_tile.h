// SPDX-License-Identifier: BSD-3-Clause
// What both passes of region_contrast do with a tile on the CPU.
#pragma once

#include "../cpu_utils.h"
#include "../region_contrast.h"

namespace fastseg {

template <class Real>
FASTSEG_ALWAYS_INLINE ContrastSide<Real> side_of_tile(const ContrastTile<Real>& tile,
                                                      const ContrastSide<Real>& side) {
  const int64_t at = tile.col_begin;
  return {side.scale + at, side.offset + at, side.ids + at, side.groups + at};
}

// A tile's row has one or two stretches of candidates: all, or those before and after itself.
struct Stretches {
  int count;
  int begin[2], end[2];
};

template <class Real>
FASTSEG_ALWAYS_INLINE Stretches stretches_of(const ContrastTile<Real>& tile, int64_t row) {
  const int width = int(tile.col_end - tile.col_begin);
  const int64_t self = tile.self[row] - tile.col_begin;
  if (self < 0 || self >= width) return {1, {0, 0}, {width, 0}};
  return {2, {0, int(self) + 1}, {int(self), width}};
}

}  // namespace fastseg
