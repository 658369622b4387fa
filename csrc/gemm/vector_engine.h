// Tiles of C in vector registers: the micro-kernel every instruction set has.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

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
// instruction more, which counts where a neighbour shares the core's decoder; there are two loads
// for two FMAs, of which the vectors of B take two each where they cross a line. With 10 of 14 rows
// sgemm gained 19 % (Sapphire Rapids beside a busy hyperthread, November 2026).
template <int kRows, int kVecs>
constexpr int rows_read_by_fma() {
#if defined(__AVX512F__)
  if (kVecs == 1) return kRows;
  return std::max(0, (kRows * kVecs - kRows - 2 * kVecs) / (kVecs - 1));
#else
  return 0;
#endif
}

// c[kRows × kVecs vectors] (+)= Σ_p a(p)[row] · b(p)[column]
template <class Acc, int kRows, int kVecs, class ColumnsOfA, class RowsOfB>
void multiply_rows(int64_t depth, const ColumnsOfA& a, const RowsOfB& b, Acc* c, int64_t ldc,
                   bool add) {
  using V = Vec<Acc>;
  V acc[kRows][kVecs];
#pragma GCC unroll 24
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[r][v] = V::zero();
  }
#pragma GCC unroll 4
  for (int64_t p = 0; p < depth; ++p) {
    const auto column = a(p);
    const Acc* row = b(p);
    V bv[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) bv[v] = V::load(row + v * V::kWidth);
#pragma GCC unroll 24
    for (int r = 0; r < kRows; ++r) {
      if constexpr (requires { V::fma(column, bv[0], bv[0]); }) {
        if (r < rows_read_by_fma<kRows, kVecs>()) {
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) acc[r][v] = V::fma(column + r, bv[v], acc[r][v]);
          continue;
        }
      }
      const V av = V::set1(column[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[r][v] = V::fma(av, bv[v], acc[r][v]);
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      Acc* out = c + r * ldc + v * V::kWidth;
      (add ? acc[r][v] + V::load(out) : acc[r][v]).store(out);
    }
  }
}

template <class Acc, int kRows, int kVecs>
void multiply_panels(int64_t depth, const Acc* a, const Acc* b, Acc* c, int64_t ldc, bool add) {
  using Tile = RegisterTile<Acc>;
  const auto columns = [a](int64_t p) { return a + p * Tile::kRows; };
  const auto rows = [b](int64_t p) { return b + p * Tile::kCols; };
  multiply_rows<Acc, kRows, kVecs>(depth, columns, rows, c, ldc, add);
}

template <class Acc>
using MultiplyPanels = void (*)(int64_t, const Acc*, const Acc*, Acc*, int64_t, bool);

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

// How gemm() packs and multiplies with vector registers.
template <class T>
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
  template <class Source>
  bool pack_b(const Source& b, int64_t j0, int64_t p0, int64_t depth, T* panel) {
    b.template pack<kCols>(j0, p0, depth, panel);
    return true;
  }
  // In stretches: one running sum over the whole depth would lose more digits than float32 results
  // may.
  void multiply(int rows, int cols, int64_t depth, const T* a, const T* b, T* c, int64_t ldc,
                bool add) {
    constexpr int64_t kStretch = 160;
    const auto multiply_stretch = multiply_panels_for<T>(rows, cols);
    const int64_t some = std::max<int64_t>(depth, 1),
                  length = ceil_div(some, ceil_div(some, kStretch));
    for (int64_t p = 0; p == 0 || p < depth; p += length) {
      multiply_stretch(std::min(length, depth - p), a + p * kRows, b + p * kCols, c, ldc,
                       add || p > 0);
    }
  }
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
