// Flash attention (Dao 2023): for a block of query rows, keys pass by in blocks; scores, their
// exponentials and the product with the values stay in the cache, and what was summed so far is
// rescaled when a row's maximum rises.
//
// A thread takes consecutive query blocks of one head after another, so it packs a head's keys and
// values once and uses them for all of its query blocks.
#pragma once

#include "attention/attention_tile_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class Product>
struct ForwardBlocking : QueryBlocks {
  using Acc = typename Product::Acc;
  int64_t block_keys, key_blocks;
  int64_t held_blocks;  // packed key blocks a thread keeps: all of a head's, or one

  explicit ForwardBlocking(const AttentionParams& p) : QueryBlocks(p, Product::kRows) {
    // What a thread may hold packed; beyond this, packing again costs less than the memory.
    constexpr int64_t kHeldBytes = int64_t{8} << 20;
    block_keys = std::min(kMaxBlockKeys, round_up(p.keys, Dropout::kKeys));
    key_blocks = ceil_div(p.keys, block_keys);
    const int64_t bytes = p.keys * (p.dim + p.value_dim) * static_cast<int64_t>(sizeof(Acc));
    held_blocks = bytes <= kHeldBytes ? key_blocks : 1;
  }
};

// The workspace of one thread, and what it does with it.
template <class T, class Product>
class ForwardWorker {
  using Acc = typename Product::Acc;
  using V = Vec<Acc>;

 public:
  using Blocking = ForwardBlocking<Product>;

  ForwardWorker(const AttentionParams& p, const Blocking& blocking)
      : p_(p),
        blocking_(blocking),
        value_columns_(round_up(p.value_dim, Product::kCols)),
        mask_(p.mask),
        dropout_(p.seed, p.dropout_p),
        dropout_factors_(kMaxBlockKeys),
        queries_(Product::left_elements(blocking.block_rows, p.dim)),
        keys_stride_(Product::right_elements(blocking.block_keys, p.dim)),
        values_stride_(Product::right_elements(p.value_dim, blocking.block_keys)),
        keys_(blocking.held_blocks * keys_stride_),
        values_(blocking.held_blocks * values_stride_),
        weights_(Product::left_elements(Product::kRows, blocking.block_keys)),
        tile_(Product::kRows * blocking.block_keys),
        sums_(blocking.block_rows * value_columns_),
        softmax_(blocking.block_rows) {}

  // Query rows [l0, l0 + block_rows) of head h.
  void run(int64_t b, int64_t h, int64_t l0) {
    const int64_t rows = std::min(blocking_.block_rows, p_.queries - l0);
    const int64_t kv_head = p_.kv_head(h);
    if (head_ != b * p_.kv_heads + kv_head) {
      head_ = b * p_.kv_heads + kv_head;
      packed_blocks_ = 0;
    }
    const Packed queries =
        product_.pack_left(by_rows<T>(p_.q, b, h, l0, rows), p_.dim, queries_.get());
    std::fill_n(sums_.get(), rows * value_columns_, Acc{0});
    std::fill_n(softmax_.get(), rows, OnlineSoftmax<Acc>{});
    for (int64_t block = 0; block < blocking_.key_blocks; ++block) {
      const int64_t s0 = block * blocking_.block_keys;
      const int64_t keys = std::min(blocking_.block_keys, p_.keys - s0);
      if (visible_keys(p_.is_causal, l0 + rows - 1, s0, keys) == 0) break;
      if (meets_keys_alone(p_)) {
        for (int64_t i = 0; i < rows; ++i) attend_alone(b, h, l0, i, s0, keys);
        continue;
      }
      hold(b, kv_head, block, s0, keys);
      if (panels_may_share(b, kv_head, l0, s0, keys)) {
        for (int64_t i = 0; i < rows; i += Product::kRows) {
          attend(b, h, l0, i, std::min(Product::kRows, rows - i), s0, keys,
                 Product::from_row(queries, i));
        }
      } else {
        for (int64_t i = 0; i < rows; ++i) attend_alone(b, h, l0, i, s0, keys);
      }
    }
    write(b, h, l0, rows);
  }

 private:
  using Packed = typename Product::Packed;
  using Element = typename Product::Element;

