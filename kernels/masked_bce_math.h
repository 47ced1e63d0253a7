// SPDX-License-Identifier: BSD-3-Clause
// The rule of one voxel of masked_bce, shared by the CPU and the CUDA kernels:
//   loss      l     = (1 - y) softplus(z) + p y softplus(-z)
//   gradient  dl/dz = (1 - y) sigmoid(z) - p y sigmoid(-z)
// Both rest on u = exp(-|z|) in (0, 1]: nothing overflows, no large terms cancel, NaN in z passes through.
#pragma once

#include <cmath>
#include <cstdint>

#include "elementary.h"
#include "masked_bce.h"

namespace fastseg {

// With a = 1 - y and b = p y:  l = |z| (z < 0 ? b : a) + (a + b) log(1 + u).
template <class Real>
FASTSEG_HOST_DEVICE Real bce_loss(Real logit, Real target, Real pos_weight) {
  const Real background = Real(1) - target, foreground = pos_weight * target;
  const Real magnitude = std::fabs(logit);
  const Real tail = log1p_unit(exp_negative(magnitude));
  return magnitude * (logit < Real(0) ? foreground : background) + (background + foreground) * tail;
}

// dl/dz = (z < 0 ? a u - b : a - b u) / (1 + u), as sigmoid(|z|) = 1 / (1 + u).
template <class Real>
FASTSEG_HOST_DEVICE Real bce_gradient(Real logit, Real target, Real pos_weight) {
  const Real background = Real(1) - target, foreground = pos_weight * target;
  const Real u = exp_negative(std::fabs(logit));
  const Real below = background * u - foreground, above = background - foreground * u;
  return divide(logit < Real(0) ? below : above, Real(1) + u);
}

// The loss and the statistics from the sums over all voxels (see MaskedBceStats for their order).
FASTSEG_HOST_DEVICE double finish_masked_bce(const MaskedBceSums& sums, int64_t numel, double pseudo_weight,
                                             BceNormalize normalize, double* stats) {
  double scale[2] = {1.0, pseudo_weight};
  if (normalize == BceNormalize::kTerms) {
    scale[0] = sums.count[0] > 0 ? 1.0 / sums.count[0] : 0.0;
    scale[1] = sums.count[1] > 0 ? pseudo_weight / sums.count[1] : 0.0;
  } else if (normalize != BceNormalize::kSum) {
    // A pseudo weight of 0 takes the pseudo-labelled voxels out, whatever they hold.
    const double total = normalize == BceNormalize::kVoxels
                             ? double(numel)
                             : sums.weight[0] + (pseudo_weight != 0 ? pseudo_weight * sums.weight[1] : 0.0);
    scale[0] = total != 0 ? 1.0 / total : 0.0;
    scale[1] = total != 0 ? pseudo_weight / total : 0.0;
  }
  double loss = 0;
  for (int source = 0; source < 2; ++source) {
    loss += scale[source] != 0 ? scale[source] * sums.loss[source] : 0.0;
    stats[kStatsLoss + source] = sums.loss[source];
    stats[kStatsWeight + source] = sums.weight[source];
    stats[kStatsCount + source] = sums.count[source];
    stats[kStatsScale + source] = scale[source];
  }
  return loss;
}

}  // namespace fastseg
