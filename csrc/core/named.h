// Registering kernels so that what fails inside names the call. Memory that is not there is noticed
// by PyTorch's allocators, which know nothing of operators: their exception keeps its type, which
// is native's, and is told the operator and the tensors.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "core/torch.h"

namespace pyops {

// To call where an exception is handled that `op` met, and throw it on.
[[noreturn]] void rethrow_named(const char* op, Tensors tensors);

// call(), for the operator `op` on these tensors.
template <class Call>
auto named(const char* op, Tensors tensors, const Call& call) {
  try {
    return call();
  } catch (...) {
    rethrow_named(op, tensors);
  }
}

// An operator's name as an argument of a template.
template <size_t kSize>
struct OpName {
  char text[kSize];

  constexpr OpName(const char (&name)[kSize]) : text() { std::copy_n(name, kSize, text); }
};

template <OpName kOp, auto kKernel>
struct NamedKernel;

template <OpName kOp, class Result, class... Arguments, Result (*kKernel)(Arguments...)>
struct NamedKernel<kOp, kKernel> {
  template <class Argument>
  static TensorRef tensor_of(const Argument& argument) {
    if constexpr (std::is_convertible_v<const Argument&, TensorRef>) return argument;
    return Tensor();
  }

  static Result call(Arguments... arguments) {
    try {
      return kKernel(arguments...);
    } catch (...) {
      rethrow_named(kOp.text, {tensor_of(arguments)...});
    }
  }
};

// As the operator's kernel for the library's dispatch key. kTold: the name that users know it by.
template <OpName kOp, auto kKernel, OpName kTold = kOp>
void register_kernel(torch::Library& library) {
  library.impl(kOp.text, NamedKernel<kTold, kKernel>::call);
}

}  // namespace pyops