  void hold(int64_t b, int64_t kv_head, int64_t block, int64_t s0, int64_t keys) {
    const int64_t slot = block % blocking_.held_blocks;
    Element* keys_at = keys_.get() + slot * keys_stride_;
    Element* values_at = values_.get() + slot * values_stride_;
    held_keys_ = {keys_at, p_.dim};
    held_values_ = {values_at, keys};
    if (blocking_.held_blocks == blocking_.key_blocks && block < packed_blocks_) return;
    product_.pack_right(by_rows<T>(p_.k, b, kv_head, s0, keys), p_.dim, keys_at);
    product_.pack_right(by_columns<T>(p_.v, b, kv_head, s0, p_.value_dim), keys, values_at);
    packed_blocks_ = block + 1;
  }

  // Rows of a panel share their keys up to the last row's diagonal, with weights of 0 above it. A
  // NaN or an infinity among the values must not come through those: such a block goes row by row.
  bool panels_may_share(int64_t b, int64_t kv_head, int64_t l0, int64_t s0, int64_t keys) const {
    if (visible_keys(p_.is_causal, l0, s0, keys) == keys) return true;
    V zero = V::zero();
    const auto values = by_columns<T>(p_.v, b, kv_head, s0, p_.value_dim);
    for (int64_t s = 0; s < keys; ++s) {
      for (int64_t e = 0; e < p_.value_dim; e += V::kWidth) {
        const int n = static_cast<int>(std::min<int64_t>(V::kWidth, p_.value_dim - e));
        zero = V::fma(values.load(s * p_.v.row + e, n), V::zero(), zero);
      }
    }
    return zero.sum() == 0;
  }

