// Products of tiles of bfloat16: by the matrix unit where it is (AMX), else by AVX-512's dot
// products of pairs.
//
// A tile is 16 rows of 64 bytes: of A 32 numbers along the depth, of B pairs along the depth for 16
// columns (VNNI), of sums 16 float32.
#pragma once

#include <cstring>
#include <iterator>

#include "core/simd.h"
#include "core/tile_config.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline constexpr int kTileRows = 16, kTilePairs = 16, kTileElements = 512;

// Tiles at constant distances: a step of the depth has, part by part (tile_engine.h), two of them.
template <int kParts>
struct PackedTiles {
  const uint16_t* data;

  const uint16_t* at(int64_t step) const { return data + step * kParts * part(); }
  static constexpr int64_t part() { return 2 * kTileElements; }
  static constexpr int64_t half() { return kTileElements; }  // from the first to the second
  static constexpr int64_t row() { return 32; }
  static constexpr int64_t pair() { return 2; }               // of A, to the next one of a row
  static constexpr int pairs(int64_t) { return kTilePairs; }  // of a step, maybe not zeros
};

// Where up to 2×2 tiles of sums lie, distances in numbers.
struct TileSums {
  float* data;
  int64_t row, right, below;

  // Those of some rows from `first` on, one or two vectors each.
  template <int kRows, int kVecs>
  [[gnu::always_inline]] void load(int first, __m512 (&sums)[kRows][kVecs]) const {
    for_vectors<kRows, kVecs>(first,
                              [&](int r, int v, float* at) { sums[r][v] = _mm512_loadu_ps(at); });
  }
  template <int kRows, int kVecs>
  [[gnu::always_inline]] void store(int first, const __m512 (&sums)[kRows][kVecs]) const {
    for_vectors<kRows, kVecs>(first,
                              [&](int r, int v, float* at) { _mm512_storeu_ps(at, sums[r][v]); });
  }

 private:
  template <int kRows, int kVecs, class F>
  [[gnu::always_inline]] void for_vectors(int first, const F& f) const {
    float* const from = data + first / kTileRows * below + first % kTileRows * row;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) f(r, v, from + r * row + v * right);
    }
  }
};

#if defined(__AMX_TILE__)

inline constexpr bool kMatrixUnit = true;

// Which parts of A and B are multiplied, one operand changed at a time, smallest terms first.
template <int kParts>
struct PartProducts;
template <>
struct PartProducts<1> {
  static constexpr int kA[] = {0}, kB[] = {0};
};
template <>
struct PartProducts<2> {
  static constexpr int kA[] = {0, 0, 1}, kB[] = {1, 0, 0};
};
template <>
struct PartProducts<3> {
  static constexpr int kA[] = {0, 0, 1, 1, 0, 2}, kB[] = {2, 1, 1, 0, 0, 0};
};

inline void configure_tiles() { _tile_loadconfig(&kTileConfig); }
inline void release_tiles() { _tile_release(); }

