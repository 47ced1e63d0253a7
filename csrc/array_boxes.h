// SPDX-License-Identifier: BSD-3-Clause
// A box put together from numpy arrays that it touches, such as the decoded chunks of a file.
#pragma once

#include <pybind11/numpy.h>

#include <vector>

#include "array/boxes.h"

namespace fastseg {

// The parts of `out` that arrays give it. Whoever copies holds the arrays until then.
class BoxParts {
 public:
  // nonzero: 1 where integers are not 0, to uint8.
  explicit BoxParts(const pybind11::object& out, bool nonzero = false);

  int axes() const { return int(out_.ndim()); }

  // What of an array lies within out, where its first number is at `place`. Returns the part's number.
  size_t add(const void* data, const pybind11::dtype& dtype, const pybind11::ssize_t* shape,
             const pybind11::ssize_t* strides, const int64_t* place);
  size_t add(const pybind11::array& array, const int64_t* place);

  // The part is not copied.
  void drop(size_t part) { parts_[part].row = nullptr; }

  // Needs no lock.
  void copy() const {
    for (const Part& part : parts_) {
      if (part.row != nullptr) copy_box(part.box, part.row);
    }
  }

 private:
  struct Part {
    BoxCopy box;
    CopyRow row;
  };
  pybind11::array out_;
  bool nonzero_;
  pybind11::object dtype_;  // of the array before, mostly that of all
  CopyRow row_ = nullptr;
  std::vector<Part> parts_;
};

// No array is made from what is not one: nobody would see it again.
pybind11::array array_of(pybind11::handle object, const char* name);

}  // namespace fastseg
