// SPDX-License-Identifier: BSD-3-Clause
// A box put together from arrays that it touches, such as the decoded chunks of a file.
#include <pybind11/numpy.h>

#include <algorithm>
#include <vector>

#include "array/boxes.h"
#include "arrays.h"
#include "checks.h"

namespace py = pybind11;

namespace fastseg {
namespace {

// For messages, and put together only for one.
struct DtypeOf {
  const py::array& array;
};
struct ShapeOf {
  const py::array& array;
};
std::string to_text(DtypeOf of) { return py::str(of.array.dtype()); }
std::string to_text(ShapeOf of) {
  return fastseg::to_text(Shape(of.array.shape(), of.array.shape() + of.array.ndim()));
}

NumberType type_of(const py::array& array, const char* name) {
  const py::dtype dtype = array.dtype();
  const int size = int(dtype.itemsize());
  const int of_size = size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : size == 8 ? 3 : -1;
  const bool known =
      of_size >= 0 && (dtype.kind() == 'u' || dtype.kind() == 'i' || (dtype.kind() == 'f' && size > 1));
  if (dtype.kind() == 'b') return NumberType::kBool;
  check_type(known, name, " must hold bools, integers or floats of up to 8 bytes, got ", DtypeOf{array});
  if (dtype.kind() == 'f') return NumberType(int(NumberType::kFloat16) + of_size - 1);
  return NumberType(int(NumberType::kUint8) + 2 * of_size + (dtype.kind() == 'i'));
}

bool is_swapped(const py::array& array) {
  const char order = array.dtype().byteorder();
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  return order == '>';
#else
  return order == '<';
#endif
}

CopyRow row_of(const py::array& out, const py::array& array, bool nonzero) {
  const NumberType from = type_of(array, "arrays"), to = type_of(out, "out");
  check_type(!is_swapped(out), "out must have the byte order of this machine, got ", DtypeOf{out});
  if (nonzero) {
    check_type(to == NumberType::kUint8, "out must be uint8 with nonzero, got ", DtypeOf{out});
    const CopyRow row = find_nonzero_row(from);
    check_type(row != nullptr, "arrays must hold integers or bools with nonzero, got ", DtypeOf{array});
    return row;
  }
  const CopyRow row = find_copy_row(from, is_swapped(array), to);
  check_type(row != nullptr, "out must hold what arrays of ", DtypeOf{array}, " do, got ", DtypeOf{out});
  return row;
}

struct Part {
  BoxCopy box;
  CopyRow row;
};

// What of the array lies within out, if anything.
void add_part(std::vector<Part>& parts, py::array& out, const py::array& array, const py::tuple& place,
              CopyRow row) {
  constexpr int64_t kFurthest = int64_t(1) << 62;
  check(array.ndim() == out.ndim() && int64_t(place.size()) == out.ndim(),
        "arrays and their places must have the ", out.ndim(), " axes of out, got ", ShapeOf{array}, " and ",
        place.size(), " numbers");
  BoxCopy box{static_cast<const char*>(array.data()),
              static_cast<char*>(out.mutable_data()),
              int(out.ndim()),
              {},
              {},
              {}};
  for (int axis = 0; axis < box.axes; ++axis) {
    const int64_t at = PyLong_AsLongLong(place[axis].ptr());
    if (at == -1 && PyErr_Occurred()) throw py::error_already_set();
    check(-kFurthest < at && at < kFurthest, "places must be below 2^62, got ", at);
    const int64_t low = std::max<int64_t>(at, 0),
                  high = std::min<int64_t>(at + array.shape(axis), out.shape(axis));
    if (high <= low) return;
    box.shape[axis] = high - low;
    box.from_strides[axis] = array.strides(axis), box.to_strides[axis] = out.strides(axis);
    box.from += (low - at) * array.strides(axis), box.to += low * out.strides(axis);
  }
  parts.push_back({box, row});
}

// No array is made from what is not one: nobody would see it again.
py::array array_of(py::handle object, const char* name) {
  check_type(py::isinstance<py::array>(object), name, " must be numpy arrays, got ",
             Py_TYPE(object.ptr())->tp_name);
  return py::reinterpret_borrow<py::array>(object);
}

void copy_boxes(const py::object& into, const py::list& arrays, const py::list& places, bool nonzero) {
  py::array out = array_of(into, "out");
  check(arrays.size() == places.size(), "places must be as many as arrays, ", arrays.size(), ", got ",
        places.size());
  check(out.writeable(), "out must be writeable");
  check(out.ndim() <= kMostBoxAxes, "out must have at most ", kMostBoxAxes, " axes, got ", out.ndim());
  std::vector<py::array> held;  // whatever becomes of the list meanwhile
  std::vector<Part> parts;
  for (size_t i = 0; i < arrays.size(); ++i) {
    held.push_back(array_of(arrays[i], "arrays"));
    check_type(py::isinstance<py::tuple>(places[i]), "places must be tuples");
    add_part(parts, out, held[i], py::reinterpret_borrow<py::tuple>(places[i]),
             row_of(out, held[i], nonzero));
  }
  const py::gil_scoped_release release;
  for (const Part& part : parts) copy_box(part.box, part.row);
}

}  // namespace

void define_array_boxes(py::module_& module) {
  module.def("copy_boxes", &copy_boxes, py::arg("out"), py::arg("arrays"), py::arg("places"),
             py::arg("nonzero") = false);
}

}  // namespace fastseg
