// SPDX-License-Identifier: BSD-3-Clause
// sample_patches between its doors and its kernels.
#include "patch_entropy_sampling.h"

#include <limits>

#include "ops.h"
#include "place.h"

namespace fastseg {
namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

struct Prepared {
  Tensor entropy, confidence, seed;
  PatchSample results;
  PatchSampling sampling;
};

Prepared prepare(const Tensor& entropy, const Tensor& confidence, const Tensor& seed, int64_t n,
                 const Shape& stride, int64_t strategy, bool replacement, double floor, double threshold) {
  const ScalarType type = entropy.scalar_type();
  check_type(type == ScalarType::Float || type == ScalarType::Double,
             "entropy must be float32 or float64, got ", type);
  check_type(confidence.scalar_type() == type, "confidence must have the dtype of entropy, got ",
             confidence.scalar_type());
  check(confidence.dim() >= 3 && confidence.dim() <= 5,
        "confidence must be (B, K, *W) with 1 to 3 axes of windows, got ", confidence);
  check_map("entropy", entropy, "(B, 1 or K, *W)", confidence);
  check_type(seed.scalar_type() == ScalarType::Long, "seed must be int64, got ", seed.scalar_type());
  check(seed.numel() == 1, "seed must be one number, got a tensor ", seed);
  check_device("confidence", confidence, "entropy", entropy);
  check_device("seed", seed, "entropy", entropy);
  const int64_t axes = confidence.dim() - 2, batch = confidence.size(0), channels = confidence.size(1);
  check(int64_t(stride.size()) == axes, "stride must have ", axes, " entries, got ", stride);
  check(n >= 0, "n must be at least 0, got ", n);
  check(floor >= 0 && floor <= 1, "floor must be in [0, 1], got ", floor);

  Prepared prepared{contiguous(entropy),
                    contiguous(confidence),
                    seed,
                    {empty_on(entropy, {batch, channels, n}, ScalarType::Long),
                     empty_on(entropy, {batch, channels, n, axes}, ScalarType::Long),
                     empty_on(entropy, {batch, channels, n}, ScalarType::Bool),
                     empty_on(entropy, {batch, channels}, ScalarType::Long)},
                    {}};
  PatchSampling& sampling = prepared.sampling;
  sampling.entropy = prepared.entropy.data_ptr();
  sampling.confidence = prepared.confidence.data_ptr();
  sampling.is_double = type == ScalarType::Double;
  sampling.seed = static_cast<const int64_t*>(seed.data_ptr());
  sampling.batch = batch;
  sampling.channels = channels;
  sampling.entropy_channels = entropy.size(1);
  sampling.axes = int32_t(axes);
  sampling.windows = 1;
  for (int64_t axis = 0; axis < axes; ++axis) {
    const int64_t size = confidence.size(axis + 2);
    check(size <= kMost, "confidence must have at most 2**31 - 1 windows on each axis, got ", confidence);
    check(stride[axis] >= 1 && stride[axis] <= kMost, "stride must be from 1 to 2**31 - 1, got ", stride);
    sampling.windows *= size;
    sampling.window_shape[axis] = int32_t(size);
    sampling.stride[axis] = int32_t(stride[axis]);
  }
  check(sampling.windows <= kMostWindows, "confidence must have at most 2**31 windows, got ", confidence);
  sampling.draws = n;
  sampling.strategy = check_option("strategy", strategy, SampleStrategy::kHighest);
  sampling.replacement = replacement;
  sampling.floor = floor;
  sampling.threshold = threshold;
  auto& [index, corners, parity, count] = prepared.results;
  sampling.index = static_cast<int64_t*>(index.data_ptr());
  sampling.corners = static_cast<int64_t*>(corners.data_ptr());
  sampling.parity = static_cast<bool*>(parity.data_ptr());
  sampling.count = static_cast<int64_t*>(count.data_ptr());
  return prepared;
}

}  // namespace

PatchSample patch_entropy_sample(const Tensor& entropy, const Tensor& confidence, const Tensor& seed,
                                 int64_t n, const Shape& stride, int64_t strategy, bool replacement,
                                 double floor, double threshold) {
  const Place place(entropy);
  const Prepared prepared =
      prepare(entropy, confidence, seed, n, stride, strategy, replacement, floor, threshold);
  const PatchSampling& sampling = prepared.sampling;
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    const Shape chunks = {sampling.rows(), sample_chunks(sampling.windows)};
    const Tensor weights = empty_on(entropy, {sampling.rows(), sampling.windows}, ScalarType::Int);
    const Tensor sums = empty_on(entropy, chunks, ScalarType::Long);
    const Tensor firsts = empty_on(entropy, chunks, ScalarType::Long);
    place.launch("patch_entropy_sample", [&](cudaStream_t stream) {
      return patch_sample_cuda(sampling, static_cast<uint32_t*>(weights.data_ptr()),
                               static_cast<uint64_t*>(sums.data_ptr()),
                               static_cast<int64_t*>(firsts.data_ptr()), stream);
    });
    return prepared.results;
  }
#endif
  place.for_ranges(sampling.rows(), 1,
                   [&](int64_t begin, int64_t end) { patch_sample_cpu(sampling, begin, end); });
  return prepared.results;
}

}  // namespace fastseg
