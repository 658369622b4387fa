// The LSTM cell, one unit (or a vector V of them) at a time:
//   i, f, o = σ(x + r)   g = tanh(x + r)   c' = f·c + i·g   h' = o·tanh(c')
// where x and r are the unit's rows of W_ih·x + b_ih and W_hh·h + b_hh (Hochreiter & Schmidhuber
// 1997; gate order as in PyTorch).
#pragma once

#include "rnn/activation.h"

namespace pyops {

struct Lstm {
  static constexpr int kGates = 4;  // i f g o
  static constexpr int kKept = 5;   // i f g o c'
  static constexpr int kKeptCell = 4;
  static constexpr bool kHasCell = true;

  // `state` is c, then c'; returns h'.
  template <class V>
  PYOPS_HOST_DEVICE static V forward(const V (&x)[kGates], const V (&r)[kGates], V& state,
                                     V (&kept)[kKept]) {
    const V i = sigmoid(x[0] + r[0]), f = sigmoid(x[1] + r[1]);
    const V g = tanh(x[2] + r[2]), o = sigmoid(x[3] + r[3]);
    state = f * state + i * g;
    kept[0] = i, kept[1] = f, kept[2] = g, kept[3] = o, kept[4] = state;
    return o * tanh(state);
  }

  // h' again, from what was kept.
  template <class V>
  PYOPS_HOST_DEVICE static V output(const V (&kept)[kKept]) {
    return kept[3] * tanh(kept[4]);
  }

  // From ∂h' and ∂c' (`grad_state`, then ∂c): the gradients of x and of r, which are the same.
  template <class V>
  PYOPS_HOST_DEVICE static void backward(const V (&kept)[kKept], V c, V grad_h, V& grad_state,
                                         V (&grad_x)[kGates], V (&grad_r)[kGates]) {
    const V i = kept[0], f = kept[1], g = kept[2], o = kept[3], t = tanh(kept[4]);
    const V grad_c = grad_state + grad_h * o * tanh_slope(t);
    const V grad_i = grad_c * g, grad_f = grad_c * c, grad_g = grad_c * i, grad_o = grad_h * t;
    grad_r[0] = grad_x[0] = grad_i * sigmoid_slope(i);
    grad_r[1] = grad_x[1] = grad_f * sigmoid_slope(f);
    grad_r[2] = grad_x[2] = grad_g * tanh_slope(g);
    grad_r[3] = grad_x[3] = grad_o * sigmoid_slope(o);
    grad_state = grad_c * f;
  }
};

}  // namespace pyops
