// SPDX-License-Identifier: BSD-3-Clause
// Checks that name the argument, what was expected and what came. A message is put together when a check
// fails, not before, and without iostreams, which break where libstdc++ is linked statically.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "contract.h"
#include "tensor.h"

namespace fastseg {

struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
using ValueError = std::invalid_argument;

inline const char* name_of(ScalarType type) {
  switch (type) {
#define FASTSEG_NAME(kind, name) \
  case ScalarType::kind:         \
    return name;
    FASTSEG_NAME(Byte, "uint8")
    FASTSEG_NAME(Char, "int8")
    FASTSEG_NAME(Short, "int16")
    FASTSEG_NAME(Int, "int32")
    FASTSEG_NAME(Long, "int64")
    FASTSEG_NAME(UInt16, "uint16")
    FASTSEG_NAME(UInt32, "uint32")
    FASTSEG_NAME(UInt64, "uint64")
    FASTSEG_NAME(Half, "float16")
    FASTSEG_NAME(BFloat16, "bfloat16")
    FASTSEG_NAME(Float, "float32")
    FASTSEG_NAME(Double, "float64")
    FASTSEG_NAME(ComplexHalf, "complex32")
    FASTSEG_NAME(ComplexFloat, "complex64")
    FASTSEG_NAME(ComplexDouble, "complex128")
    FASTSEG_NAME(Bool, "bool")
#undef FASTSEG_NAME
    default:
      return "another dtype";
  }
}

inline std::string to_text(const char* text) { return text; }
inline std::string to_text(const std::string& text) { return text; }
inline std::string to_text(ScalarType type) { return name_of(type); }
inline std::string to_text(const Shape& shape) {
  std::string text = "(";
  for (size_t axis = 0; axis < shape.size(); ++axis) text += (axis ? ", " : "") + std::to_string(shape[axis]);
  return text + (shape.size() == 1 ? ",)" : ")");
}
inline std::string to_text(const Tensor& tensor) { return to_text(tensor.shape()); }
inline std::string to_text(Device device) {
  return device.type == DeviceType::CPU ? "cpu" : "cuda:" + std::to_string(device.index);
}
template <class Number, std::enable_if_t<std::is_arithmetic_v<Number>, int> = 0>
std::string to_text(Number number) {
  std::string text = std::to_string(number);
  if (std::is_floating_point_v<Number>) {  // 0.500000
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
  }
  return text;
}

template <class Error = ValueError, class... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) throw Error((to_text(parts) + ...));
}
template <class... Parts>
void check_type(bool condition, const Parts&... parts) {
  check<TypeError>(condition, parts...);
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}
inline bool is_byte(ScalarType type) { return type == ScalarType::Byte || type == ScalarType::Bool; }

inline void check_floating(const char* name, const Tensor& tensor) {
  check_type(is_floating(tensor.scalar_type()), name, " must be float32, float64, bfloat16 or float16, got ",
             tensor.scalar_type());
}
inline void check_byte(const char* name, const Tensor& tensor) {
  check_type(is_byte(tensor.scalar_type()), name, " must be uint8 or bool, got ", tensor.scalar_type());
}

inline void check_device(const char* name, const Tensor& tensor, const char* other_name,
                         const Tensor& other) {
  check(tensor.device() == other.device(), name, " must be on ", other.device(), ", where ", other_name,
        " is, got ", tensor.device());
}

// The axes of (B, C, *S) with 1 to 3 spatial ones; `meaning` says so.
inline void check_volume(const char* name, const Tensor& tensor, const char* meaning = "(B, C, *S)") {
  check(tensor.dim() >= 3 && tensor.dim() <= 5, name, " must be ", meaning, " with 1 to 3 spatial axes, got ",
        tensor);
}

inline bool has_shape(const Tensor& tensor, const Shape& shape) {
  if (tensor.dim() != int64_t(shape.size())) return false;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    if (tensor.size(axis) != shape[axis]) return false;
  }
  return true;
}
inline void check_shape(const char* name, const Tensor& tensor, const char* meaning, const Shape& expected) {
  check(has_shape(tensor, expected), name, " must be ", meaning, " = ", expected, ", got ", tensor);
}

// A map over the voxels of a volume (B, C, *S) with a channel for each of its own or one for all.
inline void check_map(const char* name, const Tensor& map, const char* meaning, const Tensor& volume,
                      bool one_for_all = false) {
  bool fits = map.dim() == volume.dim();
  for (int64_t axis = 0; fits && axis < map.dim(); ++axis) {
    fits = map.size(axis) == (axis == 1 && (one_for_all || map.size(1) == 1) ? 1 : volume.size(axis));
  }
  if (fits) return;
  const std::string channels = one_for_all || volume.size(1) == 1 ? "1" : "1 or " + to_text(volume.size(1));
  std::string expected = "(" + to_text(volume.size(0)) + ", " + channels;
  for (int64_t axis = 2; axis < volume.dim(); ++axis) expected += ", " + to_text(volume.size(axis));
  check(false, name, " must be ", meaning, " = ", expected, "), got ", map);
}

template <class Enum>
Enum check_option(const char* name, int64_t value, Enum last) {
  check(value >= 0 && value <= int64_t(last), name, " must be from 0 to ", int64_t(last), ", got ", value);
  return Enum(value);
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

// The dtype of sums over a tensor.
inline ScalarType real_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
inline ScalarType real_type(const Tensor& tensor) { return real_type(tensor.scalar_type()); }

}  // namespace fastseg
