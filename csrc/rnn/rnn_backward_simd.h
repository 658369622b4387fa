// Backward of the sequence driver: see rnn_simd.h.
#pragma once

#include "gemm/column_sums_simd.h"
#include "rnn/rnn_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// The state each row of a sequence started from, as an operand: element (i, p) is feature i of the
// state before row p.
template <class T>
struct PreviousStates {
  using Element = T;
  using Acc = acc_t<T>;
  static constexpr bool kPackOnce = true;
  const T *y, *h0;
  int64_t output;
  const int64_t* previous;  // (N): a row of y, or -1 - i for row i of h0

  template <int kWidth>
  void pack(int64_t i0, int64_t p0, int64_t depth, Acc* panel) const {
    constexpr int kV = Vec<Acc>::kWidth;
    for (int64_t p = p0; p < p0 + depth; ++p, panel += kWidth) {
      const int64_t row = previous[p];
      const T* state = row < 0 ? h0 + (-1 - row) * output : y + row * output;
      for (int c = 0; c < kWidth; c += kV) {
        const int room = std::min(kV, kWidth - c);
        const int have = static_cast<int>(std::clamp<int64_t>(output - i0 - c, 0, room));
        store(have > 0 ? load(state + i0 + c, have) : Vec<Acc>::zero(), panel + c, room);
      }
    }
  }
};

template <class Cell, class T>
class RnnBackward {
 public:
  explicit RnnBackward(const RnnBackwardParams& params) : p_(params) {
    widen<T>(p_.grad_hn, p_.batch * p_.output, grad_h_.get());
    if (Cell::kHasCell) widen<T>(p_.grad_cn, p_.batch * p_.hidden, grad_c_.get());
  }

  void run() {
    const int64_t weight = gates_ * p_.output;
    for_batch_blocks(p_, p_.batch * weight, weight * static_cast<int64_t>(sizeof(Acc)),
                     [&](int64_t b0, int64_t b1) { sweep(b0, b1); });
    narrow<T>(grad_h_.get(), p_.batch * p_.output, p_.grad_h0);
    if (Cell::kHasCell) narrow<T>(grad_c_.get(), p_.batch * p_.hidden, p_.grad_c0);
    inputs();
    weights();
    biases();
  }

 private:
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  static constexpr int kGates = Cell::kGates, kKept = Cell::kKept;
#if defined(__AVX512BF16__)
  // Of a gate: as the products round it, at half the bytes.
  using Gradient = std::conditional_t<std::is_same_v<T, BFloat16>, T, Acc>;
#else
  using Gradient = Acc;
#endif

