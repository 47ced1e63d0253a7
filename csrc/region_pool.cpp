// SPDX-License-Identifier: BSD-3-Clause
// Torch glue of region_pool, forward: schema, allocation, and the CPU and CUDA registrations.
#include "region_pool.h"

#include <memory>
#include <tuple>

#include "region_pool_inputs.h"

namespace fastseg {
namespace {

using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The tensors of the results; those that the reduction does not ask for are empty.
struct Results {
  Tensor count, mean, variance, minimum, maximum, argmin, argmax;
  RegionResults pointers;
};

Results make_results(const Prepared& prepared, RegionReduce reduce) {
  const RegionLabels& in = prepared.labels;
  const ScalarType real = real_type(prepared.features.scalar_type());
  const bool stats = reduce == RegionReduce::kStats;
  const bool sums = reduce == RegionReduce::kSum || reduce == RegionReduce::kMean;
  const bool variance = stats || reduce == RegionReduce::kVariance;
  const bool minimum = stats || reduce == RegionReduce::kMin, maximum = stats || reduce == RegionReduce::kMax;
  const auto table = [&](bool wanted, ScalarType type) {
    return empty_on(prepared.features,
                    wanted ? Shape{in.batch, in.num_regions, prepared.features.size(1)} : Shape{0}, type);
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

RegionReduce reduce_of(int64_t reduce) {
  check(reduce >= 0 && reduce <= int64_t(RegionReduce::kStats),
        "reduce must be 0 (sum), 1 (mean), 2 (var), 3 (min), 4 (max) or 5 (all), got ", reduce);
  return RegionReduce(reduce);
}

Seven as_tuple(const Results& r) {
  return {r.mean, r.variance, r.minimum, r.maximum, r.count, r.argmin, r.argmax};
}

// Without channels the voxels are still counted: one channel of anything will do.
Prepared with_a_channel(const Prepared& prepared) {
  if (prepared.labels.channels > 0) return prepared;
  Prepared filled = prepared;
  filled.features = empty_on(prepared.features, {prepared.labels.batch, prepared.labels.voxels},
                             prepared.features.scalar_type());
  filled.inputs.features = filled.features.data_ptr();
  filled.labels.channels = 1;
  filled.labels.channels_last = false;
  return filled;
}

Seven region_pool_cpu_op(const Tensor& features, const Tensor& regions, int64_t num_regions, int64_t mode) {
  const RegionReduce reduce = reduce_of(mode);
  const Prepared given = prepare(features, regions, num_regions);
  const Results results = make_results(given, reduce);
  const Prepared prepared = with_a_channel(given);
  const RegionLabels& labels = prepared.labels;
  const RegionUnits units = region_pool_units_cpu(labels, prepared.inputs, reduce);
  const std::unique_ptr<char, void (*)(void*)> tables(
      static_cast<char*>(std::aligned_alloc(64, std::max<size_t>(64, units.units * units.unit_bytes))),
      std::free);
  check(tables != nullptr, "region_pool: no memory for ", units.units * units.unit_bytes, " bytes");
  stable::parallel_for(0, units.units, 1, [&](int64_t begin, int64_t end) {
    region_pool_cpu(labels, prepared.inputs, reduce, units, begin, end, tables.get());
  });
  stable::parallel_for(0, labels.batch * num_regions, 256, [&](int64_t begin, int64_t end) {
    region_pool_merge_cpu(labels, prepared.inputs, reduce, units, tables.get(), results.pointers, begin, end);
  });
  return as_tuple(results);
}

#if defined(FASTSEG_WITH_CUDA)
Seven region_pool_cuda_op(const Tensor& features, const Tensor& regions, int64_t num_regions, int64_t mode) {
  const stable::accelerator::DeviceGuard guard(features.get_device_index());
  const RegionReduce reduce = reduce_of(mode);
  const Prepared given = prepare(features, regions, num_regions);
  const Results results = make_results(given, reduce);
  const Prepared prepared = with_a_channel(given);
  const size_t bytes = region_pool_scratch_cuda(prepared.labels, prepared.inputs, reduce);
  const Tensor scratch = empty_on(features, {int64_t(bytes)}, ScalarType::Byte);
  check_launch("region_pool", region_pool_cuda(prepared.labels, prepared.inputs, reduce, results.pointers,
                                               scratch.data_ptr(), stream_of(features)));
  return as_tuple(results);
}

#endif

}  // namespace

// reduce is a RegionReduce. Results that reduce does not ask for have shape (0,); `mean`
// is the sum for kSum.
STABLE_TORCH_LIBRARY_FRAGMENT(fastseg, library) {
  library.def(
      "region_pool(Tensor features, Tensor regions, int num_regions, int reduce) -> (Tensor mean, Tensor "
      "variance, Tensor minimum, Tensor maximum, Tensor count, Tensor argmin, Tensor argmax)");
}

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, library) {
  library.impl("region_pool", TORCH_BOX(&region_pool_cpu_op));
}

#if defined(FASTSEG_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, library) {
  library.impl("region_pool", TORCH_BOX(&region_pool_cuda_op));
}
#endif

}  // namespace fastseg
