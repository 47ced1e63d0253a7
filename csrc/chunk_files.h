// SPDX-License-Identifier: BSD-3-Clause
// Chunks of files, read and decoded. Nothing here is Python's: any thread may, without a lock.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "chunk_codecs.h"

namespace fastseg {

struct ChunkFormat {
  Codec codec;
  int shuffled_bytes;  // of a number whose bytes are shuffled; 0 if they are not
  std::string header;  // what a chunk begins with
  int64_t most_stored;
};

enum class ChunkState { kDecoded, kAbsent, kFailed };

constexpr int64_t kToTheEnd = -1, kNeverWritten = -2;  // sizes

struct ChunkPlace {
  std::string path;
  int64_t offset, size;
  char* out;
  ChunkState state;
};

// Makes `bytes` at `out` of each, or says that there is no such chunk, or that it is not whole or not as
// expected.
void read_chunks(std::vector<ChunkPlace>& places, const ChunkFormat& format, int64_t bytes);

}  // namespace fastseg