  void sweep(int64_t b0, int64_t b1) {
    Scratch<Acc> grad_out(p_.projects() ? (b1 - b0) * p_.hidden : 0);
    for (int64_t s = p_.steps - 1; s >= 0; --s) {
      const int64_t t = p_.step(s), rows = std::min(b1, p_.size(t)) - b0;
      if (rows <= 0) continue;
      const int64_t row = p_.offsets[t] + b0;
      Acc* grad_h = grad_h_.get() + b0 * p_.output;
      if (p_.projects()) {
        for (int64_t i = 0; i < rows; ++i) total_output(row + i, b0 + i);
        projection_(rows, totals_.get() + row * p_.output,
                    MatrixSink<Acc>{grad_out.get(), p_.hidden});
      }
      parallel_for(0, rows, fork_grain(kUnitWork * p_.hidden), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          units(row + i, p_.previous_row(t, b0 + i), b0 + i, grad_out.get() + i * p_.hidden);
        }
      });
      // A GRU's units leave in grad_h what passes to the state directly.
      MatrixSink<Acc> sink{grad_h, p_.output};
      sink.accumulate = !Cell::kHasCell;
      to_h_(rows, from_h() + row * gates_, sink);
    }
  }

  // The gradient of a projected output: from the loss and from the next step.
  void total_output(int64_t row, int64_t i) {
    for_vectors<Acc>(p_.output, [&](int64_t j, auto n) {
      store(grad_output(row, i, j, n), totals_.get() + row * p_.output + j, n);
    });
  }
  V grad_output(int64_t row, int64_t i, int64_t j, int n) const {
    const V later = load(grad_h_.get() + i * p_.output + j, n);
    if (p_.grad_y == nullptr) return later;
    return later + load(static_cast<const T*>(p_.grad_y) + row * p_.output + j, n);
  }

  void units(int64_t row, int64_t before, int64_t i, const Acc* grad_out) {
    const Acc* reserve = reserve_ + row * kKept * p_.hidden;
    Acc* grad_states = (Cell::kHasCell ? grad_c_ : grad_h_).get() + i * p_.hidden;
    for_vectors<Acc>(p_.hidden, [&](int64_t j, auto n) {
      V kept[kKept], grad_x[kGates], grad_r[kGates];
      for (int k = 0; k < kKept; ++k) {
        kept[k] = load(reserve + k * p_.hidden + j, n);
        prefetch_to_read(reserve + (kKept + k) * p_.hidden + j);  // the next row's
      }
      const V grad = p_.projects() ? load(grad_out + j, n) : grad_output(row, i, j, n);
      V grad_state = load(grad_states + j, n);
      Cell::backward(kept, previous_state(before, i, j, n), grad, grad_state, grad_x, grad_r);
      store(grad_state, grad_states + j, n);
      for (int g = 0; g < kGates; ++g) {
        const int64_t at = row * gates_ + g * p_.hidden + j;
        store(grad_x[g], from_x_.get() + at, n);
        prefetch_to_write(from_x_.get() + at + gates_);
        if (!Cell::kHasCell) store(grad_r[g], from_h_.get() + at, n);
      }
      if constexpr (Cell::kHasCell) {
        if (p_.projects()) store(Cell::output(kept), outputs_.get() + row * p_.hidden + j, n);
      }
    });
  }

  V previous_state(int64_t before, int64_t i, int64_t j, int n) const {
    if constexpr (Cell::kHasCell) {
      if (before < 0) return load(static_cast<const T*>(p_.c0) + i * p_.hidden + j, n);
      return load(reserve_ + (before * kKept + Cell::kKeptCell) * p_.hidden + j, n);
    } else {
      const void* states = before < 0 ? p_.h0 : p_.y;
      return load(static_cast<const T*>(states) + (before < 0 ? i : before) * p_.hidden + j, n);
    }
  }

  void inputs() const {
    if (p_.grad_x == nullptr) return;
    const StridedOperand<T> w_ih{static_cast<const T*>(p_.w_ih), p_.input, 1, p_.input};
    multiply(p_.rows(), p_.input, gates_, from_x_.get(), w_ih,
             MatrixSink<T>{static_cast<T*>(p_.grad_x), p_.input}, p_.precision);
  }

  void weights() const {
    const int64_t rows = p_.rows();
    if (p_.grad_w_ih != nullptr) {
      const OperandLike<T, Gradient> grad{{from_x_.get(), gates_, 1, gates_}};
      const StridedOperand<T> x{static_cast<const T*>(p_.x), p_.input, 1, p_.input};
      gemm_in_short_sums(gates_, p_.input, rows, grad, x,
                         MatrixSink<T>{static_cast<T*>(p_.grad_w_ih), p_.input}, p_.precision);
    }
    if (p_.grad_w_hh != nullptr) recurrent_weights();
    if (p_.grad_w_hr != nullptr) {
      const OperandLike<T, Acc> grad{{totals_.get(), p_.output, 1, p_.output}};
      const OperandLike<T, Acc> out{{outputs_.get(), p_.hidden, 1, p_.hidden}};
      gemm_in_short_sums(p_.output, p_.hidden, rows, grad, out,
                         MatrixSink<T>{static_cast<T*>(p_.grad_w_hr), p_.hidden}, p_.precision);
    }
  }

  // Summed as the sweep went, last step first: an initial state is often larger than the states
  // after it, and what is added to its products is rounded at their size.
  void recurrent_weights() const {
    const int64_t rows = p_.rows(), way = p_.reverse ? 1 : -1;
    const int64_t first = p_.reverse ? 0 : std::max<int64_t>(rows - 1, 0);
    Scratch<int64_t> previous(rows);
    for (int64_t t = 0; t < p_.steps; ++t) {
      for (int64_t i = 0; i < p_.size(t); ++i) {
        const int64_t row = p_.offsets[t] + i, before = p_.previous_row(t, i);
        previous[first + way * row] = before < 0 ? -1 - i : before;
      }
    }
    const OperandLike<T, Gradient> grad{{from_h() + first * gates_, gates_, 1, way * gates_}};
    const PreviousStates<T> h{static_cast<const T*>(p_.y), static_cast<const T*>(p_.h0), p_.output,
                              previous.get()};
    gemm_in_short_sums(gates_, p_.output, rows, grad, h,
                       MatrixSink<T>{static_cast<T*>(p_.grad_w_hh), p_.output}, p_.precision);
  }

  void biases() const {
    auto *of_x = static_cast<T*>(p_.grad_b_ih), *of_h = static_cast<T*>(p_.grad_b_hh);
    const auto sum = [&](const Gradient* grad, T* sums) {
      column_sums(StridedOperand<Gradient>{grad, p_.rows(), gates_, 1}, gates_, sums);
    };
    if (of_x != nullptr) sum(from_x_.get(), of_x);
    if (of_h == nullptr) return;
    if (from_h() == from_x_.get() && of_x != nullptr) {
      std::copy_n(of_x, gates_, of_h);
    } else {
      sum(from_h(), of_h);
    }
  }

  // Gradients of what came through W_hh; an LSTM's are those of what came through W_ih.
  const Gradient* from_h() const { return Cell::kHasCell ? from_x_.get() : from_h_.get(); }

  const RnnBackwardParams& p_;
  const int64_t gates_ = kGates * p_.hidden;
  const Acc* const reserve_ = static_cast<const Acc*>(p_.reserve);
  Scratch<Acc> grad_h_{p_.batch * p_.output}, grad_c_{Cell::kHasCell ? p_.batch * p_.hidden : 0};
  Scratch<Gradient> from_x_{p_.rows() * gates_};
  Scratch<Gradient> from_h_{Cell::kHasCell ? 0 : p_.rows() * gates_};
  Scratch<Acc> totals_{p_.projects() ? p_.rows() * p_.output : 0};
  Scratch<Acc> outputs_{p_.projects() ? p_.rows() * p_.hidden : 0};
  const StepProduct<T> to_h_{
      p_.output, gates_,         {static_cast<const T*>(p_.w_hh), p_.output, 1, p_.output},
      p_.steps,  p_.step_rows(), p_.precision};
  const StepProduct<T> projection_{p_.projects() ? p_.hidden : 0,
                                   p_.output,
                                   {static_cast<const T*>(p_.w_hr), p_.hidden, 1, p_.hidden},
                                   p_.steps,
                                   p_.step_rows(),
                                   p_.precision};
};

template <template <class, class> class Pass, class Params>
void run_rnn(const Params& params) {
  dispatch_dtype<kKernelTypes>(params.dtype, [&](auto t) {
    using T = decltype(t);
    params.cell == RnnCell::kLstm ? Pass<Lstm, T>(params).run() : Pass<Gru, T>(params).run();
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
