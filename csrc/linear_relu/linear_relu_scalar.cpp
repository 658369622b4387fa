#include "core/parallel.h"
#include "linear_relu/linear_relu.h"

namespace pyops {
namespace {

// Everything is summed in double: the oracle rounds once, at the store.
template <class T>
void forward(const LinearParams& p) {
  const auto *x = static_cast<const T*>(p.x), *w = static_cast<const T*>(p.w);
  const auto* bias = static_cast<const T*>(p.bias);
  auto* y = static_cast<T*>(p.y);
  parallel_for(0, p.m, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < p.n; ++j) {
        double sum = bias != nullptr ? to_double(bias[j]) : 0;
        for (int64_t q = 0; q < p.k; ++q) {
          sum += to_double(x[i * p.k + q]) * to_double(w[j * p.k + q]);
        }
        y[i * p.n + j] = from_double<T>(p.relu && sum < 0 ? 0 : sum);
      }
    }
  });
}

template <class T>
struct Backward {
  const LinearBackwardParams& p;

  // dy where the ReLU let it through.
  double grad(int64_t i, int64_t j) const {
    const int64_t at = i * p.n + j;
    const auto* y = static_cast<const T*>(p.y);
    if (y != nullptr && to_double(y[at]) <= 0) return 0;
    return to_double(static_cast<const T*>(p.grad_y)[at]);
  }

  void x() const {
    const auto* w = static_cast<const T*>(p.w);
    parallel_for(0, p.m, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t q = 0; q < p.k; ++q) {
          double sum = 0;
          for (int64_t j = 0; j < p.n; ++j) sum += grad(i, j) * to_double(w[j * p.k + q]);
          static_cast<T*>(p.grad_x)[i * p.k + q] = from_double<T>(sum);
        }
      }
    });
  }

  void w() const {
    const auto* x = static_cast<const T*>(p.x);
    parallel_for(0, p.n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        for (int64_t q = 0; q < p.k; ++q) {
          double sum = 0;
          for (int64_t i = 0; i < p.m; ++i) sum += grad(i, j) * to_double(x[i * p.k + q]);
          static_cast<T*>(p.grad_w)[j * p.k + q] = from_double<T>(sum);
        }
      }
    });
  }

  void bias() const {
    for (int64_t j = 0; j < p.n; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < p.m; ++i) sum += grad(i, j);
      static_cast<T*>(p.grad_bias)[j] = from_double<T>(sum);
    }
  }
};

}  // namespace

void linear_forward_scalar(const LinearParams& params) {
  dispatch_dtype(params.dtype, [&](auto t) { forward<decltype(t)>(params); });
}

void linear_backward_scalar(const LinearBackwardParams& params) {
  dispatch_dtype(params.dtype, [&](auto t) {
    const Backward<decltype(t)> backward{params};
    if (params.grad_x != nullptr) backward.x();
    if (params.grad_w != nullptr) backward.w();
    if (params.grad_bias != nullptr) backward.bias();
  });
}

}  // namespace pyops
