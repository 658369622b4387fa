// The layer as a loop of ATen operations: what functorch transforms, forward-mode AD and second
// derivatives run.
#include "core/named.h"
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

// Packed rows as padded steps, by tensor operations alone: a tracer cannot look into batch_sizes.
struct Padding {
  Tensor rows;   // (T·B): the packed row of each step and sequence, N where there is none
  Tensor valid;  // (T, B, 1)

  Padding(const Tensor& sizes, int64_t batch, const Tensor& data) {
    const Tensor size = sizes.unsqueeze(1), sequence = at::arange(batch, sizes.options());
    valid = (sequence < size).unsqueeze(2).to(data.device());
    const Tensor row = size.cumsum(0) - size + sequence;
    rows = row.where(sequence < size, at::scalar_tensor(data.size(0), sizes.options()))
               .flatten()
               .to(data.device());
  }

  Tensor pad(const Tensor& data) const {
    const Tensor with_none = at::constant_pad_nd(data, {0, 0, 0, 1});
    return with_none.index_select(0, rows).unflatten(0, valid.sizes().slice(0, 2));
  }
  Tensor pack(const Tensor& steps, int64_t count) const {
    const Tensor packed = at::zeros({count + 1, steps.size(2)}, steps.options());
    return packed.index_put({rows}, steps.flatten(0, 1)).narrow(0, 0, count);
  }
};

RnnOutputs composite(const RnnLayer& layer) {
  const auto dtype = layer.input.scalar_type();
  TORCH_CHECK(!at::isIntegralType(dtype, /*includeBool=*/false), layer.name(),
              ": input must be floating-point or complex, got ", dtype);
  const Tensor b_hh = value_or_undefined(layer.b_hh), w_hr = value_or_undefined(layer.w_hr);
  std::optional<Padding> padding;
  if (layer.batch_sizes) padding.emplace(*layer.batch_sizes, layer.h0.size(0), layer.input);
  const Tensor from_x = at::linear(layer.input, layer.w_ih, layer.b_ih);
  const auto steps = layer.one_step() ? std::vector{from_x}
                     : padding        ? padding->pad(from_x).unbind(0)
                                      : from_x.unbind(0);
  State state{layer.h0, value_or_undefined(layer.c0)};
  std::vector<Tensor> outputs(steps.size());
  for (size_t s = 0; s < steps.size(); ++s) {
    const size_t t = layer.reverse ? steps.size() - 1 - s : s;
    State next = layer.c0 ? lstm_step(steps[t], state, layer.w_hh, b_hh, w_hr)
                          : gru_step(steps[t], state, layer.w_hh, b_hh);
    outputs[t] = next.h;
    if (padding) {  // sequences that have ended or not begun keep their state
      const Tensor valid = padding->valid.select(0, static_cast<int64_t>(t));
      next.h = next.h.where(valid, state.h);
      if (layer.c0) next.c = next.c.where(valid, state.c);
    }
    state = next;
  }
  const Tensor none = at::empty({0}, layer.h0.options());
  const Tensor y = layer.one_step() ? outputs[0].clone() : at::stack(outputs);
  return {padding ? padding->pack(y, layer.input.size(0)) : y, state.h, layer.c0 ? state.c : none,
          none.clone()};
}

}  // namespace

RnnOutputs rnn_layer_composite(const RnnLayer& layer) {
  return named(layer.name(), {layer.input, layer.h0, layer.w_ih, layer.w_hh},
               [&] { return composite(layer); });
}

}  // namespace pyops
