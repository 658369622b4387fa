// Tiles of C in vector registers: the micro-kernel every instruction set has.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "gemm/lines.h"
#include "gemm/operands.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// 14×2 (of 32 registers) and 6×2 (of 16) leave room for two B vectors and one broadcast.
template <class Acc>
struct RegisterTile {
#if defined(__AVX512F__)
  static constexpr int kRows = 14;
#else
  static constexpr int kRows = 6;
#endif
  static constexpr int kVecs = 2;
  static constexpr int kCols = kVecs * Vec<Acc>::kWidth;
};

// Rows of a tile that every FMA reads for itself. A row that is broadcast first takes an
// instruction more, which counts where a neighbour shares the core's decoder: with 10 of 14 rows
// sgemm gained 19 % (Sapphire Rapids beside a busy hyperthread, November 2026). There are two loads
// for two FMAs, of which the vectors of B take two each where they cross a line; all but a fifth of
// them taken, convolutions wait for the rest: with 4 rows of 14 in place of 10 they gained 4 %, a
// product of matrices 2 % (Zen 5).
template <int kRows, int kVecs>
constexpr int rows_read_by_fma() {
#if defined(__AVX512F__)
  if (kVecs == 1) return kRows;
  return std::max(0, (kRows * kVecs * 4 / 5 - kRows - 2 * kVecs) / (kVecs - 1));
#else
  return 0;
#endif
}

// Sums to a row-major tile, or added to it.
template <class Acc>
struct Tile {
  Acc* c;
  int64_t ldc;
  bool add;

  // From row r on.
  Tile below(int64_t r) const { return {c + r * ldc, ldc, add}; }
  [[gnu::always_inline]] Vec<Acc> total(Vec<Acc> sums, int64_t r, int64_t q) const {
    return add ? sums + Vec<Acc>::load(c + r * ldc + q) : sums;
  }
  [[gnu::always_inline]] void operator()(Vec<Acc> sums, int64_t r, int64_t q) const {
    total(sums, r, q).store(c + r * ldc + q);
  }
};

// Sums on their way out, of which a tile may hold a part.
template <class T>
struct Leaving {
  using V = Vec<acc_t<T>>;
  Tile<acc_t<T>> tile;
  Lines<T> lines;

  [[gnu::always_inline]] void operator()(V sums, int64_t r, int64_t q) const {
    lines.put(tile.total(sums, r, q), r, q, std::integral_constant<int, V::kWidth>{});
  }
};

// The same of the first columns.
template <class T>
struct LeavingSome {
  using V = Vec<acc_t<T>>;
  Leaving<T> all;
  int64_t cols;

  [[gnu::always_inline]] void operator()(V sums, int64_t r, int64_t q) const {
    const int n = static_cast<int>(std::min<int64_t>(cols - q, V::kWidth));
    if (n > 0) all.lines.put(all.tile.total(sums, r, q), r, q, n);
  }
};

// f(integral_constant of n), 1 <= n <= kMost.
template <int kMost, class F>
void with_constant(int64_t n, const F& f) {
  [&]<int... k>(std::integer_sequence<int, k...>) {
    ((n == k + 1 ? f(std::integral_constant<int, k + 1>{}) : void()), ...);
  }(std::make_integer_sequence<int, kMost>{});
}

template <class Acc, int kRows, int kVecs>
[[gnu::always_inline]] inline void clear(Vec<Acc> (&sums)[kRows][kVecs]) {
#pragma GCC unroll 24
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sums[r][v] = Vec<Acc>::zero();
  }
}

// sums[r][v] += column[r] · row's vector v
template <class Acc, int kRows, int kVecs, class Column>
[[gnu::always_inline]] inline void add_outer_product(const Column& column, const Acc* row,
                                                     Vec<Acc> (&sums)[kRows][kVecs]) {
  using V = Vec<Acc>;
  V bv[kVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) bv[v] = V::load(row + v * V::kWidth);
#pragma GCC unroll 24
  for (int r = 0; r < kRows; ++r) {
    if constexpr (requires { V::fma(&column[0], bv[0], bv[0]); }) {
      if (r < rows_read_by_fma<kRows, kVecs>()) {
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sums[r][v] = V::fma(&column[r], bv[v], sums[r][v]);
        continue;
      }
    }
    const V av = V::set1(column[r]);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sums[r][v] = V::fma(av, bv[v], sums[r][v]);
  }
}

