// SPDX-License-Identifier: BSD-3-Clause
// Torch glue of masked_bce: schemas, checks, allocation, and the CPU and CUDA registrations.
#include "masked_bce.h"

#include <tuple>

#include "checks.h"

namespace fastseg {
namespace {

namespace stable = torch::stable;

ScalarType loss_type(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The tensors a kernel reads, in one layout, and the parameters that point into them.
struct Prepared {
  Tensor logits, target;
  OptionalTensor mask, weight, pos_weight;
  MemoryFormat format;
  MaskedBceInputs inputs;
};

void check_map(const char* name, const Tensor& map, const Tensor& logits) {
  check_same_device(name, map, logits);
  Shape expected = shape_of(logits);
  if (map.dim() > 1 && map.size(1) == 1) expected[1] = 1;
  check_shape(name, map, "(B, 1 or C, *S)", expected);
}

Prepared prepare(const Tensor& logits, const Tensor& target, const OptionalTensor& mask,
                 const OptionalTensor& weight, const OptionalTensor& pos_weight, double pseudo_weight) {
  check_floating("logits", logits);
  check(logits.dim() >= 3 && logits.dim() <= 5, "logits must be (B, C, *S) with 1 to 3 spatial axes, got ",
        logits);
  check_same_device("target", target, logits);
  check_shape("target", target, "the shape of logits", shape_of(logits));
  check(is_byte(target) || is_floating(target.scalar_type()), "target must be bool, uint8 or floating, got ",
        target.scalar_type());
  if (mask) {
    check_map("mask", *mask, logits);
    check(is_byte(*mask), "mask must be uint8 or bool, got ", mask->scalar_type());
  }
  if (weight) {
    check_map("weight", *weight, logits);
    check_floating("weight", *weight);
  }
  const int64_t batch = logits.size(0), channels = logits.size(1);
  if (pos_weight) {
    check_same_device("pos_weight", *pos_weight, logits);
    check_shape("pos_weight", *pos_weight, "(C,)", {channels});
    check_floating("pos_weight", *pos_weight);
  }

  // Neither layout: one copy. Target and the other maps follow the layout of logits.
  const bool channels_last = !logits.is_contiguous() && is_channels_last(logits);
  const MemoryFormat format = !channels_last      ? MemoryFormat::Contiguous
                              : logits.dim() == 4 ? MemoryFormat::ChannelsLast
                                                  : MemoryFormat::ChannelsLast3d;
  Prepared prepared{
      stable::contiguous(logits, format), stable::contiguous(target, format), {}, {}, {}, format, {}};
  MaskedBceInputs& inputs = prepared.inputs;
  const auto lay_out = [&](const Tensor& map) {
    return stable::contiguous(map, map.size(1) == channels ? format : MemoryFormat::Contiguous);
  };
  if (mask) prepared.mask = lay_out(*mask);
  if (weight) prepared.weight = lay_out(*weight);
  if (pos_weight) prepared.pos_weight = stable::contiguous(stable::to(*pos_weight, loss_type(logits)));

  int64_t voxels = 1;
  for (int64_t axis = 2; axis < logits.dim(); ++axis) voxels *= logits.size(axis);
  inputs.outer = channels_last ? batch * voxels : batch;
  inputs.channels = channels;
  inputs.inner = channels_last ? 1 : voxels;
  inputs.logits = prepared.logits.data_ptr();
  inputs.logits_kind = kind_of(logits);
  inputs.target = prepared.target.data_ptr();
  inputs.target_kind = kind_of(target);
  inputs.mask = mask ? static_cast<const uint8_t*>(prepared.mask->data_ptr()) : nullptr;
  inputs.mask_per_channel = mask && mask->size(1) == channels;
  inputs.weight = weight ? prepared.weight->data_ptr() : nullptr;
  inputs.weight_kind = weight ? kind_of(*weight) : ScalarKind::kFloat32;
  inputs.weight_per_channel = weight && weight->size(1) == channels;
  inputs.pos_weight = pos_weight ? prepared.pos_weight->data_ptr() : nullptr;
  inputs.pseudo_weight = pseudo_weight;
  return prepared;
}

BceNormalize normalize_of(int64_t normalize) {
  check(normalize >= 0 && normalize <= int64_t(BceNormalize::kSum),
        "normalize must be 0 (voxels), 1 (weight), 2 (terms) or 3 (sum), got ", normalize);
  return BceNormalize(normalize);
}

MaskedBceUpstream upstream_of(const Prepared& prepared, const Tensor& grad, const OptionalTensor& scale) {
  if (scale) {
    check_same_device("scale", *scale, prepared.logits);
    check_shape("scale", *scale, "one factor per source", {2});
    check(scale->scalar_type() == ScalarType::Double && scale->is_contiguous(),
          "scale must be contiguous and float64");
  }
  return {grad.data_ptr(), grad.dim() > 0, scale ? static_cast<const double*>(scale->data_ptr()) : nullptr};
}

// The upstream gradient as the kernel wants it: one number in the loss's dtype, or a map like the logits.
Tensor prepare_grad(const Prepared& prepared, const Tensor& grad) {
  check_same_device("grad", grad, prepared.logits);
  if (grad.dim() == 0) return stable::to(grad, loss_type(prepared.logits));
  check_shape("grad", grad, "one number or the shape of logits", shape_of(prepared.logits));
  return stable::contiguous(stable::to(grad, prepared.logits.scalar_type()), prepared.format);
}

std::tuple<Tensor, Tensor> masked_bce_cpu(const Tensor& logits, const Tensor& target,
                                          const OptionalTensor& mask, const OptionalTensor& weight,
                                          const OptionalTensor& pos_weight, double pseudo_weight,
                                          int64_t normalize) {
  const Prepared prepared = prepare(logits, target, mask, weight, pos_weight, pseudo_weight);
  const BceNormalize mode = normalize_of(normalize);
  Tensor loss = empty_on(logits, {}, loss_type(logits));
  Tensor stats = empty_on(logits, {kStatsSize}, ScalarType::Double);
  std::vector<MaskedBceSums> partials(masked_bce_chunks(prepared.inputs.numel()));
  stable::parallel_for(0, int64_t(partials.size()), 1, [&](int64_t begin, int64_t end) {
    masked_bce_sums_cpu(prepared.inputs, begin, end, partials.data());
  });
  masked_bce_finish_cpu(prepared.inputs, mode, partials.data(), loss.data_ptr(),
                        static_cast<double*>(stats.data_ptr()));
  return {loss, stats};
}

Tensor masked_bce_map_cpu_op(const Tensor& logits, const Tensor& target, const OptionalTensor& mask,
                             const OptionalTensor& weight, const OptionalTensor& pos_weight,
                             double pseudo_weight) {
  const Prepared prepared = prepare(logits, target, mask, weight, pos_weight, pseudo_weight);
  Tensor loss_map = empty_on(logits, shape_of(logits), logits.scalar_type(), prepared.format);
  stable::parallel_for(0, prepared.inputs.numel(), kMaskedBceChunk, [&](int64_t begin, int64_t end) {
    masked_bce_map_cpu(prepared.inputs, begin, end, loss_map.data_ptr());
  });
  return loss_map;
}

Tensor masked_bce_backward_cpu_op(const Tensor& grad, const Tensor& logits, const Tensor& target,
                                  const OptionalTensor& mask, const OptionalTensor& weight,
                                  const OptionalTensor& pos_weight, const OptionalTensor& scale,
                                  double pseudo_weight) {
  const Prepared prepared = prepare(logits, target, mask, weight, pos_weight, pseudo_weight);
  const Tensor prepared_grad = prepare_grad(prepared, grad);
  const MaskedBceUpstream upstream = upstream_of(prepared, prepared_grad, scale);
  Tensor grad_logits = empty_on(logits, shape_of(logits), logits.scalar_type(), prepared.format);
  stable::parallel_for(0, prepared.inputs.numel(), kMaskedBceChunk, [&](int64_t begin, int64_t end) {
    masked_bce_backward_cpu(prepared.inputs, upstream, begin, end, grad_logits.data_ptr());
  });
  return grad_logits;
}

#if defined(FASTSEG_WITH_CUDA)
std::tuple<Tensor, Tensor> masked_bce_cuda(const Tensor& logits, const Tensor& target,
                                           const OptionalTensor& mask, const OptionalTensor& weight,
                                           const OptionalTensor& pos_weight, double pseudo_weight,
                                           int64_t normalize) {
  const stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Prepared prepared = prepare(logits, target, mask, weight, pos_weight, pseudo_weight);
  const BceNormalize mode = normalize_of(normalize);
  Tensor loss = empty_on(logits, {}, loss_type(logits));
  Tensor stats = empty_on(logits, {kStatsSize}, ScalarType::Double);
  Tensor scratch = empty_on(logits, {masked_bce_scratch_cuda(prepared.inputs) / 8}, ScalarType::Double);
  check_launch("masked_bce",
               masked_bce_forward_cuda(prepared.inputs, mode, scratch.data_ptr(), loss.data_ptr(),
                                       static_cast<double*>(stats.data_ptr()), stream_of(logits)));
  return {loss, stats};
}

Tensor masked_bce_map_cuda_op(const Tensor& logits, const Tensor& target, const OptionalTensor& mask,
                              const OptionalTensor& weight, const OptionalTensor& pos_weight,
                              double pseudo_weight) {
  const stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Prepared prepared = prepare(logits, target, mask, weight, pos_weight, pseudo_weight);
  Tensor loss_map = empty_on(logits, shape_of(logits), logits.scalar_type(), prepared.format);
  check_launch("masked_bce", masked_bce_map_cuda(prepared.inputs, loss_map.data_ptr(), stream_of(logits)));
  return loss_map;
}

Tensor masked_bce_backward_cuda_op(const Tensor& grad, const Tensor& logits, const Tensor& target,
                                   const OptionalTensor& mask, const OptionalTensor& weight,
                                   const OptionalTensor& pos_weight, const OptionalTensor& scale,
                                   double pseudo_weight) {
  const stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Prepared prepared = prepare(logits, target, mask, weight, pos_weight, pseudo_weight);
  const Tensor prepared_grad = prepare_grad(prepared, grad);
  const MaskedBceUpstream upstream = upstream_of(prepared, prepared_grad, scale);
  Tensor grad_logits = empty_on(logits, shape_of(logits), logits.scalar_type(), prepared.format);
  check_launch("masked_bce", masked_bce_backward_cuda(prepared.inputs, upstream, grad_logits.data_ptr(),
                                                      stream_of(logits)));
  return grad_logits;
}
#endif

}  // namespace

// normalize is a BceNormalize. stats (8,) float64 lies as MaskedBceStats says.
STABLE_TORCH_LIBRARY_FRAGMENT(fastseg, library) {
  library.def(
      "masked_bce(Tensor logits, Tensor target, Tensor? mask, Tensor? weight, Tensor? pos_weight, "
      "float pseudo_weight, int normalize) -> (Tensor loss, Tensor stats)");
  library.def(
      "masked_bce_map(Tensor logits, Tensor target, Tensor? mask, Tensor? weight, Tensor? pos_weight, "
      "float pseudo_weight) -> Tensor");
  library.def(
      "masked_bce_backward(Tensor grad, Tensor logits, Tensor target, Tensor? mask, Tensor? weight, "
      "Tensor? pos_weight, Tensor? scale, float pseudo_weight) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, library) {
  library.impl("masked_bce", TORCH_BOX(&masked_bce_cpu));
  library.impl("masked_bce_map", TORCH_BOX(&masked_bce_map_cpu_op));
  library.impl("masked_bce_backward", TORCH_BOX(&masked_bce_backward_cpu_op));
}

#if defined(FASTSEG_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, library) {
  library.impl("masked_bce", TORCH_BOX(&masked_bce_cuda));
  library.impl("masked_bce_map", TORCH_BOX(&masked_bce_map_cuda_op));
  library.impl("masked_bce_backward", TORCH_BOX(&masked_bce_backward_cuda_op));
}
#endif

}  // namespace fastseg
