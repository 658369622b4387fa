// The forward by warpgroups, of 64 queries each, that share the keys a producer loads
// (FlashAttention-3, Shah et al. 2024): scores, softmax and outputs never leave the registers.
// While the softmax of one key tile is found, the tile before it is weighing values, and by turns
// another warpgroup's products. Keys in ascending order: all tiles of a head meet in the L2 cache.
//
// The team's members also take_turn(), reduce() over the four threads of a row, and trade().
#pragma once

#include <type_traits>

#include "attention/attention_masked_warpgroup.h"

namespace pyops {

// Registers: with 64 columns a thread has 32 sums, and three warpgroups fit 160 each; with 128
// columns, or a mask's numbers besides, two fit 240; with both, of 64 keys.
template <class T_, int kD_, bool kMasked_>
struct AttentionWarpgroupForward {
  using T = T_;
  using Params = AttentionParams;
  static constexpr bool kMasked = kMasked_;
  static constexpr int kD = kD_, kConsumers = kD == 64 && !kMasked ? 3 : 2, kBuffers = 2;
  static constexpr int kRows = kConsumers * kWarpgroupRows;
  static constexpr int kKeys = kD == 128 && kMasked ? 64 : 128;
  using Masked =
      std::conditional_t<kMasked, MaskedTile<T, kKeys, /*kKeysOwn=*/false>, UnmaskedTile<T, kKeys>>;

  struct State {
    float scores[kKeys / 2], out[kD / 2];
    uint32_t weights[kKeys / 4], traded[4];
    float rows[2];  // of the thread's rows, what is reduced; then what sums shrink by
    baseline::OnlineSoftmax<float> softmax[2];
    typename Masked::State masked;
  };

  const Params& p;
  WarpgroupTile tile;
  int key_tiles;
  typename Masked::Exponents exponents;
  Masked masked;

  PYOPS_HOST_DEVICE static int64_t blocks(const Params& p) {
    return p.batch * p.heads * WarpgroupTile::tiles(p.queries, kRows);
  }
  PYOPS_HOST_DEVICE AttentionWarpgroupForward(const Params& params, int64_t block)
      : p(params),
        tile(block, p.heads, p.queries, kRows, /*last_first=*/true),
        exponents(p.scale),
        masked(params) {
    const int64_t seen = baseline::visible_keys(p.is_causal, tile.row + kRows - 1, 0, p.keys);
    key_tiles = static_cast<int>(WarpgroupTile::tiles(seen, kKeys));
  }

  // What the producer loads, in the order in which it is needed.
  template <class Loader>
  PYOPS_DEVICE void load(Loader& loader) const {
    const int64_t kv_head = p.kv_head(tile.h);
    loader.load_queries(tile.b, tile.h, tile.row);
    loader.load_keys(tile.b, kv_head, 0);
    for (int i = 1; i < key_tiles; ++i) {
      loader.load_keys(tile.b, kv_head, i * kKeys);
      loader.load_values(tile.b, kv_head, (i - 1) * kKeys);
    }
    loader.load_values(tile.b, kv_head, (key_tiles - 1) * kKeys);
  }

  template <class Team>
  PYOPS_DEVICE void run(int consumer, Team& team) const {
    const int64_t l0 = tile.row + consumer * kWarpgroupRows;
    team.alone([](int, State& state) {
      PYOPS_UNROLL for (int i = 0; i < kD / 2; ++i) state.out[i] = 0;
      PYOPS_UNROLL for (int r = 0; r < 2; ++r) state.softmax[r] = {};
    });
    team.await_queries();
    team.begin_scores();
    masked.find(tile.b, tile.h, l0, 0, team);
    team.template end_scores</*kPending=*/0>();
    soften(l0, 0, team);
    team.alone([&](int, State& state) { pack_words<T>(state.scores, state.weights); });
    for (int i = 1; i < key_tiles; ++i) {
      team.take_turn();
      team.begin_scores();
      team.begin_sum();
      team.pass_turn();
      masked.find(tile.b, tile.h, l0, int64_t{i} * kKeys, team);
      team.template end_scores</*kPending=*/1>();
      soften(l0, i, team);
      team.end_sum();
      team.alone([&](int, State& state) {
        pack_words<T>(state.scores, state.weights);
        PYOPS_UNROLL for (int r = 0; r < 2; ++r) scale_row(r, state.rows[r], state);
      });
    }
    team.release_queries();
    team.begin_sum();
    team.end_sum();
    finish(l0, team);
  }

