// SPDX-License-Identifier: BSD-3-Clause
// Torch glue of patch_entropy_sample: schema, checks, allocation, and the CPU and CUDA registrations.
#include "patch_entropy_sampling.h"

#include <tuple>

#include "checks.h"

namespace fastseg {
namespace {

namespace stable = torch::stable;

using Samples = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct Prepared {
  Tensor entropy, confidence, seed;
  Samples results;
  PatchSampling sampling;
};

Prepared prepare(const Tensor& entropy, const Tensor& confidence, const Tensor& seed, int64_t n,
                 const Shape& stride, int64_t strategy, bool replacement, double floor, double threshold) {
  const ScalarType type = entropy.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double, "entropy must be float32 or float64, got ",
        type);
  check(confidence.scalar_type() == type, "confidence must have the dtype of entropy, got ",
        confidence.scalar_type());
  check(confidence.dim() >= 3 && confidence.dim() <= 5,
        "confidence must be (B, K, *W) with 1 to 3 axes of windows, got ", confidence);
  Shape expected = shape_of(confidence);
  if (entropy.dim() > 1 && entropy.size(1) == 1) expected[1] = 1;
  check_shape("entropy", entropy, "(B, 1 or K, *W)", expected);
  check(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, "seed must be one int64 number");
  check(confidence.device() == entropy.device() && seed.device() == entropy.device(),
        "confidence and seed must be on the device of entropy");
  const int64_t axes = confidence.dim() - 2, batch = confidence.size(0), channels = confidence.size(1);
  check(int64_t(stride.size()) == axes, "stride must have ", axes, " entries, got ", stride);
  check(n >= 0, "n must be at least 0, got ", n);
  check(strategy >= 0 && strategy <= int64_t(SampleStrategy::kHighest),
        "strategy must be 0 (probabilistic), 1 (threshold), 2 (lowest) or 3 (highest), got ", strategy);
  check(floor >= 0 && floor <= 1, "floor must be in [0, 1], got ", floor);

  Prepared prepared{stable::contiguous(entropy),
                    stable::contiguous(confidence),
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
    sampling.windows *= confidence.size(axis + 2);
    sampling.window_shape[axis] = int32_t(confidence.size(axis + 2));
    sampling.stride[axis] = int32_t(stride[axis]);
  }
  check(sampling.windows <= kMostWindows, "confidence must have at most 2**31 windows, got ", confidence);
  sampling.draws = n;
  sampling.strategy = SampleStrategy(strategy);
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

Samples patch_entropy_sample_cpu(const Tensor& entropy, const Tensor& confidence, const Tensor& seed,
                                 int64_t n, const Shape& stride, int64_t strategy, bool replacement,
                                 double floor, double threshold) {
  const Prepared prepared =
      prepare(entropy, confidence, seed, n, stride, strategy, replacement, floor, threshold);
  stable::parallel_for(0, prepared.sampling.rows(), 1,
                       [&](int64_t begin, int64_t end) { patch_sample_cpu(prepared.sampling, begin, end); });
  return prepared.results;
}

#if defined(FASTSEG_WITH_CUDA)
Samples patch_entropy_sample_cuda(const Tensor& entropy, const Tensor& confidence, const Tensor& seed,
                                  int64_t n, const Shape& stride, int64_t strategy, bool replacement,
                                  double floor, double threshold) {
  const stable::accelerator::DeviceGuard guard(entropy.get_device_index());
  const Prepared prepared =
      prepare(entropy, confidence, seed, n, stride, strategy, replacement, floor, threshold);
  const PatchSampling& sampling = prepared.sampling;
  const Shape chunks = {sampling.rows(), sample_chunks(sampling.windows)};
  Tensor weights = empty_on(entropy, {sampling.rows(), sampling.windows}, ScalarType::Int);
  Tensor sums = empty_on(entropy, chunks, ScalarType::Long);
  Tensor firsts = empty_on(entropy, chunks, ScalarType::Long);
  check_launch("patch_entropy_sample",
               patch_sample_cuda(sampling, static_cast<uint32_t*>(weights.data_ptr()),
                                 static_cast<uint64_t*>(sums.data_ptr()),
                                 static_cast<int64_t*>(firsts.data_ptr()), stream_of(entropy)));
  return prepared.results;
}
#endif

}  // namespace

// strategy is a SampleStrategy.
STABLE_TORCH_LIBRARY_FRAGMENT(fastseg, library) {
  library.def(
      "patch_entropy_sample(Tensor entropy, Tensor confidence, Tensor seed, int n, int[] stride, "
      "int strategy, bool replacement, float floor, float threshold) -> "
      "(Tensor index, Tensor corners, Tensor parity, Tensor count)");
}

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, library) {
  library.impl("patch_entropy_sample", TORCH_BOX(&patch_entropy_sample_cpu));
}

#if defined(FASTSEG_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, library) {
  library.impl("patch_entropy_sample", TORCH_BOX(&patch_entropy_sample_cuda));
}
#endif

}  // namespace fastseg
