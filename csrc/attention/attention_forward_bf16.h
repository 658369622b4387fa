// Flash attention by tiles of bfloat16: a panel of 32 queries meets keys in strips of 64. Scores
// come out of the tiles, their exponentials go back in as bfloat16.
//
// A row's maximum is that of its first strip and rises only when the weights grow out of hand: so
// one pass over the scores does, and what was summed is rarely rescaled. 2^16 keeps sums of values
// up to 2^111 finite.
#pragma once

#include "attention/attention_tile_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline constexpr int64_t kPanelRows = 32, kStripKeys = 64, kStripTiles = kStripKeys / kTileRows;
static_assert(kStripKeys == Dropout::kKeys);

struct TileForwardBlocking : QueryBlocks {
  int64_t strips, held_strips;
  int64_t steps, value_tiles;

  explicit TileForwardBlocking(const AttentionParams& p) : QueryBlocks(p, kPanelRows) {
    // Keys and values that all panels of a block meet while these are in L2.
    constexpr int64_t kHeldBytes = int64_t{512} << 10;
    strips = ceil_div(p.keys, kStripKeys);
    steps = ceil_div(p.dim, kTileDepth);
    value_tiles = ceil_div(p.value_dim, kTileRows);
    const int64_t bytes = 2 * (strip_keys() + strip_values());
    held_strips = std::clamp(kHeldBytes / std::max<int64_t>(bytes, 1), int64_t{1}, strips);
  }
  int64_t strip_keys() const { return kStripTiles * steps * kTileElements; }
  int64_t strip_values() const { return value_tiles * kStripKeys / kTileDepth * kTileElements; }
  int64_t value_columns() const { return value_tiles * kTileRows; }
  int64_t panels() const { return block_rows / kPanelRows; }
};

// 32 query rows on their way through the keys.
struct QueryPanel {
  int64_t b, h, first, rows;
  const uint16_t* queries;
  float* out;               // (32, E in whole tiles)
  float max[kPanelRows];    // in score units
  float shift[kPanelRows];  // the same as an exponent of two
  bool has_large_shift;
  __m512 sums[2][kPanelRows];  // lane by lane; strips write the one and the other in turn

  int64_t row(const AttentionShape& p, int64_t r) const {
    return (b * p.heads + h) * p.queries + first + r;
  }
  int64_t tiles() const { return ceil_div(rows, kTileRows); }
};

class TileForwardWorker {
 public:
  using Blocking = TileForwardBlocking;

  TileForwardWorker(const AttentionParams& p, const Blocking& blocking)
      : p_(p),
        blocking_(blocking),
        units_(p, p.mask),
        mask_(p.mask, p.scale),
        dropout_(p.seed, p.dropout_p),
        keys_(blocking.strips * blocking.strip_keys()),
        values_(blocking.strips * blocking.strip_values()),
        finite_(blocking.strips),
        queries_(blocking.block_rows * blocking.steps * kTileDepth),
        out_(blocking.block_rows * blocking.value_columns()),
        panels_(blocking.panels()) {}

  // Query rows [l0, l0 + block_rows) of head h.
  void run(int64_t b, int64_t h, int64_t l0) {
    const int64_t end = std::min(l0 + blocking_.block_rows, p_.queries);
    const int64_t panels = ceil_div(end - l0, kPanelRows);
    hold(b, p_.kv_head(h));
    for (int64_t i = 0; i < panels; ++i) start(panels_[i], i, b, h, l0 + i * kPanelRows, end);
    for (int64_t from = 0; from < blocking_.strips; from += blocking_.held_strips) {
      const int64_t to = std::min(from + blocking_.held_strips, blocking_.strips);
      for (int64_t i = 0; i < panels; ++i) attend(panels_[i], from, to);
    }
    for (int64_t i = 0; i < panels; ++i) write(panels_[i]);
  }

