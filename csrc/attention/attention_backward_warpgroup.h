// The gradients by warpgroups: one kernel for grad_q, whose queries walk over keys, and one for
// grad_k and grad_v, whose keys walk over queries. Both find scores and weights again: seven
// products, not five, but each gradient is summed in registers and in order, without atomics,
// semaphores or a float32 copy of grad_q, and weights go from one product into the next without
// passing through shared memory (FlashAttention-3's register operand, Shah et al. 2024).
//
// Rows that a warpgroup has are called owners, those it walks over others (attention_block.h).
#pragma once

#include <type_traits>

#include "attention/attention_masked_warpgroup.h"

namespace pyops {

// Of each query what its weights need, exp(x - row_max)·row_scale = 2^(product·factor - exponent),
// or of masked scores 2^((x - maximum)·log2(e) - exponent); and rowsum(grad_out ∘ out). Queries
// that only fill a tile have the exponent inf: no weights.
template <class T>
struct AttentionRowStatistics {
  static constexpr int kThreads = 8;  // of a row

  const AttentionBackwardParams& p;
  int64_t padded;  // queries of a head
  float *exponents, *dots, *maxima;

  PYOPS_HOST_DEVICE explicit AttentionRowStatistics(const AttentionBackwardParams& params)
      : p(params),
        padded(attention_row_sums(1, 1, p.queries) / 3),
        exponents(static_cast<float*>(p.row_sums)),
        dots(exponents + rows()),
        maxima(dots + rows()) {}

  PYOPS_HOST_DEVICE int64_t rows() const { return p.batch * p.heads * padded; }
  PYOPS_HOST_DEVICE int64_t row(int64_t b, int64_t h, int64_t l) const {
    return (b * p.heads + h) * padded + l;
  }

  // What thread `lane` of a row adds to its sum.
  PYOPS_HOST_DEVICE float dot(int64_t row, int lane) const {
    const int64_t l = row % padded, h = row / padded % p.heads, b = row / padded / p.heads;
    float sum = 0;
    if (l >= p.queries) return sum;
    const T* x = static_cast<const T*>(p.out.data) + b * p.out.b + h * p.out.h + l * p.out.row;
    const T* y = static_cast<const T*>(p.grad_out.data) + b * p.grad_out.b + h * p.grad_out.h +
                 l * p.grad_out.row;
    constexpr int kWidth = Pack<T>::kWidth;
    for (int64_t e = lane * kWidth; e < p.value_dim; e += kThreads * kWidth) {
      const Pack<T> of_x = load_pack(x + e), of_y = load_pack(y + e);
      PYOPS_UNROLL for (int w = 0; w < kWidth; ++w) {
        sum += static_cast<float>(of_x.at[w]) * static_cast<float>(of_y.at[w]);
      }
    }
    return sum;
  }
  PYOPS_HOST_DEVICE void store(int64_t row, float dot) const {
    const int64_t l = row % padded, at = row / padded * p.queries + l;
    dots[row] = dot;
    exponents[row] = INFINITY;
    maxima[row] = 0;
    if (l >= p.queries) return;
    const float max = static_cast<const float*>(p.row_max)[at];
    const float scale = static_cast<const float*>(p.row_scale)[at];
    const float offset = is_masked(p, p.mask) ? 0 : baseline::ScaledExponents::offset(max);
    exponents[row] = offset - std::log2(scale);
    maxima[row] = max;
  }
};

// Registers: two sums, of 128 columns, leave room for 64 others, or for 32 and what masks them; one
// sum of 64 columns for 128.
template <class T_, int kD_, bool kKeysOwn_, bool kMasked_>
struct AttentionWarpgroupBackward {
  using T = T_;
  using Params = AttentionBackwardParams;
  static constexpr bool kKeysOwn = kKeysOwn_, kMasked = kMasked_;
  static constexpr int kD = kD_, kConsumers = 2, kBuffers = 3;
  static constexpr int kRows = kConsumers * kWarpgroupRows;
  static constexpr int kOthers = kD == 64 && !kKeysOwn              ? 128
                                 : kD == 128 && kKeysOwn && kMasked ? 32
                                                                    : 64;
  static constexpr int kBoxRows = kOthers < kWarpgroupRows ? kOthers : kWarpgroupRows;  // of TMA
  static_assert(kRowSumsTile % kRows == 0 && kRowSumsTile % kOthers == 0);
  using Masked =
      std::conditional_t<kMasked, MaskedTile<T, kOthers, kKeysOwn>, UnmaskedTile<T, kOthers>>;

