// What the autograd of a layer keeps for its backward, alone or with the layers beside it.
#pragma once

#include "core/autograd.h"
#include "rnn/rnn_layer_signature.h"

namespace pyops {

inline constexpr size_t kSaved = kInputs + 3;
inline constexpr size_t kDifferentiable = 3;

// y, to which the caller may write as to native's: hn is the same for a cell, and where native has
// no fused kernel that reads its own y a copy stays inside.
inline Tensor kept_output(const RnnLayer& layer, const RnnOutputs& results) {
  const auto& [y, hn, cn, reserve] = results;
  if (layer.one_step()) return hn;
  const bool fused = layer.c0 && !layer.batch_sizes && !layer.w_hr && y.scalar_type() == at::kFloat;
  return fused || y.is_cuda() ? y : y.clone();
}

// `output`: what kept_output() gave.
inline std::array<TensorRef, kSaved> saved_of(const RnnLayer& layer, const Tensor& output,
                                              const RnnOutputs& results) {
  const auto& [y, hn, cn, reserve] = results;
  return {layer.input, layer.h0,   layer.c0,          layer.w_ih, layer.w_hh, layer.b_ih,
          layer.b_hh,  layer.w_hr, layer.batch_sizes, output,     reserve};
}

// The results that have a gradient; GRU's cn stands for none.
inline std::array<TensorRef, kDifferentiable> differentiable_of(const RnnLayer& layer,
                                                                const RnnOutputs& results) {
  const auto& [y, hn, cn, reserve] = results;
  return {y, hn, layer.c0 ? TensorRef(cn) : TensorRef(Tensor())};
}

// Of what saved_of() gave, and the gradients of what differentiable_of() gave. Nothing is wanted
// yet.
inline RnnLayerBackward backward_of(const Tensor* saved, bool reverse, const Tensor* grads) {
  const auto given = value_if_defined;
  return {{saved[0], saved[1], given(saved[2]), saved[3], saved[4], given(saved[5]),
           given(saved[6]), given(saved[7]), given(saved[8]), reverse, true},
          given(grads[0]),
          given(grads[1]),
          given(grads[2]),
          saved[9],
          saved[10]};
}

}  // namespace pyops
