// Tiles of scores and what comes of them, for the gradients on tensor cores: a block's owners
// (queries or keys, attention_block.h) by others. Rows lie in shared memory by 16 bytes: piece i of
// row r stands at i ^ r % 8, so that eight rows at one i, which ldmatrix reads at a time, meet
// every bank once, as do eight neighbouring pieces of a row.
//
// A thread's owners lie 16 apart, as keys do that share a counter of dropout's generator.
#pragma once

#include "attention/attention_block.h"
#include "gemm/warp_step.h"

namespace pyops {

// What weights need of a query: weight = exp(score - max) · scale, and rowsum(grad_out ∘ out).
struct AttentionQuery {
  float max, scale, dot;

  PYOPS_HOST_DEVICE float weight(float score) const {
    constexpr float kLog2OfE = 1.4426950408889634f;
    return baseline::power_of_two((score - max) * kLog2OfE) * scale;
  }
};

// A warp has `parts` times 16 owners.
struct AttentionTiling {
  int parts, warps, others;
  bool keys_own;
};

template <class Step, int kD, AttentionTiling kTiling>
struct AttentionTensorTile {
  using T = typename Step::Element;
  using Params = AttentionBackwardParams;
  static constexpr bool kKeysOwn = kTiling.keys_own;
  static constexpr int kParts = kTiling.parts, kOthers = kTiling.others;
  static constexpr int kOwners = 16 * kParts * kTiling.warps;
  static constexpr int kWarp = 32, kThreads = kTiling.warps * kWarp;
  static constexpr int kWidth = Pack<T>::kWidth, kPieces = kD / kWidth;
  static constexpr int kTiles = kOthers / 8;                      // of eight others
  static constexpr int kSteps = kD / Step::kDepth;                // of a product
  static constexpr int kOtherSteps = kOthers / Step::kDepth;      // of a sum over others
  static constexpr int kMine = 2 * kParts, kNumbers = 2 * kMine;  // owners; and of eight others
  static_assert(kPieces % 8 == 0 && kOthers % 16 == 0 && kOthers <= baseline::Dropout::kKeys);

  using Products = float[kTiles][kNumbers];
  using Operand = uint32_t[kOtherSteps][kNumbers];
  using Sums = float[kD / 8][kNumbers];

  // A tile's batch, query head, first query and first key.
  struct Corner {
    int b, h, l, s;
  };

  const Params& p;

  PYOPS_HOST_DEVICE explicit AttentionTensorTile(const Params& params) : p(params) {}

  PYOPS_HOST_DEVICE static int64_t tiles(int64_t rows, int of) { return (rows + of - 1) / of; }

  // The thread's i-th owner, and its c-th of the n-th eight others.
  PYOPS_HOST_DEVICE static int owner_of(int thread, int i) {
    return row_of(thread, i) + thread % kWarp / 4;
  }
  PYOPS_HOST_DEVICE static int other_of(int thread, int n, int c) {
    return n * 8 + thread % 4 * 2 + c;
  }

  PYOPS_HOST_DEVICE Strip<T> queries(const ConstRows& of, int64_t b, int64_t h, int64_t l0,
                                     int64_t columns) const {
    return {of, b, h, l0, p.queries, columns};
  }
  PYOPS_HOST_DEVICE Strip<T> keys(const ConstRows& of, int64_t b, int64_t h, int64_t s0,
                                  int64_t columns) const {
    return {of, b, h, s0, p.keys, columns};
  }
  PYOPS_HOST_DEVICE int64_t row_at(int64_t b, int64_t h, int64_t l) const {
    return (b * p.heads + h) * p.queries + l;
  }
  // The three numbers of AttentionQuery, of all queries.
  PYOPS_HOST_DEVICE const float* numbers(int i) const {
    return static_cast<const float*>(i == 0 ? p.row_max : i == 1 ? p.row_scale : p.row_sums);
  }
  PYOPS_HOST_DEVICE AttentionQuery query_at(int64_t b, int64_t h, int64_t l) const {
    if (l >= p.queries) return {};
    const int64_t row = row_at(b, h, l);
    return {numbers(0)[row], numbers(1)[row], numbers(2)[row]};
  }

