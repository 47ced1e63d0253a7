// SPDX-License-Identifier: BSD-3-Clause
// The enums of the kernels' contracts for Python, which takes names, numbers and order from here. The names
// are those that users give as options.
#include "eager.h"
#include "masked_bce.h"
#include "patch_entropy_sampling.h"
#include "region_contrast.h"
#include "region_pool.h"

namespace py = pybind11;

namespace fastseg {

void define_enums(py::module_& module) {
  py::enum_<ScalarKind>(module, "ScalarKind")
      .value("uint8", ScalarKind::kUint8)
      .value("float32", ScalarKind::kFloat32)
      .value("float64", ScalarKind::kFloat64)
      .value("bfloat16", ScalarKind::kBFloat16)
      .value("float16", ScalarKind::kFloat16);
  py::enum_<BceNormalize>(module, "BceNormalize")
      .value("voxels", BceNormalize::kVoxels)
      .value("weight", BceNormalize::kWeight)
      .value("terms", BceNormalize::kTerms)
      .value("sum", BceNormalize::kSum)
      .value("none", BceNormalize::kNone);
  py::enum_<RegionReduce>(module, "RegionReduce")
      .value("sum", RegionReduce::kSum)
      .value("mean", RegionReduce::kMean)
      .value("var", RegionReduce::kVariance)
      .value("min", RegionReduce::kMin)
      .value("max", RegionReduce::kMax)
      .value("stats", RegionReduce::kStats);
  py::enum_<SampleStrategy>(module, "SampleStrategy")
      .value("probabilistic", SampleStrategy::kProbabilistic)
      .value("threshold", SampleStrategy::kThreshold)
      .value("lowest", SampleStrategy::kLowest)
      .value("highest", SampleStrategy::kHighest);
  py::enum_<ContrastSimilarity>(module, "ContrastSimilarity")
      .value("cosine", ContrastSimilarity::kCosine)
      .value("dot", ContrastSimilarity::kDot)
      .value("neg_mse", ContrastSimilarity::kNegMse);
  py::enum_<ContrastDenominator>(module, "ContrastDenominator")
      .value("all", ContrastDenominator::kAll)
      .value("negatives", ContrastDenominator::kNegatives);
  py::enum_<ContrastReduction>(module, "ContrastReduction")
      .value("mean", ContrastReduction::kMean)
      .value("sum", ContrastReduction::kSum)
      .value("none", ContrastReduction::kNone);
}

}  // namespace fastseg
