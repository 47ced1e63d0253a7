// SPDX-License-Identifier: BSD-3-Clause
// Copying boxes between arrays of any strides, with a cast that loses nothing. Views do the rest: a flipped
// axis has a negative stride, a transposed array its strides in another order.
#pragma once

#include <cstdint>

namespace fastseg {

enum class NumberType {
  kBool,
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kUint64,
  kInt64,
  kFloat16,
  kFloat32,
  kFloat64
};

// Copies numbers that lie `step` bytes apart; neither side need be aligned.
using CopyRow = void (*)(const char* from, int64_t from_step, char* to, int64_t to_step, int64_t count);

// By numpy's rule of what a dtype can be cast to safely; nullptr for other pairs. swapped: `from` has its
// bytes in the other order than this machine.
CopyRow find_copy_row(NumberType from, bool swapped, NumberType to);

// 1 where an integer or bool is not 0, as uint8; nullptr for floats.
CopyRow find_nonzero_row(NumberType from);

constexpr int kMostBoxAxes = 8;

struct BoxCopy {
  const char* from;
  char* to;
  int axes;
  int64_t shape[kMostBoxAxes], from_strides[kMostBoxAxes], to_strides[kMostBoxAxes];  // strides in bytes
};

void copy_box(const BoxCopy& box, CopyRow copy_row);

}  // namespace fastseg
