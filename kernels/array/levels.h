// SPDX-License-Identifier: BSD-3-Clause
// Grey levels of uint8 and uint16: how often each occurs, and what each becomes.
#pragma once

#include <cstdint>

namespace fastseg {

// Adds to counts[level], of 256 or 65,536 levels.
void count_levels(const uint8_t* values, int64_t size, int64_t* counts);
void count_levels(const uint16_t* values, int64_t size, int64_t* counts);

// out[i] = table[values[i]]; out may be values.
void map_levels(const uint8_t* values, const uint8_t* table, int64_t size, uint8_t* out);
void map_levels(const uint16_t* values, const uint16_t* table, int64_t size, uint16_t* out);

}  // namespace fastseg
