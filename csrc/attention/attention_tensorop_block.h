// The forward on tensor cores, for D, E ≤ kD: a warp has 16 queries or 32, whose scores with a tile
// of keys, softmax and outputs never leave its registers (Dao 2023). `Step` is what its products
// are made of (gemm/warp_step.h); a tile whose numbers do not split is multiplied without them.
//
// The team's warps also multiply(), and reduce() over the four threads that share a row.
#pragma once

#include "attention/attention_block.h"
#include "gemm/warp_step.h"

namespace pyops {

template <class Step, int kD>
struct AttentionTensorForward {
  using T = typename Step::Element;
  // Float32 fills as many registers with half as many keys. What a warp loads of them is for 32
  // queries where those leave room, which parts of split numbers do not.
  static constexpr bool kIsFloat = sizeof(T) == sizeof(float);
  static constexpr int kKeys = kIsFloat ? 32 : 64;
  static constexpr int kMine = kIsFloat && !Step::kSplits && kD <= 64 ? 4 : 2;
  static constexpr int kThreads = 128, kWarp = 32, kRows = kThreads / kWarp * 8 * kMine;
  static constexpr int kWidth = Pack<T>::kWidth, kDepth = Step::kDepth, kNumbers = 2 * kMine;

  // Rows are 16 bytes longer than a power of two: eight of them spread over all banks.
  template <int kCount>
  using Lines = T[kCount][kD + kWidth];
  struct alignas(16) Shared {
    Lines<kRows> q;
    Lines<kKeys> k, v;
  };
  // Of the kMine rows of a thread, which lie 8 apart, and its two columns of every eight.
  struct State {
    uint32_t q[kNumbers];  // of a step
    uint32_t weights[kKeys / kDepth][kNumbers];
    float scores[kKeys / 8][kNumbers], out[kD / 8][kNumbers];
    float rows[kMine];  // what is reduced
    baseline::OnlineSoftmax<float> softmax[kMine];
  };

  const AttentionParams& p;
  int64_t b, h, l0;

  PYOPS_HOST_DEVICE static int64_t blocks(const AttentionParams& p) {
    return p.batch * p.heads * ((p.queries + kRows - 1) / kRows);
  }

  PYOPS_HOST_DEVICE AttentionTensorForward(const AttentionParams& params, int64_t block)
      : p(params) {
    const int64_t tiles = (p.queries + kRows - 1) / kRows;
    l0 = (tiles - 1 - block % tiles) * kRows;  // under a causal mask the last have most to do
    h = block / tiles % p.heads;
    b = block / tiles / p.heads;
  }

  template <class Team>
  PYOPS_HOST_DEVICE void run(Shared& shared, Team& team) const {
    const int64_t kv_head = p.kv_head(h);
    const int64_t seen = baseline::visible_keys(p.is_causal, l0 + kRows - 1, 0, p.keys);
    const Strip<T> q(p.q, b, h, l0, p.queries, p.dim);
    const bool queries_fit = all_fit<Step>(team, [&](int thread, State& state) {
      start(state);
      return load(q, thread, shared.q);
    });
    for (int64_t s0 = 0; s0 < seen; s0 += kKeys) {
      const Strip<T> k(p.k, b, kv_head, s0, p.keys, p.dim);
      const Strip<T> v(p.v, b, kv_head, s0, p.keys, p.value_dim);
      const bool keys_fit = all_fit<Step>(team, [&](int thread, State&) {
        const bool k_fits = load(k, unknown(thread), shared.k);
        return load(v, unknown(thread), shared.v) && k_fits;
      });
      const bool fit = queries_fit && keys_fit;
      by_step<Step>(fit, [&]<class Product>(Product) { find_scores<Product>(shared, team); });
      team.alone([&](int thread, State& state) { find_maximum(s0, unknown(thread), state); });
      team.reduce([](float x, float y) { return x > y ? x : y; });
      team.alone([&](int thread, State& state) { weigh(s0, unknown(thread), state); });
      by_step<Step>(fit, [&]<class Product>(Product) { add_values<Product>(shared, team); });
      team.each([](int, State&) {});  // all have read what the next keys overwrite
    }
    team.alone([](int, State& state) {
      PYOPS_UNROLL for (int r = 0; r < kMine; ++r) state.rows[r] = state.softmax[r].sum;
    });
    team.reduce([](float x, float y) { return x + y; });
    team.alone([&](int thread, State& state) { finish(thread, state); });
  }