  // Begins to copy; await() ends it.
  template <int kRows, class Team>
  PYOPS_HOST_DEVICE static void load(const Strip<T>& from, int thread, T (&to)[kRows * kD], Team&) {
    if (from.is_aligned && from.columns % kWidth == 0) {
      PYOPS_UNROLL for (int e = thread; e < kRows * kPieces; e += kThreads) {
        const int row = e / kPieces, piece = e % kPieces;
        const bool exists = row < from.rows && piece * kWidth < from.columns;
        const T* const source = from.first + row * from.stride + piece * kWidth;
        Team::copy_pack(piece_at(to, row, piece), exists ? source : from.first, exists);
      }
    } else {
      PYOPS_ROLL for (int e = thread; e < kRows * kPieces; e += kThreads) {
        const int row = e / kPieces, piece = e % kPieces;
        store_pack(piece_at(to, row, piece), from.pack(row, piece * kWidth));
      }
    }
  }

  // All have come this far, and so has what they copied, `tiles` as the step multiplies it. Whether
  // it takes their numbers: a thread looks at what it copied itself.
  template <class Team, class... Tiles>
  PYOPS_HOST_DEVICE static bool await(Team& team, Tiles&... tiles) {
    if constexpr (Step::kInWord == 2) {
      team.await();
      return true;
    } else {
      team.arrive();
      return all_fit<Step>(
          team, [&](int thread, auto&) { return (settle(unknown(thread), tiles) & ...); });
    }
  }

  // A step of owners as the first operand; words_of(state) gives kNumbers words.
  template <class Team, class Words>
  PYOPS_HOST_DEVICE static void load_step(const T* owners, int step, Team& team,
                                          const Words& words_of) {
    PYOPS_UNROLL for (int m = 0; m < kParts; ++m) {
      team.template load_matrices<false>(
          [&](int thread) {
            const int lane = thread % kWarp;
            const int row = row_of(thread, 2 * m + lane % 16 / 8) + lane % 8;
            return piece_at(owners, row, 2 * step + lane / 16);
          },
          [&](auto& state) { return words_of(state) + 4 * m; });
    }
  }

  // products = owners · othersᵀ; find_step(i) brings about what step_of(state, i) gives.
  template <class Product, class Team, class State, class Find, class Of>
  PYOPS_HOST_DEVICE static void multiply(const T* others, Team& team, Products State::* products,
                                         const Find& find_step, const Of& step_of) {
    team.forget();
    team.alone([&](int, State& state) { clear(state.*products); });
    const auto multiply_step = [&](int i) {
      find_step(i);
      PYOPS_UNROLL for (int pair = 0; pair < kOthers / 16; ++pair) {
        team.template load_matrices<false>(
            [&](int thread) {
              const int lane = thread % kWarp;
              return piece_at(others, pair * 16 + lane % 16, 2 * i + lane / 16);
            },
            [](State& state) { return state.b; });
        PYOPS_UNROLL for (int j = 0; j < 2; ++j) {
          team.template multiply<Product>(
              [&](State& state) -> auto& { return step_of(state, i); },
              [&](int thread, uint32_t (&to)[2]) {
                PYOPS_UNROLL for (int half = 0; half < 2; ++half) {
                  to[half] = team.of(thread).b[2 * half + j];
                }
              },
              [&](State& state) -> auto& { return (state.*products)[2 * pair + j]; });
        }
      }
    };
    if constexpr (sizeof(T) == sizeof(float)) {  // several steps at once would take all registers
      PYOPS_ROLL for (int i = 0; i < kSteps; ++i) multiply_step(i);
    } else {
      PYOPS_UNROLL for (int i = 0; i < kSteps; ++i) multiply_step(i);
    }
  }
  // The same with owners in shared memory.
  template <class Product, class Team, class State>
  PYOPS_HOST_DEVICE static void multiply(const T* owners, const T* others, Team& team,
                                         Products State::* products) {
    multiply<Product>(
        others, team, products,
        [&](int i) { load_step(owners, i, team, [](State& state) { return state.a; }); },
        [](State& state, int) -> auto& { return state.a; });
  }

  // sums += weights · others
  template <class Product, class Team, class State>
  PYOPS_HOST_DEVICE static void add(Operand State::* weights, const T* others, Team& team,
                                    Sums State::* sums) {
    team.forget();
    PYOPS_UNROLL for (int i = 0; i < kOtherSteps; ++i) {
      PYOPS_UNROLL for (int pair = 0; pair < kD / 16; ++pair) {
        load_columns<State>(others, i, pair, team);
        PYOPS_UNROLL for (int j = 0; j < 2; ++j) {
          team.template multiply<Product>(
              [&](State& state) -> auto& { return (state.*weights)[i]; },
              [&](int thread, uint32_t (&to)[2]) {
                PYOPS_UNROLL for (int half = 0; half < 2; ++half) {
                  to[half] = team.of(thread).b[2 * j + half];
                }
              },
              [&](State& state) -> auto& { return (state.*sums)[2 * pair + j]; });
        }
      }
    }
  }

