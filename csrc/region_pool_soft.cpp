// SPDX-License-Identifier: BSD-3-Clause
// Soft region_pool between its doors and its kernels.
#include "region_pool_soft.h"

#include "huge_pages.h"
#include "ops.h"
#include "place.h"

namespace fastseg {
namespace {

// The tensors a kernel reads, each in its own layout, and the parameters that point into them.
struct Prepared {
  Tensor features, grey, assignment;
  Layout layouts[3];
  SoftInputs inputs{};
  ScalarType real;
};

void check_like_features(const char* name, const Tensor& tensor, const Tensor& features) {
  check_floating(name, tensor);
  check_volume(name, tensor);
  check_device(name, tensor, "features", features);
  Shape expected = features.shape();
  expected[1] = tensor.size(1);
  if (has_shape(tensor, expected)) return;
  std::string text = "(" + to_text(expected[0]) + ", any";
  for (int64_t axis = 2; axis < features.dim(); ++axis) text += ", " + to_text(features.size(axis));
  check(false, name, " must be (B, any, *S) = ", text, "), got ", tensor);
}

Prepared prepare(const Tensor& features, const OptionalTensor& grey, const Tensor& assignment,
                 bool from_logits, bool variance) {
  check_floating("features", features);
  check_volume("features", features);
  check_like_features("assignment", assignment, features);
  check(assignment.size(1) >= 1 && assignment.size(1) <= kMaxSoftParts, "assignment must have 1 to ",
        kMaxSoftParts, " regions, got ", assignment.size(1));
  if (grey) check_like_features("grey", *grey, features);
  Prepared prepared{};
  const auto lay_out = [&](const Tensor& tensor, Tensor& kept, Layout& layout) -> SoftMap {
    layout = layout_of(tensor);
    kept = contiguous(tensor, layout);
    return {kept.data_ptr(), kind_of(tensor), tensor.size(1), layout == Layout::kChannelsLast};
  };
  SoftInputs& in = prepared.inputs;
  in.features = lay_out(features, prepared.features, prepared.layouts[0]);
  in.grey = {nullptr, ScalarKind::kFloat32, 0, false};
  if (grey) in.grey = lay_out(*grey, prepared.grey, prepared.layouts[1]);
  in.assignment = lay_out(assignment, prepared.assignment, prepared.layouts[2]);
  in.batch = features.size(0);
  in.voxels = features.numel(2);
  in.channels = in.features.rows + in.grey.rows;
  in.parts = in.assignment.rows;
  in.plain = variance ? 0 : in.features.rows;  // a grey image always has its variance
  in.from_logits = from_logits;
  in.wide = in.features.kind == ScalarKind::kFloat64 || in.assignment.kind == ScalarKind::kFloat64 ||
            in.grey.kind == ScalarKind::kFloat64;
  prepared.real = in.wide ? ScalarType::Double : ScalarType::Float;
  return prepared;
}

}  // namespace

// mean has the channels of features and then those of grey; variance only those of grey unless asked for.
Three soft_region_pool(const Tensor& features, const OptionalTensor& grey, const Tensor& assignment,
                       bool from_logits, bool variance) {
  const Place place(features);
  const Prepared prepared = prepare(features, grey, assignment, from_logits, variance);
  const SoftInputs& in = prepared.inputs;
  const auto table = [&](const Shape& shape) { return empty_on(features, shape, prepared.real); };
  const Three results{table({in.batch, in.parts}), table({in.batch, in.parts, in.channels}),
                      table({in.batch, in.parts, in.channels - in.plain})};
  const auto& [mass, mean, spread] = results;
  const SoftResults pointers{mass.data_ptr(), mean.data_ptr(), spread.data_ptr()};
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    const Tensor scratch = empty_on(features, {int64_t(soft_pool_scratch_cuda(in))}, ScalarType::Byte);
    place.launch("region_pool", [&](cudaStream_t stream) {
      return soft_pool_cuda(in, pointers, scratch.data_ptr(), stream);
    });
    return results;
  }
#endif
  const SoftUnits units = soft_pool_units_cpu(in);
  std::vector<double> tables(units.units * units.unit_doubles);
  place.for_ranges(units.units, 1,
                   [&](int64_t begin, int64_t end) { soft_pool_cpu(in, units, begin, end, tables.data()); });
  soft_pool_merge_cpu(in, units, tables.data(), pointers);
  return results;
}

