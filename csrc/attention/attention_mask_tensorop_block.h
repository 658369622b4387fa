// The gradient of a mask on tensor cores: a block has a tile of the mask's own elements and sums it
// over all that the mask is broadcast along, in order. Its two products take turns: while one runs,
// the rows of the other are copied.
#pragma once

#include "attention/attention_tensorop_tile.h"

namespace pyops {

// As many queries as leave memory shared by a block below 99 KiB.
template <class T>
constexpr AttentionTiling tiling_of_mask(int d) {
  return {.parts = 1,
          .warps = d * static_cast<int>(sizeof(T)) > 256 ? 2 : 8,
          .others = baseline::Dropout::kKeys,
          .keys_own = false};
}

template <class Step, int kD>
struct AttentionTensorMaskBackward
    : AttentionTensorTile<Step, kD, tiling_of_mask<typename Step::Element>(kD)> {
  using Tile = AttentionTensorTile<Step, kD, tiling_of_mask<typename Step::Element>(kD)>;
  using Tile::kMine, Tile::kNumbers, Tile::kOthers, Tile::kOwners, Tile::kParts, Tile::kThreads,
      Tile::p;
  using typename Tile::Corner;
  using typename Tile::Params;
  using typename Tile::T;

  enum : uint8_t { kScores, kGrads };  // the products q · kᵀ and grad_out · vᵀ
  union alignas(128) Shared {
    struct {
      T owners[kOwners * kD], others[kOthers * kD];
    } products[2];
    float sums[kOwners][kOthers + 8];  // eight rows of a warp's stores meet different banks
  };
  struct State {
    uint32_t a[kNumbers], b[4];  // operands of a step
    typename Tile::Products scores, grads, sums;
    AttentionQuery queries[kMine];
    uint32_t kept[kParts];
  };
  // The first of what a block sums over, and what is behind the last.
  struct Walk {
    int first, end;
  };

  Walk batch, heads, rows, keys;

  PYOPS_HOST_DEVICE static int64_t parts(int64_t stride, int64_t count) {
    return stride == 0 ? 1 : count;
  }
  PYOPS_HOST_DEVICE static int64_t blocks(const Params& p) {
    const auto& m = p.grad_mask;
    return parts(m.b, p.batch) * parts(m.h, p.heads) *
           parts(m.row, Tile::tiles(p.queries, kOwners)) *
           parts(m.key, Tile::tiles(p.keys, kOthers));
  }

  PYOPS_HOST_DEVICE AttentionTensorMaskBackward(const Params& params, int64_t block)
      : Tile(params) {
    const auto& m = p.grad_mask;
    keys = take(block, m.key, p.keys, kOthers);
    rows = take(block, m.row, p.queries, kOwners);
    heads = take(block, m.h, p.heads, 1);
    batch = take(block, m.b, p.batch, 1);
  }

  template <class Team>
  PYOPS_HOST_DEVICE void run(Shared& shared, Team& team) const {
    team.alone([](int, State& state) { Tile::clear(state.sums); });
    Corner at{batch.first, heads.first, rows.first, keys.first};
    if (is_hidden(at)) at = after(at);
    if (at.b < batch.end) load(at, kScores, shared, team);
    for (Corner next; at.b < batch.end; at = next) {
      team.forget();
      team.alone([&](int thread, State& state) { start(at, thread, state); });
      // Rows of this product have come, and all have read those of the one before.
      const bool scores_fit = await(kScores, shared, team);
      load(at, kGrads, shared, team);
      multiply(kScores, scores_fit, shared, team, &State::scores);
      team.alone([&](int thread, State& state) { weigh(at, thread, state); });
      const bool grads_fit = await(kGrads, shared, team);
      next = after(at);
      if (next.b < batch.end) load(next, kScores, shared, team);
      multiply(kGrads, grads_fit, shared, team, &State::grads);
      team.alone([&](int thread, State& state) { add(thread, state); });
    }
    team.await();
    team.alone([&](int thread, State& state) {
      Tile::each(thread, [&](int owner, int other, int n, int x) {
        shared.sums[owner][other] = state.sums[n][x];
      });
    });
    team.await();
    team.alone([&](int thread, State&) { store(thread, shared); });
  }

 private:
  // `size` in steps of `of`: one step, or all where the mask is broadcast.
  PYOPS_HOST_DEVICE static Walk take(int64_t& block, int64_t stride, int64_t size, int of) {
    if (stride == 0) return {0, static_cast<int>(size)};
    const int64_t count = Tile::tiles(size, of), first = block % count * of;
    block /= count;
    return {static_cast<int>(first), static_cast<int>(first) + of};
  }

  PYOPS_HOST_DEVICE bool is_hidden(const Corner& at) const {
    return p.is_causal && at.s >= at.l + kOwners;
  }
  PYOPS_HOST_DEVICE Corner after(Corner at) const {
    do {
      at.s += kOthers;
      if (at.s >= keys.end) at.s = keys.first, at.l += kOwners;
      if (at.l >= rows.end) at.l = rows.first, ++at.h;
      if (at.h >= heads.end) at.h = heads.first, ++at.b;
    } while (at.b < batch.end && is_hidden(at));
    return at;
  }

  template <class Team>
  PYOPS_HOST_DEVICE void load(const Corner& at, int which, Shared& shared, Team& team) const {
    const int kv_head = static_cast<int>(p.kv_head(at.h));
    const int64_t columns = which == kScores ? p.dim : p.value_dim;
    auto& to = shared.products[which];
    team.alone([&](int thread, State&) {
      Tile::template load<kOwners>(
          Tile::queries(which == kScores ? p.q : p.grad_out, at.b, at.h, at.l, columns), thread,
          to.owners, team);
      Tile::template load<kOthers>(
          Tile::keys(which == kScores ? p.k : p.v, at.b, kv_head, at.s, columns), thread, to.others,
          team);
    });
  }
  template <class Team>
  PYOPS_HOST_DEVICE static bool await(int which, Shared& shared, Team& team) {
    auto& operands = shared.products[which];
    return Tile::await(team, operands.owners, operands.others);
  }
  template <class Team>
  PYOPS_HOST_DEVICE static void multiply(int which, bool fit, const Shared& shared, Team& team,
                                         typename Tile::Products State::* products) {
    const auto& operands = shared.products[which];
    by_step<Step>(fit, [&]<class Product>(Product) {
      Tile::template multiply<Product>(operands.owners, operands.others, team, products);
    });
  }

  PYOPS_HOST_DEVICE void start(const Corner& at, int thread, State& state) const {
    PYOPS_UNROLL for (int i = 0; i < kMine; ++i) {
      state.queries[i] = Tile::query_at(at.b, at.h, at.l + Tile::owner_of(thread, i));
    }
    Tile::draw(at, thread, state.kept);
  }
  PYOPS_HOST_DEVICE void weigh(const Corner& at, int thread, State& state) const {
    Tile::find_scores(at, thread, state.scores);
    Tile::each(thread, [&](int, int, int n, int x) {
      float& score = state.scores[n][x];
      score = state.queries[x / 2].weight(score);
    });
  }
  PYOPS_HOST_DEVICE void add(int thread, State& state) const {
    const float grown = Tile::growth();
    Tile::each(thread, [&](int, int, int n, int x) {
      const bool keeps = Tile::is_kept(state.kept, x / 2, n, x % 2);
      const float grad = keeps ? state.grads[n][x] * grown : 0;
      state.sums[n][x] += state.scores[n][x] * (grad - state.queries[x / 2].dot);
    });
  }

  // A row or column of the tile is one element where the mask is broadcast.
  PYOPS_HOST_DEVICE void store(int thread, const Shared& shared) const {
    const auto& m = p.grad_mask;
    float* const to = static_cast<float*>(m.data) + batch.first * m.b + heads.first * m.h;
    const int row_sum = m.row == 0 ? kOwners : 1, key_sum = m.key == 0 ? kOthers : 1;
    const int columns = kOthers / key_sum;
    PYOPS_ROLL for (int e = thread; e < kOwners / row_sum * columns; e += kThreads) {
      const int i = e / columns, j = e % columns, l = rows.first + i, s = keys.first + j;
      if (l >= p.queries || s >= p.keys) continue;
      float sum = 0;
      PYOPS_ROLL for (int r = 0; r < row_sum; ++r) {
        PYOPS_ROLL for (int c = 0; c < key_sum; ++c) sum += shared.sums[i + r][j + c];
      }
      to[l * m.row + s * m.key] = sum;
    }
  }
};

}  // namespace pyops
