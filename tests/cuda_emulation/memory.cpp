// SPDX-License-Identifier: BSD-3-Clause
// Looks at every load and store of a kernel. g++ -fsanitize=address calls __asan_load<N> and __asan_store<N>
// before each; the ones below stand in the library itself, so they come before ASan's own. They know the
// arrays of the call and the shared memory, and find: accesses out of bounds, reads of what nobody has
// written, writes to inputs, and races (two accesses, one of them a plain write, that no barrier orders).
#include <cxxabi.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "machine.h"

namespace cuda_emulation {

namespace {

constexpr uintptr_t kGuard = 256;          // bytes either side of an array that count as its neighbourhood
constexpr size_t kMaxShared = 227 * 1024;  // per block, sm_90

enum Kind { kInput, kOutput, kInOut, kShared };

// An interval is what a block does between two barriers; its number is unique in the process, 0 means never.
struct Access {
  void* caller = nullptr;
  uint32_t interval = 0;
  uint16_t thread = 0;
  uint16_t warp_epoch = 0;
};
struct Cell {
  Access write, read, other_read;
  bool atomic_write = false;
};
struct Region {
  std::string name;
  uintptr_t begin, end;
  Kind kind;
  int shift = 0;         // log2 of the bytes per cell
  bool dynamic = false;  // shared memory whose size each launch sets
  char* allocation = nullptr;
  std::vector<Cell> cells{};
};
enum Mode { kLoad, kStore, kAtomic };

std::vector<Region> regions;
uint32_t interval = 0, first_of_launch = 1, first_of_block = 1;
std::vector<unsigned> block_of_interval(1);  // by interval
struct BlockState {
  uint32_t fenced_until = 0;  // writes in intervals up to here are visible to blocks that synchronise
  bool synchronised = false;  // has used an atomic
};
std::vector<BlockState> blocks;
thread_local char tls_anchor;  // a symbol whose offset in the TLS segment is known finds the others

BlockState& state_of(unsigned block) {
  if (block >= blocks.size()) blocks.resize(block + 1);
  return blocks[block];
}

std::string place(void* caller) {
  char text[512] = "?";
  __sanitizer_symbolize_pc(caller, "%s:%l", text, sizeof(text));
  return text;
}

std::string thread_of(const Access& access) {
  const dim3 size = block_size();
  const unsigned t = access.thread;
  char text[64];
  std::snprintf(text, sizeof(text), "thread (%u, %u, %u)", t % size.x, t / size.x % size.y,
                t / (size.x * size.y));
  return text;
}

[[noreturn]] void race(const Region& region, uintptr_t address, const char* does, const Access& before,
                       const char* did, void* caller) {
  const unsigned block = block_of_interval[before.interval];
  const std::string where =
      block == running.block ? "since the last barrier" : "in block " + std::to_string(block);
  report("race", "%s byte %zu of %s, which %s %s %s\n  now at %s\n  before at %s", does,
         static_cast<size_t>(address - region.begin), region.name.c_str(), thread_of(before).c_str(), did,
         where.c_str(), place(caller).c_str(), place(before.caller).c_str());
}

// Does nothing order `before` ahead of what the running thread does now?
bool unordered(const Access& before, Kind kind) {
  if (before.interval < (kind == kShared ? first_of_block : first_of_launch)) return false;
  if (before.interval >= first_of_block)
    return before.interval == interval && before.thread != running.thread &&
           (before.thread / kWarpSize != running.thread / kWarpSize ||
            before.warp_epoch == running.warp_epoch);
  // Another block: ordered if it fenced after the access and this block has synchronised by an atomic.
  return !(state_of(running.block).synchronised &&
           before.interval <= state_of(block_of_interval[before.interval]).fenced_until);
}

void check_cell(Region& region, Cell& cell, uintptr_t address, Mode mode, void* caller) {
  const Access now{caller, interval, running.thread, running.warp_epoch};
  const bool written = region.kind == kShared   ? cell.write.interval >= first_of_block
                       : region.kind == kOutput ? cell.write.interval != 0
                                                : true;
  if (mode != kStore && !written)
    report("uninitialised", "read of byte %zu of %s, which nothing has written\n  at %s",
           static_cast<size_t>(address - region.begin), region.name.c_str(), place(caller).c_str());
  if (unordered(cell.write, region.kind) && !(mode == kAtomic && cell.atomic_write))
    race(region, address, mode == kLoad ? "read of" : "write of", cell.write, "wrote", caller);
  if (mode == kLoad) {
    if (cell.read.thread != now.thread || cell.read.interval != now.interval) cell.other_read = cell.read;
    cell.read = now;
    return;
  }
  for (const Access& read : {cell.read, cell.other_read})
    if (unordered(read, region.kind)) race(region, address, "write of", read, "read", caller);
  cell.write = now;
  cell.atomic_write = mode == kAtomic;
}

void check_region(Region& region, uintptr_t address, size_t size, Mode mode, void* caller) {
  if (address < region.begin || address + size > region.end) {
    const bool before = address < region.begin;
    report("out of bounds", "%s of %zu bytes, %zu bytes %s %s (%zu bytes)\n  at %s",
           mode == kLoad ? "read" : "write", size,
           static_cast<size_t>(before ? region.begin - address : address + size - region.end),
           before ? "before" : "past the end of", region.name.c_str(),
           static_cast<size_t>(region.end - region.begin), place(caller).c_str());
  }
  if (region.kind == kInput && mode != kLoad)
    report("input written", "write to %s\n  at %s", region.name.c_str(), place(caller).c_str());
  const uintptr_t first = (address - region.begin) >> region.shift;
  const uintptr_t last = (address + size - 1 - region.begin) >> region.shift;
  for (uintptr_t cell = first; cell <= last; ++cell)
    check_cell(region, region.cells[cell], region.begin + (cell << region.shift), mode, caller);
}

// The region an address lies in, else the nearest one within reach: the one that was overrun.
Region* find_region(uintptr_t address) {
  static size_t last = 0;
  const auto distance = [&](const Region& r) {
    return address < r.begin ? r.begin - address : address < r.end ? 0 : address - r.end + 1;
  };
  if (last < regions.size() && distance(regions[last]) == 0) return &regions[last];
  uintptr_t nearest = kGuard + 1;
  for (size_t i = 0; i < regions.size() && nearest > 0; ++i)
    if (const uintptr_t d = distance(regions[i]); d < nearest) nearest = d, last = i;
  return nearest <= kGuard ? &regions[last] : nullptr;
}

// The common case of what __asan_region_is_poisoned answers: ASan's notes on the first and last byte are
// empty.
bool clean_shadow(uintptr_t address, size_t size) {
  static const uintptr_t base = [] {
    size_t scale, offset;
    __asan_get_shadow_mapping(&scale, &offset);
    return offset;
  }();
  const auto note = [](uintptr_t at) { return *reinterpret_cast<const char*>((at >> 3) + base); };
  return size <= 16 && note(address) == 0 && note(address + size - 1) == 0;
}

void check(uintptr_t address, size_t size, Mode mode, void* caller) {
  const bool on_stack = address - reinterpret_cast<uintptr_t>(running.stack) < running.stack_bytes;
  if (running.active && !on_stack)
    if (Region* region = find_region(address)) return check_region(*region, address, size, mode, caller);
  if (!clean_shadow(address, size) &&
      __asan_region_is_poisoned(reinterpret_cast<void*>(address), size) != nullptr) {
    void* stack_pointer = __builtin_frame_address(0);
    __asan_report_error(caller, stack_pointer, stack_pointer, reinterpret_cast<void*>(address), mode != kLoad,
                        size);
  }
}

}  // namespace

void begin_interval() {
  block_of_interval.push_back(running.block);
  interval = static_cast<uint32_t>(block_of_interval.size() - 1);
}

void begin_launch() {
  first_of_launch = static_cast<uint32_t>(block_of_interval.size());
  blocks.clear();
}

bool begin_block(unsigned, size_t dynamic_shared_bytes) {
  if (dynamic_shared_bytes > kMaxShared) return false;
  begin_interval();
  first_of_block = interval;
  for (Region& region : regions) {
    if (region.kind != kShared) continue;
    if (region.dynamic) {
      region.end = region.begin + dynamic_shared_bytes;
      region.cells.resize(dynamic_shared_bytes);
    }
    std::memset(reinterpret_cast<void*>(region.begin), 0xff,
                region.end - region.begin);  // NaN in all formats
  }
  return true;
}

void memory_fence() { state_of(running.block).fenced_until = interval; }

void before_atomic(const void* address, int size, void* caller) {
  yield_sometimes();
  const uintptr_t target = reinterpret_cast<uintptr_t>(address);
  if (target % size != 0)
    report("misaligned", "atomic of %d bytes at %p\n  at %s", size, address, place(caller).c_str());
  state_of(running.block).synchronised = true;
  check(target, size, kAtomic, caller);
}

cudaError_t host_fill(void* target, int value, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(target);
  if (bytes == 0) return cudaSuccess;
  begin_launch();
  begin_interval();
  if (Region* region = find_region(address)) check_region(*region, address, bytes, kStore, nullptr);
  std::memset(target, value, bytes);
  return cudaSuccess;
}

}  // namespace cuda_emulation

