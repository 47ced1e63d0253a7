// SPDX-License-Identifier: BSD-3-Clause
// Soft region_pool on the CPU: from the gradients of its results to the tables of its backward pass.
#include "../region_pool_soft_math.h"

namespace fastseg {
namespace {

template <class Real>
void fill(const SoftResultGradients& in, const SoftTables& out) {
  for (int64_t sample = 0; sample < in.batch; ++sample) {
    for (int64_t c = 0; c < in.channels; ++c) write_soft_shift<Real>(in, out, sample, c);
  }
  for (int64_t row = 0; row < in.batch * in.parts; ++row) {
    Real offset = entry_of<Real>(in.grad_mass, row);
    for (int64_t c = 0; c < in.channels; ++c)
      offset += write_soft_entry<Real>(in, out, row / in.parts, row, c);
    static_cast<Real*>(out.offset)[row] = offset;
  }
}

}  // namespace

void soft_tables_cpu(const SoftResultGradients& gradients, const SoftTables& tables) {
  gradients.wide ? fill<double>(gradients, tables) : fill<float>(gradients, tables);
}

}  // namespace fastseg
