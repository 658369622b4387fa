// The forward of a layer as products of gemm/block_product.h: the inputs of all steps at once, then
// a product for each step with the cell in its store. Whoever runs them, in order and each with the
// results of those before, has run the layer: a GPU, or a CPU for the sake of a test.
#pragma once

#include "gemm/block_product.h"
#include "rnn/gru.h"
#include "rnn/lstm.h"
#include "rnn/rnn_schedule.h"

namespace pyops {

// Numbers of a row of the reserve for each unit.
template <class Cell>
PYOPS_HOST_DEVICE inline int64_t reserved(const RnnParams& p) {
  return p.save ? Cell::kKept : Cell::kGates;
}

// W_ih·x of rows from `first` on, in the places of the reserve that their steps read before they
// write there.
template <class Cell, class T>
struct RnnInputProduct {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = true, b_along_q = true;

  RnnParams p;
  int64_t first, rows, columns = Cell::kGates * p.hidden, depth = p.input;
  int64_t line = reserved<Cell>(p) * p.hidden;

  PYOPS_HOST_DEVICE static RnnInputProduct of(const RnnPiece<RnnParams>& piece) {
    return {piece.p, piece.first, piece.rows};
  }
  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const {
    return element<T>(p.x, (first + i) * depth + q);
  }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const { return element<T>(p.w_ih, j * depth + q); }
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const {
    static_cast<Acc*>(p.reserve)[(first + i) * line + j] = sum;
  }
};

// W_hh·h of a step and the cell. Four columns belong to a unit, those of its gates beside each
// other, so that one thread has all it takes; the fourth of a GRU is zero.
template <class Cell, class T>
struct RnnStepProduct {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = true, b_along_q = true;
  static constexpr int kGates = Cell::kGates, kKept = Cell::kKept;
  static constexpr int kColumns = 4, kColumnsUsed = kGates;  // of a unit

  RnnParams p;
  RnnStep step;
  int64_t rows = step.rows, columns = kColumns * p.hidden, depth = p.output;

  // The state that row i multiplies.
  PYOPS_HOST_DEVICE const T* operand(int64_t i) const {
    const bool known = i < step.known;
    return static_cast<const T*>(known ? p.y : p.h0) + (known ? step.before + i : i) * depth;
  }
  PYOPS_HOST_DEVICE T weight(int64_t q, int64_t j) const {
    const int64_t gate = j % kColumns;
    if (gate >= kGates) return T(0);
    return static_cast<const T*>(p.w_hh)[(gate * p.hidden + j / kColumns) * depth + q];
  }
  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const { return static_cast<Acc>(operand(i)[q]); }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const { return static_cast<Acc>(weight(q, j)); }
  PYOPS_HOST_DEVICE void store_four(int64_t i, int64_t j, const Acc (&sums)[kColumns]) const {
    finish(i, j / kColumns, sums, given(i, j / kColumns));
  }

  // What a unit takes beside its sums; nothing of it comes from other units.
  struct Given {
    Acc x[kGates], bias[kGates], state;
  };
  PYOPS_HOST_DEVICE Given given(int64_t i, int64_t u) const {
    const Acc* from_x = static_cast<const Acc*>(p.reserve) + place(i, u);
    Given g;
    PYOPS_UNROLL for (int k = 0; k < kGates; ++k) {
      const int64_t at = k * p.hidden + u;
      g.x[k] = from_x[k * p.hidden] + (p.b_ih != nullptr ? element<T>(p.b_ih, at) : Acc(0));
      g.bias[k] = p.b_hh != nullptr ? element<T>(p.b_hh, at) : Acc(0);
    }
    g.state = Cell::kHasCell ? cell(i, u) : a(i, u);
    return g;
  }

  PYOPS_HOST_DEVICE void finish(int64_t i, int64_t u, const Acc (&sums)[kColumns],
                                const Given& given) const {
    Acc h[kGates], kept[kKept], state = given.state;
    PYOPS_UNROLL for (int g = 0; g < kGates; ++g) h[g] = sums[g] + given.bias[g];
    const Acc out = Cell::forward(given.x, h, state, kept);
    if (p.save) {
      Acc* reserve = static_cast<Acc*>(p.reserve) + place(i, u);
      PYOPS_UNROLL for (int k = 0; k < kKept; ++k) reserve[k * p.hidden] = kept[k];
    }
    if constexpr (Cell::kHasCell) {
      static_cast<Acc*>(p.c)[i * p.hidden + u] = state;
      if (i >= step.onward) static_cast<T*>(p.cn)[i * p.hidden + u] = static_cast<T>(state);
    }
    if (Cell::kHasCell && p.projects()) {
      static_cast<Acc*>(p.out)[i * p.hidden + u] = out;
    } else {
      store_output(i, u, out);
    }
  }

  PYOPS_HOST_DEVICE void store_output(int64_t i, int64_t u, Acc h) const {
    const T rounded = static_cast<T>(h);
    static_cast<T*>(p.y)[(step.first + i) * p.output + u] = rounded;
    if (i >= step.onward) static_cast<T*>(p.hn)[i * p.output + u] = rounded;
  }

 private:
  // Of the unit's first number in the reserve.
  PYOPS_HOST_DEVICE int64_t place(int64_t i, int64_t u) const {
    return (step.first + i) * reserved<Cell>(p) * p.hidden + u;
  }
  PYOPS_HOST_DEVICE Acc cell(int64_t i, int64_t u) const {
    const int64_t at = i * p.hidden + u;
    return i < step.known ? static_cast<const Acc*>(p.c)[at] : element<T>(p.c0, at);
  }
};

// W_hr·h of a step.
template <class Cell, class T>
struct RnnProjectionProduct {
  using Acc = acc_t<T>;
  static constexpr bool a_along_q = true, b_along_q = true;

  RnnStepProduct<Cell, T> of;
  int64_t rows = of.rows, columns = of.p.output, depth = of.p.hidden;

  PYOPS_HOST_DEVICE Acc a(int64_t i, int64_t q) const {
    return static_cast<const Acc*>(of.p.out)[i * depth + q];
  }
  PYOPS_HOST_DEVICE Acc b(int64_t q, int64_t j) const {
    return element<T>(of.p.w_hr, j * depth + q);
  }
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const { of.store_output(i, j, sum); }
};

// Calls run(product) for every product of a layer of at least one step.
template <class Cell, class T, class Run>
void rnn_forward_products(const RnnParams& p, Run&& run) {
  run(RnnInputProduct<Cell, T>{p, 0, p.rows()});
  for (int64_t s = 0; s < p.steps; ++s) {
    const RnnStepProduct<Cell, T> step{p, p.step_at(s)};
    run(step);
    if constexpr (Cell::kHasCell) {
      if (p.projects()) run(RnnProjectionProduct<Cell, T>{step});
    }
  }
}

// f of the cell and the element type, as values that stand for them.
template <DtypeSet kTypes = kAnyFloat, class F>
void dispatch_cell(const RnnShape& shape, F&& f) {
  dispatch_dtype<kTypes>(shape.dtype, [&]<class T>(T type) {
    shape.cell == RnnCell::kLstm ? f(Lstm{}, type) : f(Gru{}, type);
  });
}

}  // namespace pyops
