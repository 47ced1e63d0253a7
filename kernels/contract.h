// SPDX-License-Identifier: BSD-3-Clause
// What the contracts between the torch glue and the kernels have in common: element types and CUDA's status
// types.
#pragma once

#include <cstdint>

#if defined(FASTSEG_WITH_CUDA) || defined(FASTSEG_CUDA_EMULATION)
#include <driver_types.h>  // cudaError_t, cudaStream_t
#endif

namespace fastseg {

enum class ScalarKind : int { kUint8, kFloat32, kFloat64, kBFloat16, kFloat16 };

}  // namespace fastseg
