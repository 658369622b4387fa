// The gradients on tensor cores, for D, E ≤ kD: blocks of queries walk over keys for grad_q, and
// blocks of keys over queries for grad_k and grad_v. Both find scores and weights again: seven
// products, not five, but each gradient is summed in registers and in order, without atomics,
// semaphores or a float32 copy of grad_q (as attention_backward_warpgroup.h), and weights go from
// one product into the next within a warp's registers. A tile's others are copied while the tile
// before is multiplied. Predicted for an A100: 134 TFLOP/s of those that are counted with D = 64,
// 117 with 128 (docs/performance.md).
#pragma once

#include "attention/attention_tensorop_tile.h"

namespace pyops {

// row_sums = rowsum(grad_out ∘ out): 16 threads a row.
template <class T>
struct AttentionRowSums {
  using Acc = acc_t<T>;
  static constexpr int kSide = 16;
  struct Shared {
    Acc rows[kSide][kSide];
  };
  struct State {};

  const AttentionBackwardParams& p;
  int64_t block;

  PYOPS_HOST_DEVICE static int64_t blocks(const AttentionBackwardParams& p) {
    return (p.batch * p.heads * p.queries + kSide - 1) / kSide;
  }
  PYOPS_HOST_DEVICE AttentionRowSums(const AttentionBackwardParams& params, int64_t block_)
      : p(params), block(block_) {}

