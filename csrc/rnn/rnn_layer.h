// One direction of a layer as C++ functions, for the networks and cells built on it.
#pragma once

#include <tuple>
#include <vector>

#include "core/torch.h"

namespace pyops {

// The arguments of pyops::rnn_layer; shapes as in rnn.h. A layer with c0 is an LSTM, one without a
// GRU.
struct RnnLayer {
  Tensor input;  // (T, B, I); (N, I) with batch_sizes; (B, I), a single step, without
  Tensor h0;
  OptionalTensor c0;
  Tensor w_ih, w_hh;
  OptionalTensor b_ih{}, b_hh{}, w_hr{};
  OptionalTensor batch_sizes{};  // (T) int64
  bool reverse = false, save = false;

  bool one_step() const { return input.dim() == 2 && !batch_sizes; }
  const char* name() const {
    if (one_step()) return c0 ? "lstm_cell" : "gru_cell";
    return c0 ? "lstm" : "gru";
  }
  int64_t gates() const { return c0 ? 4 : 3; }
  int64_t kept() const { return c0 ? 5 : 4; }
  int64_t hidden() const { return w_hh.size(0) / gates(); }
};

// output, hn, cn (empty for a GRU), and what the backward reads (empty unless `save`)
using RnnOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;

RnnOutputs call_rnn_layer(const RnnLayer& layer);

// All results of layers side by side, where a kernel of a GPU has them so; else none. Stacked ones
// read the output of the one before, so that all x but the first's are still to come.
std::vector<RnnOutputs> call_rnn_stack(std::vector<RnnLayer> layers, bool stacked);

// Where layers have kernels.
Devices rnn_devices();

// Shapes, dtypes and devices, but for what batch_sizes holds.
void check_rnn_layer(const RnnLayer& layer);

// The same by differentiable ATen operations, on any device and under any transform.
RnnOutputs rnn_layer_composite(const RnnLayer& layer);

}  // namespace pyops