  struct State {
    float scores[kOthers / 2], grads[kOthers / 2];  // products; then weights and their gradient
    uint32_t weights[kOthers / 4], grad_scores[kOthers / 4], traded[4];
    float sums[kD / 2], value_sums[kKeysOwn ? kD / 2 : 1];
    float exponents[2], dots[2], maxima[2];  // of the thread's rows, where queries own
    typename Masked::State masked;
  };
  struct alignas(8) Pair {
    float at[2];
  };

  const Params& p;
  WarpgroupTile tile;
  typename Masked::Exponents exponents;
  Masked masked;

  PYOPS_HOST_DEVICE static int64_t rows(const Params& p) { return kKeysOwn ? p.keys : p.queries; }
  PYOPS_HOST_DEVICE static int64_t heads(const Params& p) {
    return kKeysOwn ? p.kv_heads : p.heads;
  }
  PYOPS_HOST_DEVICE static int64_t blocks(const Params& p) {
    return p.batch * heads(p) * WarpgroupTile::tiles(rows(p), kRows);
  }
  PYOPS_HOST_DEVICE AttentionWarpgroupBackward(const Params& params, int64_t block)
      : p(params),
        tile(block, heads(p), rows(p), kRows, /*last_first=*/!kKeysOwn),
        exponents(p.scale),
        masked(params) {}

  template <class Loader>
  PYOPS_DEVICE void load(Loader& loader) const {
    loader.load_owners(tile.b, tile.h, tile.row);
    each_tile([&](int64_t h, int64_t row) { loader.load_others(tile.b, h, row); });
  }

  template <class Team>
  PYOPS_DEVICE void run(int consumer, Team& team) const {
    const int64_t row = tile.row + consumer * kWarpgroupRows;
    team.alone([&](int thread, State& state) { start(row, thread, state); });
    team.await_owners();
    each_tile([&](int64_t h, int64_t other) { add_tile(row, h, other, team); });
    team.release_owners();
    finish(row, team);
  }

 private:
  // Others' heads and first rows, in order: keys that some of the queries see, and queries of all
  // heads that share the keys, from the first on that sees one of them.
  template <class F>
  PYOPS_DEVICE void each_tile(const F& f) const {
    if constexpr (kKeysOwn) {
      const int64_t group = p.group();
      const int64_t first = p.is_causal ? tile.row / kOthers * kOthers : 0;
      for (int64_t h = tile.h * group; h < (tile.h + 1) * group; ++h) {
        for (int64_t l = first; l < p.queries; l += kOthers) f(h, l);
      }
    } else {
      const int64_t seen = baseline::visible_keys(p.is_causal, tile.row + kRows - 1, 0, p.keys);
      const int64_t kv_head = p.kv_head(tile.h);
      for (int64_t s = 0; s < seen; s += kOthers) f(kv_head, s);
    }
  }

  PYOPS_DEVICE void start(int64_t row, int thread, State& state) const {
    PYOPS_UNROLL for (int i = 0; i < kD / 2; ++i) state.sums[i] = 0;
    if constexpr (kKeysOwn) {
      PYOPS_UNROLL for (int i = 0; i < kD / 2; ++i) state.value_sums[i] = 0;
    } else {
      const AttentionRowStatistics<T> statistics(p);
      PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
        const int64_t at = statistics.row(tile.b, tile.h, row + row_of(thread) + 8 * r);
        state.exponents[r] = statistics.exponents[at];
        state.dots[r] = statistics.dots[at];
        if constexpr (kMasked) state.maxima[r] = statistics.maxima[at];
      }
    }
  }

