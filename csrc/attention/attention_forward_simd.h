// Flash attention (Dao 2023): for a block of query rows, keys pass by in blocks; scores, their
// exponentials and the product with the values stay in the cache, and what was summed so far is
// rescaled when a row's maximum rises.
//
// A thread takes consecutive query blocks of one head after another, so it packs a head's keys and
// values once and uses them for all of its query blocks.
#pragma once

#include "attention/attention_tile_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

struct ForwardBlocking {
  int64_t block_rows, row_blocks, block_keys, key_blocks;
  int64_t held_blocks;  // packed key blocks a thread keeps: all of a head's, or one

  explicit ForwardBlocking(const AttentionParams& p) {
    // 16 panels share every packed key block that comes from L2 or beyond.
    constexpr int64_t kPanels = 16;
    // What a thread may hold packed; beyond this, packing again costs less than the memory.
    constexpr int64_t kHeldBytes = int64_t{8} << 20;
    const int64_t panels = ceil_div(p.queries, Tile::kRows), heads = p.batch * p.heads;
    row_blocks = std::min(panels, std::max(ceil_div(panels, kPanels),
                                           ceil_div(num_threads(), std::max<int64_t>(heads, 1))));
    block_rows = ceil_div(panels, std::max<int64_t>(row_blocks, 1)) * Tile::kRows;
    row_blocks = ceil_div(p.queries, std::max<int64_t>(block_rows, 1));
    block_keys = std::min(kMaxBlockKeys, round_up(p.keys, Dropout::kKeys));
    key_blocks = p.keys == 0 ? 0 : ceil_div(p.keys, block_keys);
    const int64_t bytes = key_blocks * block_keys * (p.dim + p.value_dim) * 4;
    held_blocks = bytes <= kHeldBytes ? std::max<int64_t>(key_blocks, 1) : 1;
  }
};

// The workspace of one thread, and what it does with it.
template <class T>
class ForwardWorker {
 public:
  ForwardWorker(const AttentionParams& p, const ForwardBlocking& blocking)
      : p_(p),
        blocking_(blocking),
        value_columns_(round_up(p.value_dim, Tile::kCols)),
        mask_(p.mask),
        dropout_(p.seed, p.dropout_p),
        dropout_factors_(kMaxBlockKeys),
        queries_(blocking.block_rows * p.dim),
        keys_(blocking.held_blocks * blocking.block_keys * p.dim),
        values_(blocking.held_blocks * blocking.block_keys * value_columns_),
        tile_(Tile::kRows * blocking.block_keys),
        weights_(Tile::kRows * blocking.block_keys),
        sums_(blocking.block_rows * value_columns_),
        softmax_(blocking.block_rows) {}

  // Query rows [l0, l0 + block_rows) of head h.
  void run(int64_t b, int64_t h, int64_t l0) {
    const int64_t rows = std::min(blocking_.block_rows, p_.queries - l0);
    const int64_t kv_head = h / (p_.heads / p_.kv_heads);
    if (head_ != b * p_.kv_heads + kv_head) {
      head_ = b * p_.kv_heads + kv_head;
      packed_blocks_ = 0;
    }
    pack_left(by_rows<T>(p_.q, b, h, l0, rows), p_.dim, queries_.get());
    std::fill_n(sums_.get(), rows * value_columns_, 0.0f);
    std::fill_n(softmax_.get(), rows, OnlineSoftmax<float>{});
    for (int64_t block = 0; block < blocking_.key_blocks; ++block) {
      const int64_t s0 = block * blocking_.block_keys;
      const int64_t keys = std::min(blocking_.block_keys, p_.keys - s0);
      if (visible_keys(p_.is_causal, l0 + rows - 1, s0, keys) == 0) break;
      hold(b, kv_head, block, s0, keys);
      const int64_t height = rows_at_once(l0, s0, keys);
      for (int64_t i = 0; i < rows; i += height) {
        attend(b, h, l0, i, std::min(height, rows - i), s0, keys);
      }
    }
    write(b, h, l0, rows);
  }

 private:
  void hold(int64_t b, int64_t kv_head, int64_t block, int64_t s0, int64_t keys) {
    const int64_t slot = block % blocking_.held_blocks * blocking_.block_keys;
    held_keys_ = {keys_.get() + slot * p_.dim, p_.dim};
    held_values_ = {values_.get() + slot * value_columns_, keys};
    if (blocking_.held_blocks == blocking_.key_blocks && block < packed_blocks_) return;
    pack_right(by_rows<T>(p_.k, b, kv_head, s0, keys), p_.dim, keys_.get() + slot * p_.dim);
    pack_right(by_columns<T>(p_.v, b, kv_head, s0, p_.value_dim), keys,
               values_.get() + slot * value_columns_);
    packed_blocks_ = block + 1;
  }

