// SPDX-License-Identifier: BSD-3-Clause
// Decompression of chunks by the C functions of libdeflate, Zstandard and Blosc that imagecodecs and
// numcodecs bring: Python says where they are, nothing is linked. Without Python's lock, from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fastseg {

enum class Codec { kNone, kZlib, kGzip, kZstd, kBlosc };

// Raises ValueError for an unknown name.
Codec codec_of(const std::string& name);

// The addresses of the functions of a library, in the order of chunk_codecs.cpp.
void set_codec_functions(const std::string& library, const std::vector<size_t>& addresses);

// False unless the data are whole and make `to_bytes` bytes exactly.
bool decompress(Codec codec, const char* data, size_t bytes, char* to, size_t to_bytes);

}  // namespace fastseg
