// The layer as a loop of ATen operations: what functorch transforms, forward-mode AD and second
// derivatives run.
#include "rnn/rnn_layer.h"

namespace pyops {
namespace {

struct State {
  Tensor h, c;
};

State lstm_step(const Tensor& from_x, const State& s, const Tensor& w_hh, const Tensor& b_hh,
                const Tensor& w_hr) {
  const auto gates = (from_x + at::linear(s.h, w_hh, b_hh)).chunk(4, -1);
  const Tensor c = gates[1].sigmoid() * s.c + gates[0].sigmoid() * gates[2].tanh();
  const Tensor h = gates[3].sigmoid() * c.tanh();
  return {w_hr.defined() ? at::linear(h, w_hr) : h, c};
}

State gru_step(const Tensor& from_x, const State& s, const Tensor& w_hh, const Tensor& b_hh) {
  const auto x = from_x.chunk(3, -1), m = at::linear(s.h, w_hh, b_hh).chunk(3, -1);
  const Tensor r = (x[0] + m[0]).sigmoid(), z = (x[1] + m[1]).sigmoid();
  const Tensor n = (x[2] + r * m[2]).tanh();
  return {n + z * (s.h - n), Tensor()};
}

// The first sequences step on, those that have ended or not begun keep their state.
Tensor replace_first(const Tensor& states, const Tensor& first) {
  const int64_t rows = first.size(0), rest = states.size(0) - rows;
  return rest == 0 ? first : at::cat({first, states.narrow(0, rows, rest)});
}

}  // namespace

RnnOutputs rnn_layer_composite(const RnnLayer& layer) {
  const auto dtype = layer.input.scalar_type();
  TORCH_CHECK(at::isFloatingType(dtype) || at::isComplexType(dtype), layer.name(),
              ": input must be floating-point or complex, got ", dtype);
  const Tensor b_hh = value_or_undefined(layer.b_hh), w_hr = value_or_undefined(layer.w_hr);
  const bool lstm = layer.c0.has_value(), padded = layer.input.dim() == 3;
  const Tensor from_x = at::linear(layer.input, layer.w_ih, layer.b_ih);
  std::vector<Tensor> steps{from_x};
  if (layer.batch_sizes) {
    const Tensor sizes = layer.batch_sizes->contiguous();
    const auto* size = sizes.const_data_ptr<int64_t>();
    steps = from_x.split_with_sizes(at::IntArrayRef(size, static_cast<size_t>(sizes.numel())));
  } else if (padded) {
    steps = from_x.unbind(0);
  }
  Tensor h = layer.h0, c = value_or_undefined(layer.c0);
  std::vector<Tensor> outputs(steps.size());
  for (size_t s = 0; s < steps.size(); ++s) {
    const size_t t = layer.reverse ? steps.size() - 1 - s : s;
    const int64_t rows = steps[t].size(0);
    const State before{h.narrow(0, 0, rows), lstm ? c.narrow(0, 0, rows) : Tensor()};
    const State after = lstm ? lstm_step(steps[t], before, layer.w_hh, b_hh, w_hr)
                             : gru_step(steps[t], before, layer.w_hh, b_hh);
    outputs[t] = after.h;
    h = replace_first(h, after.h);
    if (lstm) c = replace_first(c, after.c);
  }
  const Tensor none = at::empty({0}, layer.h0.options());
  const Tensor y = layer.batch_sizes ? at::cat(outputs)
                   : padded          ? at::stack(outputs)
                                     : outputs[0].clone();
  return {y, h, lstm ? c : none, none.clone()};
}

}  // namespace pyops
