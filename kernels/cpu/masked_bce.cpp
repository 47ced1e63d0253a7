// SPDX-License-Identifier: BSD-3-Clause
// masked_bce on the CPU. Each block of kBlock voxels is first decoded, whatever its dtypes and layout, into
// arrays that stay in the first-level cache; one branch-free loop then does the arithmetic on them. Memory
// read per voxel: logits, target and mask once; the backward pass writes the gradient besides.
#include "../masked_bce.h"

#include <algorithm>

#include "../cpu_utils.h"
#include "../masked_bce_math.h"

namespace fastseg {
namespace {

constexpr int kBlock = 1024;  // five float32 arrays of this length fill 20 KiB of a 32 KiB cache

template <class Real>
constexpr ScalarKind kKindOf = sizeof(Real) == sizeof(double) ? ScalarKind::kFloat64 : ScalarKind::kFloat32;

template <class Real>
struct Block {
  alignas(64) Real logits[kBlock];
  alignas(64) Real target[kBlock];
  alignas(64) Real weight[kBlock];
  alignas(64) Real pos_weight[kBlock];
  alignas(64) Real result[kBlock];
  alignas(64) int32_t source[kBlock];
};

// What is absent is 1 everywhere and is written once, not per block.
template <class Real>
FASTSEG_ALWAYS_INLINE void fill_absent(Block<Real>& block) {
  for (int i = 0; i < kBlock; ++i) {
    block.weight[i] = Real(1);
    block.pos_weight[i] = Real(1);
    block.source[i] = 1;
  }
}

// Mask, weight and pos_weight that several channels or voxels share, run by run: along the voxels of one
// channel, or, channels last, along the channels of one voxel.
template <class Real>
FASTSEG_ALWAYS_INLINE void decode_shared(const MaskedBceInputs& in, int64_t begin, int count, bool share_mask,
                                         bool share_weight, Block<Real>& block) {
  const auto* pos_weight = static_cast<const Real*>(in.pos_weight);
  int64_t voxel = begin % in.inner;
  int64_t channel = begin / in.inner % in.channels;
  int64_t outer = begin / in.inner / in.channels;
  for (int i = 0; i < count;) {
    const int64_t index = outer * in.inner + voxel;
    const bool across_channels = in.inner == 1;
    const int64_t left = across_channels ? in.channels - channel : in.inner - voxel;
    const int run = int(std::min<int64_t>(left, count - i));
    if (across_channels) {
      Real weight = 1;
      if (share_weight) read_values(in.weight, in.weight_kind, index, 1, &weight);
      for (int j = 0; j < run; ++j) {
        if (share_mask) block.source[i + j] = in.mask[index];
        if (share_weight) block.weight[i + j] = weight;
        if (pos_weight) block.pos_weight[i + j] = pos_weight[channel + j];
      }
      channel += run;
    } else {
      if (share_mask) {
        for (int j = 0; j < run; ++j) block.source[i + j] = in.mask[index + j];
      }
      if (share_weight) read_values(in.weight, in.weight_kind, index, run, block.weight + i);
      if (pos_weight) std::fill_n(block.pos_weight + i, run, pos_weight[channel]);
      voxel += run;
      if (voxel == in.inner) {
        voxel = 0;
        ++channel;
      }
    }
    if (channel == in.channels) {
      channel = 0;
      ++outer;
    }
    i += run;
  }
}

// count values from element begin on: where they lie if they are Real there, else decoded into the buffer.
template <class Real>
FASTSEG_ALWAYS_INLINE const Real* as_reals(const void* values, ScalarKind kind, int64_t begin, int count,
                                           Real* buffer) {
  if (kind == kKindOf<Real>) return static_cast<const Real*>(values) + begin;
  read_values(values, kind, begin, count, buffer);
  return buffer;
}

template <class Real>
struct Values {
  const Real *logits, *target, *weight;
};

// Decodes elements [begin, begin + count): the mask and pos_weight into the block, the rest as returned.
template <class Real>
FASTSEG_ALWAYS_INLINE Values<Real> decode(const MaskedBceInputs& in, int64_t begin, int count,
                                          Block<Real>& block) {
  const bool share_mask = in.mask && !in.mask_per_channel;
  const bool share_weight = in.weight && !in.weight_per_channel;
  Values<Real> values{};
  values.logits = as_reals(in.logits, in.logits_kind, begin, count, block.logits);
  values.target = as_reals(in.target, in.target_kind, begin, count, block.target);
  values.weight = block.weight;
  if (in.weight && !share_weight) {
    values.weight = as_reals(in.weight, in.weight_kind, begin, count, block.weight);
  }
  if (in.mask && !share_mask) {
    const uint8_t* mask = in.mask + begin;
    for (int i = 0; i < count; ++i) block.source[i] = mask[i];
  }
  if (share_mask || share_weight || in.pos_weight) {
    decode_shared(in, begin, count, share_mask, share_weight, block);
  }
  return values;
}

template <class Real, bool kWeighted>
FASTSEG_ALWAYS_INLINE void add_block(const Block<Real>& block, const Values<Real>& values, int count,
                                     MaskedBceSums& sums) {
  Real loss0 = 0, loss1 = 0, weight0 = 0, weight1 = 0;
  int32_t count0 = 0, count1 = 0;
#pragma omp simd reduction(+ : loss0, loss1, weight0, weight1, count0, count1)
  for (int i = 0; i < count; ++i) {
    const Real weight = kWeighted ? values.weight[i] : Real(1);
    const Real loss = weight * bce_loss(values.logits[i], values.target[i], block.pos_weight[i]);
    const bool labelled = block.source[i] == 1;
    const bool pseudo = block.source[i] == 2;
    loss0 += labelled ? loss : Real(0);  // selected, not multiplied: 0 * NaN is NaN
    loss1 += pseudo ? loss : Real(0);
    if constexpr (kWeighted) {
      weight0 += labelled ? weight : Real(0);
      weight1 += pseudo ? weight : Real(0);
    }
    count0 += labelled;
    count1 += pseudo;
  }
  sums.loss[0] += loss0;
  sums.loss[1] += loss1;
  sums.weight[0] += kWeighted ? weight0 : Real(count0);
  sums.weight[1] += kWeighted ? weight1 : Real(count1);
  sums.count[0] += count0;
  sums.count[1] += count1;
}

template <class Real>
FASTSEG_ALWAYS_INLINE MaskedBceSums sum_chunk(const MaskedBceInputs& in, int64_t begin, int64_t end,
                                              Block<Real>& block) {
  MaskedBceSums sums{};
  for (int64_t at = begin; at < end; at += kBlock) {
    const int count = int(std::min<int64_t>(kBlock, end - at));
    const Values<Real> values = decode(in, at, count, block);
    if (in.weight) {
      add_block<Real, true>(block, values, count, sums);
    } else {
      add_block<Real, false>(block, values, count, sums);
    }
  }
  return sums;
}

template <class Real>
FASTSEG_ALWAYS_INLINE void sum_chunks(const MaskedBceInputs& in, int64_t chunk_begin, int64_t chunk_end,
                                      MaskedBceSums* partials) {
  Block<Real> block;
  fill_absent(block);
  for (int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk) {
    const int64_t begin = chunk * kMaskedBceChunk;
    partials[chunk] = sum_chunk(in, begin, std::min(begin + kMaskedBceChunk, in.numel()), block);
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE void write_map(const MaskedBceInputs& in, int64_t begin, int64_t end, void* loss_map) {
  Block<Real> block;
  fill_absent(block);
  const Real pseudo_weight = Real(in.pseudo_weight);
  const int32_t pseudo_code = in.pseudo_weight != 0 ? 2 : -1;  // weight 0 takes those voxels out
  for (int64_t at = begin; at < end; at += kBlock) {
    const int count = int(std::min<int64_t>(kBlock, end - at));
    const Values<Real> values = decode(in, at, count, block);
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      const Real loss = values.weight[i] * bce_loss(values.logits[i], values.target[i], block.pos_weight[i]);
      const Real pseudo = block.source[i] == pseudo_code ? pseudo_weight * loss : Real(0);
      block.result[i] = block.source[i] == 1 ? loss : pseudo;
    }
    write_values(block.result, in.logits_kind, at, count, loss_map);
  }
}

template <class Real>
FASTSEG_ALWAYS_INLINE void write_gradient(const MaskedBceInputs& in, const MaskedBceUpstream& upstream,
                                          int64_t begin, int64_t end, void* grad_logits) {
  Block<Real> block;
  alignas(64) Real grad_buffer[kBlock];
  fill_absent(block);
  if (!upstream.grad_is_map) std::fill_n(grad_buffer, kBlock, *static_cast<const Real*>(upstream.grad));
  const double scale0 = upstream.scale ? upstream.scale[0] : 1.0;
  const double scale1 = upstream.scale ? upstream.scale[1] : in.pseudo_weight;
  const Real factor0 = Real(scale0), factor1 = Real(scale1);
  const int32_t labelled_code = scale0 != 0 ? 1 : -1;  // a source of scale 0 is taken out, whatever it holds
  const int32_t pseudo_code = scale1 != 0 ? 2 : -1;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int count = int(std::min<int64_t>(kBlock, end - at));
    const Values<Real> values = decode(in, at, count, block);
    const Real* grad =
        upstream.grad_is_map ? as_reals(upstream.grad, in.logits_kind, at, count, grad_buffer) : grad_buffer;
    const bool in_place = in.logits_kind == kKindOf<Real>;
    Real* result = in_place ? static_cast<Real*>(grad_logits) + at : block.result;
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      const Real gradient =
          grad[i] * values.weight[i] * bce_gradient(values.logits[i], values.target[i], block.pos_weight[i]);
      const Real pseudo = block.source[i] == pseudo_code ? factor1 * gradient : Real(0);
      result[i] = block.source[i] == labelled_code ? factor0 * gradient : pseudo;
    }
    if (!in_place) write_values(block.result, in.logits_kind, at, count, grad_logits);
  }
}

FASTSEG_CPU_CLONES void sum_chunks_float(const MaskedBceInputs& in, int64_t chunk_begin, int64_t chunk_end,
                                         MaskedBceSums* partials) {
  sum_chunks<float>(in, chunk_begin, chunk_end, partials);
}

FASTSEG_CPU_CLONES void write_map_float(const MaskedBceInputs& in, int64_t begin, int64_t end,
                                        void* loss_map) {
  write_map<float>(in, begin, end, loss_map);
}

FASTSEG_CPU_CLONES void write_gradient_float(const MaskedBceInputs& in, const MaskedBceUpstream& upstream,
                                             int64_t begin, int64_t end, void* grad_logits) {
  write_gradient<float>(in, upstream, begin, end, grad_logits);
}

}  // namespace

