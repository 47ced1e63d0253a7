// SPDX-License-Identifier: BSD-3-Clause
// The extension module fastseg._C. Importing it registers the ops with torch; it says how it was built.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/version.h>

#include <mutex>
#include <set>
#include <thread>

namespace py = pybind11;

PYBIND11_MODULE(_C, module) {
  module.doc() = "Registers the fused kernels of fastseg with torch.";
  module.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = FASTSEG_VERSION;
        info["compiler"] = FASTSEG_COMPILER;
        info["torch_target"] = FASTSEG_TORCH_TARGET;
        info["torch_headers"] = FASTSEG_TORCH_HEADERS;
#if defined(FASTSEG_WITH_CUDA)
        info["cuda"] = FASTSEG_CUDA_VERSION;
        info["cuda_architectures"] = FASTSEG_CUDA_ARCHITECTURES;
        const py::tuple devices = py::make_tuple("cpu", "cuda");
#else
        info["cuda"] = py::none();
        info["cuda_architectures"] = "";
        const py::tuple devices = py::make_tuple("cpu");
#endif
#if defined(_OPENMP)
        info["openmp"] = _OPENMP;
#else
        info["openmp"] = py::none();
#endif
        py::dict ops;
        ops["masked_bce"] = devices;
        ops["patch_entropy"] = devices;
        ops["region_contrast"] = py::make_tuple("cpu");  // and Triton's devices, added from Python
        ops["region_pool"] = devices;
        info["ops"] = ops;
        return info;
      },
      "How this extension was built: compiler, torch, CUDA, and the devices each op has a kernel for.");
  module.def(
      "count_threads",
      [] {
        std::mutex mutex;
        std::set<std::thread::id> threads;
        torch::stable::parallel_for(0, 1024, 1, [&](int64_t, int64_t) {
          const std::lock_guard<std::mutex> lock(mutex);
          threads.insert(std::this_thread::get_id());
        });
        return threads.size();
      },
      "On how many threads a loop of the CPU kernels runs: torch.get_num_threads(), unless OpenMP is "
      "missing.");
}
