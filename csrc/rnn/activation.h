// Scalar activations of the gates, where core/simd.h has those of vectors, and slopes for both.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace pyops {

PYOPS_HOST_DEVICE inline float tanh(float x) { return ::tanhf(x); }
PYOPS_HOST_DEVICE inline double tanh(double x) { return ::tanh(x); }
PYOPS_HOST_DEVICE inline float sigmoid(float x) { return 1 / (1 + ::expf(-x)); }
PYOPS_HOST_DEVICE inline double sigmoid(double x) { return 1 / (1 + ::exp(-x)); }

template <class V>
PYOPS_HOST_DEVICE inline V one() {
  if constexpr (requires { V::set1(1); }) {
    return V::set1(1);
  } else {
    return V{1};
  }
}

// Derivatives from the activation's value, exact where it saturates.
template <class V>
PYOPS_HOST_DEVICE inline V sigmoid_slope(V y) {
  return y * (one<V>() - y);
}
template <class V>
PYOPS_HOST_DEVICE inline V tanh_slope(V y) {
  return (one<V>() - y) * (one<V>() + y);
}

}  // namespace pyops
