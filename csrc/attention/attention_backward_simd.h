// The gradients of flash attention: a block of keys meets every block of queries, the softmax is
// recomputed from row_max and row_scale, and five tile products share it:
//   P = softmax(q·kᵀ)   dP = dout·vᵀ   dS = P∘(dP - rowsum(dout∘out))
//   dv += Pᵀ·dout   dk += dSᵀ·q   dq += dS·k
//
// dk and dv of a key block belong to one task. dq is summed over the key blocks, so where heads are
// too few for the threads the key blocks are dealt out to several tasks, each with a dq of its own,
// added up in order afterwards: no atomics, the same result run after run.
#pragma once

#include "attention/attention_mask_gradient_simd.h"
#include "attention/attention_tile_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Of a row's exponentials, and of these times dP: with all keys they say what P still has to be
// multiplied with, and rowsum(dP∘P).
template <class Acc>
struct RowSums {
  Acc weights = 0, gradients = 0;

  Acc scale() const { return weights == 0 ? Acc{0} : 1 / weights; }
  Acc delta() const { return gradients * scale(); }
};

// rowsum(dout∘out) has the rounding of out: in 16 bits too much where few keys outweigh all others,
// so that dP less it all but cancels. Native's fused kernel has that error as well; what is not for
// it, native computes in float32. There rowsum(dP∘P) is summed first, in a pass over the keys that
// has scores and dP of its own, unless one block has all keys; not for dropout, where a gradient is
// one of many as it is.
template <class T>
bool sums_rows_first(const AttentionBackwardParams& p, int64_t key_blocks) {
  const bool fused_natively = p.dim == p.value_dim && p.grad_mask.data == nullptr;
  return sizeof(T) == 2 && !fused_natively && key_blocks > 1;
}

// The rows of all heads, to (B, H, L).
template <class Worker, class Acc>
void sum_rows(const AttentionBackwardParams& p, const typename Worker::Blocking& blocking,
              const MaskGradientRows<Acc>& grad_mask, RowSums<Acc>* sums) {
  const int64_t blocks = blocking.row_blocks;
  parallel_for(0, p.batch * p.heads * blocks, 1, [&](int64_t begin, int64_t end) {
    Worker worker(p, blocking, grad_mask, sums, nullptr);
    for (int64_t task = begin; task < end; ++task) {
      worker.sum_rows(task / blocks / p.heads, task / blocks % p.heads, task % blocks);
    }
  });
}

// Who sums the gradients of keys, values and mask: tasks never meet in one of them.
struct BackwardTasks {
  int64_t pairs;   // of batch and key/value head
  int64_t units;   // groups of pairs that may run at the same time
  int64_t splits;  // tasks a unit's key blocks are dealt out to, at most

  explicit BackwardTasks(const AttentionBackwardParams& p) : pairs(p.batch * p.kv_heads) {
    const AttentionMaskGradient& m = p.grad_mask;
    const bool shared =
        m.data != nullptr && ((p.batch > 1 && m.b == 0) || (p.kv_heads > 1 && m.h == 0));
    units = shared ? 1 : pairs;
    splits = m.data != nullptr && m.key == 0 ? 1 : key_splits(units);
  }

  // run(pair, split) of every task, by workers that make_worker() makes, one a thread.
  template <class MakeWorker>
  void run(MakeWorker&& make_worker) const {
    parallel_for(0, units * splits, 1, [&](int64_t begin, int64_t end) {
      auto worker = make_worker();
      for (int64_t task = begin; task < end; ++task) {
        const int64_t unit = task / splits, split = task % splits, share = pairs / units;
        for (int64_t i = 0; i < share; ++i) worker.run(unit * share + i, split);
      }
    });
  }
};

