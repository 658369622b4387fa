// The gradients of flash attention by tiles of bfloat16; the five products are those of
// attention_backward_simd.h, and so is the way key blocks are dealt out to tasks.
//
// Queries are rows of the scores, so P and dS come out of the vector unit as rows. Two rows
// interleaved are a right operand summed over queries: dv and dk are kept transposed, (E, S) and
// (D, S), and turned when they are written. dS as it lies is the left operand of dq.
#pragma once

#include "attention/attention_backward_simd.h"
#include "attention/attention_tile_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// 256 deep, a product with dk or dv spends longer in the tiles than on loading and storing what it
// adds to (7 % over 128 on Emerald Rapids, November 2026; 512 is no better); the operands of a pair
// of blocks stay in L2.
inline constexpr int64_t kBlockRows = 256, kBlockKeys = 128, kScorePanel = 32;
inline constexpr int64_t kRowSteps = kBlockRows / kTileDepth, kKeySteps = kBlockKeys / kTileDepth;
inline constexpr int64_t kKeyTiles = kBlockKeys / kTileRows;
static_assert(kBlockKeys % Dropout::kKeys == 0 && kBlockKeys <= kMaxBlockKeys);

struct TileBackwardBlocking : BackwardTasks {
  int64_t block_keys = kBlockKeys, key_blocks, row_blocks;
  int64_t steps, value_steps, dim_tiles, value_tiles;

  explicit TileBackwardBlocking(const AttentionBackwardParams& p)
      : BackwardTasks(p),
        key_blocks(ceil_div(p.keys, kBlockKeys)),
        row_blocks(ceil_div(p.queries, kBlockRows)),
        steps(ceil_div(p.dim, kTileDepth)),
        value_steps(ceil_div(p.value_dim, kTileDepth)),
        dim_tiles(ceil_div(p.dim, kTileRows)),
        value_tiles(ceil_div(p.value_dim, kTileRows)) {
    splits = std::min(splits, key_blocks);
  }
  int64_t rows() const { return row_blocks * kBlockRows; }
  int64_t query_sums() const { return rows() * dim_tiles * kTileRows; }  // of one head
  int64_t key_sums() const { return dim_tiles * kKeyTiles * kSumElements; }
  int64_t value_sums() const { return value_tiles * kKeyTiles * kSumElements; }
  int64_t blocks_per_split() const { return ceil_div(key_blocks, splits); }
};

class TileBackwardWorker {
 public:
  using Blocking = TileBackwardBlocking;

  // row_sums: (B, H, L), or null where rows are not summed first.
  TileBackwardWorker(const AttentionBackwardParams& p, const Blocking& blocking,
                     const MaskGradientRows<float>& grad_mask, RowSums<float>* row_sums,
                     float* sums_q)
      : p_(p),
        blocking_(blocking),
        units_(p, p.mask),
        mask_(p.mask, p.scale),
        grad_mask_(grad_mask),
        dropout_(p.seed, p.dropout_p),
        row_sums_(row_sums),
        sums_q_(sums_q),
        queries_(blocking.rows() * blocking.steps * kTileDepth),
        queries_turned_(blocking.row_blocks * blocking.dim_tiles * kRowSteps * kTileElements),
        grads_(blocking.rows() * blocking.value_steps * kTileDepth),
        grads_turned_(blocking.row_blocks * blocking.value_tiles * kRowSteps * kTileElements),
        keys_(kBlockKeys * blocking.steps * kTileDepth),
        keys_turned_(blocking.dim_tiles * kKeySteps * kTileElements),
        values_(kBlockKeys * blocking.value_steps * kTileDepth),
        statistics_(blocking.rows()),
        sums_k_(blocking.blocks_per_split() * blocking.key_sums()),
        sums_v_(blocking.blocks_per_split() * blocking.value_sums()) {}

