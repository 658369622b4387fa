// A step on tensor cores: rows of the recurrent weights times the operands of eight sequences, by
// products of 16×8×16. A warp takes strips of 32 of the depth, a lane eight neighbours of each: 16
// bytes that come from the cache of all blocks straight into registers. PTX's mma.m16n8k16 thinks
// them in another order, but a sum has none, and the weights lie in the same. The warps' sums then
// meet in shared memory, a unit's beside each other.
//
// The team's warps also multiply(); of(thread) is a thread's state.
#pragma once

#include "gemm/warp_step.h"
#include "rnn/rnn_tiling.h"

namespace pyops {

// `from` is aligned to 16 bytes, and other blocks may have written there since this one began.
PYOPS_HOST_DEVICE inline void load_words(const void* from, uint32_t (&to)[4]) {
  expect_aligned(from, sizeof to);
#ifdef __CUDA_ARCH__
  const uint4 words = __ldcg(static_cast<const uint4*>(from));
  memcpy(to, &words, sizeof to);
#else
  memcpy(to, from, sizeof to);
#endif
}

template <class Sweep, RnnTiling kTiling>
class RnnTensorSteps {
 public:
  using T = typename Sweep::Type;
  using Product = typename Sweep::Product;
  static constexpr int kThreads = kTiling.kThreads, kWarps = kTiling.kWarps;
  static constexpr int kSlices = kTiling.slices, kColumns = Product::kColumns;

  // Of an mma's a (16, 16).
  struct alignas(16) Fragment {
    uint32_t words[4];
  };
  struct alignas(4 * kColumns) Sum {
    float of[kColumns];
  };
  struct Shared {
    Sum sums[kWarps][kTiling.sequences()][(kTiling.rows() + 4) / kColumns];
  };
  static_assert(sizeof(Shared) == kTiling.sums_bytes());

 private:
  static constexpr int kTiles = kTiling.tiles, kOctets = kTiling.octets, kHeld = kTiling.held();
  static constexpr int kUnits = kTiling.rows() / kColumns, kStrip = kTiling.kStrip;
  // A block finishes so many cells of its cluster's, a thread one of each round.
  static constexpr int kCells = kUnits * kTiling.sequences() / kSlices;
  static constexpr int kRounds = (kCells + kThreads - 1) / kThreads;

 public:
  struct State {
    Fragment held[kHeld][kTiles][2], loaded[kTiles][2];
    uint32_t operands[kHeld][kOctets][4];
    float sums[kTiles][kOctets][4];
    typename Product::Given given[kRounds];
  };

  PYOPS_HOST_DEVICE RnnTensorSteps(const Product& product, int64_t block)
      : strips_(static_cast<int>(kTiling.strips(product.depth))),
        slice_(static_cast<int>(block % kSlices)),
        team_(block / kSlices / kTiling.members(product.columns)),
        row_(block / kSlices % kTiling.members(product.columns) * kTiling.rows()) {}

  PYOPS_HOST_DEVICE int64_t team() const { return team_; }

  // `kept`: where the block has the weights that its registers do not hold.
  template <class Team>
  PYOPS_HOST_DEVICE void keep_weights(const Product& product, Fragment* kept, Team& team) const {
    team.alone([&](int thread, State& state) {
      PYOPS_UNROLL for (int i = 0; i < kHeld; ++i) {
        PYOPS_UNROLL for (int j = 0; j < kTiles; ++j) {
          PYOPS_UNROLL for (int half = 0; half < 2; ++half) {
            state.held[i][j][half] = weights(product, thread, i, j, half);
          }
        }
      }
      for (int f = 0; f < (strips_ - kHeld) * kTiles * 2; ++f) {
        const int i = kHeld + f / 2 / kTiles, j = f / 2 % kTiles;
        kept[f * kThreads + thread] = weights(product, thread, i, j, f % 2);
      }
    });
  }

  // What the cells take beside sums, on its way while others are waited for.
  template <class Team>
  PYOPS_HOST_DEVICE void take_given(const Product& product, Team& team) const {
    team.alone([&](int thread, State& state) {
      each_cell(product, thread, [&](int round, int, int, int64_t i, int64_t u) {
        state.given[round] = product.given(i, u);
      });
    });
  }

  template <class Team>
  PYOPS_HOST_DEVICE void multiply(const Product& product, const Fragment* kept, Shared& shared,
                                  Team& team) const {
    team.alone([&](int thread, State& state) {
      PYOPS_UNROLL for (int j = 0; j < kTiles; ++j) {
        PYOPS_UNROLL for (int o = 0; o < kOctets; ++o) {
          PYOPS_UNROLL for (int x = 0; x < 4; ++x) state.sums[j][o][x] = 0;
        }
      }
      load_operands(product, thread, 0, state);
    });
    PYOPS_UNROLL for (int i = 0; i < kHeld; ++i) {
      multiply_strip(i, [i](State& s) -> auto& { return s.held[i]; }, team);
    }
    for (int begin = kHeld; begin < strips_; begin += kHeld) {
      team.alone([&](int thread, State& s) { load_operands(product, thread, begin, s); });
      PYOPS_UNROLL for (int i = 0; i < kHeld; ++i) {
        if (begin + i >= strips_) continue;
        const Fragment* from = kept + (begin + i - kHeld) * kTiles * 2 * kThreads;
        team.alone([&](int thread, State& s) {
          PYOPS_UNROLL for (int f = 0; f < kTiles * 2; ++f) {
            s.loaded[f / 2][f % 2] = from[f * kThreads + thread];
          }
        });
        multiply_strip(i, [](State& s) -> auto& { return s.loaded; }, team);
      }
    }
    team.each([&](int thread, State& state) { store_sums(thread, state, shared); });
  }