 private:
  // Packs the keys and values of a head, unless they are there.
  void hold(int64_t b, int64_t kv_head) {
    if (head_ == b * p_.kv_heads + kv_head) return;
    head_ = b * p_.kv_heads + kv_head;
    for (int64_t strip = 0; strip < blocking_.strips; ++strip) {
      const int64_t s0 = strip * kStripKeys, keys = std::min(kStripKeys, p_.keys - s0);
      pack_rows<true>(bf16_rows(p_.k, b, kv_head, s0, keys, p_.dim), blocking_.steps,
                      keys_.get() + strip * blocking_.strip_keys());
      const Bf16Rows values = bf16_rows(p_.v, b, kv_head, s0, keys, p_.value_dim);
      pack_columns<true>(values, blocking_.value_tiles, kStripKeys / kTileDepth,
                         values_.get() + strip * blocking_.strip_values());
      finite_[strip] = !p_.is_causal || finite(values);
    }
  }

  void start(QueryPanel& panel, int64_t i, int64_t b, int64_t h, int64_t first, int64_t end) {
    uint16_t* queries = queries_.get() + i * kPanelRows * blocking_.steps * kTileDepth;
    panel.b = b;
    panel.h = h;
    panel.first = first;
    panel.rows = std::min(kPanelRows, end - first);
    panel.queries = queries;
    panel.out = out_.get() + i * kPanelRows * blocking_.value_columns();
    panel.has_large_shift = false;
    for (int64_t r = 0; r < kPanelRows; ++r) {
      panel.max[r] = lowest<float>();
      panel.sums[0][r] = panel.sums[1][r] = _mm512_setzero_ps();
    }
    pack_rows<false>(bf16_rows(p_.q, b, h, first, panel.rows, p_.dim), blocking_.steps, queries);
  }

  struct Strip {
    int64_t index, s0, keys;
    int64_t width;  // up to the last key that any row of the panel sees, in whole tiles
  };

  Strip strip_of(const QueryPanel& panel, int64_t index, int64_t end) const {
    const int64_t s0 = index * kStripKeys, keys = std::min(kStripKeys, p_.keys - s0);
    if (index >= end) return {index, s0, 0, 0};
    const int64_t seen = visible_keys(p_.is_causal, panel.first + panel.rows - 1, s0, keys);
    return {index, s0, keys, round_up(seen, kTileDepth)};
  }

  // The panel meets strips [from, to). While the vector unit weighs one strip, the matrix unit has
  // the next one's scores and the last one's values to do: their products are spread over the rows,
  // or either unit would wait for the other.
  void attend(QueryPanel& panel, int64_t from, int64_t to) {
    Strip before{}, now{}, next = strip_of(panel, from, to);
    for (int64_t i = 0; i < score_products(next); ++i) multiply_scores(panel, next, i);
    while (next.width > 0) {
      before = now;
      now = next;
      next = strip_of(panel, now.index + 1, to);
      const int64_t scores = score_products(next),
                    products = scores + value_products(panel, before);
      const int64_t share = ceil_div(panel.rows, std::max<int64_t>(products, 1));
      __m512i largest = _mm512_setzero_si512();
      for (int64_t i = 0, r = 0; i < products || r < panel.rows; ++i, r += share) {
        if (i < scores) {
          multiply_scores(panel, next, i);
        } else if (i < products) {
          multiply_values(panel, before, i - scores);
        }
        const __m512i sums = weigh(panel, now, r, std::min(r + share, panel.rows));
        largest = _mm512_max_epu32(largest, sums);
      }
      if (out_of_hand(_mm512_castsi512_ps(largest))) weigh_again(panel, now);
    }
    for (int64_t i = 0; i < value_products(panel, now); ++i) multiply_values(panel, now, i);
  }

  static int64_t score_products(const Strip& strip) { return strip.width / kTileDepth; }