  // Rows of a panel share their keys up to the last row's diagonal, with weights of 0 above it. A
  // NaN or an infinity among the values must not come through those: such a block goes row by row.
  int64_t rows_at_once(int64_t l0, int64_t s0, int64_t keys) const {
    if (visible_keys(p_.is_causal, l0, s0, keys) == keys) return Tile::kRows;
    using V = Vec<float>;
    V zero = V::zero();
    for (int64_t i = 0; i < keys * value_columns_; i += V::kWidth) {
      zero = V::fma(V::load(held_values_.data + i), V::zero(), zero);
    }
    return zero.sum() == 0 ? Tile::kRows : 1;
  }

  // Rows [i, i + rows) of the block, within one panel, meet the keys held.
  void attend(int64_t b, int64_t h, int64_t l0, int64_t i, int64_t rows, int64_t s0, int64_t keys) {
    const int64_t depth = visible_keys(p_.is_causal, l0 + i + rows - 1, s0, keys);
    if (depth == 0) return;
    const int64_t panel = i / Tile::kRows * Tile::kRows, ld = blocking_.block_keys;
    const Packed queries{queries_.get() + panel * p_.dim + (i - panel), p_.dim};
    multiply_tile(rows, depth, p_.dim, queries, held_keys_, tile_.get(), ld, false);
    const int64_t width = round_up(depth, Vec<float>::kWidth);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t l = l0 + i + r;
      const int64_t visible = visible_keys(p_.is_causal, l, s0, keys);
      soften(tile_.get() + r * ld, softmax_[i + r], sums_.get() + (i + r) * value_columns_,
             mask_.row(b, h, l, s0, keys), visible, width);
      if (p_.dropout_p > 0)
        drop(tile_.get() + r * ld, (b * p_.heads + h) * p_.queries + l, s0, width);
    }
    const StridedOperand<float> weights{tile_.get(), rows, ld, 1};
    multiply_tile(rows, p_.value_dim, depth, pack_left(weights, depth, weights_.get()),
                  held_values_, sums_.get() + i * value_columns_, value_columns_, true);
  }

  void soften(float* x, OnlineSoftmax<float>& softmax, float* sums, const float* mask,
              int64_t visible, int64_t width) const {
    using V = Vec<float>;
    const auto scale = static_cast<float>(p_.scale);
    const float factor =
        softmax.raise_max(finish_scores(x, scale, mask, visible, width).reduce_max());
    softmax.sum += exponentials(x, softmax.max, width);
    if (factor == 1) return;
    for (int64_t e = 0; e < value_columns_; e += V::kWidth) {
      (V::load(sums + e) * V::set1(factor)).store(sums + e);
    }
  }

  void drop(float* x, int64_t row, int64_t s0, int64_t width) const {
    using V = Vec<float>;
    dropout_row(dropout_, row, s0, width, dropout_factors_.get());
    for (int64_t j = 0; j < width; j += V::kWidth) {
      (V::load(x + j) * V::load(dropout_factors_.get() + j)).store(x + j);
    }
  }

  void write(int64_t b, int64_t h, int64_t l0, int64_t rows) const {
    using V = Vec<float>;
    const int64_t first = (b * p_.heads + h) * p_.queries + l0;
    for (int64_t i = 0; i < rows; ++i) {
      const float scale = softmax_[i].row_scale();
      static_cast<float*>(p_.row_max)[first + i] = softmax_[i].max;
      static_cast<float*>(p_.row_scale)[first + i] = scale;
      const float* sums = sums_.get() + i * value_columns_;
      T* out = static_cast<T*>(p_.out.data) + b * p_.out.b + h * p_.out.h + (l0 + i) * p_.out.row;
      for (int64_t e = 0; e < p_.value_dim; e += V::kWidth) {
        const int n = static_cast<int>(std::min<int64_t>(V::kWidth, p_.value_dim - e));
        (V::load(sums + e) * V::set1(scale)).store(out + e, n);
      }
    }
  }

  const AttentionParams& p_;
  const ForwardBlocking& blocking_;
  const int64_t value_columns_;  // E in whole panels
  MaskRows<T> mask_;
  const Dropout dropout_;
  Scratch<float> dropout_factors_, queries_, keys_, values_, tile_, weights_, sums_;
  Scratch<OnlineSoftmax<float>> softmax_;
  Packed held_keys_{}, held_values_{};
  int64_t head_ = -1, packed_blocks_ = 0;
};

template <class T>
void attention_forward(const AttentionParams& p) {
  const ForwardBlocking blocking(p);
  const int64_t tasks = p.batch * p.heads * blocking.row_blocks;
  // Below 2^18 multiply-adds a second thread costs more than it brings.
  const int64_t work = blocking.block_rows * std::max<int64_t>(p.keys, 1) * (p.dim + p.value_dim);
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 18) / std::max<int64_t>(work, 1));
  parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    ForwardWorker<T> worker(p, blocking);
    for (int64_t task = begin; task < end; ++task) {
      // Causal blocks grow with the row: taken from both ends, every share weighs the same.
      const int64_t turn = task % blocking.row_blocks, head = task / blocking.row_blocks;
      const int64_t block = turn % 2 == 0 ? turn / 2 : blocking.row_blocks - 1 - turn / 2;
      worker.run(head / p.heads, head % p.heads, block * blocking.block_rows);
    }
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
