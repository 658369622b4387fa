// The backward of a layer as products of gemm/block_product.h: for each step, last first, a product
// with the cell's gradients in its store; then those of the input and of the weights, each a
// product over all rows.
#pragma once

#include "rnn/rnn_forward_product.h"

namespace pyops {

// The gradient that the products of the step after bring to h: from_h · W_hh for the rows that go
// on, and for those that began there, if it had more rows, whose initial state it belongs to.
template <class Cell, class T>
struct RnnCarryProduct {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = true, b_along_q = false;

  RnnBackwardParams p;
  RnnStep step;
  int64_t later;  // rows of the step after
  int64_t rows = step.rows > later ? step.rows : later;
  int64_t columns = p.output, depth = Cell::kGates * p.hidden;

  // The gradients that row i multiplies; null if none come.
  PYOPS_HOST_DEVICE const T* operand(int64_t i) const {
    return i < later ? static_cast<const T*>(p.from_h) + (step.after + i) * depth : nullptr;
  }
  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const {
    const T* from = operand(i);
    return from != nullptr ? static_cast<Acc>(from[q]) : Acc(0);
  }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const {
    return element<T>(p.w_hh, q * columns + j);
  }

  // Of y of this step with a projection, which has products of its own.
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const {
    const Acc grad = (i < later ? sum : Acc(0)) + given_gradient(i, j);
    if (i >= step.rows) return store_initial(i, j, grad);
    static_cast<T*>(p.grad_out)[(step.first + i) * columns + j] = static_cast<T>(grad);
    store_previous(i, j, previous(i, j));
  }

  // What reaches h from outside: by way of hn, and of this step's y.
  PYOPS_HOST_DEVICE Acc given_gradient(int64_t i, int64_t j) const {
    const int64_t at = i * columns + j;
    Acc grad = 0;
    if (i >= later && p.grad_hn != nullptr) grad = element<T>(p.grad_hn, at);
    if (i < step.rows && p.grad_y != nullptr) {
      grad += element<T>(p.grad_y, step.first * columns + at);
    }
    return grad;
  }

  PYOPS_HOST_DEVICE void store_initial(int64_t i, int64_t j, Acc grad) const {
    if (p.grad_h0 != nullptr) static_cast<T*>(p.grad_h0)[i * columns + j] = static_cast<T>(grad);
  }

  // What the weights' product reads, a row beside that of its gradients.
  PYOPS_HOST_DEVICE T previous(int64_t i, int64_t j) const {
    return i < step.known ? static_cast<const T*>(p.y)[(step.before + i) * columns + j]
                          : static_cast<const T*>(p.h0)[i * columns + j];
  }
  PYOPS_HOST_DEVICE void store_previous(int64_t i, int64_t j, T h) const {
    static_cast<T*>(p.previous)[(step.first + i) * columns + j] = h;
  }
};

// The same with the cell's gradients behind; with a projection what comes is grad_out · W_hr.
template <class Cell, class T, bool kProjects>
struct RnnUnitsProduct {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = true, b_along_q = false;
  static constexpr int kGates = Cell::kGates, kKept = Cell::kKept;
  static constexpr int kColumns = 1, kColumnsUsed = 1;  // of a unit

  RnnCarryProduct<Cell, T> from;
  int64_t rows = from.rows, columns = from.p.hidden;
  int64_t depth = kProjects ? from.p.output : from.depth;

  PYOPS_HOST_DEVICE const T* operand(int64_t i) const {
    if constexpr (!kProjects) return from.operand(i);
    if (i >= from.step.rows) return nullptr;
    return static_cast<const T*>(from.p.grad_out) + (from.step.first + i) * depth;
  }
  PYOPS_HOST_DEVICE T weight(int64_t q, int64_t j) const {
    return static_cast<const T*>(kProjects ? from.p.w_hr : from.p.w_hh)[q * columns + j];
  }
  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const {
    const T* row = operand(i);
    return row != nullptr ? static_cast<Acc>(row[q]) : Acc(0);
  }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const { return static_cast<Acc>(weight(q, j)); }
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t u, Acc sum) const {
    const Acc sums[] = {sum};
    finish(i, u, sums, given(i, u));
  }

