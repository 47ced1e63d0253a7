// SPDX-License-Identifier: BSD-3-Clause
// The eager door: torch tensors of Python as arguments and results of pybind11 functions.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "tensor.h"

namespace fastseg {

// A tensor that this door cannot read, and torch.library perhaps can: without dense data, or with a lazy
// sign.
struct Unreadable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

Tensor read_tensor(pybind11::handle object);  // which must outlive the result
void define_enums(pybind11::module_& module);
void define_eager_ops(pybind11::module_& module);

}  // namespace fastseg

namespace pybind11::detail {

template <>
struct type_caster<fastseg::Tensor> {
  PYBIND11_TYPE_CASTER(fastseg::Tensor, const_name("torch.Tensor"));
  bool load(handle source, bool) {
    value = fastseg::read_tensor(source);
    return true;
  }
  static handle cast(const fastseg::Tensor& tensor, return_value_policy, handle) {
    auto* object = static_cast<PyObject*>(tensor.owner().get());
    return handle(object == nullptr ? Py_None : object).inc_ref();
  }
};

}  // namespace pybind11::detail
