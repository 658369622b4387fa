// Operators as Python functions without the detour through `torch.ops`, which matches every
// argument with the schema and boxes it: for a tiny tensor that costs more than the operator.
#include "direct_calls.h"

#include <c10/util/SmallVector.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <type_traits>
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

bool holds_bool(py::handle given) {
  PyObject* const object = given.ptr();
  if (PyBool_Check(object)) return true;
  if (!PyTuple_CheckExact(object) && !PyList_CheckExact(object)) return false;
  PyObject** const items = PySequence_Fast_ITEMS(object);
  return std::any_of(items, items + PySequence_Fast_GET_SIZE(object),
                     [](PyObject* item) { return PyBool_Check(item); });
}

// What casters are too kind for: torch takes no bool as an integer, and nothing else as a bool.
template <class Argument>
bool is_kind(py::handle given) {
  if constexpr (std::is_same_v<Argument, bool>) {
    return PyBool_Check(given.ptr());
  } else if constexpr (std::is_same_v<Argument, IntArrayRef> ||
                       std::is_same_v<Argument, SymIntArrayRef> ||
                       std::is_same_v<Argument, c10::SymInt> || std::is_same_v<Argument, int64_t>) {
    return !holds_bool(given);
  }
  return true;
}

template <class Argument>
class Read {
  using Type = typename FromPython<Argument>::Type;

 public:
  explicit Read(const Given& given) {
    if (is_kind<Argument>(given.value) && caster_.load(given.value, /*convert=*/true)) return;
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
void define_overload(py::module_& m, const char* name, const char* overload,
                     Result (*)(Arguments...), Names... names) {
  const auto op = find_op<Result(Arguments...)>(name, overload);
  const auto call = [=](Handle<Arguments>... given) -> Result {
    std::tuple<Read<Arguments>...> arguments(Given{name, names, given}...);
    const py::gil_scoped_release no_gil;
    return std::apply([&](auto&... argument) { return op.call(argument.value()...); }, arguments);
  };
  const std::string whole = *overload == 0 ? name : std::string(name) + "_" + overload;
  m.def(whole.c_str(), torch::wrap_pybind_function(call), py::arg(names)...);
}

template <class Signature, class... Names>
void define(py::module_& m, const char* name, Signature signature, Names... names) {
  define_overload(m, name, "", signature, names...);
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
template <class Result, class State>
using Padded = Result (*)(const Tensor&, State, at::TensorList, bool, int64_t, double, bool, bool,
                          bool);
template <class Result, class State>
using Packed = Result (*)(const Tensor&, const Tensor&, State, at::TensorList, bool, int64_t,
                          double, bool, bool);
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
  const auto network = [&]<class Result, class State>(const char* name,
                                                      Padded<Result, State> padded,
                                                      Packed<Result, State> packed) {
    define_overload(m, name, "input", padded, "input", "hx", "params", "has_biases", "num_layers",
                    "dropout", "train", "bidirectional", "batch_first");
    define_overload(m, name, "data", packed, "data", "batch_sizes", "hx", "params", "has_biases",
                    "num_layers", "dropout", "train", "bidirectional");
  };
  using Three = std::tuple<Tensor, Tensor, Tensor>;
  network("lstm", Padded<Three, at::TensorList>{}, Packed<Three, at::TensorList>{});
  using Two = std::tuple<Tensor, Tensor>;
  network("gru", Padded<Two, const Tensor&>{}, Packed<Two, const Tensor&>{});
  pool.operator()<Tensor>("max_pool2d");
  pool.operator()<std::tuple<Tensor, Tensor>>("max_pool2d_with_indices");
  define(m, "scaled_dot_product_attention", Attention{}, "query", "key", "value", "attn_mask",
         "dropout_p", "is_causal", "scale", "enable_gqa");
}

}  // namespace pyops
