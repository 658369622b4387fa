// Where the gradients of scores are added up to that of a mask.
#pragma once

#include "attention/attention_tile_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Key blocks of a row that several heads add to, by different threads, have memory of their own
// until all is summed. Beside each other, what a prefetcher brings past the end of a block is what
// the other thread is about to write, and lines travel between cores for each head: 14 or 20 ms
// (4×8×512×512 of D = 64, Zen 5, November 2026).
template <class Acc>
class MaskGradientRows {
  using V = Vec<Acc>;

 public:
  // Blocks of block_keys are dealt out to `splits` tasks.
  MaskGradientRows(const AttentionBackwardParams& p, int64_t splits, int64_t block_keys)
      : grad_(p.grad_mask),
        keys_(p.keys),
        block_keys_(block_keys),
        rows_apart_(splits > 1 && is_summed(p) ? count_rows(p) : 0),
        blocks_(rows_apart_ * round_up(p.keys, block_keys)) {
    for_each_block([&](int64_t block) {
      const int64_t size = rows_apart_ * block_keys_;
      std::fill_n(blocks_.get() + block * size, size, Acc{0});
    });
  }

  // From key s0 on, the first of a block; null where it is not wanted.
  Acc* row(int64_t b, int64_t h, int64_t l, int64_t s0) const {
    if (grad_.data == nullptr) return nullptr;
    const int64_t at = b * grad_.b + h * grad_.h + l * grad_.row;
    if (rows_apart_ == 0) return static_cast<Acc*>(grad_.data) + at + s0 * grad_.key;
    return blocks_.get() + s0 * rows_apart_ + at / keys_ * block_keys_;
  }

  // Scores from key j on, of `keys`; nothing where there is no row.
  void add(V scores, Acc* row, int64_t j, int64_t keys) const {
    if (row == nullptr || j >= keys) return;
    const int n = static_cast<int>(std::min<int64_t>(V::kWidth, keys - j));
    if (grad_.key != 0) return (V::load(row + j, n) + scores).store(row + j, n);
    alignas(64) Acc lanes[V::kWidth];
    scores.store(lanes);
    for (int i = 0; i < n; ++i) *row += lanes[i];
  }

  // Once all is summed.
  void join_blocks() const {
    for_each_block([&](int64_t block) {
      const int64_t s0 = block * block_keys_, keys = std::min(block_keys_, keys_ - s0);
      const Acc* from = blocks_.get() + s0 * rows_apart_;
      Acc* to = static_cast<Acc*>(grad_.data) + s0;
      for (int64_t row = 0; row < rows_apart_; ++row) {
        std::copy_n(from + row * block_keys_, keys, to + row * keys_);
      }
    });
  }

 private:
  static bool is_summed(const AttentionBackwardParams& p) {
    const AttentionMaskGradient& m = p.grad_mask;
    return m.data != nullptr && ((p.batch > 1 && m.b == 0) || (p.heads > 1 && m.h == 0) ||
                                 (p.queries > 1 && m.row == 0));
  }

  static int64_t count_rows(const AttentionBackwardParams& p) {
    const AttentionMaskGradient& m = p.grad_mask;
    return (m.b == 0 ? 1 : p.batch) * (m.h == 0 ? 1 : p.heads) * (m.row == 0 ? 1 : p.queries);
  }

  template <class Body>
  void for_each_block(Body&& body) const {
    const int64_t blocks = rows_apart_ == 0 ? 0 : ceil_div(keys_, block_keys_);
    parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) body(block);
    });
  }

  const AttentionMaskGradient& grad_;
  const int64_t keys_, block_keys_, rows_apart_;
  const Scratch<Acc> blocks_;  // (S / block_keys, rows, block_keys), of rows_apart_ rows
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
