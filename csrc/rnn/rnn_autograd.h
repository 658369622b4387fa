// What the autograd of a layer keeps for its backward, alone or with the layers beside it.
#pragma once

#include "rnn/rnn_layer_signature.h"

namespace pyops {

inline constexpr size_t kSaved = kInputs + 3;

// y, to which the caller may write as to native's: hn is the same for a cell, and where native has
// no fused kernel that reads its own y a copy stays inside.
inline Tensor kept_output(const RnnLayer& layer, const Tensor& y, const Tensor& hn) {
  if (layer.one_step()) return hn;
  const bool fused = layer.c0 && !layer.batch_sizes && !layer.w_hr && y.scalar_type() == at::kFloat;
  return fused || y.is_cuda() ? y : y.clone();
}

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
          kept_output(layer, y, hn),
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