template <class Acc, int kRows, int kVecs, class Put>
[[gnu::always_inline]] inline void put_sums(const Vec<Acc> (&sums)[kRows][kVecs], const Put& put) {
  const Put own = put;  // for all the compiler knows, a store changes the caller's
#pragma GCC unroll 24
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) own(sums[r][v], r, v * Vec<Acc>::kWidth);
  }
}

// put(Σ_p a(p)[row] · b(p)[columns], row, column) for kRows × kVecs vectors
template <class Acc, int kRows, int kVecs, class ColumnsOfA, class RowsOfB, class Put>
[[gnu::always_inline]] inline void multiply_rows(int64_t depth, const ColumnsOfA& a,
                                                 const RowsOfB& b, const Put& put) {
  Vec<Acc> sums[kRows][kVecs];
  clear<Acc>(sums);
#pragma GCC unroll 4
  for (int64_t p = 0; p < depth; ++p) add_outer_product<Acc>(a(p), b(p), sums);
  put_sums<Acc>(sums, put);
}

template <class Acc, int kRows, int kVecs>
void multiply_panels(int64_t depth, const Acc* a, const Acc* b, const Tile<Acc>& tile) {
  const auto columns = [a](int64_t p) { return a + p * RegisterTile<Acc>::kRows; };
  const auto rows = [b](int64_t p) { return b + p * RegisterTile<Acc>::kCols; };
  multiply_rows<Acc, kRows, kVecs>(depth, columns, rows, tile);
}

template <class Acc>
using MultiplyPanels = void (*)(int64_t, const Acc*, const Acc*, const Tile<Acc>&);

template <class Acc, int kVecs, int... kRows>
constexpr auto multiply_panels_table(std::integer_sequence<int, kRows...>) {
  return std::array<MultiplyPanels<Acc>, sizeof...(kRows)>{
      multiply_panels<Acc, kRows + 1, kVecs>...};
}

// The kernel for a tile with this many rows and columns in use.
template <class Acc>
MultiplyPanels<Acc> multiply_panels_for(int rows, int cols) {
  using Rows = std::make_integer_sequence<int, RegisterTile<Acc>::kRows>;
  static constexpr auto kHalf = multiply_panels_table<Acc, 1>(Rows{});
  static constexpr auto kFull = multiply_panels_table<Acc, 2>(Rows{});
  return cols <= Vec<Acc>::kWidth ? kHalf[rows - 1] : kFull[rows - 1];
}

// What is read later: with every tile so many elements of it are asked for, to be in L2 by then.
template <class T>
struct Ahead {
  const T* data = nullptr;
  int64_t share = 0;

  void ask() {
    for (int64_t q = 0; q < share; q += 64 / sizeof(T)) prefetch_to_l2(data + q);
    data += share;
  }
};

// How gemm() packs and multiplies with vector registers, in stretches of the depth: one running sum
// over all of it would lose more digits than float32 results may.
template <class T, int64_t kStretch = 160>
struct VectorEngine {
  using Acc = T;
  using Element = T;  // of a packed panel
  static constexpr int kRows = RegisterTile<T>::kRows, kCols = RegisterTile<T>::kCols;
  // A panel of B, 40 KiB of AVX-512 or 20 KiB of AVX2, shares L1 with the streamed panel of A.
  static constexpr int64_t kMaxDepth = 320;
  static constexpr int64_t kDepthStep = 1;

  static constexpr int64_t panel_elements(int width, int64_t depth) { return width * depth; }

