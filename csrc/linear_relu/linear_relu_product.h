// The three products of a linear layer, element by element: bias and ReLU belong to the store of
// the forward, the ReLU's mask to the load of the gradient.
#pragma once

#include "gemm/block_product.h"
#include "linear_relu/linear_relu.h"

namespace pyops {

// y (M, N) = x · wᵀ
template <class T>
struct LinearForward {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = true, b_along_q = true;

  LinearParams p;
  int64_t rows = p.m, columns = p.n, depth = p.k;

  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const { return element<T>(p.x, i * p.k + q); }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const { return element<T>(p.w, j * p.k + q); }
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const {
    if (p.bias != nullptr) sum += element<T>(p.bias, j);
    static_cast<T*>(p.y)[i * p.n + j] = static_cast<T>(p.relu && sum < 0 ? Acc(0) : sum);
  }
};

// The gradient of y where the ReLU let it through.
template <class T>
PYOPS_HOST_DEVICE inline acc_t<T> masked_grad(const LinearBackwardParams& p, int64_t at) {
  if (p.y != nullptr && element<T>(p.y, at) <= 0) return 0;
  return element<T>(p.grad_y, at);
}

// grad_x (M, K) = grad · w
template <class T>
struct LinearBackwardX {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = true, b_along_q = false;

  LinearBackwardParams p;
  int64_t rows = p.m, columns = p.k, depth = p.n;

  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const { return masked_grad<T>(p, i * p.n + q); }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const { return element<T>(p.w, q * p.k + j); }
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const {
    static_cast<T*>(p.grad_x)[i * p.k + j] = static_cast<T>(sum);
  }
};

// grad_w (N, K) = gradᵀ · x, and grad_bias (N) as the weight of an input that is always one: column
// K. Columns from `first` on are computed.
template <class T>
struct LinearBackwardW {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = false, b_along_q = false;

  LinearBackwardParams p;
  int64_t first = p.grad_w != nullptr ? 0 : p.k;
  int64_t rows = p.n, columns = (p.grad_bias != nullptr ? p.k + 1 : p.k) - first, depth = p.m;

  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const { return masked_grad<T>(p, q * p.n + i); }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const {
    return first + j < p.k ? element<T>(p.x, q * p.k + first + j) : Acc(1);
  }
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const {
    if (first + j < p.k) {
      static_cast<T*>(p.grad_w)[i * p.k + first + j] = static_cast<T>(sum);
    } else {
      static_cast<T*>(p.grad_bias)[i] = static_cast<T>(sum);
    }
  }
};

}  // namespace pyops