  void multiply_scores(const QueryPanel& panel, const Strip& strip, int64_t i) {
    const Tiles queries{panel.queries, blocking_.steps * kTileElements};
    const Tiles keys{keys_.get() + strip.index * blocking_.strip_keys(), queries.stride};
    multiply(panel.tiles(), 2, blocking_.steps, queries, keys.from(2 * i),
             scores_at(strip, 0, 2 * i), kStripTiles, false);
  }

  // Without tiles it is one: a hidden NaN or infinity must not meet a weight of 0.
  bool needs_care(const QueryPanel& panel, const Strip& strip) const {
    return visible_keys(p_.is_causal, panel.first, strip.s0, strip.keys) < strip.keys &&
           !finite_[strip.index];
  }
  int64_t value_products(const QueryPanel& panel, const Strip& strip) const {
    if (strip.width == 0) return 0;
    return needs_care(panel, strip) ? 1 : ceil_div(blocking_.value_tiles, 2);
  }
  void multiply_values(const QueryPanel& panel, const Strip& strip, int64_t i) {
    if (needs_care(panel, strip)) return add_seen_values(panel, strip);
    const Tiles weights{weights_at(strip, 0, 0), kStripKeys / kTileDepth * kTileElements};
    const Tiles values{values_.get() + strip.index * blocking_.strip_values(), weights.stride};
    multiply(panel.tiles(), std::min<int64_t>(2, blocking_.value_tiles - 2 * i),
             strip.width / kTileDepth, weights, values.from(2 * i),
             panel.out + 2 * i * kSumElements, blocking_.value_tiles, strip.index != 0);
  }

  float* scores_at(const Strip& strip, int64_t r, int64_t tile) {
    return sums_at(scores_[strip.index % 2], kStripTiles, r, tile);
  }
  // Where the 32 weights from key `j` of a row go.
  uint16_t* weights_at(const Strip& strip, int64_t r, int64_t j) {
    const int64_t tile = r / kTileRows * (kStripKeys / kTileDepth) + j / kTileDepth;
    return weights_[strip.index % 2] + tile * kTileElements + r % kTileRows * kTileDepth;
  }
  int64_t seen_keys(const QueryPanel& panel, const Strip& strip, int64_t r) const {
    return visible_keys(p_.is_causal, panel.first + r, strip.s0, strip.keys);
  }

  // Takes in the maximum of a strip's row; what was summed before the strip is rescaled.
  void raise_max(QueryPanel& panel, const Strip& strip, int64_t r) {
    const int64_t seen = seen_keys(panel, strip, r);
    __m512 largest = _mm512_set1_ps(lowest<float>());
    for (int64_t j = 0; j < strip.width; j += 16) {
      const __m512 score = _mm512_load_ps(scores_at(strip, r, j / 16));
      // The second operand, the maximum so far, is the result where a score is NaN.
      largest = _mm512_mask_max_ps(largest, first_lanes(seen - j), score, largest);
    }
    const float max = _mm512_reduce_max_ps(largest);
    if (max > panel.max[r]) {
      const __m512 factor = exp2_bf16(_mm512_set1_ps((panel.max[r] - max) * units_.factor));
      if (strip.index > 0) rescale(panel, r, factor, panel.sums[strip.index % 2][r]);
      panel.max[r] = max;
    }
    panel.shift[r] = panel.max[r] * units_.factor;
    panel.has_large_shift |= !ScoreUnits::shift_is_small(panel.shift[r]);
  }
  void rescale(QueryPanel& panel, int64_t r, __m512 factor, __m512& sum) {
    sum = _mm512_mul_ps(sum, factor);
    for (int64_t tile = 0; tile < blocking_.value_tiles; ++tile) {
      float* out = sums_at(panel.out, blocking_.value_tiles, r, tile);
      _mm512_store_ps(out, _mm512_mul_ps(_mm512_load_ps(out), factor));
    }
  }

