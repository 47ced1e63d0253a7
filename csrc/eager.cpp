// SPDX-License-Identifier: BSD-3-Clause
// The eager door. Tensors are read through DLPack's exchange table, a quarter of a microsecond each. Results
// are made by torch.empty_strided: storage that torch knows as its own can be resized, takes part in
// record_stream, and is refused in torch's own words where memory is short. is_eager() says who may come in.
#include "eager.h"

#include "checks.h"
#include "dlpack.h"
#include "ops.h"

namespace py = pybind11;

namespace fastseg {
namespace {

// What the door needs of Python's torch, looked up once and never given back.
struct Torch {
  PyObject *tensor, *parameter, *empty_strided, *dtype, *device, *is_neg, *requires_grad, *grad_enabled;
  PyObject *forward_ad, *current_level, *cpu;
  std::vector<PyObject*> is_busy;  // functions of no argument; a true result means that something intervenes
  PyObject* dtypes[int(ScalarType::NumOptions)] = {};
  PyObject* layouts[2][2];  // [layout][dim - 4]
  const dlpack::ExchangeApi* api = nullptr;

  Torch() {
    const py::module_ torch = py::module_::import("torch");
    const auto keep = [](py::object object) { return object.release().ptr(); };
    const auto word = [](const char* text) { return PyUnicode_InternFromString(text); };
    tensor = keep(torch.attr("Tensor"));
    parameter = keep(torch.attr("nn").attr("Parameter"));
    empty_strided = keep(torch.attr("empty_strided"));
    dtype = word("dtype");
    device = word("device");
    is_neg = word("is_neg");
    requires_grad = word("requires_grad");
    current_level = word("_current_level");
    forward_ad = keep(py::module_::import("torch.autograd.forward_ad"));
    cpu = keep(torch.attr("device")("cpu"));
    const py::object c = torch.attr("_C");
    grad_enabled = keep(c.attr("is_grad_enabled"));
    for (const char* name : {"_are_functorch_transforms_active", "_len_torch_dispatch_stack",
                             "_is_torch_function_mode_enabled", "_get_tracing_state"}) {
      is_busy.push_back(keep(c.attr(name)));
    }
    for (int type = 0; type < int(ScalarType::NumOptions); ++type) {
      const char* name = name_of(ScalarType(type));
      if (py::hasattr(torch, name)) dtypes[type] = keep(torch.attr(name));
    }
    layouts[0][0] = layouts[0][1] = keep(torch.attr("contiguous_format"));
    layouts[1][0] = keep(torch.attr("channels_last"));
    layouts[1][1] = keep(torch.attr("channels_last_3d"));
    const py::object capsule = py::handle(tensor).attr("__dlpack_c_exchange_api__");
    auto* found =
        static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (found != nullptr && found->major != dlpack::kMajorVersion) found = found->older;
    if (found == nullptr) throw py::import_error("this torch offers no DLPack exchange of version 1");
    api = found;
  }