  // Weights are found while the second product runs, their gradient while values are summed. With
  // more under way from tile to tile the registers would not do; the other warpgroup's products
  // fill the gap.
  template <class Team>
  PYOPS_DEVICE void add_tile(int64_t row, int64_t h, int64_t other, Team& team) const {
    team.begin_scores();
    masked.find(tile.b, kKeysOwn ? h : tile.h, row, other, team);
    team.begin_grads();
    team.end_scores();
    weigh(row, other, team);
    if constexpr (kKeysOwn) {
      team.alone(
          [](int, State& state) { Masked::pack_kept(state.masked, state.scores, state.weights); });
      team.begin_value_sums();
    }
    team.end_grads();
    const float kept = masked.keep_factor();
    team.alone([&](int thread, State& state) {
      PYOPS_UNROLL for (int n = 0; n < kOthers / 8; ++n) {
        const Pair dots = pair_at(team.dots(), n, thread);
        PYOPS_UNROLL for (int i = 0; i < 4; ++i) {
          const float dot = kKeysOwn ? dots.at[i % 2] : state.dots[i / 2];
          float& grad = state.grads[4 * n + i];
          grad *= Masked::factor(state.masked, 4 * n + i, kept);
          grad = state.scores[4 * n + i] * (grad - dot);
        }
      }
      pack_words<T>(state.grads, state.grad_scores);
    });
    team.begin_sums();
    team.end_sums();
  }

  // Two copies for the compiler, as AttentionWarpgroupForward::soften().
  template <class Team>
  PYOPS_DEVICE void weigh(int64_t row, int64_t other, Team& team) const {
    const bool hides = kKeysOwn ? p.is_causal && row + kWarpgroupRows - 1 > other
                                : hides_keys<kOthers>(p, row, other);
    team.alone([&](int, State& state) { masked.add(state.masked, state.scores); });
    if (hides) {
      team.alone([&](int thread, State& state) {
        if constexpr (kKeysOwn) {
          hide_queries<kOthers>(row, other, thread, state.scores);
        } else {
          hide_keys<kOthers>(p, row, other, thread, state.scores);
        }
      });
      weigh(team);
    } else {
      weigh(team);
    }
  }
  template <class Team>
  PYOPS_DEVICE void weigh(Team& team) const {
    team.alone([&](int thread, State& state) {
      PYOPS_UNROLL for (int n = 0; n < kOthers / 8; ++n) {
        const Pair others = pair_at(team.exponents(), n, thread);
        const Pair maxima = kMasked ? pair_at(team.maxima(), n, thread) : Pair{};
        PYOPS_UNROLL for (int i = 0; i < 4; ++i) {
          float& x = state.scores[4 * n + i];
          const float exponent = kKeysOwn ? others.at[i % 2] : state.exponents[i / 2];
          if constexpr (kMasked) {
            x = exponents.weight(x, kKeysOwn ? maxima.at[i % 2] : state.maxima[i / 2], exponent);
          } else {
            x = exponents.weight(x, exponent);
          }
        }
      }
    });
  }
  // Of the thread's n-th two columns, where keys own; nobody asks otherwise.
  PYOPS_DEVICE static Pair pair_at(const float* others, int n, int thread) {
    Pair pair{};
    if constexpr (kKeysOwn) {
      pair = *reinterpret_cast<const Pair*>(others + 8 * n + column_of(thread));
    }
    return pair;
  }

  // Products were not scaled, and their gradients need it once; as weights that dropout kept.
  template <class Team>
  PYOPS_DEVICE void finish(int64_t row, Team& team) const {
    const float kept = masked.keep_factor();
    team.alone([&](int, State& state) {
      PYOPS_UNROLL for (int i = 0; i < kD / 2; ++i) {
        state.sums[i] *= static_cast<float>(p.scale);
        if constexpr (kKeysOwn) state.value_sums[i] *= kept;
      }
    });
    const Rows& grad = kKeysOwn ? p.grad_k : p.grad_q;
    if (grad.data != nullptr) {
      store_rows<T, kD>(grad, tile.b, tile.h, row, rows(p), p.dim, team, &State::sums);
    }
    if constexpr (kKeysOwn) {
      if (p.grad_v.data == nullptr) return;
      store_rows<T, kD>(p.grad_v, tile.b, tile.h, row, p.keys, p.value_dim, team,
                        &State::value_sums);
    }
  }
};

}  // namespace pyops
