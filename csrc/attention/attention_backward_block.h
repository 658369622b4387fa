// The gradients, each by blocks that own a part of it and walk over the rest in order (Dao 2023
// without its atomics): the same sum in every run. Nothing of size L×S is kept; scores come again
// from row_max and row_scale.
#pragma once

#include "attention/attention_block.h"

namespace pyops {

enum class GradientOf : uint8_t { kQuery, kKey, kValue, kMask, kRow };

// One tile's weights: of grad_q and grad_k the gradient of the scores' products, of grad_v the
// probabilities after dropout, of the mask the gradient of the scores, of a row's sum P∘dP.
template <class T, int kWide, GradientOf kOf>
struct AttentionGradientTile {
  using Block = AttentionBlock<T, kWide>;
  using Acc = typename Block::Acc;
  using Shared = typename Block::Shared;
  static constexpr int kPiece = Block::kPiece, kSide = Block::kSide;
  static constexpr bool kKeysOwn = kOf == GradientOf::kKey || kOf == GradientOf::kValue;
  static constexpr bool kNeedsRowSums = kOf != GradientOf::kValue && kOf != GradientOf::kRow;
  static constexpr bool kSumsWeights = kOf == GradientOf::kMask || kOf == GradientOf::kRow;

  struct State {
    typename Block::Piece scores, grad;  // products
    typename Block::Piece weights;       // of all tiles so far
    typename Block::Sums sums;
  };

  const AttentionBackwardParams& p;
  baseline::Dropout dropout;

  PYOPS_HOST_DEVICE explicit AttentionGradientTile(const AttentionBackwardParams& params)
      : p(params), dropout(dropout_of(params)) {}

  PYOPS_HOST_DEVICE Strip<T> queries(const ConstRows& of, int64_t b, int64_t h, int64_t l0,
                                     int64_t columns) const {
    return {of, b, h, l0, p.queries, columns};
  }
  PYOPS_HOST_DEVICE Strip<T> keys(const ConstRows& of, int64_t b, int64_t h, int64_t s0,
                                  int64_t columns) const {
    return {of, b, p.kv_head(h), s0, p.keys, columns};
  }

  template <class Team>
  PYOPS_HOST_DEVICE void find_weights(int64_t b, int64_t h, int64_t l0, int64_t s0, Shared& shared,
                                      Team& team) const {
    const Strip<T> q = queries(p.q, b, h, l0, p.dim), k = keys(p.k, b, h, s0, p.dim);
    Block::multiply(kKeysOwn ? k : q, kKeysOwn ? q : k, shared, team, &State::scores);
    if constexpr (kOf != GradientOf::kValue) {
      const Strip<T> g = queries(p.grad_out, b, h, l0, p.value_dim);
      const Strip<T> v = keys(p.v, b, h, s0, p.value_dim);
      Block::multiply(kKeysOwn ? v : g, kKeysOwn ? g : v, shared, team, &State::grad);
    }
    team.each([&](int thread, State& state) {
      PYOPS_UNROLL for (int x = 0; x < kPiece; ++x) {
        weigh_query(b, h, l0, s0, x, thread, state, shared);
      }
    });
  }

 private:
  // The thread's keys of its query `x`.
  PYOPS_HOST_DEVICE void weigh_query(int64_t b, int64_t h, int64_t l0, int64_t s0, int x,
                                     int thread, State& state, Shared& shared) const {
    const int64_t l = l0 + (kKeysOwn ? Block::other_of(thread, x) : Block::owner_of(thread, x));
    const int64_t first = s0 + (kKeysOwn ? Block::owner_of(thread, 0) : Block::other_of(thread, 0));
    const int64_t row = (b * p.heads + h) * p.queries + (l < p.queries ? l : 0);
    const Acc max = static_cast<const Acc*>(p.row_max)[row];
    const Acc scale = static_cast<const Acc*>(p.row_scale)[row];
    const Acc dot = kNeedsRowSums ? static_cast<const Acc*>(p.row_sums)[row] : Acc(0);
    Acc kept[kPiece];
    PYOPS_UNROLL for (int y = 0; y < kPiece; ++y) kept[y] = 1;
    if (p.dropout_p != 0) dropout.factors_apart(row, first, kept);
    PYOPS_UNROLL for (int y = 0; y < kPiece; ++y) {
      const int r = kKeysOwn ? y : x, c = kKeysOwn ? x : y;
      const int64_t s = first + kSide * y;
      Acc weight = 0;
      if (is_visible(p, l, s)) {
        const Acc of_key = score<T>(p, p.mask, b, h, l, s, state.scores.at[r][c]);
        weight = std::exp(of_key - max) * scale;
        if constexpr (kOf == GradientOf::kValue) {
          weight *= kept[y];
        } else {
          weight *= state.grad.at[r][c] * kept[y] - dot;
          if constexpr (!kSumsWeights) weight *= static_cast<Acc>(p.scale);
        }
      }
      if constexpr (kSumsWeights) {
        state.weights.at[r][c] += weight;
      } else {
        Block::keep_weight(shared, thread, r, c, weight);
      }
    }
  }
};

// row_sums = rowsum(P ∘ dP), which is rowsum(grad_out ∘ out) without the rounding of out: where one
// key outweighs all others, dP less it all but cancels.
template <class T>
struct AttentionExactRowSums {
  using Tile = AttentionGradientTile<T, 1, GradientOf::kRow>;
  using Block = typename Tile::Block;
  using Acc = typename Block::Acc;
  using State = typename Tile::State;
  using Shared = typename Tile::Shared;

