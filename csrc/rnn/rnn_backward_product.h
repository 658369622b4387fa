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
  int64_t columns = p.output, depth = later > 0 ? Cell::kGates * p.hidden : 0;

  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const {
    return i < later ? element<T>(p.from_h, (step.after + i) * depth + q) : Acc(0);
  }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const {
    return element<T>(p.w_hh, q * columns + j);
  }

  // Of y of this step with a projection, which has products of its own.
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const {
    const Acc grad = gradient(i, j, sum);
    if (i >= step.rows) return store_initial(i, j, grad);
    static_cast<T*>(p.grad_out)[(step.first + i) * columns + j] = static_cast<T>(grad);
    keep_previous(i, j);
  }

  // All of the gradient of h, by way of this step's y too.
  PYOPS_HOST_DEVICE Acc gradient(int64_t i, int64_t j, Acc sum) const {
    const int64_t at = i * columns + j;
    Acc grad = sum;
    if (i >= later) grad = p.grad_hn != nullptr ? element<T>(p.grad_hn, at) : Acc(0);
    if (i < step.rows && p.grad_y != nullptr) {
      grad += element<T>(p.grad_y, step.first * columns + at);
    }
    return grad;
  }

  PYOPS_HOST_DEVICE void store_initial(int64_t i, int64_t j, Acc grad) const {
    if (p.grad_h0 != nullptr) static_cast<T*>(p.grad_h0)[i * columns + j] = static_cast<T>(grad);
  }

  // What the weights' product reads, a row beside that of its gradients.
  PYOPS_HOST_DEVICE T keep_previous(int64_t i, int64_t j) const {
    const T h = i < step.known ? static_cast<const T*>(p.y)[(step.before + i) * columns + j]
                               : static_cast<const T*>(p.h0)[i * columns + j];
    static_cast<T*>(p.previous)[(step.first + i) * columns + j] = h;
    return h;
  }
};

// The same with the cell's gradients behind; with a projection what comes is grad_out · W_hr.
template <class Cell, class T, bool kProjects>
struct RnnUnitsProduct {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = true, b_along_q = false;
  static constexpr int kGates = Cell::kGates, kKept = Cell::kKept;

  RnnCarryProduct<Cell, T> from;
  int64_t rows = from.rows, columns = from.p.hidden;
  int64_t depth = kProjects ? from.p.output : from.depth;

  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const {
    if constexpr (!kProjects) return from.a(i, q);
    if (i >= from.step.rows) return 0;
    return element<T>(from.p.grad_out, (from.step.first + i) * depth + q);
  }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const {
    return element<T>(kProjects ? from.p.w_hr : from.p.w_hh, q * columns + j);
  }

  PYOPS_HOST_DEVICE void store(int64_t i, int64_t u, Acc sum) const {
    const RnnBackwardParams& p = from.p;
    const RnnStep& step = from.step;
    const int64_t at = i * columns + u;
    Acc* carry = static_cast<Acc*>(p.carry) + at;
    Acc carried = i < from.later ? *carry : Acc(0);
    if (i >= from.later && Cell::kHasCell && p.grad_cn != nullptr) {
      carried = element<T>(p.grad_cn, at);
    }
    Acc grad = kProjects ? sum : from.gradient(i, u, Cell::kHasCell ? sum : sum + carried);
    if (i >= step.rows) {
      if (!kProjects) from.store_initial(i, u, grad);
      if (p.grad_c0 != nullptr) static_cast<T*>(p.grad_c0)[at] = static_cast<T>(carried);
      return;
    }
    const int64_t row = step.first + i;
    Acc kept[kKept], x[kGates], h[kGates];
    const Acc* reserve = static_cast<const Acc*>(p.reserve) + row * kKept * columns + u;
    PYOPS_UNROLL for (int k = 0; k < kKept; ++k) kept[k] = reserve[k * columns];
    const Acc state = begun_with(i, u);
    Cell::backward(kept, state, grad, carried, x, h);
    *carry = carried;
    PYOPS_UNROLL for (int g = 0; g < kGates; ++g) {
      const int64_t to = (row * kGates + g) * columns + u;
      static_cast<T*>(p.from_x)[to] = static_cast<T>(x[g]);
      if (!Cell::kHasCell) static_cast<T*>(p.from_h)[to] = static_cast<T>(h[g]);
    }
  }

 private:
  // The unit's c of an LSTM, its h of a GRU.
  PYOPS_HOST_DEVICE Acc begun_with(int64_t i, int64_t u) const {
    const RnnStep& step = from.step;
    const Acc h = kProjects ? Acc(0) : static_cast<Acc>(from.keep_previous(i, u));
    if constexpr (!Cell::kHasCell) {
      return h;
    } else {
      if (i >= step.known) return element<T>(from.p.c0, i * columns + u);
      const int64_t row = (step.before + i) * kKept + Cell::kKeptCell;
      return static_cast<const Acc*>(from.p.reserve)[row * columns + u];
    }
  }
};

// grad_x = from_x · W_ih
template <class Cell, class T>
struct RnnInputGradient {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = true, b_along_q = false;

  RnnBackwardParams p;
  int64_t rows, columns = p.input, depth = Cell::kGates * p.hidden;

  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const {
    return element<T>(p.from_x, i * depth + q);
  }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const {
    return element<T>(p.w_ih, q * columns + j);
  }
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const {
    static_cast<T*>(p.grad_x)[i * columns + j] = static_cast<T>(sum);
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

// Calls run(product) for every product of a backward.
template <class Cell, class T, class Run>
void rnn_backward_products(const RnnBackwardParams& p, Run&& run) {
  rnn_backward_steps<Cell, T>(p, run);
  const int64_t rows = p.rows(), gates = Cell::kGates * p.hidden;
  if (p.grad_x != nullptr) run(RnnInputGradient<Cell, T>{p, rows});
  run(RnnWeightGradient<T>{p.from_x, p.x, p.grad_w_ih, p.grad_b_ih, gates, p.input, rows});
  run(RnnWeightGradient<T>{p.from_h, p.previous, p.grad_w_hh, p.grad_b_hh, gates, p.output, rows});
  if constexpr (Cell::kHasCell) {
    if (p.grad_w_hr != nullptr) run(RnnProjectionGradient<Cell, T>{p, rows});
  }
}

}  // namespace pyops
