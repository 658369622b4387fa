// Operators as Python functions without the detour through `torch.ops`, which matches every
// argument with the schema and boxes it: for a tiny tensor that costs more than the operator.
#include "direct_calls.h"

#include <c10/util/SmallVector.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <tuple>
#include <vector>

#include "core/torch.h"

namespace pyops {

// What a window's sizes are read into: torch's own caster of lists takes a microsecond for two.
struct Integers {
  c10::SmallVector<int64_t, 2> values;

  operator at::IntArrayRef() const { return values; }
};

}  // namespace pyops

namespace pybind11::detail {

template <>
struct type_caster<pyops::Integers> {
  PYBIND11_TYPE_CASTER(pyops::Integers, const_name("Tuple[int, ...]"));

  bool load(handle source, bool convert) {
    return load_plain(source.ptr()) || load_any(source, convert);
  }

 private:
  bool load_plain(PyObject* source) {
    if (!PyTuple_CheckExact(source) && !PyList_CheckExact(source)) return false;
    value.values.clear();
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(source); ++i) {
      PyObject* item = PySequence_Fast_GET_ITEM(source, i);
      int overflow = 0;
      if (!PyLong_CheckExact(item)) return false;
      value.values.push_back(PyLong_AsLongLongAndOverflow(item, &overflow));
      if (overflow != 0) return false;
    }
    return true;
  }

  // Symbolic integers, those of other libraries, and what is none.
  bool load_any(handle source, bool convert) {
    make_caster<at::IntArrayRef> any;
    if (!any.load(source, convert)) return false;
    const auto integers = cast_op<at::IntArrayRef>(any);
    value.values.assign(integers.begin(), integers.end());
    return true;
  }
};

}  // namespace pybind11::detail

namespace pyops {
namespace {

namespace py = pybind11;
using at::IntArrayRef;
using c10::SymIntArrayRef;

// What reads an argument of the operator, and what messages call its type.
template <class Argument>
struct FromPython {
  using Type = Argument;
};
template <>
struct FromPython<IntArrayRef> {
  using Type = const Integers&;
};
template <>
struct FromPython<at::TensorList> {
  using Type = const std::vector<Tensor>&;
};

template <class Argument>
constexpr const char* kKind = "an integer";
template <>
constexpr const char* kKind<const Tensor&> = "a Tensor";
template <>
constexpr const char* kKind<const OptionalTensor&> = "a Tensor or None";
template <>
constexpr const char* kKind<at::TensorList> = "Tensors";
template <>
constexpr const char* kKind<IntArrayRef> = "integers";
template <>
constexpr const char* kKind<SymIntArrayRef> = "integers";
template <>
constexpr const char* kKind<bool> = "a bool";
template <>
constexpr const char* kKind<double> = "a number";
template <>
constexpr const char* kKind<std::optional<double>> = "a number or None";

// The type of what was given, of a short tuple or list those in it.
std::string kind_of(py::handle given) {
  PyObject* const object = given.ptr();
  const bool sequence = PyTuple_CheckExact(object) || PyList_CheckExact(object);
  if (!sequence || PySequence_Fast_GET_SIZE(object) > 4) return Py_TYPE(object)->tp_name;
  std::string kinds;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(object); ++i) {
    kinds += (i > 0 ? ", " : "") + kind_of(PySequence_Fast_GET_ITEM(object, i));
  }
  return PyTuple_CheckExact(object) ? "(" + kinds + ")" : "[" + kinds + "]";
}

struct Given {
  const char *op, *name;
  py::handle value;
};

template <class Argument>
class Read {
  using Type = typename FromPython<Argument>::Type;

 public:
  explicit Read(const Given& given) {
    if (caster_.load(given.value, /*convert=*/true)) return;
    throw py::type_error(std::string(given.op) + ": " + given.name + " must be " + kKind<Argument> +
                         ", got " + kind_of(given.value));
  }
  Type value() { return py::detail::cast_op<Type>(caster_); }

 private:
  py::detail::make_caster<Type> caster_;
};

template <class>
using Handle = py::handle;

// The operator `name`, whose schema C++ sees as Result(Arguments...).
template <class Result, class... Arguments, class... Names>
void define(py::module_& m, const char* name, Result (*)(Arguments...), Names... names) {
  const auto op = find_op<Result(Arguments...)>(name);
  const auto call = [=](Handle<Arguments>... given) -> Result {
    std::tuple<Read<Arguments>...> arguments(Given{name, names, given}...);
    const py::gil_scoped_release no_gil;
    return std::apply([&](auto&... argument) { return op.call(argument.value()...); }, arguments);
  };
  m.def(name, torch::wrap_pybind_function(call), py::arg(names)...);
}

using Conv2d = Tensor (*)(const Tensor&, const Tensor&, const OptionalTensor&, SymIntArrayRef,
                          SymIntArrayRef, SymIntArrayRef, c10::SymInt);
using Conv2dPool = Tensor (*)(const Tensor&, const Tensor&, const OptionalTensor&, SymIntArrayRef,
                              SymIntArrayRef, SymIntArrayRef, c10::SymInt, SymIntArrayRef,
                              SymIntArrayRef, SymIntArrayRef, SymIntArrayRef, bool);
template <class Result>
using MaxPool2d = Result (*)(const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef,
                             bool);
using Linear = Tensor (*)(const Tensor&, const Tensor&, const OptionalTensor&);
template <class Result, class State>
using Cell = Result (*)(const Tensor&, State, const Tensor&, const Tensor&, const OptionalTensor&,
                        const OptionalTensor&);
using Attention = Tensor (*)(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                             double, bool, std::optional<double>, bool);

}  // namespace

void define_direct_calls(py::module_& m) {
  for (const char* name : {"conv2d", "conv2d_relu"}) {
    define(m, name, Conv2d{}, "input", "weight", "bias", "stride", "padding", "dilation", "groups");
  }
  define(m, "conv2d_relu_max_pool2d", Conv2dPool{}, "input", "weight", "bias", "stride", "padding",
         "dilation", "groups", "kernel_size", "pool_stride", "pool_padding", "pool_dilation",
         "ceil_mode");
  const auto pool = [&]<class Result>(const char* name) {
    define(m, name, MaxPool2d<Result>{}, "input", "kernel_size", "stride", "padding", "dilation",
           "ceil_mode");
  };
  for (const char* name : {"linear", "linear_relu"}) {
    define(m, name, Linear{}, "input", "weight", "bias");
  }
  const auto cell = [&]<class Result, class State>(const char* name,
                                                   Cell<Result, State> signature) {
    define(m, name, signature, "input", "hx", "w_ih", "w_hh", "b_ih", "b_hh");
  };
  cell("lstm_cell", Cell<std::tuple<Tensor, Tensor>, at::TensorList>{});
  cell("gru_cell", Cell<Tensor, const Tensor&>{});
  pool.operator()<Tensor>("max_pool2d");
  pool.operator()<std::tuple<Tensor, Tensor>>("max_pool2d_with_indices");
  define(m, "scaled_dot_product_attention", Attention{}, "query", "key", "value", "attn_mask",
         "dropout_p", "is_causal", "scale", "enable_gqa");
}

}  // namespace pyops