  // Both return whether the panel can be multiplied as it is: always, here.
  template <class Source>
  bool pack_a(const Source& a, int64_t i0, int64_t p0, int64_t depth, T* panel) {
    a.template pack<kRows>(i0, p0, depth, panel);
    return true;
  }
  // Up to kGroup of them, from row i0 on, `apart` from each other. Whether they were.
  static constexpr int kGroup = 8;
  template <class Source>
  bool pack_group(const Source& a, int64_t i0, int64_t count, int64_t p0, int64_t depth, T* panels,
                  int64_t apart) {
    if constexpr (SharesLines<Source>) {
      const int64_t read =
          i0 + (count - 1) * kRows + ceil_div(kRows, Vec<T>::kWidth) * Vec<T>::kWidth;
      if (count < 2 || !a.shares_lines(kRows) || read > a.extent) return false;
      a.template pack_beside<kRows>(i0, static_cast<int>(count), p0, depth, panels, apart);
      return true;
    }
    return false;
  }
  template <class Source>
  bool pack_b(const Source& b, int64_t j0, int64_t p0, int64_t depth, T* panel) {
    b.template pack<kCols>(j0, p0, depth, panel);
    return true;
  }
  void multiply(int rows, int cols, int64_t depth, const T* a, const T* b, T* c, int64_t ldc,
                bool add) {
    const auto multiply_stretch = multiply_panels_for<T>(rows, cols);
    const int64_t length = stretch(depth);
    for (int64_t p = 0; p == 0 || p < depth; p += length) {
      multiply_stretch(std::min(length, depth - p), a + p * kRows, b + p * kCols,
                       {c, ldc, add || p > 0});
    }
  }

  // Tiles of whole rows below each other, from panels of A `apart` from each other, to tiles of C
  // `tiles_apart`, of which each may hold a part of its sums.
  struct Column {
    int64_t tiles;
    int cols;
    int64_t depth;
    const T* a;
    int64_t apart;
    const T* b;
    T* c;
    int64_t tiles_apart, ldc;
    bool add;
    Ahead<T> ahead;
  };
  // Whether multiply_column can do tiles of so many columns.
  static constexpr bool is_whole(int cols) { return cols % Vec<T>::kWidth == 0; }
  // Where there are lines for them, the sums are whole and go there.
  template <class Out>
  void multiply_column(const Column& column, const Lines<Out>& lines) {
    const bool at_once = lines.out != nullptr && !column.add && column.depth <= kStretch;
    const auto multiply = [&]<int kVecs>(std::integral_constant<int, kVecs>) {
      at_once ? multiply_at_once<kVecs>(column, lines) : multiply_tiles<kVecs>(column, lines);
    };
    column.cols == kCols ? multiply(std::integral_constant<int, 2>{})
                         : multiply(std::integral_constant<int, 1>{});
  }

 private:
  // Products of a running sum.
  static int64_t stretch(int64_t depth) {
    const int64_t some = std::max<int64_t>(depth, 1);
    return ceil_div(some, ceil_div(some, kStretch));
  }

  // Whole sums in one stretch, whose tiles have one function to themselves: with little depth, what
  // comes between two would take a third of the time.
  template <int kVecs, class Out>
  [[gnu::noinline]] static void multiply_at_once(Column at, Lines<Out> lines) {
    const auto rows = [b = at.b](int64_t p) { return b + p * kCols; };
    for (; at.tiles > 0; --at.tiles, at.a += at.apart, lines = lines.below(kRows)) {
      const auto columns = [a = at.a](int64_t p) { return a + p * kRows; };
      lines.prefetch(kRows, kVecs * Vec<T>::kWidth);
      multiply_rows<T, kRows, kVecs>(at.depth, columns, rows,
                                     Leaving<Out>{{nullptr, 0, false}, lines});
    }
  }

  template <int kVecs, class Out>
  [[gnu::noinline]] static void multiply_tiles(Column at, Lines<Out> lines) {
    const int64_t length = stretch(at.depth);
    const auto multiply = [&](int64_t p, const auto& put) {
      const T *from_a = at.a + p * kRows, *from_b = at.b + p * kCols;
      const auto columns = [=](int64_t q) { return from_a + q * kRows; };
      const auto rows = [=](int64_t q) { return from_b + q * kCols; };
      multiply_rows<T, kRows, kVecs>(std::min(length, at.depth - p), columns, rows, put);
    };
    for (; at.tiles > 0; --at.tiles, at.a += at.apart, at.c += at.tiles_apart) {
      const bool leaves = lines.out != nullptr;
      at.ahead.ask();
      if (leaves) lines.prefetch(kRows, kVecs * Vec<T>::kWidth);
      int64_t p = 0;
      for (; p + length < at.depth; p += length)
        multiply(p, Tile<T>{at.c, at.ldc, at.add || p > 0});
      const Tile<T> tile{at.c, at.ldc, at.add || p > 0};
      leaves ? multiply(p, Leaving<Out>{tile, lines}) : multiply(p, tile);
      if (leaves) lines = lines.below(kRows);
    }
  }
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
