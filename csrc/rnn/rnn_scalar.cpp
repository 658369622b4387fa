// The oracle: a row at a time, each gradient summed where it arises, everything in double.
#include <algorithm>

#include "core/scratch.h"
#include "rnn/gru.h"
#include "rnn/lstm.h"
#include "rnn/rnn.h"

namespace pyops {
namespace {

template <class T>
void widen(const void* from, int64_t count, double* to) {
  const auto* values = static_cast<const T*>(from);
  for (int64_t i = 0; i < count; ++i) to[i] = from ? to_double(values[i]) : 0;
}

template <class T>
void narrow(const double* from, int64_t count, void* to) {
  if (to == nullptr) return;
  for (int64_t i = 0; i < count; ++i) static_cast<T*>(to)[i] = from_double<T>(from[i]);
}

// y[j] = Σ_q w[j, q]·x[q] + bias[j]
template <class T, class X>
void multiply(const void* w, const void* bias, int64_t n, int64_t k, const X* x, double* y) {
  for (int64_t j = 0; j < n; ++j) {
    double sum = bias ? to_double(static_cast<const T*>(bias)[j]) : 0.0;
    for (int64_t q = 0; q < k; ++q) {
      sum += to_double(static_cast<const T*>(w)[j * k + q]) * to_double(x[q]);
    }
    y[j] = sum;
  }
}

// x[q] += Σ_j w[j, q]·y[j]
template <class T>
void multiply_transposed(const void* w, int64_t n, int64_t k, const double* y, double* x) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t q = 0; q < k; ++q) {
      x[q] += to_double(static_cast<const T*>(w)[j * k + q]) * y[j];
    }
  }
}

// w[j, q] += y[j]·x[q]
template <class X>
void add_outer_product(const double* y, int64_t n, const X* x, int64_t k, double* w) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t q = 0; q < k; ++q) w[j * k + q] += y[j] * to_double(x[q]);
  }
}

template <class Cell, class T>
void forward(const RnnParams& p) {
  using Reserved = acc_t<T>;
  constexpr int kGates = Cell::kGates, kKept = Cell::kKept;
  const int64_t hidden = p.hidden, gates = kGates * hidden;
  Scratch<double> h(p.batch * p.output), c(p.batch * hidden), from_x(gates), from_h(gates),
      out(hidden);
  widen<T>(p.h0, p.batch * p.output, h.get());
  if (Cell::kHasCell) widen<T>(p.c0, p.batch * hidden, c.get());
  for (int64_t s = 0; s < p.steps; ++s) {
    const int64_t t = p.step(s);
    for (int64_t i = 0; i < p.size(t); ++i) {
      const int64_t row = p.offsets[t] + i;
      const T* x = static_cast<const T*>(p.x) + row * p.input;
      double* state = &h[i * p.output];
      multiply<T>(p.w_ih, p.b_ih, gates, p.input, x, from_x.get());
      multiply<T>(p.w_hh, p.b_hh, gates, p.output, state, from_h.get());
      for (int64_t u = 0; u < hidden; ++u) {
        double a[kGates], b[kGates], kept[kKept];
        for (int g = 0; g < kGates; ++g) {
          a[g] = from_x[g * hidden + u];
          b[g] = from_h[g * hidden + u];
        }
        out[u] = Cell::forward(a, b, Cell::kHasCell ? c[i * hidden + u] : state[u], kept);
        if (!p.save) continue;
        for (int k = 0; k < kKept; ++k) {
          static_cast<Reserved*>(p.reserve)[(row * kKept + k) * hidden + u] =
              static_cast<Reserved>(kept[k]);
        }
      }
      if (p.projects()) {
        multiply<T>(p.w_hr, nullptr, p.output, hidden, out.get(), state);
      } else {
        std::copy_n(out.get(), hidden, state);
      }
      T* y = static_cast<T*>(p.y) + row * p.output;
      narrow<T>(state, p.output, y);
      widen<T>(y, p.output, state);
    }
  }
  narrow<T>(h.get(), p.batch * p.output, p.hn);
  if (Cell::kHasCell) narrow<T>(c.get(), p.batch * hidden, p.cn);
}

// A gradient, rounded once.
template <class T>
struct Sum {
  int64_t count;
  void* result;
  Scratch<double> values;

  Sum(int64_t n, void* out, const void* initial = nullptr) : count(n), result(out), values(n) {
    widen<T>(initial, n, values.get());
  }
  ~Sum() { narrow<T>(values.get(), count, result); }
  double* get() const { return values.get(); }
};

template <class Cell, class T>
class Backward {
 public:
  explicit Backward(const RnnBackwardParams& params) : p_(params) {}

  void run() {
    for (int64_t s = p_.steps - 1; s >= 0; --s) {
      const int64_t t = p_.step(s);
      for (int64_t i = 0; i < p_.size(t); ++i) row(t, i);
    }
  }

 private:
  static constexpr int kGates = Cell::kGates, kKept = Cell::kKept;

