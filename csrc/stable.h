// SPDX-License-Identifier: BSD-3-Clause
// Torch's stable ABI, all of it that the glue uses; include this, not torch's headers. What is ours is how a
// call that failed is told: in torch's own words where this torch hands them out, and without iostreams (see
// checks.h).
#pragma once

// Torch's own switch: its checks of types and schemas, which a call of ours does not fail, tell the condition
// alone.
#define STRIP_ERROR_MESSAGES
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstring>
#include <stdexcept>
#include <string>

// Torch 2.13 and newer say why a call failed; weak, as older ones lack it.
extern "C" const char* torch_exception_get_what_without_backtrace() __attribute__((weak));

namespace fastseg {

[[noreturn]] __attribute__((noinline, cold)) inline void throw_torch_error(const char* call) {
  const char* words = torch_exception_get_what_without_backtrace != nullptr
                          ? torch_exception_get_what_without_backtrace()
                          : nullptr;
  if (words != nullptr && *words != 0) throw std::runtime_error(words);
  const char* end = std::strchr(call, '(');  // the function's name
  throw std::runtime_error("torch failed in " +
                           (end != nullptr ? std::string(call, end) : std::string(call)));
}

}  // namespace fastseg

// The one macro that torch's headers of 2.11, 2.13 and 2.14 check their calls with, directly or by
// STABLE_TORCH_ERROR_CODE_CHECK. Theirs prints numbers through a stringstream.
#undef TORCH_ERROR_CODE_CHECK
#define TORCH_ERROR_CODE_CHECK(call)     \
  if ((call) != TORCH_SUCCESS) {         \
    ::fastseg::throw_torch_error(#call); \
  }

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/csrc/stable/version.h>
#include <torch/headeronly/core/ScalarType.h>
