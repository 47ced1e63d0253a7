// SPDX-License-Identifier: BSD-3-Clause
// What the forward and the backward pass of region_pool share: checks, layouts and the kernels' parameters.
#pragma once

#include "ops.h"
#include "place.h"
#include "region_pool.h"

namespace fastseg {

inline LabelKind label_kind_of(const Tensor& regions) {
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
      check_type(regions.scalar_type() == ScalarType::Long, "regions must be of an integer dtype, got ",
                 regions.scalar_type());
      return LabelKind::kInt64;
  }
}

// regions must be contiguous.
inline RegionLabels labels_of(const Tensor& regions, int64_t channels, int64_t num_regions, Layout layout) {
  check(num_regions >= 1 && num_regions <= INT32_MAX, "num_regions must be from 1 to 2**31 - 1, got ",
        num_regions);
  return {regions.data_ptr(), label_kind_of(regions),         regions.size(0), channels, regions.numel(1),
          num_regions,        layout == Layout::kChannelsLast};
}

// The tensors a kernel reads, in one layout, and the parameters that point into them.
struct RegionPrepared {
  Tensor features, regions;
  Layout layout;
  RegionLabels labels{};
  RegionFeatures inputs{};
};

inline RegionPrepared prepare_regions(const Tensor& features, const Tensor& regions, int64_t num_regions) {
  check_floating("features", features);
  check_volume("features", features);
  label_kind_of(regions);
  check_device("regions", regions, "features", features);
  Shape expected = features.shape();
  expected.erase(expected.begin() + 1);
  check_shape("regions", regions, "(B, *S)", expected);
  const Layout layout = layout_of(features);
  RegionPrepared prepared{contiguous(features, layout), contiguous(regions), layout};
  prepared.labels = labels_of(prepared.regions, features.size(1), num_regions, layout);
  prepared.inputs = {prepared.features.data_ptr(), kind_of(features)};
  return prepared;
}

}  // namespace fastseg
