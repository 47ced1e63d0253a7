// SPDX-License-Identifier: BSD-3-Clause
#include "arrays.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>

#include "array/blend.h"
#include "array/levels.h"
#include "array/masks.h"
#include "array/shuffle.h"
#include "checks.h"

namespace py = pybind11;

namespace fastseg {
namespace {

std::string describe(const py::array& array) {
  return std::string(py::str(py::tuple(array.attr("shape")))) + " of " + std::string(py::str(array.dtype()));
}

template <class Value>
void require_dtype(const py::array& array, const char* name) {
  if (!py::isinstance<py::array_t<Value>>(array)) {
    throw TypeError(std::string(name) + " must be of " + std::string(py::str(py::dtype::of<Value>())) +
                    ", got " + describe(array));
  }
}

// The values of an array of this dtype and in one piece, as many as wanted; -1 for any number.
template <class Value>
const Value* read(const py::array& array, const char* name, py::ssize_t wanted = -1) {
  require_dtype<Value>(array, name);
  if (!(array.flags() & py::array::c_style)) {
    throw ValueError(std::string(name) + " must be contiguous, got " + describe(array));
  }
  if (wanted >= 0 && array.size() != wanted) {
    throw ValueError(std::string(name) + " must have " + std::to_string(wanted) + " values, got " +
                     describe(array));
  }
  return static_cast<const Value*>(array.data());
}

template <class Value>
Value* write(py::array& array, const char* name, py::ssize_t wanted = -1) {
  read<Value>(array, name, wanted);
  if (!array.writeable()) throw ValueError(std::string(name) + " must be writeable");
  return static_cast<Value*>(array.mutable_data());
}

using Mask = std::optional<py::array>;

const uint8_t* read_mask(const Mask& mask, const char* name, py::ssize_t wanted) {
  return mask ? read<uint8_t>(*mask, name, wanted) : nullptr;
}

py::tuple confusion(const py::array& prediction, const py::array& target, const Mask& valid) {
  const auto* predicted = read<uint8_t>(prediction, "prediction");
  const auto* trues = read<uint8_t>(target, "target", prediction.size());
  const auto* inside = read_mask(valid, "valid", prediction.size());
  ConfusionSums sums;
  {
    const py::gil_scoped_release release;
    sums = count_confusion(predicted, trues, inside, prediction.size());
  }
  return py::make_tuple(sums.valid, sums.target, sums.prediction, sums.both);
}

py::tuple find(const py::array& codes, const Mask& target, const py::array& ranks) {
  const auto* marked = read<uint8_t>(codes, "codes");
  const auto* also = read_mask(target, "target", codes.size());
  const auto* wanted = read<int64_t>(ranks, "ranks");
  if (ranks.size() > 0 && (wanted[0] < 0 || !std::is_sorted(wanted, wanted + ranks.size()))) {
    throw ValueError("ranks must rise from 0 or more");
  }
  py::array_t<int64_t> places(ranks.size());
  auto* found = places.mutable_data();
  int64_t all = 0;
  {
    const py::gil_scoped_release release;
    all = find_marked(marked, also, codes.size(), wanted, ranks.size(), found);
  }
  return py::make_tuple(places, all);
}

template <class Level>
void count_levels_of(const py::array& values, py::array& counts) {
  const auto* from = read<Level>(values, "values");
  auto* to = write<int64_t>(counts, "counts", py::ssize_t(1) << (8 * sizeof(Level)));
  const py::gil_scoped_release release;
  count_levels(from, values.size(), to);
}

template <class Level>
void map_levels_of(const py::array& values, const py::array& table, py::array& out) {
  const auto* from = read<Level>(values, "values");
  const auto* mapped = read<Level>(table, "table", py::ssize_t(1) << (8 * sizeof(Level)));
  auto* to = write<Level>(out, "out", values.size());
  const py::gil_scoped_release release;
  map_levels(from, mapped, values.size(), to);
}

void add_levels(const py::array& values, py::array counts) {
  values.itemsize() == 1 ? count_levels_of<uint8_t>(values, counts)
                         : count_levels_of<uint16_t>(values, counts);
}

void look_up(const py::array& values, const py::array& table, py::array out) {
  values.itemsize() == 1 ? map_levels_of<uint8_t>(values, table, out)
                         : map_levels_of<uint16_t>(values, table, out);
}

// Of (channels, z, y, x) float32, whose rows along x are in one piece.
BlendStrides strides_of(const py::array& array, const char* name) {
  require_dtype<float>(array, name);
  if (array.ndim() != 4 || (array.shape(3) > 1 && array.strides(3) != sizeof(float))) {
    throw ValueError(std::string(name) + " must be (channels, z, y, x), contiguous along x, got " +
                     describe(array));
  }
  const auto elements = [&](int axis) { return array.strides(axis) / py::ssize_t(sizeof(float)); };
  return {elements(0), elements(1), elements(2)};
}

void blend(py::array mean, const py::array& values, const py::array& before_z, const py::array& before_y,
           const py::array& total_y, const py::array& before_x, const py::array& total_x) {
  BlendInputs in;
  in.mean_strides = strides_of(mean, "mean");
  in.values_strides = strides_of(values, "values");
  for (int axis = 0; axis < 4; ++axis) {
    if (values.shape(axis) != mean.shape(axis)) {
      throw ValueError("values must have the shape of mean, " + describe(mean) + ", got " + describe(values));
    }
  }
  if (!mean.writeable()) throw ValueError("mean must be writeable");
  in.channels = mean.shape(0), in.depth = mean.shape(1), in.height = mean.shape(2), in.width = mean.shape(3);
  in.values = static_cast<const float*>(values.data());
  in.before_z = read<float>(before_z, "before_z", in.depth);
  in.before_y = read<float>(before_y, "before_y", in.height);
  in.total_y = read<float>(total_y, "total_y", in.height);
  in.before_x = read<float>(before_x, "before_x", in.width);
  in.total_x = read<float>(total_x, "total_x", in.width);
  auto* out = static_cast<float*>(mean.mutable_data());
  const py::gil_scoped_release release;
  blend_tile(in, out);
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

void define_arrays(py::module_& module) {
  // Arrays alone: a list would be turned into an array that nobody sees again.
  const auto array = [](const char* name) { return py::arg(name).noconvert(); };
  module.def("count_confusion", &confusion, array("prediction"), array("target"), py::arg("valid"));
  module.def("find_marked", &find, array("codes"), py::arg("target"), array("ranks"));
  module.def("count_levels", &add_levels, array("values"), array("counts"));
  module.def("map_levels", &look_up, array("values"), array("table"), array("out"));
  module.def("blend_tile", &blend, array("mean"), array("values"), array("before_z"), array("before_y"),
             array("total_y"), array("before_x"), array("total_x"));
  module.def("unshuffle", &unshuffle_bytes, py::arg("data"), py::arg("item_bytes"));
}

}  // namespace fastseg