  // Every split-th key block of one (b, key/value head) with the query heads that share it.
  void run(int64_t pair, int64_t split) {
    const int64_t kv_head = pair % p_.kv_heads, group = p_.group();
    b_ = pair / p_.kv_heads;
    std::fill_n(sums_k_.get(), blocking_.blocks_per_split() * blocking_.key_sums(), 0.0f);
    std::fill_n(sums_v_.get(), blocking_.blocks_per_split() * blocking_.value_sums(), 0.0f);
    for (h_ = kv_head * group; h_ < (kv_head + 1) * group; ++h_) {
      head_sums_ = sums_q_ + ((split * p_.batch + b_) * p_.heads + h_) * blocking_.query_sums();
      const int64_t rows = round_up(p_.queries, kScorePanel);
      std::fill_n(head_sums_, rows * blocking_.dim_tiles * kTileRows, 0.0f);
      for (int64_t block = 0; block < blocking_.row_blocks; ++block) {
        hold_rows(block);
        turn_rows(block);
      }
      for (int64_t block = split; block < blocking_.key_blocks; block += blocking_.splits) {
        hold_keys(kv_head, block);
        for (int64_t row_block = 0; row_block < blocking_.row_blocks; ++row_block) {
          meet(row_block, block / blocking_.splits);
        }
      }
    }
    for (int64_t block = split; block < blocking_.key_blocks; block += blocking_.splits) {
      const int64_t s0 = block * kBlockKeys, slot = block / blocking_.splits;
      write(p_.grad_k, kv_head, s0, sums_k_.get() + slot * blocking_.key_sums(), p_.dim,
            static_cast<float>(p_.scale));
      write(p_.grad_v, kv_head, s0, sums_v_.get() + slot * blocking_.value_sums(), p_.value_dim, 1);
    }
  }

  // A block of query rows over all keys.
  void sum_rows(int64_t b, int64_t h, int64_t block) {
    b_ = b, h_ = h;
    const int64_t l0 = block * kBlockRows, end = std::min(l0 + kBlockRows, p_.queries);
    RowSums<float>* sums = row_sums_ + (b * p_.heads + h) * p_.queries;
    std::fill_n(sums + l0, end - l0, RowSums<float>{});
    hold_rows(block);
    for (int64_t keys = 0; keys < blocking_.key_blocks; ++keys) {
      hold_keys(p_.kv_head(h), keys);
      for (int64_t l = l0; l < end; l += kScorePanel) {
        const int64_t seen = score(l, end);
        for (int64_t r = 0; r < std::min(kScorePanel, end - l); ++r) {
          const RowSums<float> some = weigh(l, r, end, seen).sums();
          sums[l + r].weights += some.weights;
          sums[l + r].gradients += some.gradients;
        }
      }
      if (seen_keys(end - 1) < held_) break;
    }
  }

 private:
  // What the softmax of a row was, and rowsum(dout∘out).
  struct RowStatistics {
    float max, shift, scale, delta;
  };

  // A block of a head's queries and gradients, packed as rows and as columns.
  void hold_rows(int64_t block) {
    const int64_t l0 = block * kBlockRows, rows = std::min(kBlockRows, p_.queries - l0);
    const Bf16Rows q = bf16_rows(p_.q, b_, h_, l0, rows, p_.dim);
    const Bf16Rows g = bf16_rows(p_.grad_out, b_, h_, l0, rows, p_.value_dim);
    pack_rows<false>(q, blocking_.steps, queries_.get() + l0 * query_width());
    pack_rows<false>(g, blocking_.value_steps, grads_.get() + l0 * grad_width());
    for (int64_t r = 0; r < round_up(rows, kScorePanel); ++r) {
      statistics_[l0 + r] = r < rows ? statistics_of(l0 + r) : RowStatistics{};
    }
  }
  void turn_rows(int64_t block) {
    const int64_t l0 = block * kBlockRows, rows = std::min(kBlockRows, p_.queries - l0);
    const Bf16Rows q = bf16_rows(p_.q, b_, h_, l0, rows, p_.dim);
    const Bf16Rows g = bf16_rows(p_.grad_out, b_, h_, l0, rows, p_.value_dim);
    pack_columns<false>(q, blocking_.dim_tiles, kRowSteps, queries_turned(block));
    pack_columns<false>(g, blocking_.value_tiles, kRowSteps, grads_turned(block));
  }
  int64_t query_width() const { return blocking_.steps * kTileDepth; }
  int64_t grad_width() const { return blocking_.value_steps * kTileDepth; }
  uint16_t* queries_turned(int64_t block) const {
    return queries_turned_.get() + block * blocking_.dim_tiles * kRowSteps * kTileElements;
  }
  uint16_t* grads_turned(int64_t block) const {
    return grads_turned_.get() + block * blocking_.value_tiles * kRowSteps * kTileElements;
  }

