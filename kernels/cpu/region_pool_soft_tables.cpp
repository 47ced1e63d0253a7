// SPDX-License-Identifier: BSD-3-Clause
// Soft region_pool on the CPU: from the gradients of its results to the tables of its backward pass.
#include <limits>

#include "../region_pool_soft.h"

namespace fastseg {
namespace {

template <class Real>
void fill(const SoftResultGradients& in, const SoftTables& out) {
  const auto read = [](const void* table, int64_t at) {
    return table ? static_cast<const Real*>(table)[at] : Real(0);
  };
  const auto* masses = static_cast<const Real*>(in.mass);
  const auto* means = static_cast<const Real*>(in.mean);
  auto *direct = static_cast<Real*>(out.direct), *curved = static_cast<Real*>(out.curved);
  auto *shift = static_cast<Real*>(out.shift), *offset = static_cast<Real*>(out.offset);
  const int64_t parts = in.parts, channels = in.channels;
  for (int64_t sample = 0; sample < in.batch; ++sample) {
    const Real* mass = masses + sample * parts;
    Real* middle = shift + sample * channels;
    Real total = 0;
    for (int64_t k = 0; k < parts; ++k) total += mass[k];
    if (total == Real(0)) total = 1;  // and there is no mean either
    for (int64_t c = 0; c < channels; ++c) {
      Real sum = 0;
      for (int64_t k = 0; k < parts; ++k) sum += mass[k] * means[(sample * parts + k) * channels + c];
      middle[c] = sum / total;
    }
    for (int64_t k = 0; k < parts; ++k) {
      const int64_t row = sample * parts + k;
      const Real divisor = mass[k] == Real(0) ? std::numeric_limits<Real>::infinity() : mass[k];
      Real of_weights = read(in.grad_mass, row);
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t at = row * channels + c;
        const Real back = middle[c] - means[at], straight = read(in.grad_mean, at) / divisor;
        of_weights += back * straight;
        direct[at] = straight;
        if (c < in.plain) continue;
        const int64_t bent = row * (channels - in.plain) + c - in.plain;
        curved[bent] = read(in.grad_variance, bent) / divisor;
        of_weights += (back * back - static_cast<const Real*>(in.variance)[bent]) * curved[bent];
        direct[at] += 2 * back * curved[bent];
      }
      offset[row] = of_weights;
    }
  }
}

}  // namespace

void soft_tables_cpu(const SoftResultGradients& gradients, bool wide, const SoftTables& tables) {
  wide ? fill<double>(gradients, tables) : fill<float>(gradients, tables);
}

}  // namespace fastseg