  PYOPS_HOST_DEVICE static void pack(const Products& numbers, Operand& operand) {
    PYOPS_UNROLL for (int i = 0; i < kOtherSteps; ++i) {
      PYOPS_UNROLL for (int x = 0; x < kNumbers; ++x) {
        operand[i][x] = Step::word_of_sums(&numbers[i * Step::kDepth / 8], x);
      }
    }
  }

  template <int kRows>
  PYOPS_HOST_DEVICE static void clear(float (&numbers)[kRows][kNumbers]) {
    PYOPS_UNROLL for (int n = 0; n < kRows; ++n) {
      PYOPS_UNROLL for (int x = 0; x < kNumbers; ++x) numbers[n][x] = 0;
    }
  }

  // Products become scores: hidden ones are -inf.
  PYOPS_HOST_DEVICE void find_scores(const Corner& at, int thread, Products& scores) const {
    const auto scale = static_cast<float>(p.scale);
    each(thread, [&](int, int, int n, int x) { scores[n][x] *= scale; });
    if (p.mask.kind == MaskKind::kBool) {
      add_mask<bool>(at, thread, scores);
    } else if (p.mask.kind == MaskKind::kFloat && p.mask.dtype == Dtype::kFloat32) {
      add_mask<float>(at, thread, scores);
    } else if (p.mask.kind == MaskKind::kFloat) {
      add_mask<T>(at, thread, scores);
    }
    hide(at, thread, scores);
  }

  // A bit for each number that dropout keeps: is_kept(). Where queries own, what 64 keys share is
  // drawn with the first of them, for all their tiles.
  PYOPS_HOST_DEVICE void draw(const Corner& at, int thread, uint32_t (&kept)[kParts]) const {
    if (p.dropout_p == 0) {
      PYOPS_UNROLL for (int m = 0; m < kParts; ++m) kept[m] = ~0u;
    } else if constexpr (kKeysOwn) {
      draw_for_keys(at, thread, kept);
    } else if (at.s % baseline::Dropout::kKeys == 0) {
      draw_for_queries(at, thread, kept);
    } else {
      PYOPS_UNROLL for (int m = 0; m < kParts; ++m) kept[m] >>= kTiles * 2;
    }
  }
  // What is kept grows by so much.
  PYOPS_HOST_DEVICE float growth() const {
    return static_cast<float>(baseline::Dropout(0, p.dropout_p).keep_factor);
  }
  PYOPS_HOST_DEVICE static bool is_kept(const uint32_t (&kept)[kParts], int i, int n, int c) {
    return kept[i / 2] >> (i % 2 * 16 + n * 2 + c) & 1;
  }

  // f(owner, other, n, x) for each of the thread's numbers [n][x].
  template <class F>
  PYOPS_HOST_DEVICE static void each(int thread, const F& f) {
    PYOPS_UNROLL for (int n = 0; n < kTiles; ++n) {
      PYOPS_UNROLL for (int x = 0; x < kNumbers; ++x) {
        f(owner_of(thread, x / 2), other_of(thread, n, x % 2), n, x);
      }
    }
  }

 private:
  // Of the queries from at.l on and the keys from at.s on: how many there are, and how many more
  // keys than its own number a query sees.
  struct Sight {
    int queries, keys, more;

    PYOPS_HOST_DEVICE Sight(const Params& p, const Corner& at)
        : queries(small(p.queries - at.l)),
          keys(small(p.keys - at.s)),
          more(p.is_causal ? small(at.l + 1 - at.s) : INT16_MAX) {}

    PYOPS_HOST_DEVICE bool has(int query, int key) const {
      return query < queries && key < keys && key < query + more;
    }
    PYOPS_HOST_DEVICE bool has_all() const {
      return queries >= (kKeysOwn ? kOthers : kOwners) && keys >= (kKeysOwn ? kOwners : kOthers) &&
             more >= (kKeysOwn ? kOwners : kOthers);
    }
    PYOPS_HOST_DEVICE static int small(int64_t n) {
      return static_cast<int>(n < INT16_MAX ? n : INT16_MAX);
    }
  };

  PYOPS_HOST_DEVICE void hide(const Corner& at, int thread, Products& scores) const {
    const Sight sight(p, at);
    if (sight.has_all()) return;
    each(thread, [&](int owner, int other, int n, int x) {
      const bool sees = kKeysOwn ? sight.has(other, owner) : sight.has(owner, other);
      scores[n][x] = sees ? scores[n][x] : -INFINITY;
    });
  }

