// SPDX-License-Identifier: BSD-3-Clause
// For machines without a CUDA toolkit. The numbers are CUDA's.
#pragma once

enum cudaError {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNotSupported = 801,
};
using cudaError_t = cudaError;
struct CUstream_st;
using cudaStream_t = CUstream_st*;