  // `shared_of(slice)`: that of the blocks of the cluster.
  template <class SharedOf, class Team>
  PYOPS_HOST_DEVICE void finish(const Product& product, const SharedOf& shared_of,
                                Team& team) const {
    team.alone([&](int thread, State& state) {
      each_cell(product, thread, [&](int round, int n, int unit, int64_t i, int64_t u) {
        Sum total{};
        PYOPS_UNROLL for (int slice = 0; slice < kSlices; ++slice) {
          const Shared& shared = shared_of(slice);
          PYOPS_UNROLL for (int warp = 0; warp < kWarps; ++warp) {
            const Sum sum = shared.sums[warp][n][unit];
            PYOPS_UNROLL for (int c = 0; c < kColumns; ++c) total.of[c] += sum.of[c];
          }
        }
        product.finish(i, u, total.of, state.given[round]);
      });
    });
  }

 private:
  // Of the lane's eight neighbours, in the warp's i-th strip.
  PYOPS_HOST_DEVICE int depth_of(int thread, int i) const {
    return ((i * kWarps + thread / 32) * kSlices + slice_) * kStrip + thread % 4 * 8;
  }

  PYOPS_HOST_DEVICE Fragment weights(const Product& product, int thread, int i, int j,
                                     int half) const {
    Fragment fragment{};
    PYOPS_UNROLL for (int x = 0; x < 4; ++x) {
      const int64_t row = row_ + 16 * j + thread % 32 / 4 + x % 2 * 8;
      const int64_t q = depth_of(thread, i) + half * 4 + x / 2 * 2;
      if (row >= product.columns || q >= product.depth) continue;
      const uint32_t low = product.weight(q, row).bits, high = product.weight(q + 1, row).bits;
      fragment.words[x] = low | high << 16;
    }
    return fragment;
  }

  // Sequences that have none multiply zeros.
  PYOPS_HOST_DEVICE void load_operands(const Product& product, int thread, int begin,
                                       State& state) const {
    PYOPS_UNROLL for (int o = 0; o < kOctets; ++o) {
      const int64_t n = team_ * kTiling.sequences() + 8 * o + thread % 32 / 4;
      const T* from = n < product.rows ? product.operand(n) : nullptr;
      PYOPS_UNROLL for (int i = 0; i < kHeld; ++i) {
        const int q = depth_of(thread, begin + i);
        PYOPS_UNROLL for (int x = 0; x < 4; ++x) state.operands[i][o][x] = 0;
        if (from != nullptr && q < product.depth) load_words(from + q, state.operands[i][o]);
      }
    }
  }

  template <class WeightsOf, class Team>
  PYOPS_HOST_DEVICE void multiply_strip(int i, const WeightsOf& weights_of, Team& team) const {
    PYOPS_UNROLL for (int half = 0; half < 2; ++half) {
      PYOPS_UNROLL for (int o = 0; o < kOctets; ++o) {
        PYOPS_UNROLL for (int j = 0; j < kTiles; ++j) {
          team.template multiply<HalfStep<T>>(
              [&](State& s) -> auto& { return weights_of(s)[j][half].words; },
              [&](int thread, uint32_t (&to)[2]) {
                PYOPS_UNROLL for (int x = 0; x < 2; ++x) {
                  to[x] = team.of(thread).operands[i][o][2 * half + x];
                }
              },
              [&](State& s) -> auto& { return s.sums[j][o]; });
        }
      }
    }
  }

  PYOPS_HOST_DEVICE static void store_sums(int thread, const State& state, Shared& shared) {
    const int lane = thread % 32;
    PYOPS_UNROLL for (int j = 0; j < kTiles; ++j) {
      PYOPS_UNROLL for (int o = 0; o < kOctets; ++o) {
        PYOPS_UNROLL for (int x = 0; x < 4; ++x) {
          const int row = 16 * j + lane / 4 + x / 2 * 8, n = 8 * o + lane % 4 * 2 + x % 2;
          shared.sums[thread / 32][n][row / kColumns].of[row % kColumns] = state.sums[j][o][x];
        }
      }
    }
  }

  // f(round, n, unit, i, u) for each of the thread's cells: its sequence and unit among the
  // block's, and among all.
  template <class F>
  PYOPS_HOST_DEVICE void each_cell(const Product& product, int thread, const F& f) const {
    PYOPS_UNROLL for (int round = 0; round < kRounds; ++round) {
      const int at = round * kThreads + thread, cell = slice_ * kCells + at;
      const int n = cell / kUnits, unit = cell % kUnits;
      const int64_t i = team_ * kTiling.sequences() + n, u = row_ / kColumns + unit;
      const bool there = i < product.rows && u < product.columns / kColumns;
      if (at < kCells && there) f(round, n, unit, i, u);
    }
  }

  int strips_, slice_;
  int64_t team_, row_;
};

}  // namespace pyops
