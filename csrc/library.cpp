// SPDX-License-Identifier: BSD-3-Clause
// The door of torch.library: the schemas of all ops, and their bodies registered for CPU and CUDA.
#include <utility>

#include "ops.h"
#include "stable.h"

namespace fastseg {
namespace {

namespace stable = torch::stable;
using torch::headeronly::MemoryFormat;

extern const Door kLibraryDoor;

Tensor enter(const stable::Tensor& given) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(given.get(), &handle));
  std::shared_ptr<void> owner(
      handle, [](void* gone) { aoti_torch_delete_tensor_object(static_cast<AtenTensorHandle>(gone)); });
  int64_t *sizes = nullptr, *strides = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
  const stable::Device device = given.device();
  return Tensor(given.data_ptr(), sizes, strides, given.dim(), given.scalar_type(),
                int64_t(given.element_size()), {device.type(), device.index() < 0 ? 0 : device.index()},
                &kLibraryDoor, std::move(owner));
}

Tensor library_empty(const Tensor& like, const Shape& sizes, const Shape& strides, ScalarType type) {
  AtenTensorHandle handle = nullptr;
  const auto number = [](auto value) { return stable::detail::to<int32_t>(stable::detail::from(value)); };
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(),
                                                  number(type), number(like.device().type),
                                                  like.device().index, &handle));
  return enter(stable::Tensor(handle));
}

stable::Tensor leave(const Tensor& tensor) {
  if (tensor.owner() == nullptr) return leave(library_empty(tensor, {0}, {1}, tensor.scalar_type()));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_new_tensor_handle(static_cast<AtenTensorHandle>(tensor.owner().get()), &handle));
  return stable::Tensor(handle);
}

Tensor library_contiguous(const Tensor& tensor, Layout layout) {
  const MemoryFormat format = layout == Layout::kContiguous ? MemoryFormat::Contiguous
                              : tensor.dim() == 4           ? MemoryFormat::ChannelsLast
                                                            : MemoryFormat::ChannelsLast3d;
  return enter(stable::contiguous(leave(tensor), format));
}

Tensor library_to(const Tensor& tensor, ScalarType type) { return enter(stable::to(leave(tensor), type)); }

const Door kLibraryDoor{&library_empty, &library_contiguous, &library_to, false};

// A body for TORCH_BOX: the same function over torch's tensors.
template <class Value>
Value enter(const Value& value) {
  return value;
}
OptionalTensor enter(const std::optional<stable::Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return enter(*tensor);
}
template <class... Values>
auto leave(const std::tuple<Values...>& results) {
  return std::apply([](const auto&... result) { return std::make_tuple(leave(result)...); }, results);
}

template <class Value>
struct Outer {
  using type = Value;
};
template <>
struct Outer<Tensor> {
  using type = stable::Tensor;
};
template <>
struct Outer<OptionalTensor> {
  using type = std::optional<stable::Tensor>;
};

template <auto body>
struct Boxed;
template <class Result, class... Values, Result (*body)(Values...)>
struct Boxed<body> {
  static auto call(const typename Outer<std::decay_t<Values>>::type&... values) {
    return leave(body(enter(values)...));
  }
};

#define FASTSEG_IMPL(name) library.impl(#name, TORCH_BOX(&Boxed<&name>::call));

}  // namespace

