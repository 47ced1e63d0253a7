// SPDX-License-Identifier: BSD-3-Clause
// Runs a grid on one operating-system thread: the threads of a block are fibers, and at each barrier or warp
// operation a seeded random number picks who goes on. Blocks run one after the other, in shuffled order, so a
// kernel in which one block waits for another never ends. The file is compiled without sanitizers.
#include <dlfcn.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>

#include <cstring>
#include <numeric>

#include "machine.h"

namespace cuda_emulation {

Machine machine;
Running running;

namespace {

constexpr size_t kStackBytes = 128 * 1024, kPage = 4096;

unsigned random_below(unsigned bound) {  // xorshift64*
  machine.random ^= machine.random >> 12;
  machine.random ^= machine.random << 25;
  machine.random ^= machine.random >> 27;
  return static_cast<unsigned>(((machine.random * 0x2545F4914F6CDD1Dull >> 32) * bound) >> 32);
}

bool same_text(const char* m, const char* n) { return m == n || std::strcmp(m, n) == 0; }

// libc's own: ASan's wrappers would wipe the marks of the whole target stack at each switch.
template <class Function>
Function from_libc(const char* name) {
  return reinterpret_cast<Function>(dlsym(dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD), name));
}

// A ucontext makes the fiber; later switches jump, which asks nothing of the kernel and so takes half the
// time.
void swap_context(Context* from, Context* to) {
  static const auto set = from_libc<int (*)(const ucontext_t*)>("setcontext");
  static const auto jump = from_libc<void (*)(jmp_buf, int)>("_longjmp");
  if (_setjmp(from->jump) != 0) return;
  if (to->started) jump(to->jump, 1);
  to->started = true;
  set(&to->start);
}

void switch_to_scheduler() {
  Thread* self = machine.current;
  running.active = false;
  __sanitizer_start_switch_fiber(&self->fake_stack, machine.scheduler_stack, machine.scheduler_stack_bytes);
  swap_context(&self->context, &machine.scheduler);
  __sanitizer_finish_switch_fiber(self->fake_stack, nullptr, nullptr);
}

void switch_to(Thread* thread) {
  machine.current = thread;
  running.thread = static_cast<uint16_t>(thread->linear);
  running.warp_epoch = machine.warp_epoch[thread->linear / kWarpSize];
  running.stack = thread->stack;
  running.stack_bytes = kStackBytes;
  running.active = true;
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, thread->stack, kStackBytes);
  swap_context(&machine.scheduler, &thread->context);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

void fiber_main() {
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
  for (;;) {  // one turn per block: the fiber and its stack are used again
    (*machine.thread_body)();
    machine.current->state = State::kDone;
    ++machine.done;
    switch_to_scheduler();
  }
}

void create_fiber(Thread& thread) {
  if (thread.stack != nullptr) return;
  char* memory = static_cast<char*>(mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (memory == MAP_FAILED) report("out of memory", "no stack for thread %u", thread.linear);
  mprotect(memory, kPage, PROT_NONE);
  thread.stack = memory + kPage;
  ucontext_t& start = thread.context.start;
  getcontext(&start);
  start.uc_stack.ss_sp = thread.stack;
  start.uc_stack.ss_size = kStackBytes;
  start.uc_link = nullptr;
  makecontext(&start, fiber_main, 0);
}

void wake(Thread& thread) {
  thread.state = State::kRunnable;
  machine.runnable.push_back(thread.linear);
}

void wait(State state, const char* operation, Site site) {
  Thread* self = machine.current;
  self->state = state;
  self->operation = operation;
  self->site = site;
}

void run_block() {
  machine.at_barrier = machine.done = 0;
  machine.runnable.clear();
  for (unsigned i = 0; i < machine.threads_in_block; ++i) {
    Thread& thread = machine.threads[i];
    thread.linear = i;
    thread.index = {i % machine.block.x, i / machine.block.x % machine.block.y,
                    i / (machine.block.x * machine.block.y)};
    create_fiber(thread);
    wake(thread);
  }
  while (!machine.runnable.empty()) {
    const unsigned pick = random_below(static_cast<unsigned>(machine.runnable.size()));
    std::swap(machine.runnable[pick], machine.runnable.back());
    Thread& thread = machine.threads[machine.runnable.back()];
    machine.runnable.pop_back();
    switch_to(&thread);
  }
  if (machine.done == machine.threads_in_block) return;
  bool warp_op = false;
  for (unsigned i = 0; i < machine.threads_in_block; ++i)
    warp_op |= machine.threads[i].state == State::kAtWarpOp;
  if (warp_op)
    report("divergent warp op", "not every lane that the mask names arrives%s", positions().c_str());
  report("divergent barrier", "not every thread of the block arrives%s", positions().c_str());
}

}  // namespace

uint3 thread_index() { return machine.current->index; }
uint3 block_index() { return machine.block_index; }
dim3 block_size() { return machine.block; }
dim3 grid_size() { return machine.grid; }
int lane_index() { return static_cast<int>(machine.current->linear % kWarpSize); }

int block_barrier(const char* name, int predicate, Site site) {
  Thread* self = machine.current;
  self->value = predicate != 0;
  wait(State::kAtBarrier, name, site);
  if (++machine.at_barrier == machine.threads_in_block) {
    int predicates = 0;
    for (unsigned i = 0; i < machine.threads_in_block; ++i) {
      const Thread& other = machine.threads[i];
      if (other.site.line != site.line || !same_text(other.site.file, site.file))
        report("divergent barrier", "the threads of the block wait at different barriers%s",
               positions().c_str());
      predicates += static_cast<int>(other.value);
    }
    for (unsigned i = 0; i < machine.threads_in_block; ++i) {
      machine.threads[i].predicates = predicates;
      wake(machine.threads[i]);
    }
    machine.at_barrier = 0;
    begin_interval();
  }
  switch_to_scheduler();
  return self->predicates;
}

Lanes warp_exchange(const char* name, unsigned mask, uint64_t value, bool orders_memory, Site site) {
  Thread* self = machine.current;
  const unsigned warp = self->linear / kWarpSize, first = warp * kWarpSize;
  const unsigned size = std::min<unsigned>(kWarpSize, machine.threads_in_block - first);
  if (!((mask >> lane_index()) & 1u))
    report("bad warp op", "%s (%s:%d): mask 0x%08x does not name the calling lane %d", name, site.file,
           site.line, mask, lane_index());
  self->mask = mask;
  self->value = value;
  wait(State::kAtWarpOp, name, site);
  // Lanes that a narrow block does not have are not waited for; lanes that have returned are.
  Lanes lanes{};
  unsigned missing = size == kWarpSize ? mask : mask & ((1u << size) - 1);
  for (unsigned lane = 0; lane < size; ++lane) {
    const Thread& other = machine.threads[first + lane];
    if (other.state != State::kAtWarpOp || other.mask != mask || !same_text(other.operation, name)) continue;
    lanes.present |= 1u << lane;
    lanes.value[lane] = other.value;
  }
  missing &= ~lanes.present;
  if (missing == 0) {
    if (orders_memory) ++machine.warp_epoch[warp];
    for (unsigned lane = 0; lane < size; ++lane) {
      if (!((lanes.present >> lane) & 1u)) continue;
      machine.threads[first + lane].lanes = lanes;
      wake(machine.threads[first + lane]);
    }
  }
  switch_to_scheduler();
  return self->lanes;
}

void yield_sometimes() {
  if (random_below(4) != 0) return;
  wake(*machine.current);
  switch_to_scheduler();
}

cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread_body) {
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z, threads = uint64_t{block.x} * block.y * block.z;
  if (blocks == 0 || threads == 0 || threads > kMaxThreads || block.z > 64 || grid.x > 0x7fffffffu ||
      grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  machine.grid = grid;
  machine.block = block;
  machine.threads_in_block = static_cast<unsigned>(threads);
  machine.thread_body = &thread_body;
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[random_below(static_cast<unsigned>(i))]);
  begin_launch();
  for (const unsigned index : order) {
    machine.block_index = {index % grid.x, index / grid.x % grid.y, index / (grid.x * grid.y)};
    running.block = index;
    if (!begin_block(index, shared_bytes)) return cudaErrorInvalidValue;
    run_block();
  }
  machine.grid = dim3(0, 0, 0);
  return cudaSuccess;
}

}  // namespace cuda_emulation

extern "C" void cuda_emulation_begin(uint64_t seed) {
  cuda_emulation::machine.random = (seed + 1) * 0x9E3779B97F4A7C15ull;
  // libasan and libubsan each have a callback of their own.
  __sanitizer_set_death_callback(cuda_emulation::print_position);
  if (void* handle = dlopen("libubsan.so.1", RTLD_LAZY | RTLD_NOLOAD)) {
    using SetCallback = void (*)(void (*)());
    void* set = dlsym(handle, "__sanitizer_set_death_callback");
    if (set != nullptr) reinterpret_cast<SetCallback>(set)(cuda_emulation::print_position);
  }
}
