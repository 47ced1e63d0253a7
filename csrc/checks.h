// SPDX-License-Identifier: BSD-3-Clause
// What the glue of every op shares: checks that name the argument, layouts, allocation, the CUDA stream.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "contract.h"
#include "stable.h"

#if defined(FASTSEG_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace fastseg {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

inline Shape shape_of(const Tensor& tensor) {
  Shape shape;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) shape.push_back(tensor.size(axis));
  return shape;
}

// The parts of a message. No iostreams: where a toolchain links libstdc++ statically, their facets collide
// with those of torch's own libstdc++, and printing a number crashes.
inline void append(std::string& message, const char* text) { message += text; }
inline void append(std::string& message, const std::string& text) { message += text; }
inline void append(std::string& message, ScalarType type) { message += torch::headeronly::toString(type); }
inline void append(std::string& message, const Shape& shape) {
  message += '(';
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (axis > 0) message += ", ";
    message += std::to_string(shape[axis]);
  }
  message += shape.size() == 1 ? ",)" : ")";
}
// A tensor is told by its shape.
inline void append(std::string& message, const Tensor& tensor) { append(message, shape_of(tensor)); }
template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
void append(std::string& message, Number number) {
  message += std::to_string(number);
}

// A wrong argument. The parts become a message only where the check fails: every call of every op comes
// through here. Not STD_TORCH_CHECK, whose message opens with a path of the machine that built it.
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::string message;
  (append(message, parts), ...);
  throw std::runtime_error(message);
}

inline void check_shape(const char* name, const Tensor& tensor, const char* meaning, const Shape& expected) {
  bool same = tensor.dim() == int64_t(expected.size());
  for (int64_t axis = 0; same && axis < tensor.dim(); ++axis) same = tensor.size(axis) == expected[axis];
  check(same, name, " must be ", meaning, " = ", expected, ", got ", tensor);
}

inline void check_same_device(const char* name, const Tensor& tensor, const Tensor& logits) {
  check(tensor.device() == logits.device(), name, " must be on the device of logits");
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

inline void check_floating(const char* name, const Tensor& tensor) {
  check(is_floating(tensor.scalar_type()), name, " must be float32, float64, bfloat16 or float16, got ",
        tensor.scalar_type());
}

inline bool is_byte(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Byte || tensor.scalar_type() == ScalarType::Bool;
}

// What the kernels call the dtype; bytes and bools are kUint8.
inline ScalarKind kind_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return ScalarKind::kFloat32;
    case ScalarType::Double:
      return ScalarKind::kFloat64;
    case ScalarType::BFloat16:
      return ScalarKind::kBFloat16;
    case ScalarType::Half:
      return ScalarKind::kFloat16;
    default:
      return ScalarKind::kUint8;
  }
}

inline Tensor empty_on(const Tensor& like, const Shape& shape, ScalarType type,
                       MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(shape, type, std::nullopt, like.device(), std::nullopt, format);
}

// Whether the elements lie channels last without gaps. Strides along axes of size 1 say nothing.
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4 && tensor.dim() != 5) return false;
  int64_t expected = 1;
  const auto fits = [&](int64_t axis) {
    const bool fit = tensor.size(axis) == 1 || tensor.stride(axis) == expected;
    expected *= tensor.size(axis);
    return fit;
  };
  if (!fits(1)) return false;
  for (int64_t axis = tensor.dim() - 1; axis >= 2; --axis) {
    if (!fits(axis)) return false;
  }
  return fits(0);
}

#if defined(FASTSEG_WITH_CUDA)
// Torch 2.13 has Stream::nativeHandle. This older function serves 2.11 too; it is absent from a torch without
// CUDA, hence weak, but there nothing runs on a CUDA device.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream)
    __attribute__((weak));

inline void* current_cuda_stream(int32_t device_index) {
  check(aoti_torch_get_current_cuda_stream != nullptr, "fastseg: this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return stream;
}

inline cudaStream_t stream_of(const Tensor& tensor) {
  return static_cast<cudaStream_t>(current_cuda_stream(tensor.get_device_index()));
}

inline void check_launch(const char* op, cudaError_t status) {
  check(status == cudaSuccess, op, ": CUDA launch failed: ", cudaGetErrorString(status));
}
#endif

}  // namespace fastseg
