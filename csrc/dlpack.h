// SPDX-License-Identifier: BSD-3-Clause
// The part of DLPack 1.x that is used here: how to read a tensor of Python through the exchange table that
// torch offers as torch.Tensor.__dlpack_c_exchange_api__ (from 2.11 on). The layout is DLPack's stable ABI,
// https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h; torch's own copy cannot be included
// beside its stable headers.
#pragma once

#include <cstdint>

namespace fastseg::dlpack {

constexpr uint32_t kMajorVersion = 1;

enum DeviceType : int32_t { kCpu = 1, kCuda = 2 };
enum TypeCode : uint8_t { kInt, kUInt, kFloat, kOpaque, kBfloat, kComplex, kBool };

struct Device {
  int32_t type, index;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t dim;
  DataType type;
  int64_t* sizes;
  int64_t* strides;
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major, minor;
  ExchangeApi* older;
  void (*allocate)();  // not used: torch.empty_strided gives storage that torch knows as its own
  void (*export_managed)();
  void (*import_managed)();
  int (*read)(void* object, Tensor* out);  // 0, or an error of Python is set
  int (*current_stream)(int32_t device_type, int32_t device_index, void** stream);
};

}  // namespace fastseg::dlpack
