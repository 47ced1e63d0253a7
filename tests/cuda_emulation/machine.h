// SPDX-License-Identifier: BSD-3-Clause
// What scheduler.cpp, memory.cpp and report.cpp share; kernels do not see this.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda_emulation/scheduler.h"

namespace cuda_emulation {

constexpr unsigned kMaxThreads = 1024;

enum class State { kRunnable, kAtBarrier, kAtWarpOp, kDone };

struct Context {
  ucontext_t start;
  jmp_buf jump;
  bool started = false;
};

struct Thread {
  Context context;
  char* stack = nullptr;
  void* fake_stack = nullptr;
  uint3 index;
  unsigned linear;
  State state = State::kDone;
  const char* operation = nullptr;  // where it waits
  Site site{};
  unsigned mask = 0;
  uint64_t value = 0;
  int predicates = 0;  // what the last barrier counted
  Lanes lanes{};       // what the last warp operation brought
};

struct Machine {
  uint64_t random = 1;
  dim3 grid{0, 0, 0}, block;  // no grid: no kernel runs
  uint3 block_index{};
  unsigned threads_in_block = 0;
  std::vector<Thread> threads{kMaxThreads};
  std::vector<unsigned> runnable;
  std::vector<uint16_t> warp_epoch = std::vector<uint16_t>(kMaxThreads / kWarpSize);
  unsigned at_barrier = 0, done = 0;
  Thread* current = nullptr;
  Context scheduler{{}, {}, true};
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  const std::function<void()>* thread_body = nullptr;
};
extern Machine machine;

// The fiber that runs now, as the memory checks need to know it.
struct Running {
  bool active = false;
  unsigned block = 0;       // linear index in the grid
  uint16_t thread = 0;      // linear index in the block
  uint16_t warp_epoch = 0;  // warp barriers its warp has passed
  const char* stack = nullptr;
  size_t stack_bytes = 0;
};
extern Running running;

void yield_sometimes();
std::string positions();  // of the threads of the block, one line for each place
void print_position();    // of the running thread

void begin_launch();
// False if the kernel asks for more shared memory than a block can have.
bool begin_block(unsigned block, size_t dynamic_shared_bytes);
void begin_interval();  // all threads of the block have met: what came before is ordered before what follows

}  // namespace cuda_emulation