// Every gradient but that of the queries, and the splits' sums of that.
template <class T, class Worker, class Acc>
void sum_gradients(const AttentionBackwardParams& p, const typename Worker::Blocking& blocking,
                   Acc* sums_q) {
  const bool first = sums_rows_first<T>(p, blocking.key_blocks);
  Scratch<RowSums<Acc>> row_sums(first ? p.batch * p.heads * p.queries : 0);
  const MaskGradientRows<Acc> grad_mask(p, blocking.splits, blocking.block_keys);
  if (first) sum_rows<Worker>(p, blocking, grad_mask, row_sums.get());
  blocking.run(
      [&] { return Worker(p, blocking, grad_mask, first ? row_sums.get() : nullptr, sums_q); });
  grad_mask.join_blocks();
}

template <class Product>
struct BackwardBlocking : BackwardTasks {
  int64_t block_rows, row_blocks, block_keys, key_blocks, query_columns;

  explicit BackwardBlocking(const AttentionBackwardParams& p) : BackwardTasks(p) {
    const int64_t share = round_up(ceil_div(p.keys, splits), Dropout::kKeys);
    block_keys = std::min(kMaxBlockKeys, share);
    key_blocks = ceil_div(p.keys, block_keys);
    splits = std::min(splits, key_blocks);
    // Two tiles of 112×256 scores (224 KiB) and everything packed stay in a 1 MiB L2.
    constexpr int64_t kPanels = 8;
    block_rows = std::min(kPanels * Product::kRows, round_up(p.queries, Product::kRows));
    row_blocks = ceil_div(p.queries, block_rows);
    query_columns = round_up(p.dim, Product::kCols);
  }
};

// scale·sums, one row: `splits` of them, `stride` apart, are added up in order.
template <class T>
void write_row(const acc_t<T>* sums, int64_t splits, int64_t stride, int64_t columns, double scale,
               T* out) {
  using V = Vec<acc_t<T>>;
  for (int64_t j = 0; j < columns; j += V::kWidth) {
    const int n = static_cast<int>(std::min<int64_t>(V::kWidth, columns - j));
    V sum = V::load(sums + j);
    for (int64_t split = 1; split < splits; ++split) sum = sum + V::load(sums + split * stride + j);
    (sum * V::set1(static_cast<acc_t<T>>(scale))).store(out + j, n);
  }
}

template <class T, class Product>
class BackwardWorker {
  using Acc = typename Product::Acc;
  using V = Vec<Acc>;

 public:
  using Blocking = BackwardBlocking<Product>;

  // row_sums: (B, H, L), or null where rows are not summed first.
  BackwardWorker(const AttentionBackwardParams& p, const Blocking& blocking,
                 const MaskGradientRows<Acc>& grad_mask, RowSums<Acc>* row_sums, Acc* sums_q)
      : p_(p),
        blocking_(blocking),
        columns_(blocking.query_columns),
        value_columns_(round_up(p.value_dim, Product::kCols)),
        ld_(blocking.block_keys),
        row_sums_(row_sums),
        sums_q_(sums_q),
        mask_(p.mask),
        grad_mask_(grad_mask),
        dropout_(p.seed, p.dropout_p),
        dropout_factors_(kMaxBlockKeys),
        keys_right_(Product::right_elements(ld_, p.dim)),
        keys_summed_(Product::right_elements(p.dim, ld_)),
        values_right_(Product::right_elements(ld_, p.value_dim)),
        queries_left_(Product::left_elements(blocking.block_rows, p.dim)),
        queries_summed_(Product::right_elements(p.dim, blocking.block_rows)),
        grads_left_(Product::left_elements(blocking.block_rows, p.value_dim)),
        grads_summed_(Product::right_elements(p.value_dim, blocking.block_rows)),
        left_(std::max(Product::left_elements(blocking.block_rows, ld_),
                       Product::left_elements(ld_, blocking.block_rows))),
        weights_(blocking.block_rows * ld_),
        grad_scores_(blocking.block_rows * ld_),
        sums_k_(ld_ * columns_),
        sums_v_(ld_ * value_columns_) {}

