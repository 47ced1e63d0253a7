// SPDX-License-Identifier: BSD-3-Clause
#include "array_boxes.h"

#include <algorithm>

#include "arrays.h"
#include "checks.h"

namespace py = pybind11;

namespace fastseg {
namespace {

constexpr int64_t kFurthest = int64_t(1) << 62;

// For messages, and put together only for one.
struct NameOf {
  const py::dtype& dtype;
};
struct ShapeOf {
  const py::array& array;
};
std::string to_text(NameOf of) { return py::str(of.dtype); }
std::string to_text(ShapeOf of) {
  return fastseg::to_text(Shape(of.array.shape(), of.array.shape() + of.array.ndim()));
}

NumberType type_of(const py::dtype& dtype, const char* name) {
  const int size = int(dtype.itemsize());
  const int of_size = size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : size == 8 ? 3 : -1;
  const bool known =
      of_size >= 0 && (dtype.kind() == 'u' || dtype.kind() == 'i' || (dtype.kind() == 'f' && size > 1));
  if (dtype.kind() == 'b') return NumberType::kBool;
  check_type(known, name, " must hold bools, integers or floats of up to 8 bytes, got ", NameOf{dtype});
  if (dtype.kind() == 'f') return NumberType(int(NumberType::kFloat16) + of_size - 1);
  return NumberType(int(NumberType::kUint8) + 2 * of_size + (dtype.kind() == 'i'));
}

bool is_swapped(const py::dtype& dtype) {
  const char order = dtype.byteorder();
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  return order == '>';
#else
  return order == '<';
#endif
}

CopyRow row_of(const py::dtype& out, const py::dtype& array, bool nonzero) {
  const NumberType from = type_of(array, "arrays"), to = type_of(out, "out");
  check_type(!is_swapped(out), "out must have the byte order of this machine, got ", NameOf{out});
  if (nonzero) {
    check_type(to == NumberType::kUint8, "out must be uint8 with nonzero, got ", NameOf{out});
    const CopyRow row = find_nonzero_row(from);
    check_type(row != nullptr, "arrays must hold integers or bools with nonzero, got ", NameOf{array});
    return row;
  }
  const CopyRow row = find_copy_row(from, is_swapped(array), to);
  check_type(row != nullptr, "out must hold what arrays of ", NameOf{array}, " do, got ", NameOf{out});
  return row;
}

void copy_boxes(const py::object& into, const py::list& arrays, const py::list& places, bool nonzero) {
  BoxParts parts(into, nonzero);
  check(arrays.size() == places.size(), "places must be as many as arrays, ", arrays.size(), ", got ",
        places.size());
  std::vector<py::array> held;  // whatever becomes of the list meanwhile
  for (size_t i = 0; i < arrays.size(); ++i) {
    held.push_back(array_of(arrays[i], "arrays"));
    check_type(py::isinstance<py::tuple>(places[i]), "places must be tuples");
    const auto numbers = py::reinterpret_borrow<py::tuple>(places[i]);
    check(int(numbers.size()) == parts.axes(), "places must have the ", parts.axes(), " axes of out, got ",
          numbers.size(), " numbers");
    int64_t place[kMostBoxAxes];
    for (int axis = 0; axis < parts.axes(); ++axis) {
      place[axis] = PyLong_AsLongLong(numbers[axis].ptr());
      if (place[axis] == -1 && PyErr_Occurred()) throw py::error_already_set();
    }
    parts.add(held[i], place);
  }
  const py::gil_scoped_release release;
  parts.copy();
}

}  // namespace

py::array array_of(py::handle object, const char* name) {
  check_type(py::isinstance<py::array>(object), name, " must be numpy arrays, got ",
             Py_TYPE(object.ptr())->tp_name);
  return py::reinterpret_borrow<py::array>(object);
}

BoxParts::BoxParts(const py::object& out, bool nonzero) : out_(array_of(out, "out")), nonzero_(nonzero) {
  check(out_.writeable(), "out must be writeable");
  check(out_.ndim() <= kMostBoxAxes, "out must have at most ", kMostBoxAxes, " axes, got ", out_.ndim());
}

size_t BoxParts::add(const void* data, const py::dtype& dtype, const py::ssize_t* shape,
                     const py::ssize_t* strides, const int64_t* place) {
  if (!dtype.is(dtype_)) row_ = row_of(out_.dtype(), dtype, nonzero_), dtype_ = dtype;
  BoxCopy box{static_cast<const char*>(data), static_cast<char*>(out_.mutable_data()), axes(), {}, {}, {}};
  for (int axis = 0; axis < box.axes; ++axis) {
    const int64_t at = place[axis];
    check(-kFurthest < at && at < kFurthest, "places must be below 2^62, got ", at);
    const int64_t low = std::max<int64_t>(at, 0),
                  high = std::min<int64_t>(at + shape[axis], out_.shape(axis));
    box.shape[axis] = std::max<int64_t>(high - low, 0);
    box.from_strides[axis] = strides[axis], box.to_strides[axis] = out_.strides(axis);
    box.from += (low - at) * strides[axis], box.to += low * out_.strides(axis);
  }
  parts_.push_back({box, row_});
  return parts_.size() - 1;
}

size_t BoxParts::add(const py::array& array, const int64_t* place) {
  check(array.ndim() == out_.ndim(), "arrays must have the ", out_.ndim(), " axes of out, got ",
        ShapeOf{array});
  return add(array.data(), array.dtype(), array.shape(), array.strides(), place);
}

void define_array_boxes(py::module_& module) {
  module.def("copy_boxes", &copy_boxes, py::arg("out"), py::arg("arrays"), py::arg("places"),
             py::arg("nonzero") = false);
}

}  // namespace fastseg
