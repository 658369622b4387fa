// The signatures of a layer's operators, whose tensors the structs of C++ name.
#pragma once

#include <array>
#include <tuple>

#include "rnn/rnn_layer.h"

namespace pyops {

// Of input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr.
constexpr size_t kInputs = 8;
using Inputs = std::array<OptionalTensor, kInputs>;
using Wanted = std::array<bool, kInputs>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct RnnLayerBackward : RnnLayer {
  OptionalTensor grad_y, grad_hn, grad_cn;
  Tensor y, reserve;
  Wanted wanted{};

  const char* backward_name() const { return c0 ? "lstm_backward" : "gru_backward"; }
  Inputs inputs() const { return {input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr}; }
};

Gradients call_rnn_layer_backward(const RnnLayerBackward& layer);

// What came beside a layer that was checked: kernels trust it.
void check_rnn_backward(const RnnLayerBackward& layer);

// Dispatcher signatures, from and to the structs above.
template <RnnOutputs (*kKernel)(const RnnLayer&)>
RnnOutputs flat_forward(const Tensor& input, const Tensor& h0, const OptionalTensor& c0,
                        const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                        const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                        const OptionalTensor& batch_sizes, bool reverse, bool save) {
  return kKernel({input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse, save});
}

template <Gradients (*kKernel)(const RnnLayerBackward&)>
Gradients flat_backward(const OptionalTensor& grad_y, const OptionalTensor& grad_hn,
                        const OptionalTensor& grad_cn, const Tensor& input, const Tensor& h0,
                        const OptionalTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                        const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                        const OptionalTensor& w_hr, const OptionalTensor& batch_sizes,
                        const Tensor& y, const Tensor& reserve, bool reverse, Wanted wanted) {
  return kKernel({{input, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse, true},
                  grad_y,
                  grad_hn,
                  grad_cn,
                  y,
                  reserve,
                  wanted});
}

}  // namespace pyops