// From the gradients of the results to the tables of SoftGradient, and on. Gradients that are not wanted are
// absent.
Three soft_region_pool_backward(const Tensor& features, const OptionalTensor& grey, const Tensor& assignment,
                                bool from_logits, bool variance, const Tensor& mass, const Tensor& mean,
                                const Tensor& spread, const OptionalTensor& grad_mass,
                                const OptionalTensor& grad_mean, const OptionalTensor& grad_spread,
                                bool of_features, bool of_grey, bool of_assignment) {
  const Place place(features);
  const Prepared prepared = prepare(features, grey, assignment, from_logits, variance);
  const SoftInputs& in = prepared.inputs;
  check(!of_grey || grey, "there is no grey to give a gradient for");
  const auto table = [&](const char* name, const OptionalTensor& given, const Shape& shape) {
    if (!given) return Tensor();
    check_device(name, *given, "features", features);
    check_shape(name, *given, "a table", shape);
    return contiguous(to(*given, prepared.real));
  };
  const int64_t curved = in.channels - in.plain;
  const Shape parts{in.batch, in.parts}, of_mean{in.batch, in.parts, in.channels},
      of_spread{in.batch, in.parts, curved};
  const Tensor given[] = {table("mass", mass, parts),
                          table("mean", mean, of_mean),
                          table("spread", spread, of_spread),
                          table("grad_mass", grad_mass, parts),
                          table("grad_mean", grad_mean, of_mean),
                          table("grad_spread", grad_spread, of_spread)};
  const SoftResultGradients upstream{given[0].data_ptr(),
                                     given[1].data_ptr(),
                                     given[2].data_ptr(),
                                     given[3].data_ptr(),
                                     given[4].data_ptr(),
                                     given[5].data_ptr(),
                                     in.batch,
                                     in.parts,
                                     in.channels,
                                     in.plain,
                                     in.wide};
  // Direct, curved, shift and offset lie one behind the other.
  const int64_t rows = in.batch * in.parts;
  const int64_t sizes[] = {rows * in.channels, rows * curved, in.batch * in.channels, rows};
  int64_t bytes = 0, begins[4];
  for (int i = 0; i < 4; ++i) {
    begins[i] = bytes;
    bytes += (sizes[i] * (in.wide ? 8 : 4) + 63) / 64 * 64;
  }
  const Scratch memory(place, features, bytes);
  const auto at = [&](int i) { return static_cast<char*>(memory.data()) + begins[i]; };
  const SoftTables tables{at(0), at(1), at(2), at(3)};
  const auto gradient = [&](const Tensor& tensor, Layout layout, bool wanted) {
    return wanted ? empty_on(features, tensor.shape(), tensor.scalar_type(), layout)
                  : Tensor::absent(features, prepared.real);
  };
  const Three grads{gradient(features, prepared.layouts[0], of_features),
                    gradient(prepared.grey, prepared.layouts[1], of_grey),
                    gradient(assignment, prepared.layouts[2], of_assignment)};
  const auto& [grad_features, grad_grey, grad_assignment] = grads;
  const SoftGradient pointers{tables.direct,
                              tables.curved,
                              tables.shift,
                              tables.offset,
                              grad_features.data_ptr(),
                              grad_grey.data_ptr(),
                              grad_assignment.data_ptr()};
#if defined(FASTSEG_WITH_CUDA)
  if (place.is_cuda()) {
    const Tensor scratch = empty_on(features, {int64_t(soft_gradient_scratch_cuda(in))}, ScalarType::Byte);
    place.launch("region_pool", [&](cudaStream_t stream) {
      const cudaError_t status = soft_tables_cuda(upstream, tables, stream);
      return status != cudaSuccess ? status : soft_gradient_cuda(in, pointers, scratch.data_ptr(), stream);
    });
    return grads;
  }
#endif
  soft_tables_cpu(upstream, tables);
  for (const Tensor& grad : {grad_features, grad_grey, grad_assignment}) {
    if (grad.numel() > 0) prefer_huge_pages(grad.data_ptr(), grad.numel() * grad.element_size());
  }
  place.for_ranges(soft_gradient_tasks_cpu(in), 1,
                   [&](int64_t begin, int64_t end) { soft_gradient_cpu(in, pointers, begin, end); });
  return grads;
}

}  // namespace fastseg
