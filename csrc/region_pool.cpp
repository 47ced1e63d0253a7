// SPDX-License-Identifier: BSD-3-Clause
// region_pool between its doors and its kernels, forward.
#include "region_pool.h"

#include <cstdlib>

#include "region_pool_inputs.h"

namespace fastseg {
namespace {

// The tensors of the results; those that the reduction does not ask for are absent.
struct Results {
  Tensor count, mean, variance, minimum, maximum, argmin, argmax;
  RegionResults pointers;
};

Results make_results(const RegionPrepared& prepared, RegionReduce reduce) {
  const RegionLabels& in = prepared.labels;
  const ScalarType real = real_type(prepared.features);
  const bool stats = reduce == RegionReduce::kStats;
  const bool sums = reduce == RegionReduce::kSum || reduce == RegionReduce::kMean;
  const bool variance = stats || reduce == RegionReduce::kVariance;
  const bool minimum = stats || reduce == RegionReduce::kMin, maximum = stats || reduce == RegionReduce::kMax;
  const auto table = [&](bool wanted, ScalarType type) {
    return wanted ? empty_on(prepared.features, {in.batch, in.num_regions, prepared.features.size(1)}, type)
                  : Tensor::absent(prepared.features, type);
  };
  Results results{empty_on(prepared.features, {in.batch, in.num_regions}, ScalarType::Long),
                  table(sums || variance, real),
                  table(variance, real),
                  table(minimum, real),
                  table(maximum, real),
                  table(minimum, ScalarType::Long),
                  table(maximum, ScalarType::Long),
                  {}};
  const auto pointer = [](const Tensor& tensor) { return tensor.numel() ? tensor.data_ptr() : nullptr; };
  results.pointers = {static_cast<int64_t*>(pointer(results.count)),
                      pointer(results.mean),
                      pointer(results.variance),
                      pointer(results.minimum),
                      pointer(results.maximum),
                      static_cast<int64_t*>(pointer(results.argmin)),
                      static_cast<int64_t*>(pointer(results.argmax))};
  return results;
}

// Without channels the voxels are still counted: one channel of anything will do.
RegionPrepared with_a_channel(const RegionPrepared& prepared) {
  if (prepared.labels.channels > 0) return prepared;
  RegionPrepared filled = prepared;
  filled.features = empty_on(prepared.features, {prepared.labels.batch, prepared.labels.voxels},
                             prepared.features.scalar_type());
  filled.inputs.features = filled.features.data_ptr();
  filled.labels.channels = 1;
  filled.labels.channels_last = false;
  return filled;
}

}  // namespace

RegionPool region_pool(const Tensor& features, const Tensor& regions, int64_t num_regions, int64_t reduce) {
  const Place place(features);
  const RegionReduce mode = check_option("reduce", reduce, RegionReduce::kStats);
  const RegionPrepared given = prepare_regions(features, regions, num_regions);
  const Results results = make_results(given, mode);
  const RegionPrepared prepared = with_a_channel(given);
  const RegionLabels& labels = prepared.labels;
  const RegionPool found{results.mean,  results.variance, results.minimum, results.maximum,
                         results.count, results.argmin,   results.argmax};
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    const auto bytes = int64_t(region_pool_scratch_cuda(labels, prepared.inputs, mode));
    const Tensor scratch = empty_on(features, {bytes}, ScalarType::Byte);
    place.launch("region_pool", [&](cudaStream_t stream) {
      return region_pool_cuda(labels, prepared.inputs, mode, results.pointers, scratch.data_ptr(), stream);
    });
    return found;
  }
#endif
  const RegionUnits units = region_pool_units_cpu(labels, prepared.inputs, mode);
  const std::unique_ptr<char, void (*)(void*)> tables(
      static_cast<char*>(std::aligned_alloc(64, std::max<size_t>(64, units.units * units.unit_bytes))),
      std::free);
  if (tables == nullptr) throw std::bad_alloc();
  place.for_ranges(units.units, 1, [&](int64_t begin, int64_t end) {
    region_pool_cpu(labels, prepared.inputs, mode, units, begin, end, tables.get());
  });
  place.for_ranges(labels.batch * num_regions, 256, [&](int64_t begin, int64_t end) {
    region_pool_merge_cpu(labels, prepared.inputs, mode, units, tables.get(), results.pointers, begin, end);
  });
  return found;
}

}  // namespace fastseg