 private:
  PYOPS_DEVICE static void scale_row(int r, float factor, State& state) {
    PYOPS_UNROLL for (int n = 0; n < kD / 8; ++n) {
      PYOPS_UNROLL for (int c = 0; c < 2; ++c) state.out[4 * n + 2 * r + c] *= factor;
    }
  }

  // Products of the i-th key tile become weights. Two copies of the code, that with a mask and that
  // without, meet behind it: the end of a branch is what keeps the compiler from first waiting for
  // the sum that runs meanwhile.
  template <class Team>
  PYOPS_DEVICE void soften(int64_t l0, int i, Team& team) const {
    const int64_t s0 = int64_t{i} * kKeys;
    team.alone([&](int, State& state) { masked.add(state.masked, state.scores); });
    if (hides_keys<kKeys>(p, l0, s0)) {
      team.alone(
          [&](int thread, State& state) { hide_keys<kKeys>(p, l0, s0, thread, state.scores); });
      soften(team);
    } else {
      soften(team);
    }
  }
  template <class Team>
  PYOPS_DEVICE void soften(Team& team) const {
    team.alone([](int, State& state) {
      PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
        float most = -INFINITY;
        PYOPS_UNROLL for (int n = 0; n < kKeys / 8; ++n) {
          PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
            most = std::fmax(most, state.scores[4 * n + 2 * r + c]);  // passes over a NaN
          }
        }
        state.rows[r] = most;
      }
    });
    team.reduce([](float x, float y) { return std::fmax(x, y); });
    team.alone([&](int, State& state) {
      PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
        auto& softmax = state.softmax[r];
        state.rows[r] = exponents.raise_max(softmax, state.rows[r]);
        const float offset = exponents.offset(softmax.max);
        PYOPS_UNROLL for (int n = 0; n < kKeys / 8; ++n) {
          PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
            float& x = state.scores[4 * n + 2 * r + c];
            x = exponents.weight(x, offset);
            softmax.sum += x;
          }
        }
      }
    });
    if (masked.drops()) drop(team);
  }
  // What is kept grows by 1/(1 - p) in the end: 16 bits might not hold it here.
  template <class Team>
  PYOPS_DEVICE void drop(Team& team) const {
    team.alone([](int, State& state) {
      PYOPS_UNROLL for (int x = 0; x < kKeys / 2; ++x) {
        state.scores[x] *= Masked::factor(state.masked, x, 1);
      }
    });
  }

  template <class Team>
  PYOPS_DEVICE void finish(int64_t l0, Team& team) const {
    team.alone([](int, State& state) {
      PYOPS_UNROLL for (int r = 0; r < 2; ++r) state.rows[r] = state.softmax[r].sum;
    });
    team.reduce([](float x, float y) { return x + y; });
    const float kept = masked.keep_factor();
    team.alone([&](int thread, State& state) {
      PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
        auto& softmax = state.softmax[r];
        softmax.sum = state.rows[r];
        const float scale = softmax.row_scale();
        scale_row(r, scale * kept, state);
        const int64_t l = l0 + row_of(thread) + 8 * r;
        if (thread % 4 != 0 || l >= p.queries) continue;
        const int64_t row = (tile.b * p.heads + tile.h) * p.queries + l;
        static_cast<float*>(p.row_max)[row] = softmax.max;
        static_cast<float*>(p.row_scale)[row] = scale;
      }
    });
    store_rows<T, kD>(p.out, tile.b, tile.h, l0, p.queries, p.value_dim, team, &State::out);
  }
};

}  // namespace pyops