// Of 32 (kTall) or 16 rows of A, of which `rows` count, and 32 (kWide) or 16 columns of B the sums
// along the depth, to those that lie in c if `add`; between() after each step. Sums are tiles 0 to
// 3, A 4 and 5, B 6 and 7.
template <int kParts, bool kTall, bool kWide, class A, class B, class Between>
void multiply_tiles(int64_t steps, int, const A& a, const B& b, const TileSums& c, bool add,
                    const Between& between) {
  using Parts = PartProducts<kParts>;
  constexpr auto kBytes = static_cast<int64_t>(sizeof(uint16_t));
  const int64_t a_row = a.row() * kBytes, b_row = b.row() * kBytes, c_row = c.row * 2 * kBytes;
  const auto load_a = [&](const uint16_t* tile) {
    _tile_loadd(4, tile, a_row);
    if (kTall) _tile_loadd(5, tile + a.half(), a_row);
  };
  const auto load_b = [&](const uint16_t* tile) {
    _tile_loadd(6, tile, b_row);
    if (kWide) _tile_loadd(7, tile + b.half(), b_row);
  };
  // GCC does not know that tile loads read memory: what they read is written by now.
  asm volatile("" ::: "memory");
  if (add) {
    _tile_loadd(0, c.data, c_row);
    if (kWide) _tile_loadd(1, c.data + c.right, c_row);
    if (kTall) _tile_loadd(2, c.data + c.below, c_row);
    if (kTall && kWide) _tile_loadd(3, c.data + c.below + c.right, c_row);
  } else {
    _tile_zero(0);
    if (kWide) _tile_zero(1);
    if (kTall) _tile_zero(2);
    if (kTall && kWide) _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step) {
    const uint16_t *a_tile = a.at(step), *b_tile = b.at(step);
    for (size_t i = 0; i < std::size(Parts::kA); ++i) {
      const bool first = i == 0;
      if (first || Parts::kA[i] != Parts::kA[i - 1]) load_a(a_tile + Parts::kA[i] * a.part());
      if (first || Parts::kB[i] != Parts::kB[i - 1]) load_b(b_tile + Parts::kB[i] * b.part());
      _tile_dpbf16ps(0, 4, 6);
      if (kWide) _tile_dpbf16ps(1, 4, 7);
      if (kTall) _tile_dpbf16ps(2, 5, 6);
      if (kTall && kWide) _tile_dpbf16ps(3, 5, 7);
    }
    between();
  }
  _tile_stored(0, c.data, c_row);
  if (kWide) _tile_stored(1, c.data + c.right, c_row);
  if (kTall) _tile_stored(2, c.data + c.below, c_row);
  if (kTall && kWide) _tile_stored(3, c.data + c.below + c.right, c_row);
}

#else

inline constexpr bool kMatrixUnit = false;
inline void configure_tiles() {}
inline void release_tiles() {}

// Rows of A from some row on, at each step.
template <int kRows, class A>
class TileRows {
 public:
  TileRows(const A& a, unsigned row)
      : first_(row / kTileRows * a.half() + row % kTileRows * a.row()), row_(a.row()) {}

  void find(const uint16_t* step, const uint16_t* (&rows)[kRows]) const {
    rows[0] = step + first_;
#pragma GCC unroll 16
    for (int r = 1; r < kRows; ++r) rows[r] = rows[r - 1] + row_;
  }

 private:
  const int64_t first_, row_;
};

// Any distances apart. Volatile, or the compiler would keep the list among the vectors, from where
// it comes back behind the products.
template <int kRows, class A>
  requires requires(const A& a) { a.listed_rows; }
class TileRows<kRows, A> {
 public:
  TileRows(const A& a, unsigned row) : list_(a.listed_rows + row) {}

  void find(const uint16_t* step, const uint16_t* (&rows)[kRows]) const {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) rows[r] = step + list_[r];
  }

 private:
  const volatile int64_t* const list_;
};

// Vectors of B's pairs, one or two at a time, and meanwhile those of the next step from L2.
template <int kVecs, class B>
class TileColumns {
 public:
  TileColumns(const B& b, int64_t step, int64_t next)
      : at_(b.at(step)), beside_(b.at(next)), row_(b.row()), half_(b.half()) {}

  void take(__m512bh (&columns)[kVecs]) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) {
      columns[v] = (__m512bh)_mm512_loadu_si512(at_ + v * half_);
      prefetch_to_read(beside_ + v * half_);
    }
    at_ += row_, beside_ += row_;
  }

 private:
  const uint16_t *at_, *beside_;
  const int64_t row_, half_;
};

// As B has them.
template <int kVecs, class B>
  requires requires { typename B::Columns; }
class TileColumns<kVecs, B> : public B::Columns {
 public:
  TileColumns(const B& b, int64_t step, int64_t) : B::Columns(b, step) {}
};

// To the sums of some rows, whose pairs lie at pair(row), the products with vectors of pairs.
template <int kRows, int kVecs, class Pair>
[[gnu::always_inline]] inline void add_products(const __m512bh (&columns)[kVecs], const Pair& pair,
                                                __m512 (&sums)[kRows][kVecs]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    int32_t numbers;
    std::memcpy(&numbers, pair(r), sizeof numbers);
    const auto both = (__m512bh)_mm512_set1_epi32(numbers);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], both, columns[v]);
  }
}