  // Of the owners i of a warp's threads, the first.
  PYOPS_HOST_DEVICE static int row_of(int thread, int i) {
    const int warp = thread / kWarp;
    return warp / 2 * (16 * kMine) + 16 * i + warp % 2 * 8;
  }
  template <class Element>
  PYOPS_HOST_DEVICE static Element* piece_at(Element* rows, int row, int piece) {
    return rows + row * kD + (piece ^ row % 8) * kWidth;
  }

  // Whether the step takes the numbers.
  template <int kSize>
  PYOPS_HOST_DEVICE static bool settle(int thread, T (&tile)[kSize]) {
    Largest<Step> largest;
    PYOPS_UNROLL for (int e = thread; e < kSize / kWidth; e += kThreads) {
      T* const piece = piece_at(tile, e / kPieces, e % kPieces);
      Pack<T> pack = *reinterpret_cast<const Pack<T>*>(piece);
      PYOPS_UNROLL for (T& x : pack.at) x = Step::rounded(largest.with(x));
      if constexpr (!Step::kSplits) store_pack(piece, pack);
    }
    return largest.fits();
  }

  // Two second operands of rows [Step::kDepth · i, …) of columns [16 · pair, …).
  template <class State, class Team>
  PYOPS_HOST_DEVICE static void load_columns(const T* others, int i, int pair, Team& team) {
    if constexpr (Step::kInWord == 2) {
      team.template load_matrices<true>(
          [&](int thread) {
            const int lane = thread % kWarp;
            return piece_at(others, i * 16 + lane % 16, 2 * pair + lane / 16);
          },
          [](State& state) { return state.b; });
    } else {
      team.alone([&](int thread, State& state) {
        PYOPS_UNROLL for (int x = 0; x < 4; ++x) {
          const int row = i * 8 + thread % 4 * 2 + x % 2;
          const int column = pair * 16 + x / 2 * 8 + thread % kWarp / 4;
          state.b[x] = float_bits(piece_at(others, row, column / kWidth)[column % kWidth]);
        }
      });
    }
  }

  PYOPS_HOST_DEVICE static float term_of(bool sees) { return sees ? 0.0f : -INFINITY; }
  template <class M>
  PYOPS_HOST_DEVICE static float term_of(M x) {
    return static_cast<float>(x);
  }
  template <class M>
  PYOPS_HOST_DEVICE void add_mask(const Corner& at, int thread, Products& scores) const {
    const AttentionMask& m = p.mask;
    const M* const from =
        static_cast<const M*>(m.data) + at.b * m.b + at.h * m.h + at.l * m.row + at.s * m.key;
    const Sight sight(p, at);
    each(thread, [&](int owner, int other, int n, int x) {
      const int query = kKeysOwn ? other : owner, key = kKeysOwn ? owner : other;
      if (query < sight.queries && key < sight.keys) {
        scores[n][x] += term_of(from[query * m.row + key * m.key]);
      }
    });
  }

  // The rolled loops keep the registers of one counter, or of those of the thread's queries.
  PYOPS_HOST_DEVICE void draw_for_keys(const Corner& at, int thread,
                                       uint32_t (&kept)[kParts]) const {
    const baseline::Dropout dropout = dropout_of(p);
    PYOPS_UNROLL for (int m = 0; m < kParts; ++m) kept[m] = 0;
    PYOPS_ROLL for (int bit = 0; bit < 2 * kTiles; ++bit) {
      float factors[kMine];
      dropout.factors_apart(row_at(at.b, at.h, at.l + other_of(thread, bit / 2, bit % 2)),
                            at.s + owner_of(thread, 0), factors);
      PYOPS_UNROLL for (int i = 0; i < kMine; ++i) {
        kept[i / 2] |= uint32_t{factors[i] != 0} << (i % 2 * 16 + bit);
      }
    }
  }
  PYOPS_HOST_DEVICE void draw_for_queries(const Corner& at, int thread,
                                          uint32_t (&kept)[kParts]) const {
    const baseline::Dropout dropout = dropout_of(p);
    PYOPS_UNROLL for (int m = 0; m < kParts; ++m) kept[m] = 0;
    PYOPS_ROLL for (int bit = 0; bit < 4; ++bit) {
      PYOPS_UNROLL for (int i = 0; i < kMine; ++i) {
        float factors[4];
        dropout.factors_apart(row_at(at.b, at.h, at.l + owner_of(thread, i)),
                              at.s + other_of(thread, bit / 2, bit % 2), factors);
        PYOPS_UNROLL for (int word = 0; word < 4; ++word) {
          kept[i / 2] |= uint32_t{factors[word] != 0} << (i % 2 * 16 + word * 4 + bit);
        }
      }
    }
  }
};

}  // namespace pyops
