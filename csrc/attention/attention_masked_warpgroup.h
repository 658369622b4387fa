// What masks do to a warpgroup's tile of scores: an argument's numbers are added, dropout's bits
// drop weights. Neither needs the products, so both are found while those run. The argument is read
// where it lies, whatever its strides and broadcasts: a warp's load takes eight columns of eight
// rows, half a sector each, and the next one finds the other half in L1, so that L2 sends each byte
// once, as to TMA. That would want rows to begin at multiples of 16 bytes, and for two tiles of two
// warpgroups 64 KB: all that keys and values of D = 128 leave.
#pragma once

#include "attention/attention_warpgroup.h"
#include "core/load_if.h"

namespace pyops {

// Whether a call needs any of this: kernels of others come without.
PYOPS_HOST_DEVICE inline bool is_masked(const AttentionShape& p, const AttentionMask& mask) {
  return mask.kind != MaskKind::kNone || p.dropout_p != 0;
}

// Stands where nothing is masked: scores stay products, weights what they are.
template <class T, int kOthers>
struct UnmaskedTile {
  using Exponents = baseline::ScaledExponents;
  struct State {};

  template <class Params>
  PYOPS_HOST_DEVICE explicit UnmaskedTile(const Params&) {}
  PYOPS_DEVICE static bool drops() { return false; }
  PYOPS_DEVICE static float keep_factor() { return 1; }

  template <class Team>
  PYOPS_DEVICE void find(int64_t, int64_t, int64_t, int64_t, Team&) const {}
  PYOPS_DEVICE void add(const State&, float (&)[kOthers / 2]) const {}
  PYOPS_DEVICE static float factor(const State&, int, float kept) { return kept; }
  PYOPS_DEVICE static void pack_kept(const State&, const float (&weights)[kOthers / 2],
                                     uint32_t (&words)[kOthers / 4]) {
    pack_words<T>(weights, words);
  }
};

// Of queries as rows and kOthers keys as columns, or of keys as rows.
template <class T, int kOthers, bool kKeysOwn>
struct MaskedTile {
  using Exponents = baseline::MaskedExponents;
  struct State {
    uint32_t mask[kOthers / 4];          // the argument's numbers, as pack_words() packs scores
    uint32_t kept[(kOthers + 63) / 64];  // a bit for each score
  };

  const AttentionShape& p;
  const AttentionMask& m;
  bool in_pairs;  // neighbouring columns are aligned pairs in memory

  template <class Params>
  PYOPS_HOST_DEVICE explicit MaskedTile(const Params& params) : p(params), m(params.mask) {
    const auto bytes = reinterpret_cast<uintptr_t>(m.data);
    const bool is_aligned = bytes % (m.kind == MaskKind::kBool ? 2 : 2 * sizeof(T)) == 0;
    const bool is_even = (m.b | m.h | m.row | p.keys) % 2 == 0;
    in_pairs = !kKeysOwn && m.key == 1 && is_even && is_aligned;
  }
  PYOPS_HOST_DEVICE bool drops() const { return p.dropout_p != 0; }
  // What dropout leaves grows by.
  PYOPS_DEVICE float keep_factor() const {
    return static_cast<float>(baseline::Dropout(0, p.dropout_p).keep_factor);
  }

  // Fills the team's states, for head `h` of the queries, rows from `row` and columns from
  // `column`. The bits first: while they are drawn, registers of the argument's numbers are free.
  template <class Team>
  PYOPS_DEVICE void find(int64_t b, int64_t h, int64_t row, int64_t column, Team& team) const {
    if (drops()) {
      const int64_t first = (b * p.heads + h) * p.queries;  // of the generator's rows
      if constexpr (kKeysOwn) {
        draw_for_keys(first + column, row, team);
      } else {
        team.alone([&](int thread, auto& state) {
          draw(first + row + row_of(thread), column + column_of(thread), state.masked);
        });
      }
    } else {
      team.alone([](int, auto& state) {
        PYOPS_UNROLL for (uint32_t& word : state.masked.kept) word = ~0u;
      });
    }
    if (m.kind == MaskKind::kNone) return;
    team.alone([&](int thread, auto& state) {
      load(b, h, row + row_of(thread), column + column_of(thread), state.masked);
    });
  }

  // Products become scores.
  PYOPS_DEVICE void add(const State& state, float (&scores)[kOthers / 2]) const {
    const auto scale = static_cast<float>(p.scale);
    if (m.kind == MaskKind::kNone) {
      PYOPS_UNROLL for (int x = 0; x < kOthers / 2; ++x) scores[x] *= scale;
    } else {
      PYOPS_UNROLL for (int x = 0; x < kOthers / 2; ++x) {
        T number;
        number.bits = static_cast<uint16_t>(state.mask[x / 2] >> x % 2 * 16);
        scores[x] = std::fma(scores[x], scale, static_cast<float>(number));
      }
    }
  }

  // What dropout multiplies weight `x` with: `kept` or 0.
  PYOPS_DEVICE static float factor(const State& state, int x, float kept) {
    const int bit = kKeysOwn ? x % 4 * 8 + x / 4 : x % 32;
    return (state.kept[kKeysOwn ? 0 : x / 32] >> bit & 1) != 0 ? kept : 0;
  }
  // The weights that dropout keeps, as an operand of the next product. They grow by keep_factor()
  // behind it: 16 bits might not hold that.
  PYOPS_DEVICE static void pack_kept(const State& state, const float (&weights)[kOthers / 2],
                                     uint32_t (&words)[kOthers / 4]) {
    PYOPS_UNROLL for (int i = 0; i < kOthers / 4; ++i) {
      const int x = 2 * i;
      words[i] =
          word_of<T>(weights[x] * factor(state, x, 1), weights[x + 1] * factor(state, x + 1, 1));
    }
  }

