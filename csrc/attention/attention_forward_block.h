// The forward for a tile of queries and a chunk of the values' columns: key tile after key tile,
// what is summed so far is rescaled to the new maximum (Milakov & Gimelshein 2018, Dao 2023). A
// thread's sum is over its own keys; they meet at the end.
#pragma once

#include "attention/attention_block.h"

namespace pyops {

template <class T, int kWide>
struct AttentionForward {
  using Block = AttentionBlock<T, kWide>;
  using Acc = typename Block::Acc;
  using Shared = typename Block::Shared;
  static constexpr int kPiece = Block::kPiece, kSide = Block::kSide;

  struct State {
    typename Block::Piece scores;
    typename Block::Sums sums;
    baseline::OnlineSoftmax<Acc> softmax[kPiece];
  };

  const AttentionParams& p;
  int64_t b, h, l0, column;
  baseline::Dropout dropout;

  PYOPS_HOST_DEVICE static int64_t blocks(const AttentionParams& p) {
    return p.batch * p.heads * Block::tiles(p.queries) * Block::chunks(p.value_dim);
  }

  PYOPS_HOST_DEVICE AttentionForward(const AttentionParams& params, int64_t block)
      : p(params), dropout(dropout_of(params)) {
    const int64_t chunks = Block::chunks(p.value_dim), tiles = Block::tiles(p.queries);
    column = block % chunks * Block::kChunk;
    // The last queries first: under a causal mask they have most to do.
    l0 = (tiles - 1 - block / chunks % tiles) * Block::kTile;
    h = block / chunks / tiles % p.heads;
    b = block / chunks / tiles / p.heads;
  }

  template <class Team>
  PYOPS_HOST_DEVICE void run(Shared& shared, Team& team) const {
    const int64_t kv_head = p.kv_head(h);
    const Strip<T> q(p.q, b, h, l0, p.queries, p.dim);
    const int64_t seen = baseline::visible_keys(p.is_causal, l0 + Block::kTile - 1, 0, p.keys);
    team.each([](int, State& state) { state = State{}; });
    for (int64_t s0 = 0; s0 < seen; s0 += Block::kTile) {
      const Strip<T> k(p.k, b, kv_head, s0, p.keys, p.dim);
      const Strip<T> v(p.v, b, kv_head, s0, p.keys, p.value_dim);
      Block::multiply(q, k, shared, team, &State::scores);
      team.each([&](int thread, State& state) { find_maximum(s0, thread, state, shared); });
      team.each([&](int thread, State& state) { raise_maximum(s0, thread, state, shared); });
      Block::add_weighted(v, column, shared, team, &State::sums);
    }
    team.each([&](int thread, State& state) {
      PYOPS_UNROLL for (int r = 0; r < kPiece; ++r) {
        row_of(shared, thread % kSide, thread, r) = state.softmax[r].sum;
      }
    });
    team.each([&](int thread, State& state) { finish(thread, state, shared); });
  }

 private:
  PYOPS_HOST_DEVICE static Acc& row_of(Shared& shared, int lane, int thread, int r) {
    return shared.rows[lane][thread / kSide * kPiece + r];
  }

  PYOPS_HOST_DEVICE void find_maximum(int64_t s0, int thread, State& state, Shared& shared) const {
    PYOPS_UNROLL for (int r = 0; r < kPiece; ++r) {
      const int64_t l = l0 + Block::owner_of(thread, r);
      Acc most = baseline::lowest<Acc>();
      PYOPS_UNROLL for (int c = 0; c < kPiece; ++c) {
        const int64_t s = s0 + Block::other_of(thread, c);
        Acc& x = state.scores.at[r][c];
        x = is_visible(p, l, s) ? score<T>(p, p.mask, b, h, l, s, x) : -static_cast<Acc>(INFINITY);
        most = x > most ? x : most;  // a NaN reaches the sum by its weight
      }
      row_of(shared, thread % kSide, thread, r) = most;
    }
  }

  PYOPS_HOST_DEVICE void raise_maximum(int64_t s0, int thread, State& state, Shared& shared) const {
    PYOPS_UNROLL for (int r = 0; r < kPiece; ++r) {
      auto& softmax = state.softmax[r];
      Acc most = softmax.max;
      PYOPS_UNROLL for (int lane = 0; lane < kSide; ++lane) {
        const Acc x = row_of(shared, lane, thread, r);
        most = x > most ? x : most;
      }
      const Acc factor = softmax.raise_max(most);
      PYOPS_UNROLL for (int n = 0; n < kWide; ++n) {
        PYOPS_UNROLL for (int c = 0; c < kPiece; ++c) state.sums.at[r][n][c] *= factor;
      }
      Acc kept[kPiece];
      PYOPS_UNROLL for (int c = 0; c < kPiece; ++c) kept[c] = 1;
      if (p.dropout_p != 0) {
        const int64_t row = (b * p.heads + h) * p.queries + l0 + Block::owner_of(thread, r);
        dropout.factors_apart(row, s0 + Block::other_of(thread, 0), kept);
      }
      PYOPS_UNROLL for (int c = 0; c < kPiece; ++c) {
        const Acc weight = std::exp(state.scores.at[r][c] - softmax.max);
        softmax.sum += weight;
        Block::keep_weight(shared, thread, r, c, weight * kept[c]);
      }
    }
  }

  PYOPS_HOST_DEVICE void finish(int thread, State& state, Shared& shared) const {
    PYOPS_UNROLL for (int r = 0; r < kPiece; ++r) {
      auto& softmax = state.softmax[r];
      softmax.sum = 0;
      PYOPS_UNROLL for (int lane = 0; lane < kSide; ++lane) {
        softmax.sum += row_of(shared, lane, thread, r);
      }
      const Acc scale = softmax.row_scale();
      PYOPS_UNROLL for (int n = 0; n < kWide; ++n) {
        PYOPS_UNROLL for (int c = 0; c < kPiece; ++c) state.sums.at[r][n][c] *= scale;
      }
      const int64_t l = l0 + Block::owner_of(thread, r);
      if (column == 0 && thread % kSide == 0 && l < p.queries) {
        const int64_t row = (b * p.heads + h) * p.queries + l;
        static_cast<Acc*>(p.row_max)[row] = softmax.max;
        static_cast<Acc*>(p.row_scale)[row] = scale;
      }
    }
    Block::store(p.out, b, h, l0, p.queries, column, p.value_dim, thread, state.sums);
  }
};

}  // namespace pyops
