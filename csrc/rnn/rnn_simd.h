// The sequence driver: one GEMM projects the inputs of all steps, then a sweep over the steps adds
// the recurrent product and applies the gates; backward, a sweep leaves the gradients of the gates
// of all steps, and one GEMM each turns them into the gradients of inputs and weights.
//
// Sequences are independent, so threads take blocks of the batch through all steps and never wait
// for each other. Where that leaves a block too few rows, or the weight outgrows a core's cache,
// the steps go one at a time and threads share the columns of each product.
#pragma once

#include "rnn/gru.h"
#include "rnn/lstm.h"
#include "rnn/rnn.h"
#include "rnn/step_product_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// The first sequence of the `block`-th of `blocks` with about equally many rows each.
inline int64_t block_border(const RnnShape& s, int64_t block, int64_t blocks) {
  if (block == blocks) return s.batch;
  int64_t sequence = 0;
  for (int64_t before = 0; sequence < s.batch && before * blocks < block * s.rows(); ++sequence) {
    for (int64_t t = 0; t < s.steps && s.size(t) > sequence; ++t) ++before;
  }
  return sequence;
}

// sweep(b0, b1) over blocks of sequences, where `step_work` multiply-adds a step read
// `weight_bytes`.
template <class F>
void for_batch_blocks(const RnnShape& s, int64_t step_work, int64_t weight_bytes, const F& sweep) {
  // A block streams the whole weight each step: below eight rows that costs more than the
  // arithmetic, and beyond a 2 MiB L2 each thread would fetch all of it from the shared cache.
  constexpr int64_t kRowsPerBlock = 8;
  const int64_t threads = num_threads();
  const bool stays = weight_bytes <= kCacheBytes, forks = step_work >= 2 * kForkWork;
  int64_t blocks = std::min(threads, s.batch / (forks ? kRowsPerBlock : 1));
  if ((forks && !(stays && blocks == threads)) || step_work * s.steps < kForkWork) blocks = 1;
  if (blocks <= 1) return sweep(int64_t{0}, s.batch);
  parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      sweep(block_border(s, k, blocks), block_border(s, k + 1, blocks));
    }
  });
}

// What the gates of one unit cost, in multiply-adds.
inline constexpr int64_t kUnitWork = 64;

template <class Cell, class T>
class RnnForward {
 public:
  explicit RnnForward(const RnnParams& params) : p_(params) {
    std::copy_n(static_cast<const T*>(p_.h0), p_.batch * p_.output, h_.get());
    if (Cell::kHasCell) widen<T>(p_.c0, p_.batch * p_.hidden, c_.get());
    widen<T>(p_.b_ih, gates_, b_ih_.get());
    widen<T>(p_.b_hh, gates_, b_hh_.get());
  }

  void run() {
    const StridedOperand<T> w_ih{static_cast<const T*>(p_.w_ih), gates_, p_.input, 1};
    multiply(p_.rows(), gates_, p_.input, static_cast<const T*>(p_.x), w_ih,
             MatrixSink<Acc>{reserve_, stride_, b_ih_.get()}, p_.precision);
    const int64_t weight = gates_ * p_.output;
    for_batch_blocks(p_, p_.batch * weight, weight * static_cast<int64_t>(sizeof(Acc)),
                     [&](int64_t b0, int64_t b1) { sweep(b0, b1); });
    std::copy_n(h_.get(), p_.batch * p_.output, static_cast<T*>(p_.hn));
    if (Cell::kHasCell) narrow<T>(c_.get(), p_.batch * p_.hidden, p_.cn);
  }

 private:
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  static constexpr int kGates = Cell::kGates, kKept = Cell::kKept;

  void sweep(int64_t b0, int64_t b1) {
    Scratch<Acc> product((b1 - b0) * std::max(gates_, p_.output));
    Scratch<T> out(p_.projects() ? (b1 - b0) * p_.hidden : 0);
    for (int64_t s = 0; s < p_.steps; ++s) {
      const int64_t t = p_.step(s), rows = std::min(b1, p_.size(t)) - b0;
      if (rows <= 0) continue;
      const T* h = h_.get() + b0 * p_.output;
      from_h_(rows, h, MatrixSink<Acc>{product.get(), gates_, b_hh_.get()});
      const int64_t row = p_.offsets[t] + b0;
      parallel_for(0, rows, fork_grain(kUnitWork * p_.hidden), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          units(row + i, b0 + i, &product[i * gates_], out.get() + i * p_.hidden);
        }
      });
      if (p_.projects()) {
        projection_(rows, out.get(), MatrixSink<Acc>{product.get(), p_.output});
        for (int64_t i = 0; i < rows; ++i) {
          for_vectors<Acc>(p_.output, [&](int64_t j, auto n) {
            emit(load(&product[i * p_.output + j], n), row + i, b0 + i, j, n);
          });
        }
      }
    }
  }

  void units(int64_t row, int64_t i, const Acc* product, T* out) {
    Acc *reserve = reserve_ + row * stride_, *cells = c_.get() + i * p_.hidden;
    const T* h = h_.get() + i * p_.output;
    for_vectors<Acc>(p_.hidden, [&](int64_t j, auto n) {
      V x[kGates], r[kGates], kept[kKept];
      V state = Cell::kHasCell ? load(cells + j, n) : load(h + j, n);
      for (int g = 0; g < kGates; ++g) {
        x[g] = load(reserve + g * p_.hidden + j, n);
        r[g] = load(product + g * p_.hidden + j, n);
        prefetch_to_read(reserve + stride_ + g * p_.hidden + j);  // the next row's
      }
      const V next = Cell::forward(x, r, state, kept);
      if (Cell::kHasCell) store(state, cells + j, n);
      if (p_.save) {
        for (int k = 0; k < kKept; ++k) store(kept[k], reserve + k * p_.hidden + j, n);
      }
      p_.projects() ? store(next, out + j, n) : emit(next, row, i, j, n);
    });
  }

  // The output is the state: a sequence in two calls gives what it gives in one.
  void emit(V h, int64_t row, int64_t i, int64_t j, int n) {
    store(h, static_cast<T*>(p_.y) + row * p_.output + j, n);
    store(h, h_.get() + i * p_.output + j, n);
  }

  const RnnParams& p_;
  const int64_t gates_ = kGates * p_.hidden, stride_ = (p_.save ? kKept : kGates) * p_.hidden;
  Acc* const reserve_ = static_cast<Acc*>(p_.reserve);
  Scratch<T> h_{p_.batch * p_.output};
  Scratch<Acc> c_{Cell::kHasCell ? p_.batch * p_.hidden : 0};
  Scratch<Acc> b_ih_{gates_}, b_hh_{gates_};
  const StepProduct<T> from_h_{
      gates_,   p_.output,      {static_cast<const T*>(p_.w_hh), gates_, p_.output, 1},
      p_.steps, p_.step_rows(), p_.precision};
  const StepProduct<T> projection_{p_.projects() ? p_.output : 0,
                                   p_.hidden,
                                   {static_cast<const T*>(p_.w_hr), p_.output, p_.hidden, 1},
                                   p_.steps,
                                   p_.step_rows(),
                                   p_.precision};
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