STABLE_TORCH_LIBRARY(fastseg, library) {
  // normalize is a BceNormalize; for kNone loss is a map, without stats. stats (8,) float64 lies as
  // MaskedBceStats says. scale: one factor per source, or the stats that hold them.
  library.def(
      "masked_bce(Tensor logits, Tensor target, Tensor? mask, Tensor? weight, Tensor? pos_weight, "
      "float pseudo_weight, int normalize) -> (Tensor loss, Tensor stats)");
  library.def(
      "masked_bce_backward(Tensor grad, Tensor logits, Tensor target, Tensor? mask, Tensor? weight, "
      "Tensor? pos_weight, Tensor? scale, float pseudo_weight) -> Tensor");

  // reduce is a RegionReduce, kind a ScalarKind. Results that reduce does not ask for have shape (0,); `mean`
  // is the sum for kSum.
  library.def(
      "region_pool(Tensor features, Tensor regions, int num_regions, int reduce) -> (Tensor mean, Tensor "
      "variance, Tensor minimum, Tensor maximum, Tensor count, Tensor argmin, Tensor argmax)");
  // The gradient of features of this kind and layout. count: gradients of mean and variance are over it, as
  // for all but kSum; grad_variance needs features and mean too, grad_minimum argmin, grad_maximum argmax.
  library.def(
      "region_pool_backward(Tensor regions, int kind, bool channels_last, Tensor? features, Tensor? mean, "
      "Tensor? count, Tensor? argmin, Tensor? argmax, Tensor? grad_mean, Tensor? grad_variance, "
      "Tensor? grad_minimum, Tensor? grad_maximum) -> Tensor");
  library.def(
      "soft_region_pool(Tensor features, Tensor? grey, Tensor assignment, bool from_logits, bool variance) "
      "-> (Tensor mass, Tensor mean, Tensor variance)");
  library.def(
      "soft_region_pool_backward(Tensor features, Tensor? grey, Tensor assignment, bool from_logits, "
      "bool variance, Tensor mass, Tensor mean, Tensor spread, Tensor? grad_mass, Tensor? grad_mean, "
      "Tensor? grad_spread, bool of_features, bool of_grey, bool of_assignment) -> (Tensor grad_features, "
      "Tensor grad_grey, Tensor grad_assignment)");

  library.def(
      "patch_entropy(Tensor values, Tensor? mask, int[] patch_size, int[] stride, bool categorical, "
      "bool from_logits, int min_count) -> (Tensor entropy, Tensor confidence, Tensor counts)");
  library.def(
      "patch_entropy_backward(Tensor? grad_entropy, Tensor? grad_confidence, Tensor values, Tensor? mask, "
      "Tensor? counts, int[] patch_size, int[] stride, bool categorical, bool from_logits, int min_count) -> "
      "Tensor");
  library.def("patch_entropy_crops(Tensor volume, Tensor corners, int[] patch_size) -> Tensor");
  library.def("patch_entropy_crops_backward(Tensor grad, Tensor corners, int[] spatial) -> Tensor");
  // strategy is a SampleStrategy.
  library.def(
      "patch_entropy_sample(Tensor entropy, Tensor confidence, Tensor seed, int n, int[] stride, "
      "int strategy, bool replacement, float floor, float threshold) -> "
      "(Tensor index, Tensor corners, Tensor parity, Tensor count)");

  // similarity, denominator and reduction are those of the enums. temperature, if given, goes before
  // fixed_temperature. self_offset: anchor i is row i + self_offset of the bank and not compared with it.
  // loss is one number, or (M,) for reduction none; stats (6, M) lie as ContrastStats says; rows is how many
  // have a loss; measured is for the backward pass: products, or what a GPU keeps. Where a gradient is not
  // needed, an empty tensor stands in its place.
  library.def(
      "region_contrast(Tensor anchors, Tensor? bank, Tensor anchor_ids, Tensor? bank_ids, "
      "Tensor? anchor_groups, Tensor? bank_groups, Tensor? temperature, float fixed_temperature, "
      "int? self_offset, int similarity, int denominator, int reduction, bool with_tilt) -> "
      "(Tensor loss, Tensor stats, Tensor rows, Tensor measured)");
  library.def(
      "region_contrast_backward(Tensor grad, Tensor anchors, Tensor? bank, Tensor anchor_ids, "
      "Tensor? bank_ids, Tensor? anchor_groups, Tensor? bank_groups, Tensor? temperature, Tensor stats, "
      "Tensor rows, Tensor? measured, float fixed_temperature, int? self_offset, int similarity, "
      "int denominator, int reduction, bool need_anchors, bool need_bank) -> "
      "(Tensor grad_anchors, Tensor grad_bank, Tensor grad_temperature)");
}

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, library){FASTSEG_OPS(FASTSEG_IMPL) FASTSEG_CPU_OPS(FASTSEG_IMPL)}
#if defined(FASTSEG_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, library) {
  FASTSEG_OPS(FASTSEG_IMPL)
}
#endif

}  // namespace fastseg
