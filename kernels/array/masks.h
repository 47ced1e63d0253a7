// SPDX-License-Identifier: BSD-3-Clause
// Counting and finding voxels in masks of a byte per voxel, marked where the byte is not 0.
#pragma once

#include <cstdint>

namespace fastseg {

struct ConfusionSums {
  int64_t valid = 0, target = 0, prediction = 0, both = 0;  // voxels; the last three of the valid ones
};

// valid: nullptr for all.
ConfusionSums count_confusion(const uint8_t* prediction, const uint8_t* target, const uint8_t* valid,
                              int64_t voxels);

// Of the voxels marked in codes and, unless it is nullptr, in target:
// where the ranks[i]-th (from 0) is, to places[i]; voxels where there is none. ranks: rising. Returns
// how many there are.
int64_t find_marked(const uint8_t* codes, const uint8_t* target, int64_t voxels, const int64_t* ranks,
                    int64_t count, int64_t* places);

}  // namespace fastseg
