// How our operators are put into autograd's graph: by a node that is data, as PyTorch's own are.
// Its way for extensions, torch::autograd::Function, looks attributes up by name, keeps sets of
// tensors and demangles its own name in every backward: 13 of the 69 µs that max_pool2d took on a
// tiny tensor, forward and backward (AMD EPYC, 2026-11).
#pragma once

#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <array>

#include "core/torch.h"

namespace pyops {

using torch::autograd::variable_list;
using Values = std::vector<at::IValue>;

// A call as its backward finds it.
struct RecordedCall {
  const variable_list& grads;  // of the outputs, one of them defined
  const variable_list& saved;
  const Values& values;
  const std::vector<bool>& wanted;  // by input
};

// The first of the values, which are integers.
template <size_t kCount>
std::array<int64_t, kCount> integers_of(const Values& values) {
  std::array<int64_t, kCount> integers;
  std::transform(values.begin(), values.begin() + kCount, integers.begin(),
                 [](const at::IValue& value) { return value.toInt(); });
  return integers;
}

inline OptionalTensor value_if_defined(const Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

// `backward` gives the gradient of every input, undefined where none is wanted.
struct Gradient {
  const char* name;  // of the node, where a profile or an anomaly shows it
  variable_list (*backward)(const RecordedCall&);
};

// Operators called in its scope are not recorded: for a forward that record() follows.
struct Unrecorded {
  const at::AutoDispatchBelowADInplaceOrView below;
  const at::AutoGradMode no_grad{false};  // for what a mode calls, which starts above again
};

// Makes `outputs`, which nobody else knows yet, depend on `inputs`: each may be absent and keeps
// its place. The backward gets `saved`, which users' hooks may pack and later writes make an error,
// and `values`, for which compiled autograd may put symbols.
void record(const Gradient& gradient, at::ArrayRef<TensorRef> inputs,
            at::ArrayRef<TensorRef> outputs, at::ArrayRef<TensorRef> saved, Values values = {});

}  // namespace pyops
