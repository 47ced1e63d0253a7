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

// How exactly a voxel is worked out: kQuick is for 16-bit logits on a GPU (see elementary.h).
template <bool kQuick, class Real>
FASTSEG_HOST_DEVICE Real bce_exp(Real magnitude) {
  if constexpr (kQuick) return exp_negative_quick(magnitude);
  return exp_negative(magnitude);
}
template <bool kQuick, class Real>
FASTSEG_HOST_DEVICE Real bce_log1p(Real u) {
  if constexpr (kQuick) return log1p_unit_quick(u);
  return log1p_unit(u);
}

// With a = 1 - y and b = p y:  l = |z| (z < 0 ? b : a) + (a + b) log(1 + u).
template <bool kQuick = false, class Real>
FASTSEG_HOST_DEVICE Real bce_loss(Real logit, Real target, Real pos_weight) {
  const Real background = Real(1) - target, foreground = pos_weight * target;
  const Real magnitude = std::fabs(logit);
  const Real tail = bce_log1p<kQuick>(bce_exp<kQuick>(magnitude));
  return magnitude * (logit < Real(0) ? foreground : background) + (background + foreground) * tail;
}

// dl/dz = (z < 0 ? a u - b : a - b u) / (1 + u), as sigmoid(|z|) = 1 / (1 + u).
template <bool kQuick = false, class Real>
FASTSEG_HOST_DEVICE Real bce_gradient(Real logit, Real target, Real pos_weight) {
  const Real background = Real(1) - target, foreground = pos_weight * target;
  const Real u = bce_exp<kQuick>(std::fabs(logit));
  const Real below = background * u - foreground, above = background - foreground * u;
  return divide(logit < Real(0) ? below : above, Real(1) + u);
}

// The same where y is 0 or 1, hence p softplus(-z) or softplus(z): a change of sign takes the place of y.
template <bool kQuick = false, class Real>
FASTSEG_HOST_DEVICE Real bce_loss(Real logit, bool foreground, Real pos_weight) {
  const Real wrong = foreground ? -logit : logit;  // how far on the wrong side
  const Real tail = bce_log1p<kQuick>(bce_exp<kQuick>(std::fabs(wrong)));
  return ((wrong > Real(0) ? wrong : Real(0)) + tail) * (foreground ? pos_weight : Real(1));
}
template <bool kQuick = false, class Real>
FASTSEG_HOST_DEVICE Real bce_gradient(Real logit, bool foreground, Real pos_weight) {
  const Real wrong = foreground ? -logit : logit;
  const Real u = bce_exp<kQuick>(std::fabs(wrong));
  return divide(wrong < Real(0) ? u : Real(1), Real(1) + u) * (foreground ? -pos_weight : Real(1));
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