  static bool out_of_hand(__m512 sum) {
    // As integers, NaN, infinity and the negative are large too.
    const __m512i limit = _mm512_set1_epi32(static_cast<int>(float_bits(0x1p16f)));
    return _mm512_cmpgt_epu32_mask(_mm512_castps_si512(sum), limit) != 0;
  }
  // Turns scores of rows [from, to) to weights; the largest sum, as bits.
  __m512i weigh(QueryPanel& panel, const Strip& strip, int64_t from, int64_t to) {
    if (units_.finished) {
      for (int64_t r = from; r < to; ++r) {
        mask_.finish(scores_at(strip, r, 0), panel.b, panel.h, panel.first + r, strip.s0,
                     strip.keys, seen_keys(panel, strip, r), strip.width);
      }
    }
    if (strip.index == 0) {
      for (int64_t r = from; r < to; ++r) raise_max(panel, strip, r);
    }
    if (seen_keys(panel, strip, 0) == kStripKeys && !panel.has_large_shift && p_.dropout_p == 0) {
      return weigh_plainly(panel, strip, from, to);
    }
    __m512i largest = _mm512_setzero_si512();
    for (int64_t r = from; r < to; ++r) {
      largest = _mm512_max_epu32(largest, weigh_row(panel, strip, r));
    }
    return largest;
  }

  // The common case: 64 keys that every row sees.
  __m512i weigh_plainly(QueryPanel& panel, const Strip& strip, int64_t from, int64_t to) {
    const __m512 factor = _mm512_set1_ps(units_.factor);
    const __m512* before = panel.sums[strip.index % 2];
    __m512* after = panel.sums[(strip.index + 1) % 2];
    __m512i largest = _mm512_setzero_si512();
    for (int64_t r = from; r < to; ++r) {
      const float* x = scores_at(strip, r, 0);
      const __m512 shift = _mm512_set1_ps(panel.shift[r]);
      __m512 weight[4];
      for (int i = 0; i < 4; ++i) {
        weight[i] = exp2_bf16(_mm512_fmsub_ps(_mm512_load_ps(x + i * kSumElements), factor, shift));
      }
      store_pair(weight[0], weight[1], weights_at(strip, r, 0));
      store_pair(weight[2], weight[3], weights_at(strip, r, 32));
      const __m512 sum =
          _mm512_add_ps(_mm512_add_ps(weight[0], weight[1]), _mm512_add_ps(weight[2], weight[3]));
      after[r] = _mm512_add_ps(before[r], sum);
      largest = _mm512_max_epu32(largest, _mm512_castps_si512(after[r]));
    }
    return largest;
  }

