// SPDX-License-Identifier: BSD-3-Clause
// The extension module fastseg._C. Importing it registers the ops with torch; it says how it was built. In
// Python's limited API, so that one binary serves every Python >= 3.10.
#include <Python.h>

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

PyObject* devices(bool with_cuda) {
  return with_cuda ? Py_BuildValue("(ss)", "cpu", "cuda") : Py_BuildValue("(s)", "cpu");
}

PyObject* build_info(PyObject*, PyObject*) {
#if defined(_OPENMP)
  PyObject* openmp = PyLong_FromLong(_OPENMP);
#else
  PyObject* openmp = Py_BuildValue("");  // None
#endif
  constexpr bool with_cuda = kCuda != nullptr;
  // clang-format off
  PyObject* ops = Py_BuildValue("{s:N,s:N,s:N,s:N}",
      "masked_bce", devices(with_cuda),
      "patch_entropy", devices(with_cuda),
      "region_contrast", devices(false),  // and Triton's devices, added from Python
      "region_pool", devices(with_cuda));
  return Py_BuildValue("{s:s,s:s,s:s,s:s,s:z,s:s,s:N,s:N}",
      "version", FASTSEG_VERSION,
      "compiler", FASTSEG_COMPILER,
      "torch_target", FASTSEG_TORCH_TARGET,
      "torch_headers", FASTSEG_TORCH_HEADERS,
      "cuda", kCuda,
      "cuda_architectures", kCudaArchitectures,
      "openmp", openmp,
      "ops", ops);
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
    {"build_info", build_info, METH_NOARGS,
     "How this extension was built: compiler, torch, CUDA, and the devices each op has a kernel for."},
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
