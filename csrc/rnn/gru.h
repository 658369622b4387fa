// The GRU cell, one unit (or a vector V of them) at a time:
//   r, z = σ(x + r)   n = tanh(x + r·m)   h' = n + z·(h - n)
// where x and m are the unit's rows of W_ih·x + b_ih and W_hh·h + b_hh (Cho et al. 2014, with the
// reset gate after the product, as in PyTorch).
#pragma once

#include "rnn/activation.h"

namespace pyops {

struct Gru {
  static constexpr int kGates = 3;  // r z n
  static constexpr int kKept = 4;   // r z n m
  static constexpr bool kHasCell = false;

  // `state` is h, then h'; returns h'.
  template <class V>
  PYOPS_HOST_DEVICE static V forward(const V (&x)[kGates], const V (&m)[kGates], V& state,
                                     V (&kept)[kKept]) {
    const V r = sigmoid(x[0] + m[0]), z = sigmoid(x[1] + m[1]), n = tanh(x[2] + r * m[2]);
    kept[0] = r, kept[1] = z, kept[2] = n, kept[3] = m[2];
    return state = n + z * (state - n);
  }

  // From ∂h': the gradients of x and m, and in `grad_state` the part of ∂h that does not pass
  // through m.
  template <class V>
  PYOPS_HOST_DEVICE static void backward(const V (&kept)[kKept], V h, V grad_h, V& grad_state,
                                         V (&grad_x)[kGates], V (&grad_m)[kGates]) {
    const V r = kept[0], z = kept[1], n = kept[2], m = kept[3];
    const V grad_z = grad_h * (h - n), grad_n = grad_h * (one<V>() - z) * tanh_slope(n);
    const V grad_r = grad_n * m;
    grad_m[0] = grad_x[0] = grad_r * sigmoid_slope(r);
    grad_m[1] = grad_x[1] = grad_z * sigmoid_slope(z);
    grad_x[2] = grad_n;
    grad_m[2] = grad_n * r;
    grad_state = grad_h * z;
  }
};

}  // namespace pyops