void masked_bce_sums_cpu(const MaskedBceInputs& in, int64_t chunk_begin, int64_t chunk_end,
                         MaskedBceSums* partials) {
  if (in.logits_kind == ScalarKind::kFloat64) {
    sum_chunks<double>(in, chunk_begin, chunk_end, partials);
  } else {
    sum_chunks_float(in, chunk_begin, chunk_end, partials);
  }
}

void masked_bce_finish_cpu(const MaskedBceInputs& in, BceNormalize normalize, const MaskedBceSums* partials,
                           void* loss, double* stats) {
  MaskedBceSums sums{};
  for (int64_t chunk = 0; chunk < masked_bce_chunks(in.numel()); ++chunk) {
    for (int source = 0; source < 2; ++source) {
      sums.loss[source] += partials[chunk].loss[source];
      sums.weight[source] += partials[chunk].weight[source];
      sums.count[source] += partials[chunk].count[source];
    }
  }
  const double value = finish_masked_bce(sums, in.numel(), in.pseudo_weight, normalize, stats);
  if (in.logits_kind == ScalarKind::kFloat64) {
    *static_cast<double*>(loss) = value;
  } else {
    *static_cast<float*>(loss) = float(value);
  }
}

void masked_bce_map_cpu(const MaskedBceInputs& in, int64_t begin, int64_t end, void* loss_map) {
  if (in.logits_kind == ScalarKind::kFloat64) {
    write_map<double>(in, begin, end, loss_map);
  } else {
    write_map_float(in, begin, end, loss_map);
  }
}

void masked_bce_backward_cpu(const MaskedBceInputs& in, const MaskedBceUpstream& upstream, int64_t begin,
                             int64_t end, void* grad_logits) {
  if (in.logits_kind == ScalarKind::kFloat64) {
    write_gradient<double>(in, upstream, begin, end, grad_logits);
  } else {
    write_gradient_float(in, upstream, begin, end, grad_logits);
  }
}

}  // namespace fastseg
