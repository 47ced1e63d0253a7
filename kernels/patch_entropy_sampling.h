// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy_sample: draws windows by their entropy. The contract between the torch glue and the kernels.
//
// A row is one sample and channel. All that decides is integer arithmetic, or single float64 operations that
// IEEE 754 defines to the last bit, so every device draws the same windows:
//   weight of a window   floor(clamp(1 - entropy, floor, 1) * 2^31 + 1/2), or 2^31 below the threshold; 0 if
//                        NaN
//   draw number i        the first window whose sum of weights up to it exceeds u * total / 2^64, where u is
//                        the 64-bit word of Philox(seed, i, row, kDraw); without replacement, a drawn
//                        window's weight becomes 0
//   parity of a window   word of Philox(seed, window, row, kParity) < floor(confidence * 2^32 + 1/2)
#pragma once

#include <cstdint>

#include "contract.h"
#include "philox.h"

namespace fastseg {

enum class SampleStrategy : int { kProbabilistic, kThreshold, kLowest, kHighest };

struct PatchSampling {
  const void* entropy;                        // (batch, entropy_channels, windows), NaN is never drawn
  const void* confidence;                     // (batch, channels, windows)
  bool is_double;                             // both float64, else float32
  const int64_t* seed;                        // one number, where the kernel runs
  int64_t batch, channels, entropy_channels;  // entropy_channels is channels, or 1 for all
  int32_t axes;
  int32_t window_shape[3], stride[3];
  int64_t windows;  // at most kMostWindows
  int64_t draws;
  SampleStrategy strategy;
  bool replacement;
  double floor, threshold;
  // Results, one row after the other: (rows, draws), (rows, draws, axes), (rows, draws), (rows). What is
  // beyond count holds -1, -1 and false.
  int64_t* index;
  int64_t* corners;
  bool* parity;
  int64_t* count;

  FASTSEG_HOST_DEVICE int64_t rows() const { return batch * channels; }

  FASTSEG_HOST_DEVICE double entropy_of(int64_t row, int64_t window) const {
    const int64_t of_entropy = entropy_channels == channels ? row : row / channels;
    return value(entropy, of_entropy * windows + window);
  }

  FASTSEG_HOST_DEVICE uint32_t weight(int64_t row, int64_t window) const {
    const double bits = entropy_of(row, window);
    if (bits != bits) return 0;
    if (strategy == SampleStrategy::kThreshold) return bits <= threshold ? 1u << 31 : 0u;
    double share = 1.0 - bits;
    share = share < floor ? floor : share > 1.0 ? 1.0 : share;
    return uint32_t(share * 0x1p31 + 0.5);
  }

  // A number that orders windows as lowest or highest do, smallest first. NaN has none.
  FASTSEG_HOST_DEVICE bool order(int64_t row, int64_t window, uint64_t* key) const {
    const double bits = entropy_of(row, window) + 0.0;  // -0 becomes 0
    uint64_t pattern;
    std::memcpy(&pattern, &bits, sizeof pattern);
    const uint64_t ascending = pattern >> 63 ? ~pattern : pattern | (uint64_t(1) << 63);
    *key = strategy == SampleStrategy::kHighest ? ~ascending : ascending;
    return bits == bits;
  }

  FASTSEG_HOST_DEVICE uint64_t uniform(int64_t row, int64_t draw) const {
    const PhiloxWords words = random(row, draw, 0);
    return uint64_t(words.word[0]) << 32 | words.word[1];
  }

  FASTSEG_HOST_DEVICE void write(int64_t row, int64_t draw, int64_t window) const {
    const int64_t at = row * draws + draw;
    index[at] = window;
    int64_t left = window;
    for (int axis = axes - 1; axis >= 0; --axis) {
      const int64_t coordinate = left % window_shape[axis];
      left /= window_shape[axis];
      corners[at * axes + axis] = window < 0 ? -1 : coordinate * stride[axis];
    }
    if (window < 0) {
      parity[at] = false;
      return;
    }
    double chance = value(confidence, row * windows + window);
    chance = chance > 0.0 ? chance < 1.0 ? chance : 1.0 : 0.0;  // 0 for NaN
    parity[at] = random(row, window, 1).word[0] < uint64_t(chance * 0x1p32 + 0.5);
  }

 private:
  FASTSEG_HOST_DEVICE double value(const void* values, int64_t at) const {
    return is_double ? static_cast<const double*>(values)[at] : double(static_cast<const float*>(values)[at]);
  }
  FASTSEG_HOST_DEVICE PhiloxWords random(int64_t row, int64_t item, uint32_t purpose) const {
    return philox(uint64_t(*seed), {{uint32_t(item), uint32_t(item >> 32), uint32_t(row), purpose}});
  }
};

constexpr int64_t kMostWindows = int64_t(1) << 31;  // of a row: then the sum of its weights is below 2^63

// CPU: rows [begin, end).
void patch_sample_cpu(const PatchSampling& sampling, int64_t begin, int64_t end);

#if defined(FASTSEG_WITH_CUDA) || defined(FASTSEG_CUDA_EMULATION)
// CUDA: the windows of a row are looked at in chunks. Scratch: `weights` (rows, windows), `sums` (rows,
// chunks) with each chunk's total weight, or its next window's key; `firsts` (rows, chunks) with that window.
constexpr int64_t kSampleChunk = 1024;
FASTSEG_HOST_DEVICE int64_t sample_chunks(int64_t windows) {
  return (windows + kSampleChunk - 1) / kSampleChunk;
}
cudaError_t patch_sample_cuda(const PatchSampling& sampling, uint32_t* weights, uint64_t* sums,
                              int64_t* firsts, cudaStream_t stream);
#endif

}  // namespace fastseg