  // Every split-th key block of one (b, key/value head) with the query heads that share it.
  void run(int64_t pair, int64_t split) {
    const int64_t b = pair / p_.kv_heads, kv_head = pair % p_.kv_heads;
    const int64_t group = p_.group();
    Acc* sums_q =
        sums_q_ + ((split * p_.batch + b) * p_.heads + kv_head * group) * p_.queries * columns_;
    std::fill_n(sums_q, group * p_.queries * columns_, Acc{0});
    for (int64_t block = split; block < blocking_.key_blocks; block += blocking_.splits) {
      const int64_t s0 = block * ld_, keys = std::min(ld_, p_.keys - s0);
      hold(b, kv_head, s0, keys);
      hold_sums(b, kv_head, s0, keys);
      for (int64_t i = 0; i < group; ++i) {
        for (int64_t l0 = 0; l0 < p_.queries; l0 += blocking_.block_rows) {
          meet(b, kv_head * group + i, l0, s0, keys, sums_q + (i * p_.queries + l0) * columns_);
        }
      }
      write(p_.grad_k, b, kv_head, s0, keys, sums_k_.get(), columns_, p_.dim, p_.scale);
      write(p_.grad_v, b, kv_head, s0, keys, sums_v_.get(), value_columns_, p_.value_dim, 1);
    }
  }

  // A block of query rows over all keys.
  void sum_rows(int64_t b, int64_t h, int64_t block) {
    const int64_t l0 = block * blocking_.block_rows;
    const int64_t rows = std::min(blocking_.block_rows, p_.queries - l0);
    const int64_t index = (b * p_.heads + h) * p_.queries + l0;
    std::fill_n(row_sums_ + index, rows, RowSums<Acc>{});
    for (int64_t s0 = 0; s0 < p_.keys; s0 += ld_) {
      const int64_t held = std::min(ld_, p_.keys - s0);
      const int64_t keys = visible_keys(p_.is_causal, l0 + rows - 1, s0, held);
      if (keys == 0) break;
      hold(b, p_.kv_head(h), s0, held);
      score(b, h, l0, rows, s0, keys);
      for (int64_t r = 0; r < rows; ++r) {
        finish_row(b, h, l0 + r, s0, keys, r * ld_);
        const Acc max = static_cast<const Acc*>(p_.row_max)[index + r];
        const RowSums<Acc> some = weigh(index + r, s0, keys, max, r * ld_);
        row_sums_[index + r].weights += some.weights;
        row_sums_[index + r].gradients += some.gradients;
      }
    }
  }

 private:
  using Packed = typename Product::Packed;
  using Element = typename Product::Element;

  void hold(int64_t b, int64_t kv_head, int64_t s0, int64_t keys) {
    keys_ = product_.pack_right(by_rows<T>(p_.k, b, kv_head, s0, keys), p_.dim, keys_right_.get());
    values_ = product_.pack_right(by_rows<T>(p_.v, b, kv_head, s0, keys), p_.value_dim,
                                  values_right_.get());
  }
  // What the sums over these keys take besides.
  void hold_sums(int64_t b, int64_t kv_head, int64_t s0, int64_t keys) {
    keys_for_q_ =
        product_.pack_right(by_columns<T>(p_.k, b, kv_head, s0, p_.dim), keys, keys_summed_.get());
    std::fill_n(sums_k_.get(), keys * columns_, Acc{0});
    std::fill_n(sums_v_.get(), keys * value_columns_, Acc{0});
  }