  template <class Team>
  PYOPS_HOST_DEVICE void run(Shared& shared, Team& team) const {
    team.each([&](int thread, State&) {
      const int64_t row = block * kSide + thread / kSide, l = row % p.queries;
      const int64_t h = row / p.queries % p.heads, b = row / p.queries / p.heads;
      Acc sum = 0;
      if (b < p.batch) {
        const T* x = static_cast<const T*>(p.out.data) + b * p.out.b + h * p.out.h + l * p.out.row;
        const T* y = static_cast<const T*>(p.grad_out.data) + b * p.grad_out.b + h * p.grad_out.h +
                     l * p.grad_out.row;
        for (int64_t e = thread % kSide; e < p.value_dim; e += kSide) {
          sum += static_cast<Acc>(x[e]) * static_cast<Acc>(y[e]);
        }
      }
      shared.rows[thread / kSide][thread % kSide] = sum;
    });
    team.each([&](int thread, State&) {
      const int64_t row = block * kSide + thread;
      if (thread >= kSide || row >= p.batch * p.heads * p.queries) return;
      Acc sum = 0;
      PYOPS_UNROLL for (int lane = 0; lane < kSide; ++lane) sum += shared.rows[thread][lane];
      static_cast<Acc*>(p.row_sums)[row] = sum;
    });
  }
};

// A warp's sums fill 128 registers, or 64 beside its queries' words, or in float32 as few as leave
// room. Memory shared by a block stays below 99 KiB, which every GPU from sm_80 on has.
template <class T>
constexpr AttentionTiling tiling_of_gradients(int d, bool keys_own) {
  const int bytes = d * static_cast<int>(sizeof(T));  // of a row
  const bool has_room = bytes == 128;
  return {.parts = has_room ? 2 : 1,
          .warps = has_room || bytes > 256 ? 4 : 8,
          .others = bytes > 256 || (has_room && keys_own) ? 16 : 32,
          .keys_own = keys_own};
}

template <class Step, int kD, bool kKeysOwn>
struct AttentionTensorBackward
    : AttentionTensorTile<Step, kD, tiling_of_gradients<typename Step::Element>(kD, kKeysOwn)> {
  using Tile =
      AttentionTensorTile<Step, kD, tiling_of_gradients<typename Step::Element>(kD, kKeysOwn)>;
  using Tile::kMine, Tile::kNumbers, Tile::kOthers, Tile::kOwners, Tile::kParts, Tile::kSteps,
      Tile::p;
  using typename Tile::Corner;
  using typename Tile::Params;
  using typename Tile::T;
  // Operands of the owners that stay in registers, as far as there are any: q, or both.
  static constexpr int kHeld = kKeysOwn || sizeof(T) > 2 ? 0 : 3 - kParts;

  // Of owners and others; where keys own their k and v, and the queries' q and grad_out.
  enum : uint8_t { kFirst, kSecond };
  struct alignas(16) Shared {
    T owners[2][kOwners * kD];
    T others[2][2][kOthers * kD];  // by buffer
    float queries[2][3][kOthers];  // by buffer, AttentionQuery's numbers, where keys own
  };
  struct State {
    uint32_t a[kNumbers], b[4];                              // operands of a step
    uint32_t held[kHeld > 0 ? kHeld : 1][kSteps][kNumbers];  // owners
    typename Tile::Products scores, grads;                   // then weights and their gradient
    typename Tile::Operand weights, grad_scores;
    typename Tile::Sums sums, value_sums;  // the latter where keys own
    AttentionQuery queries[kMine];         // the thread's, where queries own
    uint32_t kept[kParts];
  };
  // Others' head and first row.
  struct Place {
    int h, row;
  };

  int b, head, row;  // of the gradient
  Place begin, end;

  PYOPS_HOST_DEVICE static int64_t rows(const Params& p) { return kKeysOwn ? p.keys : p.queries; }
  PYOPS_HOST_DEVICE static int64_t heads(const Params& p) {
    return kKeysOwn ? p.kv_heads : p.heads;
  }
  PYOPS_HOST_DEVICE static int64_t blocks(const Params& p) {
    return p.batch * heads(p) * Tile::tiles(rows(p), kOwners);
  }

  PYOPS_HOST_DEVICE AttentionTensorBackward(const Params& params, int64_t block) : Tile(params) {
    const int64_t tiles = Tile::tiles(rows(p), kOwners), tile = block / tiles;
    const auto i = static_cast<int>(block % tiles);
    // Under a causal mask the last queries and the first keys have most to do.
    row = (kKeysOwn ? i : static_cast<int>(tiles) - 1 - i) * kOwners;
    head = static_cast<int>(tile % heads(p));
    b = static_cast<int>(tile / heads(p));
    const auto group = static_cast<int>(p.group());
    if constexpr (kKeysOwn) {  // queries that see one of the keys, of all heads that share them
      begin = {head * group, p.is_causal ? row : 0};
      end = {begin.row < p.queries ? begin.h + group : begin.h, static_cast<int>(p.queries)};
    } else {
      const int64_t seen = baseline::visible_keys(p.is_causal, row + kOwners - 1, 0, p.keys);
      begin = {head / group, 0};
      end = {begin.h + 1, static_cast<int>(seen)};
    }
  }

  template <class Team>
  PYOPS_HOST_DEVICE void run(Shared& shared, Team& team) const {
    team.alone([&](int thread, State& state) { start(thread, state); });
    load_owners(shared, team);
    if constexpr (kHeld > 0) hold_owners(shared, team);
    bool owners_fit = true, others_fit = true;
    Place at = end, next = begin;
    for (int buffer = 0; next.h < end.h || at.h < end.h; buffer ^= 1) {
      team.forget();
      auto& others = shared.others[buffer ^ 1];
      if (at.h < end.h) {  // the tile has come, and all have read the one before
        others_fit = Tile::await(team, others[kFirst], others[kSecond]);
      } else {
        owners_fit = Tile::await(team, shared.owners[kFirst], shared.owners[kSecond]);
      }
      if (next.h < end.h) load_others(next, buffer, shared, team);
      if (at.h < end.h) add_tile(at, buffer ^ 1, owners_fit && others_fit, shared, team);
      at = next;
      next = after(next);
    }
    team.await();  // owners that no tile waited for
    team.alone([&](int thread, State& state) { finish(thread, state); });
  }

 private:
  PYOPS_HOST_DEVICE Place after(const Place& at) const {
    const int row = at.row + kOthers;
    return row < end.row ? Place{at.h, row} : Place{at.h + 1, begin.row};
  }
  PYOPS_HOST_DEVICE Corner corner(const Place& at) const {
    return kKeysOwn ? Corner{b, at.h, at.row, row} : Corner{b, head, row, at.row};
  }

  PYOPS_HOST_DEVICE void start(int thread, State& state) const {
    Tile::clear(state.sums);
    if constexpr (kKeysOwn) {
      Tile::clear(state.value_sums);
    } else {
      PYOPS_UNROLL for (int i = 0; i < kMine; ++i) {
        state.queries[i] = Tile::query_at(b, head, row + Tile::owner_of(thread, i));
      }
    }
  }

  // The first or the second of queries or keys.
  PYOPS_HOST_DEVICE Strip<T> strip(bool of_keys, int which, int h, int first) const {
    const int64_t columns = which == kFirst ? p.dim : p.value_dim;
    return of_keys ? Tile::keys(which == kFirst ? p.k : p.v, b, h, first, columns)
                   : Tile::queries(which == kFirst ? p.q : p.grad_out, b, h, first, columns);
  }
  // Rolled loops leave nothing behind in registers.
  template <class Team>
  PYOPS_HOST_DEVICE void load_owners(Shared& shared, Team& team) const {
    team.alone([&](int thread, State&) {
      PYOPS_ROLL for (int which = kFirst; which <= kSecond; ++which) {
        Tile::template load<kOwners>(strip(kKeysOwn, which, head, row), thread,
                                     shared.owners[which], team);
      }
    });
  }
  template <class Team>
  PYOPS_HOST_DEVICE void load_others(const Place& at, int buffer, Shared& shared,
                                     Team& team) const {
    team.alone([&](int thread, State&) {
      PYOPS_ROLL for (int which = kFirst; which <= kSecond; ++which) {
        Tile::template load<kOthers>(strip(!kKeysOwn, which, at.h, at.row), thread,
                                     shared.others[buffer][which], team);
      }
      if (!kKeysOwn || thread >= 3 * kOthers) return;
      const int i = thread / kOthers, other = thread % kOthers;
      const bool exists = at.row + other < p.queries;
      const int64_t from = Tile::row_at(b, at.h, at.row) + (exists ? other : 0);
      Team::copy_number(&shared.queries[buffer][i][other], Tile::numbers(i) + from, exists);
    });
  }
  template <class Team>
  PYOPS_HOST_DEVICE void hold_owners(const Shared& shared, Team& team) const {
    team.await();
    PYOPS_UNROLL for (int which = 0; which < kHeld; ++which) {
      PYOPS_UNROLL for (int i = 0; i < kSteps; ++i) {
        Tile::load_step(shared.owners[which], i, team,
                        [&](State& state) { return state.held[which][i]; });
      }
    }
  }

  // What takes registers for itself comes before what keeps them.
  template <class Team>
  PYOPS_HOST_DEVICE void add_tile(const Place& at, int buffer, bool fit, const Shared& shared,
                                  Team& team) const {
    const auto& others = shared.others[buffer];
    const auto& queries = shared.queries[buffer];
    team.alone([&](int thread, State& state) { Tile::draw(corner(at), thread, state.kept); });
    multiply<kFirst>(fit, shared, others[kFirst], team, &State::scores);
    team.alone([&](int thread, State& state) {
      Tile::find_scores(corner(at), thread, state.scores);
      weigh(queries, thread, state);
    });
    if constexpr (kKeysOwn) {
      team.alone([&](int thread, State& state) { drop(thread, state); });
      add(fit, &State::weights, others[kSecond], team, &State::value_sums);
    }
    multiply<kSecond>(fit, shared, others[kSecond], team, &State::grads);
    team.alone([&](int thread, State& state) { find_gradients(queries, thread, state); });
    const bool grads_fit = fit && gradients_fit(team);
    add(grads_fit, &State::grad_scores, others[kFirst], team, &State::sums);
  }

  template <int kWhich, class Team>
  PYOPS_HOST_DEVICE static void multiply(bool fit, const Shared& shared, const T* others,
                                         Team& team, typename Tile::Products State::* products) {
    by_step<Step>(fit, [&]<class Product>(Product) {
      if constexpr (kWhich < kHeld) {
        Tile::template multiply<Product>(
            others, team, products, [](int) {},
            [](State& state, int i) -> auto& { return state.held[kWhich][i]; });
      } else {
        Tile::template multiply<Product>(shared.owners[kWhich], others, team, products);
      }
    });
  }
  template <class Team>
  PYOPS_HOST_DEVICE static void add(bool fit, typename Tile::Operand State::* weights,
                                    const T* others, Team& team,
                                    typename Tile::Sums State::* sums) {
    by_step<Step>(fit, [&]<class Product>(Product) {
      Tile::template add<Product>(weights, others, team, sums);
    });
  }

  using Queries = float[3][kOthers];
  PYOPS_HOST_DEVICE static AttentionQuery query_of(const Queries& queries, const State& state,
                                                   int other, int x) {
    if constexpr (kKeysOwn) return {queries[0][other], queries[1][other], queries[2][other]};
    return state.queries[x / 2];
  }

  // Scores become weights.
  PYOPS_HOST_DEVICE static void weigh(const Queries& queries, int thread, State& state) {
    Tile::each(thread, [&](int, int other, int n, int x) {
      float& score = state.scores[n][x];
      score = query_of(queries, state, other, x).weight(score);
    });
  }

  // Weights after dropout as an operand; what is kept grows in the end.
  PYOPS_HOST_DEVICE static void drop(int thread, State& state) {
    typename Tile::Products kept;
    Tile::each(thread, [&](int, int, int n, int x) {
      kept[n][x] = Tile::is_kept(state.kept, x / 2, n, x % 2) ? state.scores[n][x] : 0;
    });
    Tile::pack(kept, state.weights);
  }

  // The gradient of the scores as an operand.
  PYOPS_HOST_DEVICE void find_gradients(const Queries& queries, int thread, State& state) const {
    const float grown = Tile::growth();
    Tile::each(thread, [&](int, int other, int n, int x) {
      float& grad = state.grads[n][x];
      grad = Tile::is_kept(state.kept, x / 2, n, x % 2) ? grad * grown : 0;
      grad = state.scores[n][x] * (grad - query_of(queries, state, other, x).dot);
    });
    Tile::pack(state.grads, state.grad_scores);
  }

  // Being products, they may be too large where all factors fit, or too small.
  template <class Team>
  PYOPS_HOST_DEVICE static bool gradients_fit(Team& team) {
    if constexpr (!Step::kSplits) return true;
    return team.all_of_warp([](int thread, State& state) {
      Largest<Step> largest;
      Tile::each(thread, [&](int, int, int n, int x) { largest.with(state.grads[n][x]); });
      return largest.fits();
    });
  }

  PYOPS_HOST_DEVICE void finish(int thread, const State& state) const {
    const Rows& grad = kKeysOwn ? p.grad_k : p.grad_q;
    store(grad, p.dim, static_cast<float>(p.scale), thread, state.sums);
    if constexpr (kKeysOwn) {
      store(p.grad_v, p.value_dim, Tile::growth(), thread, state.value_sums);
    }
  }
  PYOPS_HOST_DEVICE void store(const Rows& grad, int64_t columns, float factor, int thread,
                               const typename Tile::Sums& sums) const {
    if (grad.data == nullptr) return;
    T* const to = static_cast<T*>(grad.data) + b * grad.b + head * grad.h;
    PYOPS_UNROLL for (int i = 0; i < kMine; ++i) {
      const int at = row + Tile::owner_of(thread, i);
      if (at >= rows(p)) continue;
      PYOPS_UNROLL for (int n = 0; n < kD / 8; ++n) {
        PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
          const int column = Tile::other_of(thread, n, c);
          if (column < columns) to[at * grad.row + column] = T(sums[n][2 * i + c] * factor);
        }
      }
    }
  }
};

}  // namespace pyops