  RowStatistics statistics_of(int64_t l) const {
    const int64_t row = (b_ * p_.heads + h_) * p_.queries + l;
    const float max = static_cast<const float*>(p_.row_max)[row] / units_.scale;
    if (row_sums_ != nullptr) {
      return {max, max * units_.factor, row_sums_[row].scale(), row_sums_[row].delta()};
    }
    const auto* out = row_of<BFloat16>(p_.out, b_, h_, l);
    const auto* grad = row_of<BFloat16>(p_.grad_out, b_, h_, l);
    using V = Vec<float>;
    V delta = V::zero();
    for (int64_t e = 0; e < p_.value_dim; e += V::kWidth) {
      const int n = static_cast<int>(std::min<int64_t>(V::kWidth, p_.value_dim - e));
      delta = V::fma(V::load(grad + e, n), V::load(out + e, n), delta);
    }
    return {max, max * units_.factor, static_cast<const float*>(p_.row_scale)[row], delta.sum()};
  }

  void hold_keys(int64_t kv_head, int64_t block) {
    s0_ = block * kBlockKeys;
    held_ = std::min(kBlockKeys, p_.keys - s0_);
    const Bf16Rows k = bf16_rows(p_.k, b_, kv_head, s0_, held_, p_.dim);
    const Bf16Rows v = bf16_rows(p_.v, b_, kv_head, s0_, held_, p_.value_dim);
    pack_rows<true>(k, blocking_.steps, keys_.get());
    pack_rows<true>(v, blocking_.value_steps, values_.get());
    pack_columns<true>(k, blocking_.dim_tiles, kKeySteps, keys_turned_.get());
  }

  int64_t seen_keys(int64_t l) const { return visible_keys(p_.is_causal, l, s0_, held_); }

  // A block of query rows meets the keys held; `slot` is where these are summed.
  void meet(int64_t block, int64_t slot) {
    const int64_t l0 = block * kBlockRows, end = std::min(l0 + kBlockRows, p_.queries);
    const int64_t width = round_up(seen_keys(end - 1), kTileDepth);
    if (width == 0) return;
    const int64_t panels = ceil_div(end - l0, kScorePanel);
    const int64_t first = p_.is_causal ? std::max<int64_t>(0, (s0_ - l0) / kScorePanel) : 0;
    for (int64_t panel = first; panel < panels; ++panel) soften(l0, panel, end, width);

    // Panels are the depth of dv and dk, and the rows of dq.
    const int64_t depth = panels - first, skipped = first * kTileElements;
    constexpr int64_t kRowStride = kRowSteps * kTileElements;
    const Tiles weights{weights_ + skipped, kRowStride}, scores{turned_ + skipped, kRowStride};
    multiply(blocking_.value_tiles, width / kTileRows, depth,
             {grads_turned(block) + skipped, kRowStride}, weights,
             sums_v_.get() + slot * blocking_.value_sums(), kKeyTiles, true);
    multiply(blocking_.dim_tiles, width / kTileRows, depth,
             {queries_turned(block) + skipped, kRowStride}, scores,
             sums_k_.get() + slot * blocking_.key_sums(), kKeyTiles, true);
    const Tiles rows{grad_scores_, kKeySteps * kTileElements};
    multiply(2 * depth, blocking_.dim_tiles, width / kTileDepth, rows.from(2 * first),
             {keys_turned_.get(), kKeySteps * kTileElements},
             head_sums_ + (l0 + first * kScorePanel) * blocking_.dim_tiles * kTileRows,
             blocking_.dim_tiles, true);
  }

  // 32 rows from l on: scores and dP from the tiles, up to the last key that any of them sees.
  int64_t score(int64_t l, int64_t end) {
    const int64_t seen = round_up(seen_keys(std::min(l + kScorePanel, end) - 1), kTileDepth);
    const int64_t stride = blocking_.steps * kTileElements;
    const int64_t value_stride = blocking_.value_steps * kTileElements;
    multiply(2, seen / kTileRows, blocking_.steps, {queries_.get() + l * query_width(), stride},
             {keys_.get(), stride}, scores_, kKeyTiles, false);
    multiply(2, seen / kTileRows, blocking_.value_steps,
             {grads_.get() + l * grad_width(), value_stride}, {values_.get(), value_stride},
             grad_p_, kKeyTiles, false);
    return seen;
  }

  // Then P and dS for them.
  void soften(int64_t l0, int64_t panel, int64_t end, int64_t width) {
    const int64_t l = l0 + panel * kScorePanel, seen = score(l, end);
    for (int64_t r = 0; r < kScorePanel; r += 2) {
      const WeighedRow weighed[2] = {normalise(l + r, end, weigh(l, r, end, seen)),
                                     normalise(l + r + 1, end, weigh(l, r + 1, end, seen))};
      for (int64_t j = 0; j < width; j += kTileDepth) {
        differentiate(panel, r, j, j < seen, weighed);
      }
    }
  }

