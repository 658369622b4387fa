// Cells that PyTorch fuses on a GPU alone: its own recurrent layers, which ours are compared with.
#include <ATen/ATen.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

bool is_there(const Optional& t) { return t && t->defined(); }
Tensor with(const Tensor& gates, const Optional& bias) {
  return is_there(bias) ? gates + *bias : gates;
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell(const Tensor& input, const Tensor& hidden,
                                             const Tensor& cx, const Optional& input_bias,
                                             const Optional& hidden_bias) {
  const auto sums = (with(input, input_bias) + with(hidden, hidden_bias)).chunk(4, 1);
  const Tensor i = sums[0].sigmoid(), f = sums[1].sigmoid(), g = sums[2].tanh();
  const Tensor o = sums[3].sigmoid(), cy = f * cx + i * g;
  return {o * cy.tanh(), cy, at::cat({i, f, g, o}, 1)};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell_backward(const Optional& grad_hy,
                                                      const Optional& grad_cy, const Tensor& cx,
                                                      const Tensor& cy, const Tensor& workspace,
                                                      bool has_bias) {
  const auto gates = workspace.chunk(4, 1);
  const Tensor &i = gates[0], &f = gates[1], &g = gates[2], &o = gates[3], tanh = cy.tanh();
  const Tensor gh = is_there(grad_hy) ? *grad_hy : at::zeros_like(cy);
  const Tensor gc =
      gh * o * (1 - tanh * tanh) + (is_there(grad_cy) ? *grad_cy : at::zeros_like(cy));
  const Tensor grad = at::cat(
      {gc * g * i * (1 - i), gc * cx * f * (1 - f), gc * i * (1 - g * g), gh * tanh * o * (1 - o)},
      1);
  return {grad, gc * f, has_bias ? grad.sum(0) : Tensor()};
}

std::tuple<Tensor, Tensor> gru_cell(const Tensor& input, const Tensor& hidden, const Tensor& hx,
                                    const Optional& input_bias, const Optional& hidden_bias) {
  const auto of_x = with(input, input_bias).chunk(3, 1);
  const auto of_h = with(hidden, hidden_bias).chunk(3, 1);
  const Tensor r = (of_x[0] + of_h[0]).sigmoid(), z = (of_x[1] + of_h[1]).sigmoid();
  const Tensor n = (of_x[2] + r * of_h[2]).tanh();
  return {n + z * (hx - n), at::cat({r, z, n, hx, of_h[2]}, 1)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gru_cell_backward(const Tensor& grad,
                                                                     const Tensor& workspace,
                                                                     bool has_bias) {
  const auto kept = workspace.chunk(5, 1);
  const Tensor &r = kept[0], &z = kept[1], &n = kept[2], &hx = kept[3], &of_h = kept[4];
  const Tensor gn = grad * (1 - z) * (1 - n * n), gz = grad * (hx - n) * z * (1 - z);
  const Tensor gr = gn * of_h * r * (1 - r);
  const Tensor grad_x = at::cat({gr, gz, gn}, 1), grad_h = at::cat({gr, gz, gn * r}, 1);
  return {grad_x, grad_h, grad * z, has_bias ? grad_x.sum(0) : Tensor(),
          has_bias ? grad_h.sum(0) : Tensor()};
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("_thnn_fused_lstm_cell", lstm_cell);
  m.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
  m.impl("_thnn_fused_gru_cell", gru_cell);
  m.impl("_thnn_fused_gru_cell_backward", gru_cell_backward);
}
