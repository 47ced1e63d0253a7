// SPDX-License-Identifier: BSD-3-Clause
// Atomics. One operating-system thread runs all fibers, so a plain read-modify-write is atomic; what is
// checked is that the address is good and that no other thread touches it without an atomic.
#pragma once

#include "cuda_emulation/scheduler.h"

namespace cuda_emulation {

template <class T, class Combine>
FASTSEG_EMULATION_INTERNAL T atomic_update(T* address, Combine combine, void* caller) {
  before_atomic(address, sizeof(T), caller);
  const T old = *address;
  *address = combine(old);
  return old;
}

template <class T>
inline constexpr bool kAtomicInteger = std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);
template <class T>
inline constexpr bool kAtomicNumber =
    kAtomicInteger<T> || std::is_same_v<T, float> || std::is_same_v<T, double>;

template <class T>
struct Same {
  using type = T;
};
template <class T>
using same_t = typename Same<T>::type;  // deduce T from the address only

}  // namespace cuda_emulation

// A signed sum that overflows wraps round on a GPU; here UBSan reports it, since no op means it to.
#define FASTSEG_EMULATE_ATOMIC(name, allowed, expression)                                              \
  template <class T, class = std::enable_if_t<cuda_emulation::allowed<T>>>                             \
  FASTSEG_EMULATION_INTERNAL T name(T* address, cuda_emulation::same_t<T> value) {                     \
    return cuda_emulation::atomic_update(                                                              \
        address, [=](T old) -> T { return static_cast<T>(expression); }, __builtin_return_address(0)); \
  }
FASTSEG_EMULATE_ATOMIC(atomicAdd, kAtomicNumber, old + value)
FASTSEG_EMULATE_ATOMIC(atomicSub, kAtomicInteger, old - value)
FASTSEG_EMULATE_ATOMIC(atomicExch, kAtomicNumber, value)
FASTSEG_EMULATE_ATOMIC(atomicMin, kAtomicInteger, value < old ? value : old)
FASTSEG_EMULATE_ATOMIC(atomicMax, kAtomicInteger, value > old ? value : old)
FASTSEG_EMULATE_ATOMIC(atomicAnd, kAtomicInteger, old& value)
FASTSEG_EMULATE_ATOMIC(atomicOr, kAtomicInteger, old | value)
FASTSEG_EMULATE_ATOMIC(atomicXor, kAtomicInteger, old ^ value)
#undef FASTSEG_EMULATE_ATOMIC

// Counts up to `limit` and then from 0 again.
FASTSEG_EMULATION_INTERNAL inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return cuda_emulation::atomic_update(
      address, [=](unsigned old) { return old >= limit ? 0u : old + 1u; }, __builtin_return_address(0));
}

template <class T, class = std::enable_if_t<cuda_emulation::kAtomicInteger<T>>>
FASTSEG_EMULATION_INTERNAL T atomicCAS(T* address, cuda_emulation::same_t<T> expected,
                                       cuda_emulation::same_t<T> desired) {
  return cuda_emulation::atomic_update(
      address, [=](T old) { return old == expected ? desired : old; }, __builtin_return_address(0));
}
