// SPDX-License-Identifier: BSD-3-Clause
// Chunks of files, read and decoded in one call without Python's lock.
#include <fcntl.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "array/shuffle.h"
#include "arrays.h"
#include "checks.h"
#include "chunk_codecs.h"

namespace py = pybind11;

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

// Memory of chunks that nobody holds any more, for the next ones: what malloc takes from the system for every
// chunk costs a page fault for each 4 KiB, and giving it back as much, under Python's lock. That lock guards
// it.
class Blocks {
 public:
  py::array make(const py::dtype& dtype, const std::vector<py::ssize_t>& shape) {
    const auto bytes = size_t(dtype.itemsize()) * size_of(shape);
    char* memory = nullptr;
    for (size_t i = 0; i < free_.size() && memory == nullptr; ++i) {
      if (free_[i].first != bytes) continue;
      memory = free_[i].second;
      free_[i] = free_.back();
      free_.pop_back();
      held_ -= bytes;
    }
    if (memory == nullptr) memory = new char[kAlignment + bytes] + kAlignment;
    std::memcpy(memory - sizeof bytes, &bytes, sizeof bytes);
    const py::capsule owner(memory, [](void* given) { blocks().put(static_cast<char*>(given)); });
    return py::array(dtype, shape, {}, memory, owner);
  }
  static Blocks& blocks() {
    static auto* const kept = new Blocks;  // arrays may outlive all that is destroyed at exit
    return *kept;
  }

 private:
  static constexpr size_t kMostHeld = size_t(8) << 20, kAlignment = 64;

  static size_t size_of(const std::vector<py::ssize_t>& shape) {
    size_t size = 1;
    for (const py::ssize_t n : shape) size *= size_t(n);
    return size;
  }
  void put(char* memory) {
    size_t bytes = 0;
    std::memcpy(&bytes, memory - sizeof bytes, sizeof bytes);
    if (held_ + bytes > kMostHeld) {
      delete[] (memory - kAlignment);
      return;
    }
    free_.emplace_back(bytes, memory);
    held_ += bytes;
  }

  std::vector<std::pair<size_t, char*>> free_;
  size_t held_ = 0;
};

thread_local Scratch stored_memory, shuffled_memory;

struct Format {
  Codec codec;
  int shuffled_bytes;  // of a number whose bytes are shuffled; 0 if they are not
  std::string header;  // what a chunk begins with
  int64_t most_stored;
};

enum class State { kDecoded, kAbsent, kFailed };

struct Place {
  std::string path;      // empty: the file that is open
  int64_t offset, size;  // size -1: to the file's end
  char* out;
  State state;
};

class File {
 public:
  File(const std::string& path, int open_file) : own_(!path.empty()), number_(open_file) {
    if (own_) {
      do {
        number_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
      } while (number_ < 0 && errno == EINTR);
    }
  }
  ~File() {
    if (own_ && number_ >= 0) ::close(number_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int number() const { return number_; }

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
  bool own_;
  int number_;
};

State read_chunk(const Place& place, int open_file, const Format& format, int64_t bytes) {
  const File file(place.path, open_file);
  if (file.number() < 0) return errno == ENOENT && place.size < 0 ? State::kAbsent : State::kFailed;
  // Sizes come from files that may be damaged: never more than there is.
  struct stat status;
  if (::fstat(file.number(), &status) != 0 || !S_ISREG(status.st_mode)) return State::kFailed;
  const int64_t size = place.size < 0 ? status.st_size - place.offset : place.size;
  const auto header = int64_t(format.header.size());
  if (place.offset < 0 || size < header || size > format.most_stored ||
      size > status.st_size - place.offset) {
    return State::kFailed;
  }
  char* const stored = stored_memory.get(size);
  if (!file.read(stored, place.offset, size) || std::memcmp(stored, format.header.data(), header) != 0) {
    return State::kFailed;
  }
  char* const decoded = format.shuffled_bytes > 0 ? shuffled_memory.get(bytes) : place.out;
  if (!decompress(format.codec, stored + header, size - header, decoded, bytes)) return State::kFailed;
  if (format.shuffled_bytes > 0) {
    unshuffle(decoded, bytes / format.shuffled_bytes, format.shuffled_bytes, place.out);
  }
  return State::kDecoded;
}

py::list read_chunks(const py::sequence& files, int open_file, const std::vector<int64_t>& offsets,
                     const std::vector<int64_t>& sizes, const std::string& codec, int shuffled_bytes,
                     const py::bytes& header, int64_t most_stored, const py::dtype& dtype,
                     const std::vector<py::ssize_t>& shape) {
  const Format format{codec_of(codec), shuffled_bytes, header, most_stored};
  check(offsets.size() == sizes.size() && (files.empty() || files.size() == sizes.size()),
        "files, offsets and sizes must be as many, got ", files.size(), ", ", offsets.size(), " and ",
        sizes.size());
  std::vector<py::array> arrays;
  std::vector<Place> places;
  for (size_t i = 0; i < sizes.size(); ++i) {
    std::string path;
    if (!files.empty()) {
      auto encoded = py::reinterpret_steal<py::bytes>(PyUnicode_EncodeFSDefault(py::object(files[i]).ptr()));
      if (!encoded) throw py::error_already_set();
      path = encoded;
      check(!path.empty(), "files must have names");
    }
    arrays.push_back(Blocks::blocks().make(dtype, shape));
    auto* out = static_cast<char*>(arrays.back().mutable_data());
    places.push_back({std::move(path), offsets[i], sizes[i], out, State::kFailed});
  }
  const int64_t bytes = arrays.empty() ? 0 : arrays[0].nbytes();
  check(shuffled_bytes >= 0 && (shuffled_bytes == 0 || bytes % shuffled_bytes == 0),
        "shuffled_bytes must divide the ", bytes, " of a chunk, got ", shuffled_bytes);
  {
    const py::gil_scoped_release release;
    for (Place& place : places) place.state = read_chunk(place, open_file, format, bytes);
    stored_memory.trim();
    shuffled_memory.trim();
  }
  py::list found;
  for (size_t i = 0; i < places.size(); ++i) {
    if (places[i].state == State::kDecoded) {
      found.append(std::move(arrays[i]));
    } else if (places[i].state == State::kAbsent) {
      found.append(py::none());
    } else {
      found.append(py::bool_(false));
    }
  }
  return found;
}

py::array_t<uint8_t> unshuffle_bytes(const py::bytes& data, int item_bytes) {
  char* from = nullptr;
  py::ssize_t bytes = 0;
  if (PyBytes_AsStringAndSize(data.ptr(), &from, &bytes) != 0) throw py::error_already_set();
  check(item_bytes > 0 && bytes % item_bytes == 0, "item_bytes must divide the ", bytes, " of data, got ",
        item_bytes);
  py::array_t<uint8_t> out(bytes);
  auto* to = reinterpret_cast<char*>(out.mutable_data());
  {
    const py::gil_scoped_release release;
    unshuffle(from, bytes / item_bytes, item_bytes, to);
  }
  return out;
}

}  // namespace

void define_array_chunks(py::module_& module) {
  module.def("unshuffle", &unshuffle_bytes, py::arg("data"), py::arg("item_bytes"));
  module.def("set_codec_functions", &set_codec_functions, py::arg("library"), py::arg("addresses"));
  module.def("read_chunks", &read_chunks, py::arg("files"), py::arg("open_file"), py::arg("offsets"),
             py::arg("sizes"), py::arg("codec"), py::arg("shuffled_bytes"), py::arg("header"),
             py::arg("most_stored"), py::arg("dtype"), py::arg("shape"));
}

}  // namespace fastseg
