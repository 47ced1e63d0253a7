// SPDX-License-Identifier: BSD-3-Clause
// The tables of the soft gradient entry by entry, shared by the CPU and the CUDA kernels; region_pool_soft.h
// has the formulas.
#pragma once

#include <limits>

#include "elementary.h"
#include "region_pool_soft.h"

namespace fastseg {

template <class Real>
constexpr Real kInfinity = std::numeric_limits<Real>::infinity();

template <class Real>
FASTSEG_HOST_DEVICE Real entry_of(const void* table, int64_t at) {
  return table ? static_cast<const Real*>(table)[at] : Real(0);
}

// Writes the mean of a channel over all parts. Without mass there is no mean, and any divisor will do.
template <class Real>
FASTSEG_HOST_DEVICE void write_soft_shift(const SoftResultGradients& in, const SoftTables& out,
                                          int64_t sample, int64_t channel) {
  Real total = 0, sum = 0;
  for (int64_t row = sample * in.parts; row < (sample + 1) * in.parts; ++row) {
    const Real mass = entry_of<Real>(in.mass, row);
    total += mass;
    sum += mass * entry_of<Real>(in.mean, row * in.channels + channel);
  }
  static_cast<Real*>(out.shift)[sample * in.channels + channel] = sum / (total == Real(0) ? Real(1) : total);
}

// Writes direct and curved of a row, which is a part of a sample, and gives what the channel adds to its
// offset.
template <class Real>
FASTSEG_HOST_DEVICE Real write_soft_entry(const SoftResultGradients& in, const SoftTables& out,
                                          int64_t sample, int64_t row, int64_t channel) {
  const int64_t at = row * in.channels + channel;
  const Real mass = entry_of<Real>(in.mass, row), divisor = mass == Real(0) ? kInfinity<Real> : mass;
  const Real back =
      static_cast<const Real*>(out.shift)[sample * in.channels + channel] - entry_of<Real>(in.mean, at);
  Real direct = entry_of<Real>(in.grad_mean, at) / divisor;
  Real share = back * direct;
  if (channel >= in.plain) {
    const int64_t bent = row * (in.channels - in.plain) + channel - in.plain;
    const Real curved = entry_of<Real>(in.grad_variance, bent) / divisor;
    static_cast<Real*>(out.curved)[bent] = curved;
    share += (back * back - entry_of<Real>(in.variance, bent)) * curved;
    direct += 2 * back * curved;
  }
  static_cast<Real*>(out.direct)[at] = direct;
  return share;
}

}  // namespace fastseg