  // What a unit takes beside its sum; nothing of it comes from other units. Only of rows of this
  // step there is more than gradients.
  struct Given {
    Acc grad, carried, kept[kKept], state;
    T previous;
  };
  PYOPS_HOST_DEVICE Given given(int64_t i, int64_t u) const {
    const RnnBackwardParams& p = from.p;
    const int64_t at = i * columns + u;
    Given g;
    g.grad = kProjects ? Acc(0) : from.given_gradient(i, u);
    g.carried = i < from.later ? static_cast<const Acc*>(p.carry)[at] : Acc(0);
    if (i >= from.later && Cell::kHasCell && p.grad_cn != nullptr) {
      g.carried = element<T>(p.grad_cn, at);
    }
    if (i >= from.step.rows) return g;
    const Acc* reserve =
        static_cast<const Acc*>(p.reserve) + (from.step.first + i) * kKept * columns + u;
    PYOPS_UNROLL for (int k = 0; k < kKept; ++k) g.kept[k] = reserve[k * columns];
    if (!kProjects) g.previous = from.previous(i, u);
    if constexpr (Cell::kHasCell) {
      g.state = previous_cell(i, u);
    } else {
      g.state = static_cast<Acc>(g.previous);
    }
    return g;
  }

  PYOPS_HOST_DEVICE void finish(int64_t i, int64_t u, const Acc (&sums)[kColumns],
                                const Given& given) const {
    const RnnBackwardParams& p = from.p;
    const int64_t at = i * columns + u, row = from.step.first + i;
    Acc carried = given.carried, grad = kProjects || i < from.later ? sums[0] : Acc(0);
    if (!Cell::kHasCell) grad += carried;
    grad += given.grad;
    if (i >= from.step.rows) {
      if (!kProjects) from.store_initial(i, u, grad);
      if (p.grad_c0 != nullptr) static_cast<T*>(p.grad_c0)[at] = static_cast<T>(carried);
      return;
    }
    if (!kProjects) from.store_previous(i, u, given.previous);
    Acc x[kGates], h[kGates];
    Cell::backward(given.kept, given.state, grad, carried, x, h);
    static_cast<Acc*>(p.carry)[at] = carried;
    PYOPS_UNROLL for (int g = 0; g < kGates; ++g) {
      const int64_t to = (row * kGates + g) * columns + u;
      static_cast<T*>(p.from_x)[to] = static_cast<T>(x[g]);
      if (!Cell::kHasCell) static_cast<T*>(p.from_h)[to] = static_cast<T>(h[g]);
    }
  }

 private:
  // The c that an LSTM's row began with.
  PYOPS_HOST_DEVICE Acc previous_cell(int64_t i, int64_t u) const {
    const RnnStep& step = from.step;
    if (i >= step.known) return element<T>(from.p.c0, i * columns + u);
    const int64_t row = (step.before + i) * kKept + Cell::kKeptCell;
    return static_cast<const Acc*>(from.p.reserve)[row * columns + u];
  }
};

// grad_x = from_x · W_ih, of rows from `first` on
template <class Cell, class T>
struct RnnInputGradient {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = true, b_along_q = false;

  RnnBackwardParams p;
  int64_t first, rows, columns = p.input, depth = Cell::kGates * p.hidden;

  // No rows where nobody wants them.
  PYOPS_HOST_DEVICE static RnnInputGradient of(const RnnPiece<RnnBackwardParams>& piece) {
    return {piece.p, piece.first, piece.p.grad_x != nullptr ? piece.rows : 0};
  }
  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const {
    return element<T>(p.from_x, (first + i) * depth + q);
  }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const {
    return element<T>(p.w_ih, q * columns + j);
  }
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const {
    static_cast<T*>(p.grad_x)[(first + i) * columns + j] = static_cast<T>(sum);
  }
};