  static const Torch& get() {
    static const Torch& torch = *new Torch();
    return torch;
  }
};

py::object call(PyObject* function) {
  PyObject* result = PyObject_CallNoArgs(function);
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

bool is_true(PyObject* object) { return object == Py_True; }

bool attribute_is_true(PyObject* object, PyObject* name) {
  PyObject* found = PyObject_GetAttr(object, name);
  if (found == nullptr) throw py::error_already_set();
  Py_DECREF(found);  // True and False stay
  return is_true(found);
}

ScalarType type_of(dlpack::DataType type) {
  constexpr ScalarType kUnknown = ScalarType::Undefined;
  const auto by_bits = [&](ScalarType b8, ScalarType b16, ScalarType b32, ScalarType b64) {
    return type.bits == 8    ? b8
           : type.bits == 16 ? b16
           : type.bits == 32 ? b32
           : type.bits == 64 ? b64
                             : kUnknown;
  };
  if (type.lanes != 1) return kUnknown;
  switch (type.code) {
    case dlpack::kInt:
      return by_bits(ScalarType::Char, ScalarType::Short, ScalarType::Int, ScalarType::Long);
    case dlpack::kUInt:
      return by_bits(ScalarType::Byte, ScalarType::UInt16, ScalarType::UInt32, ScalarType::UInt64);
    case dlpack::kFloat:
      return by_bits(kUnknown, ScalarType::Half, ScalarType::Float, ScalarType::Double);
    case dlpack::kBfloat:
      return by_bits(kUnknown, ScalarType::BFloat16, kUnknown, kUnknown);
    case dlpack::kComplex:
      return type.bits == 128
                 ? ScalarType::ComplexDouble
                 : by_bits(kUnknown, kUnknown, ScalarType::ComplexHalf, ScalarType::ComplexFloat);
    case dlpack::kBool:
      return by_bits(ScalarType::Bool, kUnknown, kUnknown, kUnknown);
    default:
      return kUnknown;
  }
}

extern const Door kEagerDoor;

Tensor describe(PyObject* object, std::shared_ptr<void> owner) {
  dlpack::Tensor tensor;
  if (Torch::get().api->read(object, &tensor) != 0) {
    const std::string words = py::error_already_set().what();  // and, on further lines, where torch was
    throw Unreadable("expected a dense tensor with data: " + words.substr(0, words.find('\n')));
  }
  const DeviceType device = tensor.device.type == dlpack::kCpu    ? DeviceType::CPU
                            : tensor.device.type == dlpack::kCuda ? DeviceType::CUDA
                                                                  : DeviceType::PrivateUse1;
  bool empty = false;
  for (int32_t axis = 0; axis < tensor.dim; ++axis) empty = empty || tensor.sizes[axis] == 0;
  if (tensor.data == nullptr && !empty) throw Unreadable("expected a tensor with data, got one without");
  return Tensor(static_cast<char*>(tensor.data) + tensor.byte_offset, tensor.sizes, tensor.strides,
                tensor.dim, type_of(tensor.type), tensor.type.bits * tensor.type.lanes / 8,
                {device, tensor.device.index}, &kEagerDoor, std::move(owner));
}

// A new tensor, which goes when the last description of it does.
Tensor adopt(py::object object) {
  PyObject* kept = object.release().ptr();
  return describe(kept,
                  std::shared_ptr<void>(kept, [](void* gone) { Py_DECREF(static_cast<PyObject*>(gone)); }));
}

PyObject* object_of(const Tensor& tensor) { return static_cast<PyObject*>(tensor.owner().get()); }

Tensor eager_empty(const Tensor& like, const Shape& sizes, const Shape& strides, ScalarType type) {
  const Torch& torch = Torch::get();
  const auto tuple_of = [](const Shape& numbers) {
    py::tuple tuple(numbers.size());
    for (size_t i = 0; i < numbers.size(); ++i) {
      PyTuple_SET_ITEM(tuple.ptr(), Py_ssize_t(i), PyLong_FromLongLong(numbers[i]));
    }
    return tuple;
  };
  static PyObject* const names =
      py::make_tuple(py::handle(torch.dtype), py::handle(torch.device)).release().ptr();
  const py::tuple size = tuple_of(sizes), stride = tuple_of(strides);
  py::object device = py::reinterpret_borrow<py::object>(torch.cpu);
  if (like.device().type != DeviceType::CPU) device = py::handle(object_of(like)).attr(torch.device);
  py::object dtype = py::reinterpret_borrow<py::object>(torch.dtypes[int(type)]);
  if (!dtype) dtype = py::handle(object_of(like)).attr(torch.dtype);  // none of ours: that of `like`
  PyObject* arguments[] = {size.ptr(), stride.ptr(), dtype.ptr(), device.ptr()};
  PyObject* made = PyObject_Vectorcall(torch.empty_strided, arguments, 2, names);
  if (made == nullptr) throw py::error_already_set();
  return adopt(py::reinterpret_steal<py::object>(made));
}

Tensor eager_contiguous(const Tensor& tensor, Layout layout) {
  PyObject* format = Torch::get().layouts[int(layout)][tensor.dim() == 5];
  return adopt(
      py::handle(object_of(tensor)).attr("contiguous")(py::arg("memory_format") = py::handle(format)));
}

Tensor eager_to(const Tensor& tensor, ScalarType type) {
  return adopt(py::handle(object_of(tensor)).attr("to")(py::handle(Torch::get().dtypes[int(type)])));
}

const Door kEagerDoor{&eager_empty, &eager_contiguous, &eager_to, true};

// Which door a call takes: 0, torch.library; 1, this one; 2, this one inside an autograd.Function. Plain
// tensors with nothing that traces, transforms or records come here.
int choose_door(const py::args& arguments) {
  const Torch& torch = Torch::get();
  bool needs_grad = false;
  const bool records = is_true(call(torch.grad_enabled).ptr());
  for (const py::handle argument : arguments) {
    PyObject* object = argument.ptr();
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type == torch.tensor || type == torch.parameter) {
      needs_grad = needs_grad || (records && attribute_is_true(object, torch.requires_grad));
    } else if (PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(torch.tensor))) {
      return 0;
    }
  }
  for (PyObject* function : torch.is_busy) {
    const py::object busy = call(function);
    if (PyObject_IsTrue(busy.ptr()) != 0) return 0;
  }
  const py::object level = py::handle(torch.forward_ad).attr(torch.current_level);
  if (PyLong_AsLong(level.ptr()) >= 0) return 0;
  return needs_grad ? 2 : 1;
}

}  // namespace

Tensor read_tensor(py::handle object) {
  const Torch& torch = Torch::get();
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  if (type != torch.tensor && type != torch.parameter) {
    throw py::type_error(std::string("expected a plain torch.Tensor, got ") + Py_TYPE(object.ptr())->tp_name);
  }
  PyObject* arguments[] = {object.ptr()};
  PyObject* negated = PyObject_VectorcallMethod(torch.is_neg, arguments, 1, nullptr);
  if (negated == nullptr) throw py::error_already_set();
  Py_DECREF(negated);
  if (is_true(negated)) throw Unreadable("expected a tensor with its sign in its data, got a negated view");
  return describe(object.ptr(), std::shared_ptr<void>(std::shared_ptr<void>(), object.ptr()));
}

void define_eager_ops(py::module_& module) {
  Torch::get();
  py::register_exception<Unreadable>(module, "Unreadable", PyExc_TypeError);
  module.def("choose_door", &choose_door);
#define FASTSEG_DEF(name) module.def(#name, &name);
  FASTSEG_OPS(FASTSEG_DEF) FASTSEG_CPU_OPS(FASTSEG_DEF)
}

Unlocked::Unlocked(const Tensor& tensor) : state_(tensor.door().holds_lock ? PyEval_SaveThread() : nullptr) {}
Unlocked::~Unlocked() {
  if (state_ != nullptr) PyEval_RestoreThread(static_cast<PyThreadState*>(state_));
}

}  // namespace fastseg
