// SPDX-License-Identifier: BSD-3-Clause
// Where an op runs: the device of its tensors made current, its kernels started there without Python's lock.
#pragma once

#include <memory>
#include <new>

#include "checks.h"
#include "stable.h"

#if defined(FASTSEG_WITH_CUDA)
#include <cuda_runtime_api.h>

// Torch 2.13 has Stream::nativeHandle. This older function serves 2.11 too; it is absent from a torch without
// CUDA, hence weak, but there nothing runs on a CUDA device.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream)
    __attribute__((weak));
#endif

namespace fastseg {

class Place {
 public:
  explicit Place(const Tensor& tensor) : tensor_(tensor) {
    if (tensor.device().type == DeviceType::CPU) return;
#if defined(FASTSEG_WITH_CUDA)
    if (tensor.device().type == DeviceType::CUDA) {
      guard_ = std::make_unique<torch::stable::accelerator::DeviceGuard>(tensor.device().index);
      return;
    }
#endif
    throw ValueError("this build has no kernel for the device of the tensors");
  }

  bool is_cuda() const { return guard_ != nullptr; }

  // On the CPU: run(begin, end) for ranges of [0, count), on torch's threads.
  template <class Run>
  void for_ranges(int64_t count, int64_t grain, const Run& run) const {
    if (count == 0) return;
    const Unlocked unlocked(tensor_);
    torch::stable::parallel_for(0, count, grain, run);
  }

#if defined(FASTSEG_WITH_CUDA)
  // On a GPU: start(stream) gives a status.
  template <class Start>
  void launch(const char* op, const Start& start) const {
    const Unlocked unlocked(tensor_);
    void* stream = nullptr;
    const bool found = aoti_torch_get_current_cuda_stream != nullptr &&
                       aoti_torch_get_current_cuda_stream(tensor_.device().index, &stream) == 0;
    check<std::runtime_error>(found, op, ": torch gives no CUDA stream");
    const cudaError_t status = start(static_cast<cudaStream_t>(stream));
    check<std::runtime_error>(status == cudaSuccess, op,
                              ": CUDA launch failed: ", cudaGetErrorString(status));
  }
#endif

 private:
  const Tensor& tensor_;
  std::unique_ptr<torch::stable::accelerator::DeviceGuard> guard_;
};

// Memory between two kernels: a tensor where memory is the GPU's, which its stream keeps; else plain memory,
// which costs less than a tensor.
class Scratch {
 public:
  Scratch(const Place& place, const Tensor& like, int64_t bytes) {
    if (place.is_cuda()) {
      tensor_ = empty_on(like, {bytes}, ScalarType::Byte);
      data_ = tensor_.data_ptr();
    } else {
      memory_.reset(::operator new(bytes, kAligned));
      data_ = memory_.get();
    }
  }
  void* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAligned{64};
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, kAligned); }
  };
  Tensor tensor_;
  std::unique_ptr<void, Free> memory_;
  void* data_;
};

}  // namespace fastseg
