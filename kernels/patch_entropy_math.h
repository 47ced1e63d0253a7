// SPDX-License-Identifier: BSD-3-Clause
// The rule of one voxel of patch_entropy, shared by the CPU and the CUDA kernels. Entropies are in bits.
//   binary       H = -p log2 p - (1 - p) log2(1 - p), a function of m = min(p, 1 - p), which is exact
//   categorical  H = -sum p log2 p
// From logits, with u = exp(-|z|): m = u / (1 + u), and H ln 2 = m |z| + log1p(u); with the distances a >= 0
// of the logits from the largest, S = sum exp(-a): H ln 2 = log S + sum(a exp(-a)) / S. All terms are
// positive: nothing cancels. NaN passes through every rule.
// At p < tiny, the smallest normal number, and within tiny of 1, the slope is that at tiny, hence finite.
#pragma once

#include <limits>

#include "elementary.h"

namespace fastseg {

// Minimax fits of relative error, as in masked_bce_math.h.
// log2(1 + t) / t on [sqrt(1/2) - 1, sqrt(2) - 1]: 2.6e-8 before rounding.
constexpr float kLog2[] = {1.4426950f,   -0.72134733f, 0.48091063f,  -0.36070368f, 0.28791624f,
                           -0.23894481f, 0.21571560f,  -0.20726976f, 0.12583706f};
// -(1 - m) log2(1 - m) / m on [0, 1/2]: 1.9e-8 before rounding.
constexpr float kOtherTerm[] = {1.4426950f,    -0.72135401f, -0.24020009f, -0.12384763f,
                                -0.046550583f, -0.14366420f, 0.15232325f,  -0.18792847f};

// -(1 - m) log2(1 - m) / m of degree 5: 1.1e-6. For 16-bit values on a GPU.
constexpr float kOtherTermQuick[] = {1.4426967f,   -0.72155762f, -0.23609304f,
                                     -0.15288413f, 0.03418313f,  -0.18942073f};

template <class Real>
constexpr Real kTiny = std::numeric_limits<Real>::min();
template <class Real>
constexpr Real kLog2E = Real(1.442695040888963407);

// log2(x) for normal x > 0, within 2 units in the last place; some number for 0, subnormal x and NaN.
FASTSEG_HOST_DEVICE float log2_positive(float x) {
#if defined(__CUDA_ARCH__) || defined(FASTSEG_CUDA_EMULATION)
  return log2f(x < kTiny<float> ? kTiny<float> : x);
#else
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;  // of x / sqrt(1/2): the mantissa is around 1
  bits -= exponent * (1 << 23);
  float mantissa;
  std::memcpy(&mantissa, &bits, sizeof mantissa);
  const float t = mantissa - 1.0f, t2 = t * t, t4 = t2 * t2;
  const float low = (kLog2[0] + kLog2[1] * t) + t2 * (kLog2[2] + kLog2[3] * t);
  const float high = (kLog2[4] + kLog2[5] * t) + t2 * (kLog2[6] + kLog2[7] * t);
  return float(exponent) + t * (low + t4 * (high + t4 * kLog2[8]));
#endif
}
FASTSEG_HOST_DEVICE double log2_positive(double x) {
  return std::log2(x < kTiny<double> ? kTiny<double> : x);
}

// log2(1 + x) for x >= 0: what 1 + x rounds away is put back.
template <class Real>
FASTSEG_HOST_DEVICE Real log2_1p(Real x) {
  const Real sum = Real(1) + x;
  return log2_positive(sum) + kLog2E<Real> * divide(x - (sum - Real(1)), sum);
}

// -(1 - m) log2(1 - m) for m in [0, 1/2].
FASTSEG_HOST_DEVICE float other_term(float m) {
  const float m2 = m * m, m4 = m2 * m2;
  const float low = (kOtherTerm[0] + kOtherTerm[1] * m) + m2 * (kOtherTerm[2] + kOtherTerm[3] * m);
  const float high = (kOtherTerm[4] + kOtherTerm[5] * m) + m2 * (kOtherTerm[6] + kOtherTerm[7] * m);
  return m * (low + m4 * high);
}
FASTSEG_HOST_DEVICE double other_term(double m) { return (m - 1) * std::log1p(-m) * kLog2E<double>; }

// -m log2 m - (1 - m) log2(1 - m) for m in [0, 1/2]: exactly 0 at 0. On a GPU log2 is one instruction: for
// m <= 1/2 its error of 2^-22 is one of the result's last bits.
template <bool kQuick>
FASTSEG_HOST_DEVICE float entropy_of_side(float m) {
#if defined(__CUDA_ARCH__) || defined(FASTSEG_CUDA_EMULATION)
  const float logarithm = lg2_approx(max_or_nan(m, kTiny<float>));
  if constexpr (kQuick) {
    const float high =
        kOtherTermQuick[2] + m * (kOtherTermQuick[3] + m * (kOtherTermQuick[4] + m * kOtherTermQuick[5]));
    const float ratio = kOtherTermQuick[0] - logarithm + m * (kOtherTermQuick[1] + m * high);
    return m * ratio;
  }
  const float high =
      kOtherTerm[3] + m * (kOtherTerm[4] + m * (kOtherTerm[5] + m * (kOtherTerm[6] + m * kOtherTerm[7])));
  const float ratio = kOtherTerm[0] - logarithm + m * (kOtherTerm[1] + m * (kOtherTerm[2] + m * high));
  return m * ratio;
#else
  return other_term(m) - m * log2_positive(m);
#endif
}
template <bool kQuick>
FASTSEG_HOST_DEVICE double entropy_of_side(double m) {
  return other_term(m) - m * log2_positive(m);
}

#if defined(__CUDA_ARCH__) || defined(FASTSEG_CUDA_EMULATION)
FASTSEG_HOST_DEVICE float clamp_unit(float p) { return min_or_nan(max_or_nan(p, 0.0f), 1.0f); }
FASTSEG_HOST_DEVICE float smaller_side(float p) { return min_or_nan(clamp_unit(p), 1.0f - clamp_unit(p)); }
#endif
template <class Real>
FASTSEG_HOST_DEVICE Real clamp_unit(Real p) {
  const Real positive = p < Real(0) ? Real(0) : p;  // comparisons with NaN are false: NaN stays
  return positive > Real(1) ? Real(1) : positive;
}

// min(p, 1 - p), 0 where p is outside [0, 1].
template <class Real>
FASTSEG_HOST_DEVICE Real smaller_side(Real p) {
  const Real q = Real(1) - p;
  const Real m = p < q ? p : q;
  return m < Real(0) ? Real(0) : m;
}

// |z|, where 0 stands for a distance so large that exp(-|z|) is 0 (and 0 * inf would be NaN).
template <class Real>
FASTSEG_HOST_DEVICE Real finite_magnitude(Real z) {
  const Real magnitude = std::fabs(z);
  return magnitude > Real(1e30) ? Real(1e30) : magnitude;
}

template <class Real>
struct VoxelEntropy {
  Real entropy, confidence;
};

// u = exp(-|z|) and log(1 + u), as in masked_bce_math.h; kQuick: for 16-bit values on a GPU.
template <bool kQuick, class Real>
FASTSEG_HOST_DEVICE Real entropy_exp(Real magnitude) {
  if constexpr (kQuick) return exp_negative_quick(magnitude);
  return exp_negative(magnitude);
}
template <bool kQuick, class Real>
FASTSEG_HOST_DEVICE Real entropy_log1p(Real u) {
  if constexpr (kQuick) return log1p_unit_quick(u);
  return log1p_unit(u);
}

template <class Real, bool kFromLogits, bool kQuick = false>
FASTSEG_HOST_DEVICE VoxelEntropy<Real> binary_entropy(Real value) {
  if constexpr (kFromLogits) {
    const Real magnitude = finite_magnitude(value);
    const Real u = entropy_exp<kQuick>(magnitude);
    const Real m = divide(u, Real(1) + u);
    const Real entropy = kLog2E<Real> * (m * magnitude + entropy_log1p<kQuick>(u));
    return {entropy, value < Real(0) ? m : Real(1) - m};
  } else {
    return {entropy_of_side<kQuick>(smaller_side(value)), clamp_unit(value)};
  }
}

// log2((1 - m) / m) for m in (0, 1/2], exact near 1/2; the quick form is so to 2^-22 of 1.
template <bool kQuick, class Real>
FASTSEG_HOST_DEVICE Real log2_odds(Real m) {
#if defined(__CUDA_ARCH__) || defined(FASTSEG_CUDA_EMULATION)
  if constexpr (kQuick) return lg2_approx(Real(1) - m) - lg2_approx(m);
#endif
  return log2_1p(divide(Real(1) - (m + m), m));
}

// dH/dvalue and dconfidence/dvalue.
template <class Real, bool kFromLogits, bool kQuick = false>
FASTSEG_HOST_DEVICE VoxelEntropy<Real> binary_slopes(Real value) {
  if constexpr (kFromLogits) {
    const Real magnitude = finite_magnitude(value);
    const Real u = entropy_exp<kQuick>(magnitude);
    const Real m = divide(u, Real(1) + u);
    const Real slope = m * (Real(1) - m);
    const Real entropy = -kLog2E<Real> * (magnitude * slope);
    return {value < Real(0) ? -entropy : entropy, slope};
  } else {
    const Real m = smaller_side(value);
    const Real slope = log2_odds<kQuick>(m < kTiny<Real> ? kTiny<Real> : m);
    const bool inside = !(value < Real(0)) && !(value > Real(1));
    const Real entropy = value < Real(0.5) ? slope : -slope;
    return {inside ? entropy : Real(0), inside ? Real(1) : Real(0)};
  }
}

// One class's share of the categorical entropy, and its slope.
template <class Real>
FASTSEG_HOST_DEVICE Real categorical_term(Real p) {
  const Real inside = clamp_unit(p);
  return -inside * log2_positive(inside);
}
template <class Real>
FASTSEG_HOST_DEVICE Real categorical_slope(Real p) {
  const bool inside = !(p < Real(0)) && !(p > Real(1));
  const Real side = p < kTiny<Real> ? kTiny<Real> : p;
  const Real slope = -log2_positive(side) - kLog2E<Real>;
  return p != p ? p : inside ? slope : Real(0);
}

// Of one voxel's logits: the largest and where it is, the sum of exp(-a) over the others, and that of
// a exp(-a).
template <class Real>
struct Softmax {
  Real largest, others, weighted;

  FASTSEG_HOST_DEVICE Real entropy() const {
    return log2_1p(others) + kLog2E<Real> * (weighted / (Real(1) + others));
  }
};

// a, with what a -inf logit gives made finite.
template <class Real>
FASTSEG_HOST_DEVICE Real softmax_distance(Real logit, Real largest) {
  return finite_magnitude(largest - logit);
}

}  // namespace fastseg