  // The block of query rows from l0 on against the keys held.
  void meet(int64_t b, int64_t h, int64_t l0, int64_t s0, int64_t held_keys, Acc* sums_q) {
    const int64_t rows = std::min(blocking_.block_rows, p_.queries - l0);
    const int64_t keys = visible_keys(p_.is_causal, l0 + rows - 1, s0, held_keys);
    if (keys == 0) return;
    score(b, h, l0, rows, s0, keys);
    for (int64_t r = 0; r < rows; ++r) row(b, h, l0 + r, s0, keys, r * ld_);

    const Packed q =
        product_.pack_right(by_columns<T>(p_.q, b, h, l0, p_.dim), rows, queries_summed_.get());
    const Packed g = product_.pack_right(by_columns<T>(p_.grad_out, b, h, l0, p_.value_dim), rows,
                                         grads_summed_.get());
    product_.multiply(keys, p_.value_dim, rows, transposed(weights_.get(), keys, rows), g,
                      sums_v_.get(), value_columns_, true);
    product_.multiply(keys, p_.dim, rows, transposed(grad_scores_.get(), keys, rows), q,
                      sums_k_.get(), columns_, true);
    const StridedOperand<Acc> grad_scores{grad_scores_.get(), rows, ld_, 1};
    product_.multiply(rows, p_.dim, keys, product_.pack_left(grad_scores, keys, left_.get()),
                      keys_for_q_, sums_q, columns_, true);
  }

  // The tiles of scores and of dP.
  void score(int64_t b, int64_t h, int64_t l0, int64_t rows, int64_t s0, int64_t keys) {
    const Packed grads = product_.pack_left(by_rows<T>(p_.grad_out, b, h, l0, rows), p_.value_dim,
                                            grads_left_.get());
    if (meets_keys_alone(p_)) {
      const auto k = by_rows<T>(p_.k, b, p_.kv_head(h), s0, keys);
      for (int64_t r = 0; r < rows; ++r) {
        multiply_row(by_rows<T>(p_.q, b, h, l0 + r, 1), k, keys, p_.dim, weights_.get() + r * ld_);
      }
    } else {
      const Packed queries =
          product_.pack_left(by_rows<T>(p_.q, b, h, l0, rows), p_.dim, queries_left_.get());
      product_.multiply(rows, keys, p_.dim, queries, keys_, weights_.get(), ld_, false);
    }
    product_.multiply(rows, keys, p_.value_dim, grads, values_, grad_scores_.get(), ld_, false);
  }

  Packed transposed(const Acc* tile, int64_t keys, int64_t rows) {
    return product_.pack_left(StridedOperand<Acc>{tile, keys, 1, ld_}, rows, left_.get());
  }

  // One row of the tiles: scores become the dropped-out softmax, dP becomes dS.
  void row(int64_t b, int64_t h, int64_t l, int64_t s0, int64_t keys, int64_t at) {
    Acc *x = weights_.get() + at, *grad = grad_scores_.get() + at;
    const int64_t width = round_up(keys, V::kWidth), index = (b * p_.heads + h) * p_.queries + l;
    const Acc max = finish_row(b, h, l, s0, keys, at);
    // A tile with all of a row's keys normalises it anew: where one key outweighs all others, its
    // weight is 1 and its gradient 0 only if both come from the same rounding.
    const bool sees_all = s0 == 0 && visible_keys(p_.is_causal, l, 0, p_.keys) <= keys;
    const RowSums<Acc> sums =
        weigh(index, s0, keys, sees_all ? max : static_cast<const Acc*>(p_.row_max)[index], at);
    const RowSums<Acc>* known = sees_all               ? &sums
                                : row_sums_ != nullptr ? row_sums_ + index
                                                       : nullptr;
    const V scale =
        V::set1(known != nullptr ? known->scale() : static_cast<const Acc*>(p_.row_scale)[index]);
    const V delta = V::set1(known != nullptr ? known->delta() : grad_dot_out(b, h, l));
    for (int64_t j = 0; j < width; j += V::kWidth) {
      const V weight = V::load(x + j) * scale, factor = factor_at(j);
      (weight * factor).store(x + j);
      (weight * (V::load(grad + j) * factor - delta)).store(grad + j);
    }
    if (Acc* grad_mask = grad_mask_.row(b, h, l, s0); grad_mask != nullptr) {
      for (int64_t j = 0; j < keys; j += V::kWidth) {
        grad_mask_.add(V::load(grad + j), grad_mask, j, keys);
      }
    }
  }