using namespace cuda_emulation;

extern "C" {

// Where the linker put a __shared__ variable.
void cuda_emulation_shared(const char* symbol, size_t offset, size_t bytes, size_t anchor_offset,
                           int dynamic) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(symbol, nullptr, nullptr, &status),
                                                    std::free);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(&tls_anchor) - anchor_offset + offset;
  Region region{std::string("shared variable ") + (status == 0 ? name.get() : symbol), begin, begin + bytes,
                kShared};
  region.dynamic = dynamic != 0;
  if (!dynamic) region.cells.resize(bytes);
  regions.push_back(std::move(region));
}

// A device array whose first byte lies `misalignment` bytes behind a multiple of 256.
void* cuda_emulation_array(const char* name, size_t bytes, size_t misalignment, int itemsize, int kind) {
  char* allocation = nullptr;
  const size_t total = 2 * kGuard + misalignment + bytes;
  if (posix_memalign(reinterpret_cast<void**>(&allocation), 256, total) != 0) return nullptr;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(allocation) + kGuard + misalignment;
  Region region{name, begin, begin + bytes, static_cast<Kind>(kind),
                __builtin_ctz(static_cast<unsigned>(itemsize))};
  region.allocation = allocation;
  region.cells.resize(bytes / itemsize);
  regions.push_back(std::move(region));
  __asan_poison_memory_region(reinterpret_cast<char*>(begin + bytes), kGuard);
  return reinterpret_cast<void*>(begin);
}

void cuda_emulation_free_arrays() {
  for (size_t i = regions.size(); i-- > 0;) {
    if (regions[i].kind == kShared) continue;
    __asan_unpoison_memory_region(reinterpret_cast<char*>(regions[i].end), kGuard);
    std::free(regions[i].allocation);
    regions.erase(regions.begin() + static_cast<ptrdiff_t>(i));
  }
}

#define HOOK __attribute__((visibility("hidden"))) void
#define HOOKS(size)                                                                                       \
  HOOK __asan_load##size(uintptr_t address) { check(address, size, kLoad, __builtin_return_address(0)); } \
  HOOK __asan_store##size(uintptr_t address) { check(address, size, kStore, __builtin_return_address(0)); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
HOOK __asan_loadN(uintptr_t address, size_t size) {
  check(address, size, kLoad, __builtin_return_address(0));
}
HOOK __asan_storeN(uintptr_t address, size_t size) {
  check(address, size, kStore, __builtin_return_address(0));
}
}
