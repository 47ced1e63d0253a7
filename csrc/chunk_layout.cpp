// SPDX-License-Identifier: BSD-3-Clause
#include "chunk_layout.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <unordered_map>

#include "checks.h"

namespace fastseg {
namespace {

constexpr int64_t kMostBytes = int64_t(1) << 61;

// Memory of chunks that nobody holds any more, for the next ones: what malloc takes from the system for every
// chunk costs a page fault for each 4 KiB, and giving it back as much, under Python's lock.
class Blocks {
 public:
  char* take(size_t bytes) {
    for (size_t i = 0; i < free_.size(); ++i) {
      if (free_[i].first != bytes) continue;
      char* const found = free_[i].second;
      free_[i] = free_.back();
      free_.pop_back();
      held_ -= bytes;
      return found;
    }
    char* const memory = new char[kAlignment + bytes] + kAlignment;
    std::memcpy(memory - sizeof bytes, &bytes, sizeof bytes);
    return memory;
  }
  void put(char* memory) {
    size_t bytes = 0;
    std::memcpy(&bytes, memory - sizeof bytes, sizeof bytes);
    if (held_ + bytes > kMostFree) {
      delete[] (memory - kAlignment);
      return;
    }
    free_.emplace_back(bytes, memory);
    held_ += bytes;
  }
  static Blocks& blocks() {
    static auto* const kept = new Blocks;  // arrays may outlive all that is destroyed at exit
    return *kept;
  }

 private:
  static constexpr size_t kAlignment = 64, kMostFree = size_t(8) << 20;
  std::vector<std::pair<size_t, char*>> free_;
  size_t held_ = 0;
};

// order: which axis each axis of a stored chunk is. codec "": Python decodes.
ChunkLayout make_layout(const std::string& name, const py::dtype& dtype, const Sizes& shape,
                        const py::array& fill, const std::string& codec, int64_t most_stored,
                        int shuffled_bytes, const py::bytes& header, const Sizes& order,
                        const std::optional<std::tuple<py::bytes, std::string, bool>>& files) {
  static auto* const names = new std::unordered_map<std::string, int64_t>;
  const auto axes = py::ssize_t(shape.size());
  check(axes <= kMostBoxAxes, "shape must have at most ", kMostBoxAxes, " axes, got ", axes);
  check(fill.size() == 1 && fill.dtype().equal(dtype), "fill must be a number of the dtype");
  Sizes sorted = order;
  std::sort(sorted.begin(), sorted.end());
  ChunkLayout layout;
  layout.dtype = dtype, layout.shape = shape, layout.fill = fill;
  layout.strides.resize(axes);
  layout.bytes = dtype.itemsize();
  check(layout.bytes > 0, "dtype must have a size");
  for (size_t i = 0; i < order.size(); ++i) {
    check(py::ssize_t(order.size()) == axes && sorted[i] == py::ssize_t(i), "order must have each of the ",
          axes, " axes once");
  }
  std::string known = name + '\n' + std::string(py::str(dtype.attr("str")));
  for (py::ssize_t stored = axes - 1; stored >= 0; --stored) {
    const py::ssize_t axis = order.empty() ? stored : order[stored];
    check(shape[axis] > 0, "shape must be of 1 and more, got ", shape[axis]);
    layout.strides[axis] = layout.bytes;
    layout.bytes *= std::min<int64_t>(shape[axis], kMostBytes / layout.bytes);  // which none is read of
    known += ' ' + std::to_string(axis) + ' ' + std::to_string(shape[axis]);
  }
  layout.number = names->emplace(known, int64_t(names->size())).first->second;
  check(shuffled_bytes >= 0 && (shuffled_bytes == 0 || layout.bytes % shuffled_bytes == 0),
        "shuffled_bytes must divide the ", layout.bytes, " of a chunk, got ", shuffled_bytes);
  if (!codec.empty()) layout.format = ChunkFormat{codec_of(codec), shuffled_bytes, header, most_stored};
  if (files) layout.files = NamedFiles{std::get<0>(*files), std::get<1>(*files), std::get<2>(*files)};
  return layout;
}

void set_table(ChunkLayout& layout, const py::bytes& path, std::vector<int64_t> steps,
               py::array_t<int64_t> numbers, py::array_t<int64_t> offsets, py::array_t<uint32_t> sizes,
               py::array_t<uint32_t> skipped) {
  check(steps.size() == layout.shape.size(), "steps must be ", layout.shape.size(), ", got ", steps.size());
  check(
      numbers.size() == offsets.size() && numbers.size() == sizes.size() && numbers.size() == skipped.size(),
      "numbers, offsets, sizes and skipped must be as many");
  layout.table = Table{
      path, std::move(steps), std::move(numbers), std::move(offsets), std::move(sizes), std::move(skipped)};
}

ChunkPlace place_of(const NamedFiles& files, const ChunkIndex& index, int axes) {
  std::string path = files.prefix;
  for (int i = 0; i < axes; ++i) {
    if (i > 0) path += files.separator;
    path += std::to_string(index[files.reversed ? axes - 1 - i : i]);
  }
  return {std::move(path), 0, kToTheEnd, nullptr, ChunkState::kFailed};
}
ChunkPlace place_of(const Table& table, const ChunkIndex& index, int axes) {
  int64_t number = 0;
  for (int axis = 0; axis < axes; ++axis) number += index[axis] * table.steps[axis];
  const int64_t *numbers = table.numbers.data(), *end = numbers + table.numbers.size(),
                *found = std::lower_bound(numbers, end, number);
  if (found == end || *found != number) return {{}, 0, kNeverWritten, nullptr, ChunkState::kAbsent};
  const auto at = found - numbers;
  // What was not passed through every filter fails, and is left to Python.
  const int64_t size = table.filters_skipped.data()[at] == 0 ? table.sizes.data()[at] : 0;
  return {table.path, table.offsets.data()[at], size, nullptr, ChunkState::kFailed};
}

}  // namespace

Block ChunkLayout::make() const {
  return Block(Blocks::blocks().take(size_t(bytes)), [](char* given) { Blocks::blocks().put(given); });
}

ChunkPlace ChunkLayout::find_place(const ChunkIndex& index) const {
  const int axes = int(shape.size());
  return files ? place_of(*files, index, axes) : place_of(*table, index, axes);
}

void define_chunk_layout(py::module_& module) {
  py::class_<ChunkLayout>(module, "ChunkLayout")
      .def(py::init(&make_layout), py::arg("name"), py::arg("dtype"), py::arg("shape"), py::arg("fill"),
           py::arg("codec"), py::arg("most_stored"), py::arg("shuffled_bytes"), py::arg("header"),
           py::arg("order"), py::arg("files"))
      .def("set_table", &set_table, py::arg("path"), py::arg("steps"), py::arg("numbers"), py::arg("offsets"),
           py::arg("sizes"), py::arg("skipped"));
}

}  // namespace fastseg
