// SPDX-License-Identifier: BSD-3-Clause
// The extension module fastseg._C. Importing it registers the ops with torch; it says how it was built. In
// Python's limited API, so that one binary serves every Python >= 3.10.
#include <Python.h>
#include <dlfcn.h>

#include <exception>
#include <mutex>
#include <set>
#include <thread>

#include "stable.h"

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

PyObject* build_info(PyObject*, PyObject*) {
#if defined(_OPENMP)
  PyObject* openmp = PyLong_FromLong(_OPENMP);
#else
  PyObject* openmp = Py_BuildValue("");  // None
#endif
  // clang-format off
  return Py_BuildValue("{s:s,s:s,s:s,s:s,s:s,s:z,s:s,s:N}",
      "version", FASTSEG_VERSION,
      "compiler", FASTSEG_COMPILER,
      "libstdc++", libstdcxx(),
      "torch_target", FASTSEG_TORCH_TARGET,
      "torch_headers", FASTSEG_TORCH_HEADERS,
      "cuda", kCuda,
      "cuda_architectures", kCudaArchitectures,
      "openmp", openmp);
  // clang-format on
}

PyObject* count_threads(PyObject*, PyObject*) {
  std::mutex mutex;
  std::set<std::thread::id> threads;
  try {
    torch::stable::parallel_for(0, 1024, 1, [&](int64_t, int64_t) {
      const std::lock_guard<std::mutex> lock(mutex);
      threads.insert(std::this_thread::get_id());
    });
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  return PyLong_FromSize_t(threads.size());
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS, "How this extension was built."},
    {"count_threads", count_threads, METH_NOARGS,
     "On how many threads a loop of the CPU kernels runs: torch.get_num_threads(), unless OpenMP is "
     "missing."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_C",
                          "Registers the fused kernels of fastseg with torch.",
                          -1,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
