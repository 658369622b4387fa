// What the autograd of a layer keeps for its backward, alone or with the layers beside it.
#pragma once

#include "rnn/rnn_layer_signature.h"

namespace pyops {

inline constexpr size_t kSaved = kInputs + 3;

// A cell's caller may write to y, as to native's; hn holds the same and stays inside.
inline torch::autograd::variable_list saved_of(const RnnLayer& layer, const RnnOutputs& results) {
  const auto value = [](const OptionalTensor& t) { return value_or_undefined(t); };
  const auto& [y, hn, cn, reserve] = results;
  return {layer.input,
          layer.h0,
          value(layer.c0),
          layer.w_ih,
          layer.w_hh,
          value(layer.b_ih),
          value(layer.b_hh),
          value(layer.w_hr),
          value(layer.batch_sizes),
          layer.one_step() ? hn : y,
          reserve};
}

// Nothing is wanted yet. `grads`: of the layer's results.
inline RnnLayerBackward backward_of(const Tensor* saved, bool reverse, const Tensor* grads) {
  const auto given = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
  return {{saved[0], saved[1], given(saved[2]), saved[3], saved[4], given(saved[5]),
           given(saved[6]), given(saved[7]), given(saved[8]), reverse, true},
          given(grads[0]),
          given(grads[1]),
          given(grads[2]),
          saved[9],
          saved[10]};
}

}  // namespace pyops