// A tile's worth of sums in registers, of 8 rows by two vectors or of 16 by one: two loads of B and
// eight of A, which broadcast pairs, serve 16 dot products. A function of its own, or what lives
// through its loops would move to vector registers, and come back behind the products.
template <int kRows, int kVecs, class A, class B, class Start, class Put>
[[gnu::noinline]] void multiply_pairs_of_rows(int64_t steps, int row, const A& a, const B& b,
                                              const Start& start, const Put& put) {
  const TileRows<kRows, A> left(a, row);
  __m512 sums[kRows][kVecs];
  start(row, sums);
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t next = std::min(step + 1, steps - 1);
    TileColumns<kVecs, B> right(b, step, next);
    const uint16_t* rows[kRows];
    left.find(a.at(step), rows);
    if (next > step) {
      const int64_t ahead = a.at(next) - a.at(step);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) prefetch_to_read(rows[r] + ahead);
    }
    const auto add_pair = [&](int pair) __attribute__((always_inline)) {
      __m512bh columns[kVecs];
      right.take(columns);
      add_products(columns, [&](int r) { return rows[r] + pair * a.pair(); }, sums);
    };
    const int pairs = std::min(a.pairs(step), b.pairs(step));
    if (pairs == kTilePairs) {
      for (int pair = 0; pair < kTilePairs; pair += 4) {
        add_pair(pair), add_pair(pair + 1), add_pair(pair + 2), add_pair(pair + 3);
      }
    } else {
      for (int pair = 0; pair < pairs; ++pair) add_pair(pair);
    }
  }
  put(row, sums);
}

// Of 32 (kTall) or 16 rows of A, of which `rows` count, and 32 (kWide) or 16 columns of B the sums
// along the depth: start(first row, sums) sets those of some rows to what they begin with, one or
// two vectors each, and put(first row, sums) takes them.
template <bool kTall, bool kWide, class A, class B, class Start, class Put>
void multiply_pairs(int64_t steps, int rows, const A& a, const B& b, const Start& start,
                    const Put& put) {
  constexpr int kVecs = kWide ? 2 : 1, kRows = kTileRows / kVecs;
  for (int row = 0; row < std::min(rows, (kTall ? 2 : 1) * kTileRows); row += kRows) {
    multiply_pairs_of_rows<kRows, kVecs>(steps, row, a, b, start, put);
  }
}

// As the matrix unit does it, for numbers that are not split.
template <int kParts, bool kTall, bool kWide, class A, class B, class Between>
void multiply_tiles(int64_t steps, int rows, const A& a, const B& b, const TileSums& c, bool add,
                    const Between& between) {
  static_assert(kParts == 1);
  for (int64_t step = 0; step < steps; ++step) between();
  const auto start = [&](int row, auto& sums) {
    if (add) return c.load(row, sums);
#pragma GCC unroll 16
    for (auto& vectors : sums) {
#pragma GCC unroll 2
      for (__m512& sum : vectors) sum = _mm512_setzero_ps();
    }
  };
  const auto store = [&](int row, const auto& sums) { c.store(row, sums); };
  multiply_pairs<kTall, kWide>(steps, rows, a, b, start, store);
}

#endif

// Of any shape.
template <int kParts, class A, class B>
void multiply_tiles(int64_t steps, int rows, int cols, const A& a, const B& b, const TileSums& c,
                    bool add) {
  const auto run = [&](auto is_tall, auto is_wide) {
    multiply_tiles<kParts, is_tall.value, is_wide.value>(steps, rows, a, b, c, add, [] {});
  };
  const std::true_type yes;
  const std::false_type no;
  if (rows > kTileRows) {
    cols > kTileRows ? run(yes, yes) : run(yes, no);
  } else {
    cols > kTileRows ? run(no, yes) : run(no, no);
  }
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
