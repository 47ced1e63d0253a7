// SPDX-License-Identifier: BSD-3-Clause
#include "array/boxes.h"

#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu_utils.h"

namespace fastseg {
namespace {

struct Float16 {
  uint16_t bits;
};

template <class Number>
constexpr bool kIsFloat = std::is_floating_point_v<Number> || std::is_same_v<Number, Float16>;

template <class From, class To>
constexpr bool can_cast() {
  if (std::is_same_v<From, To> || std::is_same_v<From, bool>) return true;
  if (std::is_same_v<To, bool>) return false;
  if (kIsFloat<To>) {
    const bool widest = !kIsFloat<From> && sizeof(From) == 8 && sizeof(To) == 8;  // numpy calls it safe
    return widest || sizeof(To) > sizeof(From);
  }
  if (kIsFloat<From> || (std::is_signed_v<From> && !std::is_signed_v<To>)) return false;
  return sizeof(To) > sizeof(From);
}

template <class To, class From>
FASTSEG_ALWAYS_INLINE To convert(From value) {
  if constexpr (std::is_same_v<From, To>) {
    return value;
  } else if constexpr (std::is_same_v<From, Float16>) {
    return To(float16_to_float(value.bits));
  } else if constexpr (std::is_same_v<To, Float16>) {
    return Float16{float_to_float16(float(value))};
  } else {
    return To(value);
  }
}

template <class Number, bool kSwapped = false>
FASTSEG_ALWAYS_INLINE Number load(const char* from) {
  char bytes[sizeof(Number)];
  std::memcpy(bytes, from, sizeof bytes);
  if (kSwapped) {
    for (size_t i = 0; i < sizeof bytes / 2; ++i) std::swap(bytes[i], bytes[sizeof bytes - 1 - i]);
  }
  Number value;
  std::memcpy(&value, bytes, sizeof bytes);
  return value;
}

template <class From, class To, bool kSwapped>
FASTSEG_ALWAYS_INLINE void copy_number(const char* from, char* to) {
  const To value = convert<To>(load<From, kSwapped>(from));
  std::memcpy(to, &value, sizeof value);
}

template <class From, class To, bool kSwapped>
void copy_row(const char* from, int64_t from_step, char* to, int64_t to_step, int64_t count) {
  if (from_step == sizeof(From) && to_step == sizeof(To)) {  // a loop of its own: this one is vectorised
    if (std::is_same_v<From, To> && !kSwapped) {
      std::memcpy(to, from, count * sizeof(To));
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      copy_number<From, To, kSwapped>(from + i * int64_t(sizeof(From)), to + i * int64_t(sizeof(To)));
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) copy_number<From, To, kSwapped>(from + i * from_step, to + i * to_step);
}

template <class From>
void nonzero_row(const char* from, int64_t from_step, char* to, int64_t to_step, int64_t count) {
  if (from_step == sizeof(From) && to_step == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = load<From>(from + i * int64_t(sizeof(From))) != 0;
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i * to_step] = load<From>(from + i * from_step) != 0;
}

template <class Number>
struct Type {
  using type = Number;
};

template <class Use>
CopyRow with_type(NumberType type, Use use) {
  switch (type) {
    case NumberType::kBool:
      return use(Type<bool>());
    case NumberType::kUint8:
      return use(Type<uint8_t>());
    case NumberType::kInt8:
      return use(Type<int8_t>());
    case NumberType::kUint16:
      return use(Type<uint16_t>());
    case NumberType::kInt16:
      return use(Type<int16_t>());
    case NumberType::kUint32:
      return use(Type<uint32_t>());
    case NumberType::kInt32:
      return use(Type<int32_t>());
    case NumberType::kUint64:
      return use(Type<uint64_t>());
    case NumberType::kInt64:
      return use(Type<int64_t>());
    case NumberType::kFloat16:
      return use(Type<Float16>());
    case NumberType::kFloat32:
      return use(Type<float>());
    case NumberType::kFloat64:
      return use(Type<double>());
  }
  return nullptr;
}

CopyRow copy_unsigned(int64_t size, bool swapped) {
  switch (size) {
    case 1:
      return copy_row<uint8_t, uint8_t, false>;
    case 2:
      return swapped ? copy_row<uint16_t, uint16_t, true> : copy_row<uint16_t, uint16_t, false>;
    case 4:
      return swapped ? copy_row<uint32_t, uint32_t, true> : copy_row<uint32_t, uint32_t, false>;
    default:
      return swapped ? copy_row<uint64_t, uint64_t, true> : copy_row<uint64_t, uint64_t, false>;
  }
}

}  // namespace

CopyRow find_copy_row(NumberType from, bool swapped, NumberType to) {
  return with_type(from, [&](auto from_type) {
    using From = typename decltype(from_type)::type;
    if (from == to) return copy_unsigned(sizeof(From), swapped);  // what the bits mean does not matter
    return with_type(to, [&](auto to_type) -> CopyRow {
      using To = typename decltype(to_type)::type;
      if constexpr (std::is_same_v<From, To> || !can_cast<From, To>()) {
        return nullptr;
      } else {
        return swapped ? copy_row<From, To, true> : copy_row<From, To, false>;
      }
    });
  });
}

CopyRow find_nonzero_row(NumberType from) {
  return with_type(from, [](auto type) -> CopyRow {
    using From = typename decltype(type)::type;
    if constexpr (kIsFloat<From>) {
      return nullptr;
    } else if constexpr (std::is_same_v<From, bool>) {
      return nonzero_row<uint8_t>;
    } else {
      return nonzero_row<std::make_unsigned_t<From>>;
    }
  });
}

void copy_box(const BoxCopy& box, CopyRow copy_row) {
  int order[kMostBoxAxes], axes = 0;
  // Rows run along the axis whose numbers lie closest together in `to`; of equals, the last.
  for (int axis = 0; axis < box.axes; ++axis) {
    if (box.shape[axis] == 0) return;
    if (box.shape[axis] == 1) continue;
    int at = axes++;
    for (; at > 0 && std::abs(box.to_strides[order[at - 1]]) < std::abs(box.to_strides[axis]); --at) {
      order[at] = order[at - 1];
    }
    order[at] = axis;
  }
  // Axes that follow one another in both arrays are one axis. Two more of size 1 stand before the first.
  int64_t shape[kMostBoxAxes + 2] = {1, 1}, from_strides[kMostBoxAxes + 2] = {},
                               to_strides[kMostBoxAxes + 2] = {};
  int last = 1;
  for (int i = 0; i < axes; ++i) {
    const int64_t size = box.shape[order[i]], from = box.from_strides[order[i]],
                  to = box.to_strides[order[i]];
    if (last > 1 && from_strides[last] == from * size && to_strides[last] == to * size) {
      shape[last] *= size;
    } else {
      shape[++last] = size;
    }
    from_strides[last] = from, to_strides[last] = to;
  }
  const int rows = last - 1;  // the axis along which rows follow one another
  int64_t index[kMostBoxAxes + 2] = {};
  const char* from = box.from;
  char* to = box.to;
  for (;;) {
    for (int64_t row = 0; row < shape[rows]; ++row) {
      copy_row(from + row * from_strides[rows], from_strides[last], to + row * to_strides[rows],
               to_strides[last], shape[last]);
    }
    int axis = rows - 1;
    for (; axis >= 0; --axis) {
      from += from_strides[axis], to += to_strides[axis];
      if (++index[axis] < shape[axis]) break;
      from -= from_strides[axis] * shape[axis], to -= to_strides[axis] * shape[axis];
      index[axis] = 0;
    }
    if (axis < 0) return;
  }
}

}  // namespace fastseg