// gradᵀ · by over all rows, and the bias as the weight of an input that is always one: the column
// behind the last. Columns from `begin` on are computed.
template <class T>
struct RnnWeightGradient {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = false, b_along_q = false;

  const void *grad, *by;  // (N, rows), (N, width)
  void *weight, *bias;
  int64_t rows, width, depth;
  int64_t begin = weight != nullptr ? 0 : width;
  int64_t columns = width + (bias != nullptr ? 1 : 0) - begin;

  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const { return element<T>(grad, q * rows + i); }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const {
    return begin + j < width ? element<T>(by, q * width + begin + j) : Acc(1);
  }
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const {
    if (begin + j < width) {
      static_cast<T*>(weight)[i * width + begin + j] = static_cast<T>(sum);
    } else {
      static_cast<T*>(bias)[i] = static_cast<T>(sum);
    }
  }
};

// grad_w_hr = grad_outᵀ · h', from what was kept
template <class Cell, class T>
struct RnnProjectionGradient {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = false, b_along_q = false;

  RnnBackwardParams p;
  int64_t depth, rows = p.output, columns = p.hidden;

  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const {
    return element<T>(p.grad_out, q * rows + i);
  }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t u) const {
    const Acc* reserve = static_cast<const Acc*>(p.reserve) + q * Cell::kKept * columns + u;
    Acc kept[Cell::kKept];
    PYOPS_UNROLL for (int k = 0; k < Cell::kKept; ++k) kept[k] = reserve[k * columns];
    return Cell::output(kept);
  }
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t u, Acc sum) const {
    static_cast<T*>(p.grad_w_hr)[i * columns + u] = static_cast<T>(sum);
  }
};

// The products of the steps, last first; the one before the first step is for the initial states.
template <class Cell, class T, class Run>
void rnn_backward_steps(const RnnBackwardParams& p, Run&& run) {
  const bool to_initial = p.grad_h0 != nullptr || p.grad_c0 != nullptr;
  for (int64_t s = p.steps - 1; s >= (to_initial ? -1 : 0); --s) {
    RnnCarryProduct<Cell, T> carry{p, p.step_at(s), p.step_at(s + 1).rows};
    if (p.steps == 0) carry.rows = p.batch;
    if constexpr (Cell::kHasCell) {
      if (p.projects()) {
        run(carry);
        run(RnnUnitsProduct<Cell, T, true>{carry});
        continue;
      }
    }
    run(RnnUnitsProduct<Cell, T, false>{carry});
  }
}

// Those of the weights over all rows, from the gradients that the steps left.
template <class Cell, class T, class Run>
void rnn_backward_weights(const RnnBackwardParams& p, Run&& run) {
  const int64_t rows = p.rows(), gates = Cell::kGates * p.hidden;
  run(RnnWeightGradient<T>{p.from_x, p.x, p.grad_w_ih, p.grad_b_ih, gates, p.input, rows});
  run(RnnWeightGradient<T>{p.from_h, p.previous, p.grad_w_hh, p.grad_b_hh, gates, p.output, rows});
  if constexpr (Cell::kHasCell) {
    if (p.grad_w_hr != nullptr) run(RnnProjectionGradient<Cell, T>{p, rows});
  }
}

// Calls run(product) for every product of a backward.
template <class Cell, class T, class Run>
void rnn_backward_products(const RnnBackwardParams& p, Run&& run) {
  rnn_backward_steps<Cell, T>(p, run);
  if (p.grad_x != nullptr) run(RnnInputGradient<Cell, T>{p, 0, p.rows()});
  rnn_backward_weights<Cell, T>(p, run);
}

}  // namespace pyops
