// SPDX-License-Identifier: BSD-3-Clause
// For machines without a CUDA toolkit: the types and functions of its runtime that the kernels use.
#pragma once

#include "driver_types.h"
#include "vector_types.h"