 private:
  // First of the thread's rows, and of its two columns of eight.
  PYOPS_HOST_DEVICE static int row_of(int thread) {
    return thread / kWarp * 8 * kMine + thread % kWarp / 4;
  }
  PYOPS_HOST_DEVICE static int column_of(int thread) { return thread % 4 * 2; }
  PYOPS_HOST_DEVICE int64_t row_at(int64_t l) const { return (b * p.heads + h) * p.queries + l; }

  PYOPS_HOST_DEVICE static void start(State& state) {
    PYOPS_UNROLL for (int n = 0; n < kD / 8; ++n) {
      PYOPS_UNROLL for (int x = 0; x < kNumbers; ++x) state.out[n][x] = 0;
    }
    PYOPS_UNROLL for (int r = 0; r < kMine; ++r) state.softmax[r] = {};
  }

  // Whether the step takes the numbers.
  template <int kCount>
  PYOPS_HOST_DEVICE static bool load(const Strip<T>& from, int thread,
                                     T (&to)[kCount][kD + kWidth]) {
    Largest<Step> largest;
    PYOPS_UNROLL for (int e = thread; e < kCount * kD / kWidth; e += kThreads) {
      const int row = e / (kD / kWidth), column = e % (kD / kWidth) * kWidth;
      Pack<T> pack = from.pack(row, column);
      PYOPS_UNROLL for (T& x : pack.at) x = Step::rounded(largest.with(x));
      store_pack(&to[row][column], pack);
    }
    return largest.fits();
  }

  template <class Product, class Team>
  PYOPS_HOST_DEVICE void find_scores(const Shared& shared, Team& team) const {
    team.alone([](int, State& state) {
      PYOPS_UNROLL for (int n = 0; n < kKeys / 8; ++n) {
        PYOPS_UNROLL for (int x = 0; x < kNumbers; ++x) state.scores[n][x] = 0;
      }
    });
    PYOPS_UNROLL for (int i = 0; i < kD / kDepth; ++i) {
      team.alone([&](int thread, State& state) {
        PYOPS_UNROLL for (int x = 0; x < kNumbers; ++x) {
          const int row = row_of(thread) + (x / 4 * 2 + x % 2) * 8;
          const int column = i * kDepth + Step::depth_of(thread % kWarp, x % 4 / 2);
          memcpy(&state.q[x], &shared.q[row][column], sizeof state.q[x]);
        }
      });
      PYOPS_UNROLL for (int n = 0; n < kKeys / 8; ++n) {
        team.template multiply<Product>([](State& state) -> auto& { return state.q; },
                                        [&](int thread, uint32_t (&to)[2]) {
                                          const int lane = thread % kWarp;
                                          load_row<Step>(&shared.k[n * 8 + lane / 4][i * kDepth],
                                                         lane, to);
                                        },
                                        [&](State& state) -> auto& { return state.scores[n]; });
      }
    }
  }

  template <class Product, class Team>
  PYOPS_HOST_DEVICE void add_values(const Shared& shared, Team& team) const {
    PYOPS_UNROLL for (int i = 0; i < kKeys / kDepth; ++i) {
      PYOPS_UNROLL for (int n = 0; n < kD / 8; ++n) {
        team.template multiply<Product>([&](State& state) -> auto& { return state.weights[i]; },
                                        [&](int thread, uint32_t (&to)[2]) {
                                          load_columns<Step, Team>(&shared.v[i * kDepth][n * 8],
                                                                   kD + kWidth, thread % kWarp, to);
                                        },
                                        [&](State& state) -> auto& { return state.out[n]; });
      }
    }
  }

