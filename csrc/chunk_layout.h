// SPDX-License-Identifier: BSD-3-Clause
// What the chunks of an array are, and how and where they are stored.
#pragma once

#include <pybind11/numpy.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "array/boxes.h"
#include "chunk_files.h"

namespace fastseg {

namespace py = pybind11;

using Sizes = std::vector<py::ssize_t>;
using Block = std::shared_ptr<char>;
using ChunkIndex = std::array<int64_t, kMostBoxAxes>;  // in the grid; 0 beyond the axes that there are

// A file for each chunk, named by its place in the grid.
struct NamedFiles {
  std::string prefix, separator;
  bool reversed;  // the last axis first
};

// Chunks of one file, in the order of their numbers in the grid.
struct Table {
  std::string path;
  std::vector<int64_t> steps;  // from a chunk's number to the next along each axis
  py::array_t<int64_t> numbers, offsets;
  py::array_t<uint32_t> sizes, filters_skipped;
};

// Arrays that share a name and what is said of their chunks share them in a cache.
struct ChunkLayout {
  int64_t number = 0;
  py::dtype dtype;
  Sizes shape, strides;
  int64_t bytes = 0;
  py::array fill;                     // one number
  std::optional<ChunkFormat> format;  // none: Python decodes
  std::optional<NamedFiles> files;
  std::optional<Table> table;  // neither: the source says where

  // Memory for a chunk.
  Block make() const;

  // Without Python's lock; only with files or a table.
  ChunkPlace find_place(const ChunkIndex& index) const;
};

void define_chunk_layout(py::module_& module);

}  // namespace fastseg
