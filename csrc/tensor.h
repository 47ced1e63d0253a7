// SPDX-License-Identifier: BSD-3-Clause
// A tensor as the ops see it, whichever door it came through: a description of its memory, its owner, and how
// its door makes others. Two doors lead to every op: torch.library (library.cpp) and Python (eager.cpp).
#pragma once

#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastseg {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using Shape = std::vector<int64_t>;

enum class Layout { kContiguous, kChannelsLast };  // channels last: 4 or 5 axes, as torch means it

struct Device {
  DeviceType type;
  int32_t index;
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
  bool operator!=(const Device& other) const { return !(*this == other); }
};

class Tensor;

// What a body asks of the door its arguments came through. Python's door needs Python's lock for all of it.
struct Door {
  Tensor (*empty)(const Tensor& like, const Shape& sizes, const Shape& strides, ScalarType type);
  Tensor (*contiguous)(const Tensor& tensor, Layout layout);
  Tensor (*to)(const Tensor& tensor, ScalarType type);
  bool holds_lock;  // Python's, while a body runs
};

class Tensor {
 public:
  Tensor() = default;
  // Sizes and strides are those of the owner, which keeps them.
  Tensor(void* data, const int64_t* sizes, const int64_t* strides, int64_t dim, ScalarType type,
         int64_t element_size, Device device, const Door* door, std::shared_ptr<void> owner)
      : data_(data),
        sizes_(sizes),
        strides_(strides),
        dim_(dim),
        type_(type),
        element_size_(element_size),
        device_(device),
        door_(door),
        owner_(std::move(owner)) {
    if (data == nullptr && numel() > 0) {
      throw std::runtime_error("a tensor of " + std::to_string(numel()) +
                               " elements has no data: its storage was freed or never allocated");
    }
  }

  // In place of a result that was not asked for: None from Python's door, of shape (0,) from torch.library's.
  static Tensor absent(const Tensor& like, ScalarType type) {
    static constexpr int64_t kNothing[] = {0};
    return {nullptr, kNothing, kNothing, 1, type, 0, like.device_, like.door_, nullptr};
  }

  int64_t dim() const { return dim_; }
  int64_t size(int64_t axis) const { return sizes_[axis]; }
  int64_t stride(int64_t axis) const { return strides_[axis]; }
  Shape shape() const { return {sizes_, sizes_ + dim_}; }
  ScalarType scalar_type() const { return type_; }
  int64_t element_size() const { return element_size_; }
  Device device() const { return device_; }
  void* data_ptr() const { return data_; }
  const Door& door() const { return *door_; }
  const std::shared_ptr<void>& owner() const { return owner_; }

  // Of the axes from one on.
  int64_t numel(int64_t first_axis = 0) const {
    int64_t count = 1;
    for (int64_t axis = first_axis; axis < dim_; ++axis) count *= sizes_[axis];
    return count;
  }

  // Whether the elements lie in the layout without gaps. Strides along axes of size 1 say nothing.
  bool is_contiguous(Layout layout = Layout::kContiguous) const {
    if (layout == Layout::kChannelsLast && dim_ != 4 && dim_ != 5) return false;
    if (numel() == 0) return layout == Layout::kContiguous;
    int64_t expected = 1;
    for (int64_t k = dim_ - 1; k >= 0; --k) {
      const int64_t axis = layout == Layout::kContiguous ? k : k == dim_ - 1 ? 1 : k == 0 ? 0 : k + 1;
      if (sizes_[axis] != 1 && strides_[axis] != expected) return false;
      expected *= sizes_[axis];
    }
    return true;
  }

 private:
  void* data_ = nullptr;
  const int64_t* sizes_ = nullptr;
  const int64_t* strides_ = nullptr;
  int64_t dim_ = 0;
  ScalarType type_ = ScalarType::Undefined;
  int64_t element_size_ = 0;
  Device device_{DeviceType::CPU, 0};
  const Door* door_ = nullptr;
  std::shared_ptr<void> owner_;
};

using OptionalTensor = std::optional<Tensor>;

inline Tensor empty_on(const Tensor& like, const Shape& shape, ScalarType type,
                       Layout layout = Layout::kContiguous) {
  Shape strides(shape.size());
  int64_t step = 1;
  const auto lay = [&](size_t axis) {
    strides[axis] = step;
    if (shape[axis] > 1 && __builtin_mul_overflow(step, shape[axis], &step)) {
      throw std::invalid_argument("a result would have more than 2**63 elements");
    }
  };
  const bool channels_last = layout == Layout::kChannelsLast;
  if (channels_last) lay(1);
  for (size_t axis = shape.size(); axis-- > 0;) {
    if (!channels_last || axis != 1) lay(axis);
  }
  return like.door().empty(like, shape, strides, type);
}

// The tensor itself where it lies so already.
inline Tensor contiguous(const Tensor& tensor, Layout layout = Layout::kContiguous) {
  return tensor.is_contiguous(layout) ? tensor : tensor.door().contiguous(tensor, layout);
}

inline Tensor to(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : tensor.door().to(tensor, type);
}

// How a kernel reads it: channels last where it lies so and not contiguous, else contiguous, copied if need
// be.
inline Layout layout_of(const Tensor& tensor) {
  return !tensor.is_contiguous() && tensor.is_contiguous(Layout::kChannelsLast) ? Layout::kChannelsLast
                                                                                : Layout::kContiguous;
}

// Lets other threads of Python run while a kernel does, where the door of the tensor holds its lock.
class Unlocked {
 public:
  explicit Unlocked(const Tensor& tensor);
  ~Unlocked();
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  void* state_;
};

}  // namespace fastseg
