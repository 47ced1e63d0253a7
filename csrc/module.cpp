// SPDX-License-Identifier: BSD-3-Clause
// The extension module fastseg._C. Importing it registers the ops with torch; it holds their eager door,
// the enums of their contracts and the loops of the data path, and says how it was built.
#include <dlfcn.h>

#include <exception>
#include <mutex>
#include <set>
#include <thread>

#include "arrays.h"
#include "checks.h"
#include "eager.h"
#include "stable.h"

namespace py = pybind11;

namespace {

#if defined(FASTSEG_WITH_CUDA)
constexpr const char* kCuda = FASTSEG_CUDA_VERSION;
constexpr const char* kCudaArchitectures = FASTSEG_CUDA_ARCHITECTURES;
#else
constexpr const char* kCuda = nullptr;  // None in Python
constexpr const char* kCudaArchitectures = "";
#endif

// Where the functions of libstdc++ that this module calls lie: in itself, if the toolchain linked it
// statically.
const char* libstdcxx() {
  Dl_info of_library, of_module;
  const bool found = dladdr(reinterpret_cast<void*>(&std::terminate), &of_library) != 0 &&
                     dladdr(reinterpret_cast<void*>(&libstdcxx), &of_module) != 0;
  return found && of_library.dli_fbase == of_module.dli_fbase ? "static" : "shared";
}

py::dict build_info() {
  py::dict info;
  info["version"] = FASTSEG_VERSION;
  info["compiler"] = FASTSEG_COMPILER;
  info["libstdc++"] = libstdcxx();
  info["torch_target"] = FASTSEG_TORCH_TARGET;
  info["torch_headers"] = FASTSEG_TORCH_HEADERS;
  info["cuda"] = kCuda;
  info["cuda_architectures"] = kCudaArchitectures;
#if defined(_OPENMP)
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
  return info;
}

size_t count_threads() {
  std::mutex mutex;
  std::set<std::thread::id> threads;
  torch::stable::parallel_for(0, 1024, 1, [&](int64_t, int64_t) {
    const std::lock_guard<std::mutex> lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  return threads.size();
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The fused kernels of fastseg: registered with torch, and behind their eager door.";
  module.def("build_info", &build_info, "How this extension was built.");
  module.def("count_threads", &count_threads,
             "On how many threads a loop of the CPU kernels runs: torch.get_num_threads(), unless OpenMP is "
             "missing.");
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(thrown);
    } catch (const fastseg::TypeError& error) {
      py::set_error(PyExc_TypeError, error.what());
    }
  });
  fastseg::define_arrays(module);
  fastseg::define_enums(module);
  fastseg::define_eager_ops(module);
  fastseg::define_array_boxes(module);
  fastseg::define_chunk_cache(module);
}
