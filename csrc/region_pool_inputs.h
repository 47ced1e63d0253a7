// SPDX-License-Identifier: BSD-3-Clause
// What the forward and the backward glue of region_pool share: checks, layouts and the kernels' parameters.
#pragma once

#include "checks.h"
#include "region_pool.h"

#if defined(FASTSEG_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace fastseg {
namespace {

namespace stable = torch::stable;

LabelKind label_kind_of(const Tensor& regions) {
  switch (regions.scalar_type()) {
    case ScalarType::Byte:
      return LabelKind::kUint8;
    case ScalarType::Char:
      return LabelKind::kInt8;
    case ScalarType::UInt16:
      return LabelKind::kUint16;
    case ScalarType::Short:
      return LabelKind::kInt16;
    case ScalarType::UInt32:
      return LabelKind::kUint32;
    case ScalarType::Int:
      return LabelKind::kInt32;
    case ScalarType::UInt64:
      return LabelKind::kUint64;
    default:
      check(regions.scalar_type() == ScalarType::Long, "regions must be of an integer dtype, got ",
            regions.scalar_type());
      return LabelKind::kInt64;
  }
}

ScalarType real_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

MemoryFormat format_of(bool channels_last, int64_t dim) {
  return !channels_last ? MemoryFormat::Contiguous
         : dim == 4     ? MemoryFormat::ChannelsLast
                        : MemoryFormat::ChannelsLast3d;
}

RegionLabels labels_of(const Tensor& regions, int64_t channels, int64_t num_regions, bool channels_last) {
  check(num_regions >= 1 && num_regions <= INT32_MAX, "num_regions must be from 1 to 2^31 - 1, got ",
        num_regions);
  int64_t voxels = 1;
  for (int64_t axis = 1; axis < regions.dim(); ++axis) voxels *= regions.size(axis);
  return {regions.data_ptr(), label_kind_of(regions), regions.size(0), channels, voxels,
          num_regions,        channels_last};
}

// The tensors a kernel reads, in one layout, and the parameters that point into them.
struct Prepared {
  Tensor features, regions;
  MemoryFormat format;
  RegionLabels labels{};
  RegionFeatures inputs{};
};

Prepared prepare(const Tensor& features, const Tensor& regions, int64_t num_regions) {
  check_floating("features", features);
  check(features.dim() >= 3 && features.dim() <= 5,
        "features must be (B, C, *S) with 1 to 3 spatial axes, got ", features);
  check(regions.device() == features.device(), "regions must be on the device of features");
  Shape expected = shape_of(features);
  expected.erase(expected.begin() + 1);
  check_shape("regions", regions, "(B, *S)", expected);
  const bool channels_last = !features.is_contiguous() && is_channels_last(features);
  const MemoryFormat format = format_of(channels_last, features.dim());
  Prepared prepared{stable::contiguous(features, format), stable::contiguous(regions), format, {}, {}};
  prepared.labels = labels_of(prepared.regions, features.size(1), num_regions, channels_last);
  prepared.inputs = {prepared.features.data_ptr(), kind_of(features)};
  return prepared;
}

}  // namespace
}  // namespace fastseg
