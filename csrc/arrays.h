// SPDX-License-Identifier: BSD-3-Clause
// The loops of the data path (kernels/array) on numpy arrays. Python's lock is released while they run.
#pragma once

#include <pybind11/pybind11.h>

namespace fastseg {

void define_arrays(pybind11::module_& module);
void define_array_boxes(pybind11::module_& module);
void define_chunk_cache(pybind11::module_& module);

}  // namespace fastseg
