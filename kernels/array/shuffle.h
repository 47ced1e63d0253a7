// SPDX-License-Identifier: BSD-3-Clause
// HDF5's byte shuffle undone: first bytes of all numbers, then their second ones, ... become numbers again.
#pragma once

#include <cstdint>

namespace fastseg {

void unshuffle(const char* from, int64_t count, int item_bytes, char* to);

}  // namespace fastseg