  void row(int64_t t, int64_t i) {
    const int64_t row = p_.offsets[t] + i, before = p_.previous_row(t, i);
    const T* x = static_cast<const T*>(p_.x) + row * p_.input;
    const T* h = before < 0 ? static_cast<const T*>(p_.h0) + i * p_.output
                            : static_cast<const T*>(p_.y) + before * p_.output;
    double* grad_state = grad_h0_.get() + i * p_.output;
    if (p_.grad_y != nullptr) {
      const T* grad_y = static_cast<const T*>(p_.grad_y) + row * p_.output;
      for (int64_t j = 0; j < p_.output; ++j) grad_state[j] += to_double(grad_y[j]);
    }
    if (p_.projects()) {
      std::fill_n(grad_out_.get(), p_.hidden, 0.0);
      multiply_transposed<T>(p_.w_hr, p_.output, p_.hidden, grad_state, grad_out_.get());
    } else {
      std::copy_n(grad_state, p_.hidden, grad_out_.get());
    }
    units(row, before, i, h);
    if (p_.projects()) {
      add_outer_product(grad_state, p_.output, out_.get(), p_.hidden, grad_w_hr_.get());
    }
    if (Cell::kHasCell) {
      std::fill_n(grad_state, p_.output, 0.0);
    } else {
      std::copy_n(grad_out_.get(), p_.output, grad_state);
    }
    multiply_transposed<T>(p_.w_hh, gates_, p_.output, from_h_.get(), grad_state);
    std::fill_n(grad_x_.get(), p_.input, 0.0);
    multiply_transposed<T>(p_.w_ih, gates_, p_.input, from_x_.get(), grad_x_.get());
    if (p_.grad_x) narrow<T>(grad_x_.get(), p_.input, static_cast<T*>(p_.grad_x) + row * p_.input);
    add_outer_product(from_x_.get(), gates_, x, p_.input, grad_w_ih_.get());
    add_outer_product(from_h_.get(), gates_, h, p_.output, grad_w_hh_.get());
    for (int64_t j = 0; j < gates_; ++j) {
      grad_b_ih_.get()[j] += from_x_[j];
      grad_b_hh_.get()[j] += from_h_[j];
    }
  }

  // The cell's gradients, unit by unit; a GRU leaves in `grad_out` what passes to h directly.
  void units(int64_t row, int64_t before, int64_t i, const T* h) {
    const auto* reserve = static_cast<const acc_t<T>*>(p_.reserve);
    for (int64_t u = 0; u < p_.hidden; ++u) {
      double kept[kKept], a[kGates], b[kGates], direct;
      for (int k = 0; k < kKept; ++k) kept[k] = reserve[(row * kKept + k) * p_.hidden + u];
      if constexpr (Cell::kHasCell) {
        const double c = before < 0 ? to_double(static_cast<const T*>(p_.c0)[i * p_.hidden + u])
                                    : reserve[(before * kKept + Cell::kKeptCell) * p_.hidden + u];
        out_[u] = Cell::output(kept);
        Cell::backward(kept, c, grad_out_[u], grad_c0_.get()[i * p_.hidden + u], a, b);
      } else {
        Cell::backward(kept, to_double(h[u]), grad_out_[u], direct, a, b);
        grad_out_[u] = direct;
      }
      for (int g = 0; g < kGates; ++g) {
        from_x_[g * p_.hidden + u] = a[g];
        from_h_[g * p_.hidden + u] = b[g];
      }
    }
  }

  const RnnBackwardParams& p_;
  const int64_t gates_ = kGates * p_.hidden;
  Sum<T> grad_h0_{p_.batch * p_.output, p_.grad_h0, p_.grad_hn};
  Sum<T> grad_c0_{p_.batch * p_.hidden, p_.grad_c0, p_.grad_cn};
  Sum<T> grad_w_ih_{gates_ * p_.input, p_.grad_w_ih}, grad_w_hh_{gates_ * p_.output, p_.grad_w_hh};
  Sum<T> grad_b_ih_{gates_, p_.grad_b_ih}, grad_b_hh_{gates_, p_.grad_b_hh};
  Sum<T> grad_w_hr_{p_.output * p_.hidden, p_.grad_w_hr};
  Scratch<double> from_x_{gates_}, from_h_{gates_}, out_{p_.hidden}, grad_x_{p_.input};
  Scratch<double> grad_out_{p_.hidden};
};

}  // namespace

void rnn_forward_scalar(const RnnParams& params) {
  dispatch_dtype(params.dtype, [&](auto t) {
    using T = decltype(t);
    params.cell == RnnCell::kLstm ? forward<Lstm, T>(params) : forward<Gru, T>(params);
  });
}

void rnn_backward_scalar(const RnnBackwardParams& params) {
  dispatch_dtype(params.dtype, [&](auto t) {
    using T = decltype(t);
    params.cell == RnnCell::kLstm ? Backward<Lstm, T>(params).run()
                                  : Backward<Gru, T>(params).run();
  });
}

}  // namespace pyops