  // What P still has to be multiplied with, rowsum(dout∘out), and where dS is the mask's gradient.
  struct WeighedRow {
    float scale, delta;
    float* grad_mask;
  };

  // RowSums lane by lane.
  struct LaneSums {
    __m512 weights, gradients;

    RowSums<float> sums() const {
      return {_mm512_reduce_add_ps(weights), _mm512_reduce_add_ps(gradients)};
    }
  };

  // Row r of the panel: scores become exponentials.
  LaneSums weigh(int64_t l, int64_t r, int64_t end, int64_t width) {
    const RowStatistics& row = statistics_[l + r];
    const int64_t seen = l + r < end ? seen_keys(l + r) : 0;
    float* kept = kept_[r % 2];
    if (p_.dropout_p > 0) {
      const int64_t index = (b_ * p_.heads + h_) * p_.queries + l + r;
      dropout_row(dropout_, index, s0_, width, kept);
    }
    if (units_.finished && seen > 0) {
      mask_.finish(sums_at(scores_, kKeyTiles, r, 0), b_, h_, l + r, s0_, held_, seen, width);
    }
    const bool fuses = ScoreUnits::shift_is_small(row.shift);
    const __m512 max = _mm512_set1_ps(row.max), shift = _mm512_set1_ps(row.shift);
    const __m512 factor = _mm512_set1_ps(units_.factor);
    __m512 sum = _mm512_setzero_ps(), delta = _mm512_setzero_ps();
    for (int64_t j = 0; j < width; j += 16) {
      float* at = sums_at(scores_, kKeyTiles, r, j / 16);
      const __m512 score = _mm512_load_ps(at);
      const __m512 exponent = fuses ? _mm512_fmsub_ps(score, factor, shift)
                                    : _mm512_mul_ps(_mm512_sub_ps(score, max), factor);
      const __m512 weight = _mm512_maskz_mov_ps(first_lanes(seen - j), exp2_bf16(exponent));
      sum = _mm512_add_ps(sum, weight);
      _mm512_store_ps(at, weight);
      const __m512 grad = _mm512_load_ps(sums_at(grad_p_, kKeyTiles, r, j / 16));
      const __m512 dropped =
          p_.dropout_p > 0 ? _mm512_mul_ps(weight, _mm512_load_ps(kept + j)) : weight;
      delta = _mm512_fmadd_ps(dropped, grad, delta);
    }
    return {sum, delta};
  }

  // A block with all of a row's keys normalises it anew, and takes rowsum(dP∘P), which is
  // rowsum(dout∘out) without out's rounding: where one key outweighs all others, its gradient is 0
  // only if everything comes from the same rounding.
  WeighedRow normalise(int64_t l, int64_t end, const LaneSums& lanes) const {
    float* grad_mask = l < end ? grad_mask_.row(b_, h_, l, s0_) : nullptr;
    const bool sees_all = s0_ == 0 && visible_keys(p_.is_causal, l, 0, p_.keys) <= held_;
    if (!sees_all) return {statistics_[l].scale, statistics_[l].delta, grad_mask};
    const RowSums<float> sums = lanes.sums();
    return {sums.scale(), sums.delta(), grad_mask};
  }

  // Keys [j, j + 32) of rows r and r + 1 of the panel, from P and dP to operands of P and dS.
  void differentiate(int64_t panel, int64_t r, int64_t j, bool seen, const WeighedRow (&row)[2]) {
    __m512i weights[2] = {}, scores[2] = {};
    for (int i = 0; i < 2 && seen; ++i) {
      __m512 weight[2], score[2];
      for (int half = 0; half < 2; ++half) {
        const int64_t tile = j / kTileRows + half;
        const __m512 p = _mm512_mul_ps(_mm512_load_ps(sums_at(scores_, kKeyTiles, r + i, tile)),
                                       _mm512_set1_ps(row[i].scale));
        __m512 grad = _mm512_load_ps(sums_at(grad_p_, kKeyTiles, r + i, tile));
        weight[half] = p;
        if (p_.dropout_p > 0) {
          const __m512 kept = _mm512_load_ps(kept_[i] + tile * kTileRows);
          weight[half] = _mm512_mul_ps(p, kept);
          grad = _mm512_mul_ps(grad, kept);
        }
        score[half] = _mm512_mul_ps(p, _mm512_sub_ps(grad, _mm512_set1_ps(row[i].delta)));
        grad_mask_.add({score[half]}, row[i].grad_mask, tile * kTileRows, held_);
      }
      weights[i] = (__m512i)_mm512_cvtne2ps_pbh(weight[1], weight[0]);
      scores[i] = (__m512i)_mm512_cvtne2ps_pbh(score[1], score[0]);
    }
    const int64_t at = panel * kScorePanel + r;
    uint16_t* rows = grad_scores_ +
                     ((at / kTileRows) * kKeySteps + j / kTileDepth) * kTileElements +
                     at % kTileRows * kTileDepth;
    _mm512_store_si512(rows, scores[0]);
    _mm512_store_si512(rows + kTileDepth, scores[1]);
    store_interleaved(weights, weights_, panel, r, j);
    store_interleaved(scores, turned_, panel, r, j);
  }

