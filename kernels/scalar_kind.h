// SPDX-License-Identifier: BSD-3-Clause
// The element types of arrays, as the glue tells the kernels of them.
#pragma once

namespace fastseg {

enum class ScalarKind : int { kUint8, kFloat32, kFloat64, kBFloat16, kFloat16 };

}  // namespace fastseg
