// SPDX-License-Identifier: BSD-3-Clause
// How the emulation says what is wrong, and where the threads of the block stand.
#include <sanitizer/common_interface_defs.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <map>
#include <tuple>

#include "machine.h"

namespace cuda_emulation {

namespace {

constexpr int kExitCode = 86;

std::string ranges(const std::vector<unsigned>& sorted) {  // {0, 1, 2, 7} -> "0-2, 7"
  std::string text;
  for (size_t i = 0; i < sorted.size();) {
    size_t last = i;
    while (last + 1 < sorted.size() && sorted[last + 1] == sorted[last] + 1) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(sorted[i]);
    if (last > i) text += "-" + std::to_string(sorted[last]);
    i = last + 1;
  }
  return text;
}

}  // namespace

std::string positions() {
  std::map<std::tuple<std::string, int, std::string>, std::vector<unsigned>> places;
  for (unsigned i = 0; i < machine.threads_in_block; ++i) {
    const Thread& thread = machine.threads[i];
    if (thread.state == State::kDone)
      places[{"", 0, "have returned"}].push_back(i);
    else if (thread.state == State::kRunnable)
      places[{"", 0, "are running"}].push_back(i);
    else {
      std::string what = std::string("wait at ") + thread.operation;
      if (thread.state == State::kAtWarpOp) {
        char mask[32];
        std::snprintf(mask, sizeof(mask), ", mask 0x%08x,", thread.mask);
        what += mask;
      }
      places[{thread.site.file, thread.site.line, what}].push_back(i);
    }
  }
  std::string text;
  for (const auto& [place, threads] : places) {
    const auto& [file, line, what] = place;
    text += "\n  threads " + ranges(threads) + " " + what;
    if (line > 0) text += " (" + file + ":" + std::to_string(line) + ")";
  }
  return text;
}

void print_position() {
  if (machine.grid.x == 0) return;
  const uint3 b = machine.block_index;
  std::fprintf(stderr, "cuda_emulation: in block (%u, %u, %u)", b.x, b.y, b.z);
  if (running.active) {
    const uint3 t = machine.current->index;
    std::fprintf(stderr, ", thread (%u, %u, %u)", t.x, t.y, t.z);
  }
  std::fprintf(stderr, "\n");
}

void report(const char* kind, const char* format, ...) {
  std::fprintf(stderr, "cuda_emulation: %s: ", kind);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  print_position();
  if (running.active) __sanitizer_print_stack_trace();
  std::fflush(stderr);
  _exit(kExitCode);
}

}  // namespace cuda_emulation