  Tile tile;
  int64_t b, h, l0;

  PYOPS_HOST_DEVICE static int64_t blocks(const AttentionBackwardParams& p) {
    return p.batch * p.heads * Block::tiles(p.queries);
  }
  PYOPS_HOST_DEVICE AttentionExactRowSums(const AttentionBackwardParams& p, int64_t block)
      : tile(p) {
    const int64_t tiles = Block::tiles(p.queries), head = block / tiles;
    // Under a causal mask the last queries have most to do.
    l0 = (tiles - 1 - block % tiles) * Block::kTile;
    h = head % p.heads;
    b = head / p.heads;
  }

  template <class Team>
  PYOPS_HOST_DEVICE void run(Shared& shared, Team& team) const {
    const AttentionBackwardParams& p = tile.p;
    team.each([](int, State& state) { state.weights = {}; });
    const int64_t seen = baseline::visible_keys(p.is_causal, l0 + Block::kTile - 1, 0, p.keys);
    for (int64_t s0 = 0; s0 < seen; s0 += Block::kTile) {
      tile.find_weights(b, h, l0, s0, shared, team);
    }
    team.each([&](int thread, State& state) {
      PYOPS_UNROLL for (int r = 0; r < Block::kPiece; ++r) {
        Acc sum = 0;
        PYOPS_UNROLL for (Acc weight : state.weights.at[r]) sum += weight;
        shared.rows[thread % Block::kSide][Block::owner_of(thread, r)] = sum;
      }
    });
    team.each([&](int thread, State&) {
      if (thread >= Block::kTile || l0 + thread >= p.queries) return;
      Acc sum = 0;
      PYOPS_UNROLL for (int lane = 0; lane < Block::kSide; ++lane) sum += shared.rows[lane][thread];
      static_cast<Acc*>(p.row_sums)[(b * p.heads + h) * p.queries + l0 + thread] = sum;
    });
  }
};

// grad_q, grad_k or grad_v: a tile of its rows, a chunk of its columns.
template <class T, int kWide, GradientOf kOf>
struct AttentionBackward {
  using Tile = AttentionGradientTile<T, kWide, kOf>;
  using Block = typename Tile::Block;
  using State = typename Tile::State;
  using Shared = typename Tile::Shared;

  Tile tile;
  int64_t b, head, row, column;  // `head` of the gradient, `row` its first

  PYOPS_HOST_DEVICE static int64_t rows(const AttentionBackwardParams& p) {
    return kOf == GradientOf::kQuery ? p.queries : p.keys;
  }
  PYOPS_HOST_DEVICE static int64_t heads(const AttentionBackwardParams& p) {
    return kOf == GradientOf::kQuery ? p.heads : p.kv_heads;
  }
  PYOPS_HOST_DEVICE static int64_t columns(const AttentionBackwardParams& p) {
    return kOf == GradientOf::kValue ? p.value_dim : p.dim;
  }
  PYOPS_HOST_DEVICE static int64_t blocks(const AttentionBackwardParams& p) {
    return p.batch * heads(p) * Block::tiles(rows(p)) * Block::chunks(columns(p));
  }

  PYOPS_HOST_DEVICE AttentionBackward(const AttentionBackwardParams& p, int64_t block) : tile(p) {
    const int64_t chunks = Block::chunks(columns(p)), tiles = Block::tiles(rows(p));
    const int64_t i = block / chunks % tiles;
    column = block % chunks * Block::kChunk;
    // Under a causal mask the last queries and the first keys have most to do.
    row = (Tile::kKeysOwn ? i : tiles - 1 - i) * Block::kTile;
    head = block / chunks / tiles % heads(p);
    b = block / chunks / tiles / heads(p);
  }

  template <class Team>
  PYOPS_HOST_DEVICE void run(Shared& shared, Team& team) const {
    const AttentionBackwardParams& p = tile.p;
    team.each([](int, State& state) { state.sums = {}; });
    if constexpr (Tile::kKeysOwn) {
      const int64_t group = p.group();
      for (int64_t h = head * group; h < (head + 1) * group; ++h) add_head(h, shared, team);
    } else {
      const int64_t seen = baseline::visible_keys(p.is_causal, row + Block::kTile - 1, 0, p.keys);
      for (int64_t s0 = 0; s0 < seen; s0 += Block::kTile) {
        tile.find_weights(b, head, row, s0, shared, team);
        Block::add_weighted(tile.keys(p.k, b, head, s0, p.dim), column, shared, team, &State::sums);
      }
    }
    const Rows& grad = kOf == GradientOf::kQuery ? p.grad_q
                       : kOf == GradientOf::kKey ? p.grad_k
                                                 : p.grad_v;
    team.each([&](int thread, State& state) {
      Block::store(grad, b, head, row, rows(p), column, columns(p), thread, state.sums);
    });
  }