  // Four of every eight keys go to one tile and four to the next, as the instructions have it:
  // write() knows.
  static void store_interleaved(const __m512i (&x)[2], uint16_t* to, int64_t panel, int64_t r,
                                int64_t j) {
    uint16_t* low = to + (j / kTileRows * kRowSteps + panel) * kTileElements + r / 2 * kTileDepth;
    _mm512_store_si512(low, _mm512_unpacklo_epi16(x[0], x[1]));
    _mm512_store_si512(low + kRowSteps * kTileElements, _mm512_unpackhi_epi16(x[0], x[1]));
  }

  // Writes rows of keys from what was summed in columns.
  void write(const Rows& to, int64_t kv_head, int64_t s0, const float* sums, int64_t columns,
             float scale) const {
    const int64_t keys = std::min(kBlockKeys, p_.keys - s0);
    for (int64_t tile = 0; tile < kKeyTiles; ++tile) {
      for (int64_t e = 0; e < columns; e += kTileRows) {
        const int n = static_cast<int>(std::min<int64_t>(kTileRows, columns - e));
        Vec<float> x[kTileRows];
        for (int i = 0; i < kTileRows; ++i) {
          x[i] = Vec<float>::load(sums + (e / kTileRows * kKeyTiles + tile) * kSumElements +
                                  i * kTileRows);
        }
        transpose(x);
        for (int i = 0; i < kTileRows; ++i) {
          const int64_t key = tile / 2 * kTileDepth + i / 4 * 8 + tile % 2 * 4 + i % 4;
          if (key >= keys) continue;
          (x[i] * Vec<float>::set1(scale))
              .store(row_of<BFloat16>(to, b_, kv_head, s0 + key) + e, n);
        }
      }
    }
  }

  const TileSession session_;
  const AttentionBackwardParams& p_;
  const Blocking& blocking_;
  const ScoreUnits units_;
  TileMask mask_;
  const MaskGradientRows<float>& grad_mask_;
  const Dropout dropout_;
  RowSums<float>* row_sums_;
  float* sums_q_;  // (splits, B, H, L in blocks, D in tiles)
  Scratch<uint16_t> queries_, queries_turned_, grads_, grads_turned_;  // of a head
  Scratch<uint16_t> keys_, keys_turned_, values_;                      // of a block
  Scratch<RowStatistics> statistics_;
  Scratch<float> sums_k_, sums_v_;
  int64_t b_ = 0, h_ = 0, s0_ = 0, held_ = 0;
  float* head_sums_ = nullptr;
  alignas(64) float scores_[kScorePanel * kBlockKeys], grad_p_[kScorePanel * kBlockKeys];
  alignas(64) float kept_[2][kBlockKeys];
  alignas(64) uint16_t weights_[kBlockRows * kBlockKeys], turned_[kBlockRows * kBlockKeys];
  alignas(64) uint16_t grad_scores_[kBlockRows * kBlockKeys];
};

inline void attention_backward(const AttentionBackwardParams& p) {
  const TileBackwardBlocking blocking(p);
  const int64_t heads = p.batch * p.heads, stride = heads * blocking.query_sums();
  Scratch<float> sums_q(blocking.splits * stride);
  sum_gradients<BFloat16, TileBackwardWorker>(p, blocking, sums_q.get());
  parallel_for(0, heads * p.queries, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t l = i % p.queries, head = i / p.queries;
      auto* out = row_of<BFloat16>(p.grad_q, head / p.heads, head % p.heads, l);
      float* sums = sums_q.get() + head * blocking.query_sums();
      for (int64_t tile = 0; tile < blocking.dim_tiles; ++tile) {
        const int64_t d = tile * kTileRows, columns = std::min<int64_t>(kTileRows, p.dim - d);
        write_row(sums_at(sums, blocking.dim_tiles, l, tile), blocking.splits, stride, columns,
                  p.scale, out + d);
      }
    }
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