  // Rows [i, i + rows) of the block, `queries`, within one panel, meet the keys held.
  void attend(int64_t b, int64_t h, int64_t l0, int64_t i, int64_t rows, int64_t s0, int64_t keys,
              const Packed& queries) {
    const int64_t depth = visible_keys(p_.is_causal, l0 + i + rows - 1, s0, keys);
    if (depth == 0) return;
    const int64_t ld = blocking_.block_keys;
    product_.multiply(rows, depth, p_.dim, queries, held_keys_, tile_.get(), ld, false);
    const int64_t width = round_up(depth, V::kWidth);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t l = l0 + i + r;
      const int64_t visible = visible_keys(p_.is_causal, l, s0, keys);
      soften(tile_.get() + r * ld, softmax_[i + r], sums_.get() + (i + r) * value_columns_,
             mask_.row(b, h, l, s0, keys), visible, width);
      if (p_.dropout_p > 0)
        drop(tile_.get() + r * ld, (b * p_.heads + h) * p_.queries + l, s0, width);
    }
    const StridedOperand<Acc> weights{tile_.get(), rows, ld, 1};
    product_.multiply(rows, p_.value_dim, depth, product_.pack_left(weights, depth, weights_.get()),
                      held_values_, sums_.get() + i * value_columns_, value_columns_, true);
  }

  // Row i of the block meets keys as they lie in memory, and none that it does not see.
  void attend_alone(int64_t b, int64_t h, int64_t l0, int64_t i, int64_t s0, int64_t keys) {
    const int64_t kv_head = p_.kv_head(h), l = l0 + i;
    const int64_t visible = visible_keys(p_.is_causal, l, s0, keys);
    if (visible == 0) return;
    const auto q = by_rows<T>(p_.q, b, h, l, 1), k = by_rows<T>(p_.k, b, kv_head, s0, keys);
    Acc* x = tile_.get();
    multiply_row(q, k, visible, p_.dim, x);
    Acc* sums = sums_.get() + i * value_columns_;
    const int64_t width = round_up(visible, V::kWidth);
    soften(x, softmax_[i], sums, mask_.row(b, h, l, s0, keys), visible, width);
    if (p_.dropout_p > 0) drop(x, (b * p_.heads + h) * p_.queries + l, s0, width);
    add_values(x, by_rows<T>(p_.v, b, kv_head, s0, visible), sums);
  }

  // sums += weights·values, so many vectors of columns at a time that sums hide an FMA's latency.
  void add_values(const Acc* weights, const StridedOperand<T>& values, Acc* sums) const {
    for (int64_t e = 0; e < p_.value_dim;) {
      const int64_t left = p_.value_dim - e;
      if (left >= 8 * V::kWidth) {
        e += add_columns<8>(weights, values, e, V::kWidth, sums);
      } else if (left >= 4 * V::kWidth) {
        e += add_columns<4>(weights, values, e, V::kWidth, sums);
      } else {
        const int64_t last = std::min<int64_t>(V::kWidth, left);
        e += add_columns<1>(weights, values, e, static_cast<int>(last), sums);
      }
    }
  }

  // Of kVecs vectors of columns from e on, the last of which has `last`; their number.
  template <int kVecs>
  int64_t add_columns(const Acc* weights, const StridedOperand<T>& values, int64_t e, int last,
                      Acc* sums) const {
    V sum[kVecs];
#pragma GCC unroll 8
    for (V& v : sum) v = V::zero();
    for (int64_t s = 0; s < values.extent; ++s) {
      const V weight = V::set1(weights[s]);
      const int64_t row = s * values.i_stride + e;
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        const bool whole = v + 1 < kVecs || last == V::kWidth;
        const V value =
            whole ? values.load(row + v * V::kWidth) : values.load(row + v * V::kWidth, last);
        sum[v] = V::fma(weight, value, sum[v]);
      }
    }
    for (int v = 0; v < kVecs; ++v, sums += V::kWidth) {
      (sum[v] + V::load(sums + e)).store(sums + e);
    }
    return (kVecs - 1) * V::kWidth + last;
  }

  void soften(Acc* x, OnlineSoftmax<Acc>& softmax, Acc* sums, const Acc* mask, int64_t visible,
              int64_t width) const {
    const auto scale = static_cast<Acc>(p_.scale);
    const Acc factor =
        softmax.raise_max(finish_scores(x, scale, mask, visible, width).reduce_max());
    softmax.sum += exponentials(x, softmax.max, width);
    if (factor == 1) return;
    for (int64_t e = 0; e < value_columns_; e += V::kWidth) {
      (V::load(sums + e) * V::set1(factor)).store(sums + e);
    }
  }

  void drop(Acc* x, int64_t row, int64_t s0, int64_t width) const {
    dropout_row(dropout_, row, s0, width, dropout_factors_.get());
    for (int64_t j = 0; j < width; j += V::kWidth) {
      (V::load(x + j) * V::load(dropout_factors_.get() + j)).store(x + j);
    }
  }

  void write(int64_t b, int64_t h, int64_t l0, int64_t rows) const {
    const int64_t first = (b * p_.heads + h) * p_.queries + l0;
    for (int64_t i = 0; i < rows; ++i) {
      const Acc scale = softmax_[i].row_scale();
      static_cast<Acc*>(p_.row_max)[first + i] = softmax_[i].max;
      static_cast<Acc*>(p_.row_scale)[first + i] = scale;
      const Acc* sums = sums_.get() + i * value_columns_;
      T* out = row_of<T>(p_.out, b, h, l0 + i);
      for (int64_t e = 0; e < p_.value_dim; e += V::kWidth) {
        const int n = static_cast<int>(std::min<int64_t>(V::kWidth, p_.value_dim - e));
        (V::load(sums + e) * V::set1(scale)).store(out + e, n);
      }
    }
  }

  const AttentionParams& p_;
  const Blocking& blocking_;
  const int64_t value_columns_;  // E in whole panels
  Product product_;
  MaskRows<T> mask_;
  const Dropout dropout_;
  Scratch<Acc> dropout_factors_;
  Scratch<Element> queries_;
  const int64_t keys_stride_, values_stride_;  // of packed key blocks
  Scratch<Element> keys_, values_, weights_;
  Scratch<Acc> tile_, sums_;
  Scratch<OnlineSoftmax<Acc>> softmax_;
  Packed held_keys_{}, held_values_{};
  int64_t head_ = -1, packed_blocks_ = 0;
};

template <class T, class Engine>
void attention_forward(const AttentionParams& p) {
  run_query_blocks<ForwardWorker<T, TileProduct<Engine>>>(p, int64_t{1} << 18);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