  // Any case: hidden keys, dropout, large shifts; what is common comes out as weigh_plainly's.
  __m512i weigh_row(QueryPanel& panel, const Strip& strip, int64_t r) {
    alignas(64) float kept[Dropout::kKeys];
    const bool drops = p_.dropout_p > 0;
    if (drops) dropout_row(dropout_, panel.row(p_, r), strip.s0, strip.width, kept);
    const int64_t seen = seen_keys(panel, strip, r);
    const bool fuses = ScoreUnits::shift_is_small(panel.shift[r]);
    const __m512 max = _mm512_set1_ps(panel.max[r]), shift = _mm512_set1_ps(panel.shift[r]);
    const __m512 factor = _mm512_set1_ps(units_.factor);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < strip.width; j += 32) {
      __m512 weight[2];
      for (int i = 0; i < 2; ++i) {
        const __m512 score = _mm512_load_ps(scores_at(strip, r, j / 16 + i));
        const __m512 exponent = fuses ? _mm512_fmsub_ps(score, factor, shift)
                                      : _mm512_mul_ps(_mm512_sub_ps(score, max), factor);
        weight[i] = _mm512_maskz_mov_ps(first_lanes(seen - j - i * 16), exp2_bf16(exponent));
      }
      sum = _mm512_add_ps(sum, _mm512_add_ps(weight[0], weight[1]));
      if (drops) {
        weight[0] = _mm512_mul_ps(weight[0], _mm512_load_ps(kept + j));
        weight[1] = _mm512_mul_ps(weight[1], _mm512_load_ps(kept + j + 16));
      }
      store_pair(weight[0], weight[1], weights_at(strip, r, j));
    }
    __m512& after = panel.sums[(strip.index + 1) % 2][r];
    after = _mm512_add_ps(panel.sums[strip.index % 2][r], sum);
    return _mm512_castps_si512(after);
  }

  void weigh_again(QueryPanel& panel, const Strip& strip) {
    for (int64_t r = 0; r < panel.rows; ++r) {
      if (!out_of_hand(panel.sums[(strip.index + 1) % 2][r])) continue;
      raise_max(panel, strip, r);
      weigh_row(panel, strip, r);
    }
  }

  // Weights times values as they lie in memory, only of keys that a row sees.
  void add_seen_values(const QueryPanel& panel, const Strip& strip) {
    const int64_t columns = blocking_.value_columns(), kv_head = p_.kv_head(panel.h);
    const Bf16Rows values = bf16_rows(p_.v, panel.b, kv_head, strip.s0, strip.keys, p_.value_dim);
    for (int64_t r = 0; r < panel.rows; ++r) {
      const auto out_at = [&](int64_t e) {
        return sums_at(panel.out, blocking_.value_tiles, r, e / kTileRows);
      };
      if (strip.index == 0) {
        for (int64_t e = 0; e < columns; e += 16) std::fill_n(out_at(e), 16, 0.0f);
      }
      for (int64_t s = 0; s < seen_keys(panel, strip, r); ++s) {
        const int weight_bits = weights_at(strip, r, s)[s % kTileDepth] << 16;
        const __m512 weight = _mm512_castsi512_ps(_mm512_set1_epi32(weight_bits));
        for (int64_t e = 0; e < columns; e += 16) {
          const __m512i bits = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(values.load(s, e)));
          const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
          const __m512 sum = _mm512_fmadd_ps(weight, value, _mm512_load_ps(out_at(e)));
          _mm512_store_ps(out_at(e), sum);
        }
      }
    }
  }

  void write(const QueryPanel& panel) const {
    using V = Vec<float>;
    const int64_t last = panel.first + panel.rows - 1;
    const int64_t strips = ceil_div(visible_keys(p_.is_causal, last, 0, p_.keys), kStripKeys);
    for (int64_t r = 0; r < panel.rows; ++r) {
      const float sum = _mm512_reduce_add_ps(panel.sums[strips % 2][r]);
      const float max = panel.max[r] * units_.scale;
      // A score beyond the numbers makes NaN: infinity minus infinity.
      const float scale = sum == 0 ? 0 : 1 / sum + (max - max);
      static_cast<float*>(p_.row_max)[panel.row(p_, r)] = max;
      static_cast<float*>(p_.row_scale)[panel.row(p_, r)] = scale;
      auto* out = row_of<BFloat16>(p_.out, panel.b, panel.h, panel.first + r);
      for (int64_t e = 0; e < p_.value_dim; e += V::kWidth) {
        const int n = static_cast<int>(std::min<int64_t>(V::kWidth, p_.value_dim - e));
        const float* sums = sums_at(panel.out, blocking_.value_tiles, r, e / V::kWidth);
        (V::load(sums) * V::set1(scale)).store(out + e, n);
      }
    }
  }

  const TileSession session_;
  const AttentionParams& p_;
  const Blocking& blocking_;
  const ScoreUnits units_;
  TileMask mask_;
  const Dropout dropout_;
  Scratch<uint16_t> keys_, values_;
  Scratch<bool> finite_;
  Scratch<uint16_t> queries_;
  Scratch<float> out_;
  Scratch<QueryPanel> panels_;
  int64_t head_ = -1;
  alignas(64) float scores_[2][kPanelRows * kStripKeys];
  alignas(64) uint16_t weights_[2][kPanelRows * kStripKeys];
};

inline void attention_forward(const AttentionParams& p) {
  run_query_blocks<TileForwardWorker>(p, int64_t{1} << 21);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