 private:
  PYOPS_DEVICE int64_t row_step() const { return kKeysOwn ? m.key : m.row; }
  PYOPS_DEVICE int64_t column_step() const { return kKeysOwn ? m.row : m.key; }

  PYOPS_DEVICE void load(int64_t b, int64_t h, int64_t row, int64_t column, State& state) const {
    const int64_t at = b * m.b + h * m.h + row * row_step() + column * column_step();
    const auto rows = static_cast<int>((kKeysOwn ? p.keys : p.queries) - row);
    const auto columns = static_cast<int>((kKeysOwn ? p.queries : p.keys) - column);
    if (m.kind == MaskKind::kBool) {
      load(static_cast<const uint8_t*>(m.data) + at, rows, columns, state.mask);
    } else {
      load(static_cast<const uint16_t*>(m.data) + at, rows, columns, state.mask);
    }
  }
  // From the thread's first number on, of which `rows` and `columns` exist. What lies beyond is
  // hidden or has no weight, whatever it is.
  template <class Bits>
  PYOPS_DEVICE void load(const Bits* from, int rows, int columns,
                         uint32_t (&words)[kOthers / 4]) const {
    PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
      const Bits* at = from + 8 * r * row_step();
      const int exist = 8 * r < rows ? columns : 0;
      if (column_step() == 0) {
        const uint32_t number = number_if(exist > 0, at);
        PYOPS_UNROLL for (int n = 0; n < kOthers / 8; ++n) words[2 * n + r] = number | number << 16;
      } else if (!kKeysOwn && in_pairs) {
        PYOPS_UNROLL for (int n = 0; n < kOthers / 8; ++n) {
          words[2 * n + r] = pair_if(8 * n < exist, at + 8 * n);
        }
      } else {
        PYOPS_UNROLL for (int n = 0; n < kOthers / 8; ++n, at += 8 * column_step()) {
          words[2 * n + r] =
              number_if(8 * n < exist, at) | number_if(8 * n + 1 < exist, at + column_step()) << 16;
        }
      }
    }
  }

  // Numbers of the mask as bits of T: a key that is not to be seen has -inf.
  PYOPS_DEVICE static uint32_t number_of(bool is_seen) { return is_seen ? 0 : T(-INFINITY).bits; }
  PYOPS_DEVICE static uint32_t number_if(bool exists, const uint8_t* at) {
    return number_of(load_if<uint8_t>(exists, at) != 0);
  }
  PYOPS_DEVICE static uint32_t number_if(bool exists, const uint16_t* at) {
    return load_if<uint16_t>(exists, at);
  }
  PYOPS_DEVICE static uint32_t pair_if(bool exists, const uint8_t* at) {
    const uint32_t pair = load_if<uint16_t>(exists, at);
    return number_of((pair & 0xff) != 0) | number_of(pair >> 8 != 0) << 16;
  }
  PYOPS_DEVICE static uint32_t pair_if(bool exists, const uint16_t* at) {
    return load_if<uint32_t>(exists, at);
  }

  // The thread's keys share counters by fours, 16 apart: 8 scores of a row. The loops are rolled:
  // otherwise the compiler keeps all rounds' keys.
  PYOPS_DEVICE void draw(int64_t row, int64_t key, State& state) const {
    const baseline::Dropout dropout = dropout_of(p);
    const int64_t rows[] = {row, row + 8};
    PYOPS_UNROLL for (int j = 0; j < kOthers / 64; ++j) {
      uint32_t bits = 0;
      PYOPS_ROLL for (int x = 0; x < 6; x += x == 1 ? 3 : 1) {  // scores 0, 1, 4 and 5
        uint32_t kept[2];
        dropout.keep(rows, key + 64 * j + 2 * (x & 4) + (x & 1), kept);
        bits |= (kept[0] | kept[1] << 2) << x;
      }
      state.kept[j] = bits;
    }
  }
  // A thread has but two keys of a counter's range, whose other keys are those of other warps: each
  // draws a part for all. Thread 16·i + k draws the keys k, k + 16, k + 32 and k + 48 of the
  // queries i, i + 8, …: of a thread's own scores with queries c + 8·n, byte `warp` of a word has
  // bit n.
  template <class Team>
  PYOPS_DEVICE void draw_for_keys(int64_t row, int64_t key, Team& team) const {
    static_assert(!kKeysOwn || kOthers <= 64);
    team.alone([&](int thread, auto& state) {
      const baseline::Dropout dropout = dropout_of(p);
      uint32_t bits = 0;
      PYOPS_ROLL for (int n = 0; n < kOthers / 8; n += 2) {
        const int64_t first = row + thread / 16 + 8 * n, rows[] = {first, first + 8};
        uint32_t kept[2];
        dropout.keep(rows, key + thread % 16, kept);
        bits |= (kept[0] | kept[1] << 1) << n;
      }
      state.masked.kept[0] = bits;
    });
    team.share([](const auto& state) { return state.masked.kept[0]; });
    team.alone([&](int thread, auto& state) {
      uint32_t bits = 0;
      PYOPS_UNROLL for (int x = 0; x < 4; ++x) {
        const int drawer = 16 * (column_of(thread) + x % 2) + row_of(thread) % 16 + x / 2 * 8;
        bits |= (team.shared_by(drawer) >> thread / 32 * 8 & 0xff) << 8 * x;
      }
      state.masked.kept[0] = bits;
    });
  }
};

}  // namespace pyops