  // Scores with scale and mask; their maximum.
  Acc finish_row(int64_t b, int64_t h, int64_t l, int64_t s0, int64_t keys, int64_t at) {
    return finish_scores(weights_.get() + at, static_cast<Acc>(p_.scale),
                         mask_.row(b, h, l, s0, keys), visible_keys(p_.is_causal, l, s0, keys),
                         round_up(keys, V::kWidth))
        .reduce_max();
  }

  // Finished scores become exponentials.
  RowSums<Acc> weigh(int64_t index, int64_t s0, int64_t keys, Acc max, int64_t at) {
    Acc *x = weights_.get() + at, *grad = grad_scores_.get() + at;
    const int64_t width = round_up(keys, V::kWidth);
    if (p_.dropout_p > 0) dropout_row(dropout_, index, s0, width, dropout_factors_.get());
    const Acc weights = exponentials(x, max, width);
    V gradients = V::zero();
    for (int64_t j = 0; j < width; j += V::kWidth) {
      gradients = V::fma(V::load(x + j) * factor_at(j), V::load(grad + j), gradients);
    }
    return {weights, gradients.sum()};
  }
  V factor_at(int64_t j) const {
    return p_.dropout_p > 0 ? V::load(dropout_factors_.get() + j) : V::set1(Acc{1});
  }

  Acc grad_dot_out(int64_t b, int64_t h, int64_t l) const {
    const auto grad = by_rows<T>(p_.grad_out, b, h, l, 1), out = by_rows<T>(p_.out, b, h, l, 1);
    V sum = V::zero();
    for (int64_t e = 0; e < p_.value_dim; e += V::kWidth) {
      const int n = static_cast<int>(std::min<int64_t>(V::kWidth, p_.value_dim - e));
      sum = V::fma(grad.load(e, n), out.load(e, n), sum);
    }
    return sum.sum();
  }

  static void write(const Rows& to, int64_t b, int64_t h, int64_t row0, int64_t rows,
                    const Acc* sums, int64_t ld, int64_t columns, double scale) {
    for (int64_t i = 0; i < rows; ++i) {
      write_row(sums + i * ld, 1, 0, columns, scale, row_of<T>(to, b, h, row0 + i));
    }
  }

  const AttentionBackwardParams& p_;
  const Blocking& blocking_;
  const int64_t columns_, value_columns_;  // D and E in whole panels
  const int64_t ld_;                       // of the score tiles
  RowSums<Acc>* row_sums_;                 // (B, H, L) or null
  Acc* sums_q_;                            // (splits, B, H, L, columns_)
  Product product_;
  MaskRows<T> mask_;
  const MaskGradientRows<Acc>& grad_mask_;
  const Dropout dropout_;
  Scratch<Acc> dropout_factors_;
  Scratch<Element> keys_right_, keys_summed_, values_right_;
  Scratch<Element> queries_left_, queries_summed_, grads_left_, grads_summed_;
  Scratch<Element> left_;  // whatever is left of a product with a tile of scores
  Scratch<Acc> weights_, grad_scores_, sums_k_, sums_v_;
  Packed keys_{}, values_{}, keys_for_q_{};
};

template <class T, class Engine>
void attention_backward(const AttentionBackwardParams& p) {
  using Product = TileProduct<Engine>;
  const BackwardBlocking<Product> blocking(p);
  const int64_t rows = p.batch * p.heads * p.queries;
  Scratch<acc_t<T>> sums_q(blocking.splits * rows * blocking.query_columns);
  sum_gradients<T, BackwardWorker<T, Product>>(p, blocking, sums_q.get());
  parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t l = i % p.queries, head = i / p.queries;
      write_row(sums_q.get() + i * blocking.query_columns, blocking.splits,
                rows * blocking.query_columns, p.dim, p.scale,
                row_of<T>(p.grad_q, head / p.heads, head % p.heads, l));
    }
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