  PYOPS_HOST_DEVICE void find_maximum(int64_t s0, int thread, State& state) const {
    scale(s0, thread, state);
    PYOPS_UNROLL for (int r = 0; r < kMine; ++r) {
      float most = state.softmax[r].max;
      PYOPS_UNROLL for (int n = 0; n < kKeys / 8; ++n) {
        PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
          const float x = state.scores[n][2 * r + c];
          most = x > most ? x : most;  // a NaN reaches the sum by its weight
        }
      }
      state.rows[r] = most;
    }
  }

  // What scale and masks make of the products.
  PYOPS_HOST_DEVICE void scale(int64_t s0, int thread, State& state) const {
    const bool hides = s0 + kKeys > p.keys || (p.is_causal && s0 + kKeys - 1 > l0);
    if (!hides && p.mask.kind == MaskKind::kNone) {
      PYOPS_UNROLL for (int n = 0; n < kKeys / 8; ++n) {
        PYOPS_UNROLL for (float& x : state.scores[n]) x *= static_cast<float>(p.scale);
      }
      return;
    }
    PYOPS_UNROLL for (int r = 0; r < kMine; ++r) {
      const int64_t l = l0 + row_of(thread) + 8 * r;
      PYOPS_UNROLL for (int n = 0; n < kKeys / 8; ++n) {
        PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
          const int64_t s = s0 + n * 8 + column_of(thread) + c;
          float& x = state.scores[n][2 * r + c];
          x = is_visible(p, l, s) ? score<T>(p, p.mask, b, h, l, s, x) : -INFINITY;
        }
      }
    }
  }

  PYOPS_HOST_DEVICE void weigh(int64_t s0, int thread, State& state) const {
    PYOPS_UNROLL for (int r = 0; r < kMine; ++r) {
      auto& softmax = state.softmax[r];
      const float factor = softmax.raise_max(state.rows[r]);
      PYOPS_UNROLL for (int n = 0; n < kD / 8; ++n) {
        PYOPS_UNROLL for (int c = 0; c < 2; ++c) state.out[n][2 * r + c] *= factor;
      }
      PYOPS_UNROLL for (int n = 0; n < kKeys / 8; ++n) {
        PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
          float& x = state.scores[n][2 * r + c];
          x = std::exp(x - softmax.max);
          softmax.sum += x;
        }
      }
    }
    if (p.dropout_p != 0) drop(s0, thread, state);
    PYOPS_UNROLL for (int i = 0; i < kKeys / kDepth; ++i) {
      PYOPS_UNROLL for (int x = 0; x < kNumbers; ++x) {
        state.weights[i][x] = Step::word_of_sums(&state.scores[i * kDepth / 8], x);
      }
    }
  }

  // What is kept grows by 1/(1 - p) in the end: 16 bits might not hold it here.
  PYOPS_HOST_DEVICE void drop(int64_t s0, int thread, State& state) const {
    const baseline::Dropout dropout = dropout_of(p);
    PYOPS_UNROLL for (int r = 0; r < kMine; ++r) {
      const int64_t row = row_at(l0 + row_of(unknown(thread)) + 8 * r);
      PYOPS_UNROLL for (int n = 0; n < 2; ++n) {
        PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
          float kept[kKeys / 16];
          dropout.factors_apart(row, s0 + n * 8 + column_of(thread) + c, kept);
          PYOPS_UNROLL for (int w = 0; w < kKeys / 16; ++w) {
            float& x = state.scores[n + 2 * w][2 * r + c];
            x = kept[w] == 0 ? 0 : x;
          }
        }
      }
    }
  }

  PYOPS_HOST_DEVICE void finish(int thread, State& state) const {
    PYOPS_UNROLL for (int r = 0; r < kMine; ++r) {
      const int64_t l = l0 + row_of(thread) + 8 * r;
      if (l >= p.queries) continue;
      auto& softmax = state.softmax[r];
      softmax.sum = state.rows[r];
      const float scale = softmax.row_scale();
      if (thread % 4 == 0) {
        const int64_t row = row_at(l);
        static_cast<float*>(p.row_max)[row] = softmax.max;
        static_cast<float*>(p.row_scale)[row] = scale;
      }
      const float grown =
          p.dropout_p != 0 ? scale * static_cast<float>(dropout_of(p).keep_factor) : scale;
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
