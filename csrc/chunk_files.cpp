// SPDX-License-Identifier: BSD-3-Clause
#include "chunk_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>

#include "array/shuffle.h"

namespace fastseg {
namespace {

// Memory of a thread, kept for its next chunks unless it is large.
class Scratch {
 public:
  char* get(size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      memory_.reset(new char[bytes]);
      size_ = bytes;
    }
    return memory_.get();
  }
  void trim() {
    constexpr size_t kMostKept = size_t(4) << 20;
    if (size_ > kMostKept) memory_.reset(), size_ = 0;
  }

 private:
  std::unique_ptr<char[]> memory_;
  size_t size_ = 0;
};

thread_local Scratch stored_memory, shuffled_memory;

class File {
 public:
  explicit File(const std::string& path) {
    do {
      number_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    } while (number_ < 0 && errno == EINTR);
    is_absent_ = number_ < 0 && errno == ENOENT;
    // Sizes come from files that may be damaged: never more than there is.
    struct stat status;
    if (number_ >= 0 && ::fstat(number_, &status) == 0 && S_ISREG(status.st_mode)) size_ = status.st_size;
  }
  ~File() {
    if (number_ >= 0) ::close(number_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool is_absent() const { return is_absent_; }
  int64_t size() const { return size_; }  // -1 where it cannot be read

  bool read(char* to, int64_t offset, int64_t size) const {
    while (size > 0) {
      const ssize_t got = ::pread(number_, to, size, offset);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return false;
      to += got, offset += got, size -= got;
    }
    return true;
  }

 private:
  int number_;
  bool is_absent_;
  int64_t size_ = -1;
};

ChunkState read_chunk(const File& file, const ChunkPlace& place, const ChunkFormat& format, int64_t bytes) {
  if (file.is_absent() && place.size == kToTheEnd) return ChunkState::kAbsent;
  const int64_t size = place.size == kToTheEnd ? file.size() - place.offset : place.size;
  const auto header = int64_t(format.header.size());
  if (place.offset < 0 || size < header || size > format.most_stored || size > file.size() - place.offset) {
    return ChunkState::kFailed;
  }
  char* const stored = stored_memory.get(size);
  if (!file.read(stored, place.offset, size) || std::memcmp(stored, format.header.data(), header) != 0) {
    return ChunkState::kFailed;
  }
  char* const decoded = format.shuffled_bytes > 0 ? shuffled_memory.get(bytes) : place.out;
  if (!decompress(format.codec, stored + header, size - header, decoded, bytes)) return ChunkState::kFailed;
  if (format.shuffled_bytes > 0) {
    unshuffle(decoded, bytes / format.shuffled_bytes, format.shuffled_bytes, place.out);
  }
  return ChunkState::kDecoded;
}

}  // namespace

void read_chunks(std::vector<ChunkPlace>& places, const ChunkFormat& format, int64_t bytes) {
  std::optional<File> file;
  const ChunkPlace* opened = nullptr;
  for (ChunkPlace& place : places) {
    if (place.size == kNeverWritten) {
      place.state = ChunkState::kAbsent;
      continue;
    }
    if (opened == nullptr || opened->path != place.path) {
      file.emplace(place.path);
      opened = &place;
    }
    place.state = read_chunk(*file, place, format, bytes);
  }
  stored_memory.trim();
  shuffled_memory.trim();
}

}  // namespace fastseg