 private:
  // What the queries of one head, those that see the tile's first key, add to its keys.
  template <class Team>
  PYOPS_HOST_DEVICE void add_head(int64_t h, Shared& shared, Team& team) const {
    const AttentionBackwardParams& p = tile.p;
    for (int64_t l0 = p.is_causal ? row : 0; l0 < p.queries; l0 += Block::kTile) {
      tile.find_weights(b, h, l0, row, shared, team);
      const bool is_value = kOf == GradientOf::kValue;
      Block::add_weighted(tile.queries(is_value ? p.grad_out : p.q, b, h, l0, columns(p)), column,
                          shared, team, &State::sums);
    }
  }
};

// The gradient of the mask: a tile of the mask's own, summed over all that it is broadcast along.
template <class T>
struct AttentionMaskBackward {
  using Tile = AttentionGradientTile<T, 1, GradientOf::kMask>;
  using Block = typename Tile::Block;
  using Acc = typename Block::Acc;
  using State = typename Tile::State;
  using Shared = typename Tile::Shared;
  static constexpr int kTile = Block::kTile, kPiece = Block::kPiece;

  // From `first` on in steps to `end`: one step, or all of a dimension that the mask is broadcast
  // along.
  struct Walk {
    int64_t first, end;
  };

  Tile tile;
  Walk batch, heads, rows, keys;

  PYOPS_HOST_DEVICE static int64_t parts(int64_t stride, int64_t count) {
    return stride == 0 ? 1 : count;
  }
  PYOPS_HOST_DEVICE static int64_t blocks(const AttentionBackwardParams& p) {
    const auto& m = p.grad_mask;
    return parts(m.b, p.batch) * parts(m.h, p.heads) * parts(m.row, Block::tiles(p.queries)) *
           parts(m.key, Block::tiles(p.keys));
  }

  PYOPS_HOST_DEVICE AttentionMaskBackward(const AttentionBackwardParams& p, int64_t block)
      : tile(p) {
    const auto& m = p.grad_mask;
    keys = take(block, m.key, Block::tiles(p.keys));
    rows = take(block, m.row, Block::tiles(p.queries));
    heads = take(block, m.h, p.heads);
    batch = take(block, m.b, p.batch);
  }

  template <class Team>
  PYOPS_HOST_DEVICE void run(Shared& shared, Team& team) const {
    team.each([](int, State& state) { state.weights = {}; });
    for (int64_t b = batch.first; b < batch.end; ++b) {
      for (int64_t h = heads.first; h < heads.end; ++h) {
        for (int64_t i = rows.first; i < rows.end; ++i) {
          for (int64_t j = keys.first; j < keys.end; ++j) {
            if (tile.p.is_causal && j > i) break;
            tile.find_weights(b, h, i * kTile, j * kTile, shared, team);
          }
        }
      }
    }
    team.each([&](int thread, State& state) {
      PYOPS_UNROLL for (int r = 0; r < kPiece; ++r) {
        PYOPS_UNROLL for (int c = 0; c < kPiece; ++c) {
          shared.weights[Block::owner_of(thread, r)][Block::other_of(thread, c)] =
              state.weights.at[r][c];
        }
      }
    });
    team.each([&](int thread, State&) { store(thread, shared); });
  }

 private:
  PYOPS_HOST_DEVICE static Walk take(int64_t& block, int64_t stride, int64_t count) {
    if (stride == 0) return {0, count};
    const int64_t first = block % count;
    block /= count;
    return {first, first + 1};
  }

  PYOPS_HOST_DEVICE void store(int thread, const Shared& shared) const {
    const AttentionBackwardParams& p = tile.p;
    const auto& m = p.grad_mask;
    Acc* const to = static_cast<Acc*>(m.data) + batch.first * m.b + heads.first * m.h;
    const int row_sum = m.row == 0 ? kTile : 1, key_sum = m.key == 0 ? kTile : 1;
    for (int e = thread; e < kTile * kTile / row_sum / key_sum; e += Block::kThreads) {
      const int i = e / (kTile / key_sum), j = e % (kTile / key_sum);
      const int64_t l = rows.first * kTile + i, s = keys.first * kTile + j;
      if (l >= p.queries || s >= p.keys) continue;
      Acc sum = 0;
      for (int r = 0; r < row_sum; ++r) {
        for (int c = 0; c < key_sum; ++c) sum += shared.weights[i + r][j + c];
      }
      to[l * m.row + s * m.key] = sum;
    }
  }
};

}  // namespace pyops
