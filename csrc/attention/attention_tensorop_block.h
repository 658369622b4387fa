// The forward on tensor cores, for 16-bit types and D, E ≤ kD: a warp has 16 queries, whose scores
// with 64 keys, softmax and outputs never leave its registers (Dao 2023). Products of 16×8×16: a
// thread's numbers of each operand lie as PTX says of mma.m16n8k16.
//
// The team's warps also multiply(), and reduce() over the four threads that share a row.
#pragma once

#include "attention/attention_block.h"

namespace pyops {

template <class T, int kD>
struct AttentionTensorForward {
  static constexpr int kThreads = 128, kWarp = 32, kRows = kThreads / kWarp * 16, kKeys = 64;
  static constexpr int kWidth = Pack<T>::kWidth, kTiles = kKeys / 8;

  // Rows are 16 bytes longer than a power of two: eight of them spread over all banks.
  struct alignas(16) Shared {
    T k[kKeys][kD + 8], v[kKeys][kD + 8];
  };
  struct State {
    uint32_t q[kD / 16][4], weights[kKeys / 16][4];
    float scores[kTiles][4], out[kD / 8][4];
    float rows[2];  // of the thread's rows, what is reduced
    baseline::OnlineSoftmax<float> softmax[2];
  };

  const AttentionParams& p;
  int64_t b, h, l0;
  baseline::Dropout dropout;

  PYOPS_HOST_DEVICE static int64_t blocks(const AttentionParams& p) {
    return p.batch * p.heads * ((p.queries + kRows - 1) / kRows);
  }

  PYOPS_HOST_DEVICE AttentionTensorForward(const AttentionParams& params, int64_t block)
      : p(params), dropout(dropout_of(params)) {
    const int64_t tiles = (p.queries + kRows - 1) / kRows;
    l0 = (tiles - 1 - block % tiles) * kRows;  // under a causal mask the last have most to do
    h = block / tiles % p.heads;
    b = block / tiles / p.heads;
  }

  template <class Team>
  PYOPS_HOST_DEVICE void run(Shared& shared, Team& team) const {
    const int64_t kv_head = h / (p.heads / p.kv_heads);
    const int64_t seen = baseline::visible_keys(p.is_causal, l0 + kRows - 1, 0, p.keys);
    team.alone([&](int thread, State& state) { start(thread, state); });
    for (int64_t s0 = 0; s0 < seen; s0 += kKeys) {
      const Strip<T> k(p.k, b, kv_head, s0, p.keys, p.dim);
      const Strip<T> v(p.v, b, kv_head, s0, p.keys, p.value_dim);
      team.each([&](int thread, State&) {
        load(k, thread, shared.k);
        load(v, thread, shared.v);
      });
      find_scores(shared, team);
      team.alone([&](int thread, State& state) { find_maximum(s0, thread, state); });
      team.reduce([](float x, float y) { return x > y ? x : y; });
      team.alone([&](int thread, State& state) { weigh(s0, thread, state); });
      add_values(shared, team);
      team.each([](int, State&) {});  // all have read what the next keys overwrite
    }
    team.alone([](int, State& state) {
      PYOPS_UNROLL for (int r = 0; r < 2; ++r) state.rows[r] = state.softmax[r].sum;
    });
    team.reduce([](float x, float y) { return x + y; });
    team.alone([&](int thread, State& state) { finish(thread, state); });
  }

 private:
  // First of the thread's two rows, which lie 8 apart, and first of its two columns of eight.
  PYOPS_HOST_DEVICE static int row_of(int thread) {
    return thread / kWarp * 16 + thread % kWarp / 4;
  }
  PYOPS_HOST_DEVICE static int column_of(int thread) { return thread % 4 * 2; }

  PYOPS_HOST_DEVICE void start(int thread, State& state) const {
    const Strip<T> q(p.q, b, h, l0, p.queries, p.dim);
    const auto at = [&](int row, int column) {
      return row < q.rows && column < q.columns ? q.first[row * q.stride + column] : T{};
    };
    PYOPS_UNROLL for (int i = 0; i < kD / 16; ++i) {
      PYOPS_UNROLL for (int x = 0; x < 4; ++x) {
        const int row = row_of(thread) + x % 2 * 8, column = 16 * i + x / 2 * 8 + column_of(thread);
        state.q[i][x] = word_of(at(row, column), at(row, column + 1));
      }
    }
    PYOPS_UNROLL for (int n = 0; n < kD / 8; ++n) {
      PYOPS_UNROLL for (int x = 0; x < 4; ++x) state.out[n][x] = 0;
    }
    PYOPS_UNROLL for (int r = 0; r < 2; ++r) state.softmax[r] = {};
  }

  PYOPS_HOST_DEVICE static void load(const Strip<T>& from, int thread, T (&to)[kKeys][kD + 8]) {
    PYOPS_UNROLL for (int e = thread; e < kKeys * kD / kWidth; e += kThreads) {
      const int row = e / (kD / kWidth), column = e % (kD / kWidth) * kWidth;
      store_pack(&to[row][column], from.pack(row, column));
    }
  }

