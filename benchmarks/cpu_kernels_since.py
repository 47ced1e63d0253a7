# SPDX-License-Identifier: BSD-3-Clause
"""CPU kernels of an earlier commit and of this tree, in turns in one process: fastest times, and medians of the ratios.

    python benchmarks/cpu_kernels_since.py bc4d096

masked_bce and patch_entropy, forward and backward, of 2^20 voxels on one thread; a ratio above 1: slower now. Compiles
the kernels of both with the flags of CMakeLists.txt; their contracts must be alike.
"""

import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "-O3",
    "-DNDEBUG",
    "-std=gnu++17",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
]
SOURCES = ("masked_bce.cpp", "patch_entropy.cpp", "patch_entropy_backward.cpp")
KINDS = {"float32": 1, "float64": 2, "bfloat16": 3, "float16": 4}  # ScalarKind
ROUNDS = 101
DRIVER = """
#include <cstring>
#include <random>
#include <vector>

#include "masked_bce.h"
#include "patch_entropy.h"

using namespace fastseg;

namespace {
constexpr int64_t kVoxels = 1 << 20;

// Values in (0, 1) for probabilities, of both signs for logits; 16-bit ones by their bits.
std::vector<double> make_values(int kind, bool probabilities) {
  std::vector<double> memory(kVoxels);
  std::mt19937 draw(0);
  std::normal_distribution<float> normal(0, 3);
  std::uniform_real_distribution<float> uniform(0.01f, 0.99f);
  for (int64_t i = 0; i < kVoxels; ++i) {
    const float value = probabilities ? uniform(draw) : normal(draw);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    auto* halves = reinterpret_cast<uint16_t*>(memory.data());
    if (kind == 1) reinterpret_cast<float*>(memory.data())[i] = value;
    if (kind == 2) memory[i] = value;
    if (kind == 3) halves[i] = uint16_t(bits >> 16);
    if (kind == 4) {
      const uint32_t exponent = (bits >> 23 & 255) - 112;
      halves[i] = uint16_t((bits >> 16 & 0x8000) | (exponent << 10) | (bits >> 13 & 1023));
    }
  }
  return memory;
}
}  // namespace

// op 0: masked_bce; 1: patch_entropy of probabilities; 2: of logits.
extern "C" void* make(int op, int kind) {
  return new std::vector<double>(make_values(kind, op == 1));
}

extern "C" double run(void* values, int op, int kind, int backward) {
  static std::vector<uint8_t> target(kVoxels), mask(kVoxels);
  static std::vector<double> out(2 * kVoxels), grads(2 * kVoxels, 0.5);
  static const bool filled = [] {
    std::mt19937 draw(1);
    for (auto& value : target) value = draw() % 2;
    for (auto& value : mask) value = draw() % 3;
    return true;
  }();
  (void)filled;
  if (kind != 2) {
    static const bool floats = [] {
      auto* all = reinterpret_cast<float*>(grads.data());
      for (int64_t i = 0; i < 4 * kVoxels; ++i) all[i] = 0.5f;
      return true;
    }();
    (void)floats;
  }
  const void* data = static_cast<std::vector<double>*>(values)->data();
  if (op == 0) {
    MaskedBceInputs in{};
    in.logits = data, in.target = target.data(), in.mask = mask.data();
    in.logits_kind = ScalarKind(kind), in.target_kind = ScalarKind::kUint8;
    in.outer = in.channels = 1, in.inner = kVoxels, in.pseudo_weight = 0.3;
    if (backward) {
      masked_bce_backward_cpu(in, {grads.data(), false, nullptr}, 0, kVoxels, out.data());
    } else {
      std::vector<MaskedBceSums> partials(masked_bce_chunks(kVoxels));
      masked_bce_sums_cpu(in, 0, masked_bce_chunks(kVoxels), partials.data());
      return partials[0].loss[0];
    }
    return out[1];
  }
  PatchEntropyInputs in{};
  in.values = data, in.kind = ScalarKind(kind), in.from_logits = op == 2;
  in.batch = in.channels = 1;
  const int64_t sizes[] = {64, 128, 128};
  for (int i = 0; i < 3; ++i) in.axis[i] = make_window_axis(sizes[i], 16, 8, backward ? 1 << 30 : kLongestCell);
  if (backward) {
    patch_entropy_gradient_cpu(in, grads.data(), 0, patch_entropy_voxel_rows(in), out.data());
  } else {
    patch_entropy_cells_cpu(in, 0, patch_entropy_cell_rows(in), 1.0, out.data());
  }
  return out[1];
}
"""


def build(tree: Path, folder: Path) -> ctypes.CDLL:
    folder.mkdir()
    (folder / "driver.cpp").write_text(DRIVER)
    sources = [tree / "kernels/cpu" / name for name in SOURCES]
    compiler = os.environ.get("CXX", "g++")
    command = [
        compiler,
        *FLAGS,
        f"-I{tree}/kernels",
        folder / "driver.cpp",
        *sources,
        "-o",
        folder / "kernels.so",
    ]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "kernels.so"))
    library.make.restype, library.run.restype = ctypes.c_void_p, ctypes.c_double
    library.run.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    return library


def main() -> None:
    commit = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        before = Path(name) / "tree"
        before.mkdir()
        archive = subprocess.run(
            ["git", "-C", ROOT, "archive", commit, "kernels"], stdout=subprocess.PIPE, check=True
        )
        subprocess.run(["tar", "-x", "-C", before], input=archive.stdout, check=True)
        libraries = [build(before, Path(name) / "before"), build(ROOT, Path(name) / "now")]
        print(f"| {commit}, then now: ms | forward | ratio | backward | ratio |\n|---|---|---|---|---|")
        for op, label in enumerate(("masked_bce", "patch_entropy", "patch_entropy, logits")):
            for dtype, kind in KINDS.items():
                values, cells = libraries[0].make(op, kind), [f"{label} {dtype}"]
                for backward in (0, 1):
                    times: list[list[float]] = [[], []]
                    for turn in range(2 * ROUNDS):
                        begin = time.perf_counter()
                        libraries[turn % 2].run(values, op, kind, backward)
                        times[turn % 2].append(1e3 * (time.perf_counter() - begin))
                    ratio = statistics.median(now / was for was, now in zip(*times, strict=True))
                    fastest = ", ".join(f"{min(t):.2f}" for t in times)
                    cells += [fastest, f"{ratio:.2f}"]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
