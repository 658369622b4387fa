// Operators as Python functions without the detour through `torch.ops`, which matches every
// argument with the schema and boxes it: for a tiny tensor that costs more than the operator.
#include "direct_calls.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <tuple>

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
using at::Tensor;
using c10::SymIntArrayRef;
using OptionalTensor = std::optional<Tensor>;

template <class Argument>
struct FromPython {
  using Type = Argument;
};
template <>
struct FromPython<IntArrayRef> {
  using Type = const Integers&;
};

// The operator `name`, whose schema C++ sees as Result(Arguments...).
template <class Result, class... Arguments, class... Names>
void define(py::module_& m, const char* name, Result (*)(Arguments...), Names... names) {
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow((std::string("pyops::") + name).c_str(), "")
                      .typed<Result(Arguments...)>();
  const auto call = [op](typename FromPython<Arguments>::Type... arguments) -> Result {
    return op.call(std::forward<typename FromPython<Arguments>::Type>(arguments)...);
  };
  m.def(name, torch::wrap_pybind_function_no_gil(call), py::arg(names)...);
}

using Conv2d = Tensor (*)(const Tensor&, const Tensor&, const OptionalTensor&, SymIntArrayRef,
                          SymIntArrayRef, SymIntArrayRef, c10::SymInt);
using Conv2dPool = Tensor (*)(const Tensor&, const Tensor&, const OptionalTensor&, SymIntArrayRef,
                              SymIntArrayRef, SymIntArrayRef, c10::SymInt, SymIntArrayRef,
                              SymIntArrayRef, SymIntArrayRef, SymIntArrayRef, bool);
template <class Result>
using MaxPool2d = Result (*)(const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef,
                             bool);
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
  pool.operator()<Tensor>("max_pool2d");
  pool.operator()<std::tuple<Tensor, Tensor>>("max_pool2d_with_indices");
  define(m, "scaled_dot_product_attention", Attention{}, "query", "key", "value", "attn_mask",
         "dropout_p", "is_causal", "scale", "enable_gqa");
}

}  // namespace pyops