  template <class Team>
  PYOPS_HOST_DEVICE void find_scores(const Shared& shared, Team& team) const {
    team.alone([](int, State& state) {
      PYOPS_UNROLL for (int n = 0; n < kTiles; ++n) {
        PYOPS_UNROLL for (int x = 0; x < 4; ++x) state.scores[n][x] = 0;
      }
    });
    PYOPS_UNROLL for (int i = 0; i < kD / 16; ++i) {
      PYOPS_UNROLL for (int n = 0; n < kTiles; ++n) {
        team.template multiply<T>(
            [&](State& state) -> auto& { return state.q[i]; },
            [&](int thread, uint32_t (&to)[2]) {
              const T* k = &shared.k[n * 8 + thread % kWarp / 4][i * 16 + column_of(thread)];
              memcpy(&to[0], k, sizeof to[0]);
              memcpy(&to[1], k + 8, sizeof to[1]);
            },
            [&](State& state) -> auto& { return state.scores[n]; });
      }
    }
  }

  template <class Team>
  PYOPS_HOST_DEVICE void add_values(const Shared& shared, Team& team) const {
    PYOPS_UNROLL for (int i = 0; i < kKeys / 16; ++i) {
      PYOPS_UNROLL for (int n = 0; n < kD / 8; ++n) {
        team.template multiply<T>([&](State& state) -> auto& { return state.weights[i]; },
                                  [&](int thread, uint32_t (&to)[2]) {
                                    Team::load_transposed(&shared.v[i * 16][n * 8], kD + 8,
                                                          thread % kWarp, to);
                                  },
                                  [&](State& state) -> auto& { return state.out[n]; });
      }
    }
  }

  PYOPS_HOST_DEVICE void find_maximum(int64_t s0, int thread, State& state) const {
    PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
      const int64_t l = l0 + row_of(thread) + 8 * r;
      float most = state.softmax[r].max;
      PYOPS_UNROLL for (int n = 0; n < kTiles; ++n) {
        PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
          const int64_t s = s0 + n * 8 + column_of(thread) + c;
          float& x = state.scores[n][2 * r + c];
          x = is_visible(p, l, s) ? score<T>(p, p.mask, b, h, l, s, x) : -INFINITY;
          most = x > most ? x : most;  // a NaN reaches the sum by its weight
        }
      }
      state.rows[r] = most;
    }
  }

  PYOPS_HOST_DEVICE void weigh(int64_t s0, int thread, State& state) const {
    PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
      auto& softmax = state.softmax[r];
      const float factor = softmax.raise_max(state.rows[r]);
      PYOPS_UNROLL for (int n = 0; n < kD / 8; ++n) {
        PYOPS_UNROLL for (int c = 0; c < 2; ++c) state.out[n][2 * r + c] *= factor;
      }
      PYOPS_UNROLL for (int n = 0; n < kTiles; ++n) {
        PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
          float& x = state.scores[n][2 * r + c];
          x = std::exp(x - softmax.max);
          softmax.sum += x;
        }
      }
      if (p.dropout_p != 0) drop(s0, r, thread, state);
    }
    PYOPS_UNROLL for (int i = 0; i < kKeys / 16; ++i) {
      PYOPS_UNROLL for (int x = 0; x < 4; ++x) {
        const float (&from)[4] = state.scores[2 * i + x / 2];
        state.weights[i][x] = word_of<T>(from[x % 2 * 2], from[x % 2 * 2 + 1]);
      }
    }
  }

  // What is kept grows by 1/(1 - p) in the end: 16 bits might not hold it here.
  PYOPS_HOST_DEVICE void drop(int64_t s0, int r, int thread, State& state) const {
    const int64_t row = (b * p.heads + h) * p.queries + l0 + row_of(thread) + 8 * r;
    PYOPS_UNROLL for (int n = 0; n < 2; ++n) {
      PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
        float kept[4];
        dropout.factors_apart(row, s0 + n * 8 + column_of(thread) + c, kept);
        PYOPS_UNROLL for (int w = 0; w < 4; ++w) {
          float& x = state.scores[n + 2 * w][2 * r + c];
          x = kept[w] == 0 ? 0 : x;
        }
      }
    }
  }

  PYOPS_HOST_DEVICE void finish(int thread, State& state) const {
    PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
      const int64_t l = l0 + row_of(thread) + 8 * r;
      if (l >= p.queries) continue;
      auto& softmax = state.softmax[r];
      softmax.sum = state.rows[r];
      const float scale = softmax.row_scale();
      if (thread % 4 == 0) {
        const int64_t row = (b * p.heads + h) * p.queries + l;
        static_cast<float*>(p.row_max)[row] = softmax.max;
        static_cast<float*>(p.row_scale)[row] = scale;
      }
      const float grown =
          p.dropout_p != 0 ? scale * static_cast<float>(dropout.keep_factor) : scale;
      T* const out = static_cast<T*>(p.out.data) + b * p.out.b + h * p.out.h + l * p.out.row;
      PYOPS_UNROLL for (int n = 0; n < kD / 8; ++n) {
        PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
          const int column = n * 8 + column_of(thread) + c;
          if (column < p.value_dim) out[column] = T(state.out[n][2 * r + c] * grown);
        }
      }
    }
  }
};

}  // namespace pyops
