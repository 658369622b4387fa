// C = A·B, written once for every vector instruction set.
//
// Operands are read through sources that pack a panel on demand, so strided, transposed, masked and
// im2col operands need no copy of their own; results leave through a sink that owns the epilogue.
// A task is a block of A's rows (packed, in L2) times a range of B's panels (one at a time, in L1);
// the register tile keeps every accumulator of the inner loop (BLIS, Van Zee & van de Geijn 2015).
// When several row blocks would pack B again and again, B is packed once up front.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/simd.h"

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

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A matrix in memory as an operand: element (i, p) at data[i * i_stride + p * p_stride], where p
// runs along the summed dimension. With kMasked, elements whose `mask` is not positive count as
// zero: the ReLU backward without a pass of its own.
template <class T, bool kMasked = false>
struct StridedOperand {
  using Acc = acc_t<T>;
  static constexpr bool kPackOnce = true;
  const T* data;
  int64_t extent;  // number of i
  int64_t i_stride, p_stride;
  const T* mask = nullptr;

  Vec<Acc> load(int64_t offset) const {
    const auto x = Vec<Acc>::load(data + offset);
    if constexpr (kMasked) return Vec<Acc>::where_positive(Vec<Acc>::load(mask + offset), x);
    return x;
  }
  Vec<Acc> load(int64_t offset, int n) const {
    const auto x = Vec<Acc>::load(data + offset, n);
    if constexpr (kMasked) return Vec<Acc>::where_positive(Vec<Acc>::load(mask + offset, n), x);
    return x;
  }
  Acc at(int64_t offset) const {
    if constexpr (kMasked) {
      if (!(static_cast<Acc>(mask[offset]) > 0)) return 0;
    }
    return static_cast<Acc>(data[offset]);
  }

  // panel[p * kWidth + i] for i < kWidth, p < depth; zero where i0 + i passes the extent.
  template <int kWidth>
  void pack(int64_t i0, int64_t p0, int64_t depth, Acc* panel) const {
    const int rows = static_cast<int>(std::min<int64_t>(kWidth, extent - i0));
    const int64_t base = i0 * i_stride + p0 * p_stride;
    if (i_stride == 1) {
      pack_along_i<kWidth>(base, rows, depth, panel);
    } else if constexpr (std::is_same_v<Acc, float>) {
      if (p_stride == 1) {
        pack_transposed<kWidth>(base, rows, depth, panel);
      } else {
        pack_elements<kWidth>(base, rows, depth, panel);
      }
    } else {
      pack_elements<kWidth>(base, rows, depth, panel);
    }
  }

 private:
  template <int kWidth>
  void pack_along_i(int64_t base, int rows, int64_t depth, Acc* panel) const {
    constexpr int kV = Vec<Acc>::kWidth;
    for (int64_t p = 0; p < depth; ++p, panel += kWidth, base += p_stride) {
      for (int c = 0; c < kWidth; c += kV) {
        const int room = std::min(kV, kWidth - c), have = std::clamp(rows - c, 0, room);
        const auto x = have == kV ? load(base + c)
                       : have > 0 ? load(base + c, have)
                                  : Vec<Acc>::zero();
        room == kV ? x.store(panel + c) : x.store(panel + c, room);
      }
    }
  }

  // Blocks of vector width squared, transposed in registers. A panel narrower than the vector is
  // overwritten from left to right: what one store spills, the next one replaces.
  template <int kWidth>
  void pack_transposed(int64_t base, int rows, int64_t depth, Acc* panel) const {
    constexpr int kV = Vec<Acc>::kWidth;
    for (int c = 0; c < kWidth; c += kV) {
      const int have = std::clamp(rows - c, 0, kV), room = std::min(kV, kWidth - c);
      for (int64_t p = 0; p < depth; p += kV) {
        const int columns = static_cast<int>(std::min<int64_t>(kV, depth - p));
        Vec<Acc> block[kV];
        for (int r = 0; r < kV; ++r) {
          const int64_t offset = base + (c + r) * i_stride + p;
          block[r] = r >= have       ? Vec<Acc>::zero()
                     : columns == kV ? load(offset)
                                     : load(offset, columns);
        }
        transpose(block);
        for (int q = 0; q < columns; ++q) block[q].store(panel + (p + q) * kWidth + c, room);
      }
    }
  }

  template <int kWidth>
  void pack_elements(int64_t base, int rows, int64_t depth, Acc* panel) const {
    for (int64_t p = 0; p < depth; ++p, panel += kWidth, base += p_stride) {
      for (int i = 0; i < rows; ++i) panel[i] = at(base + i * i_stride);
      for (int i = rows; i < kWidth; ++i) panel[i] = 0;
    }
  }
};

// An operand whose panels already lie in memory, each with its whole depth.
template <class T>
struct PackedOperand {
  using Acc = T;
  const T* data;
  int64_t depth;
};

template <int kWidth, class Source, class Acc>
const Acc* panel(const Source& source, int64_t i0, int64_t p0, int64_t depth, Acc* buffer) {
  source.template pack<kWidth>(i0, p0, depth, buffer);
  return buffer;
}
template <int kWidth, class Acc>
const Acc* panel(const PackedOperand<Acc>& packed, int64_t i0, int64_t p0, int64_t, Acc*) {
  return packed.data + i0 * packed.depth + p0 * kWidth;
}

template <int kWidth, class Acc, class Source>
void pack_whole(const Source& source, int64_t extent, int64_t depth, Acc* packed) {
  constexpr int64_t kSlice = 256;
  const int64_t slices = ceil_div(depth, kSlice);
  parallel_for(0, ceil_div(extent, kWidth) * slices, 4, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i0 = task / slices * kWidth, p0 = task % slices * kSlice;
      source.template pack<kWidth>(i0, p0, std::min(kSlice, depth - p0),
                                   packed + i0 * depth + p0 * kWidth);
    }
  });
}

// c[kRows × kVecs vectors] (+)= a-panel · b-panel.
template <class Acc, int kRows, int kVecs>
void multiply_panels(int64_t depth, const Acc* a, const Acc* b, Acc* c, int64_t ldc, bool add) {
  using V = Vec<Acc>;
  using Tile = RegisterTile<Acc>;
  V acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[r][v] = V::zero();
  }
  for (int64_t p = 0; p < depth; ++p, a += Tile::kRows, b += Tile::kCols) {
    V bv[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) bv[v] = V::load(b + v * V::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V av = V::set1(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[r][v] = V::fma(av, bv[v], acc[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      Acc* out = c + r * ldc + v * V::kWidth;
      (add ? acc[r][v] + V::load(out) : acc[r][v]).store(out);
    }
  }
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

struct Blocking {
  int64_t depth, row_blocks, block_rows, col_ranges, range_cols;
};

template <class Acc>
Blocking choose_blocking(int64_t m, int64_t n, int64_t k) {
  using Tile = RegisterTile<Acc>;
  // A B-panel of 320 rows (40 KiB) shares a 48 KiB L1 with the streamed A-panel.
  constexpr int64_t kMaxDepth = 320;
  // 16 panels of A (14·16·320·4 = 287 KiB) and the block's results stay in a 1 MiB L2.
  constexpr int64_t kMaxRows = 16 * Tile::kRows, kMaxCols = 18 * Tile::kCols;
  Blocking blocking{};
  blocking.depth = ceil_div(std::max<int64_t>(k, 1), ceil_div(std::max<int64_t>(k, 1), kMaxDepth));
  const int64_t row_panels = ceil_div(m, Tile::kRows), col_panels = ceil_div(n, Tile::kCols);
  blocking.row_blocks = ceil_div(m, kMaxRows);
  blocking.col_ranges = ceil_div(n, kMaxCols);
  const int64_t threads = num_threads();
  if (blocking.row_blocks * blocking.col_ranges < threads) {
    blocking.col_ranges = std::min(col_panels, ceil_div(threads, blocking.row_blocks));
    blocking.row_blocks = std::min(row_panels, ceil_div(threads, blocking.col_ranges));
  }
  blocking.block_rows = ceil_div(row_panels, blocking.row_blocks) * Tile::kRows;
  blocking.range_cols = ceil_div(col_panels, blocking.col_ranges) * Tile::kCols;
  blocking.row_blocks = ceil_div(m, blocking.block_rows);
  blocking.col_ranges = ceil_div(n, blocking.range_cols);
  return blocking;
}

// One task: rows [i0, i1) times columns [j0, j1), over the whole depth.
template <class Acc, class A, class B, class Sink>
void gemm_block(const Blocking& blocking, int64_t i0, int64_t i1, int64_t j0, int64_t j1, int64_t k,
                const A& a, const B& b, const Sink& sink, Acc* a_block, Acc* b_panel,
                Acc* c_block) {
  constexpr int kRows = RegisterTile<Acc>::kRows, kCols = RegisterTile<Acc>::kCols;
  const bool one_pass = k <= blocking.depth;
  const int64_t ldc = one_pass ? kCols : blocking.range_cols;
  const Acc* a_panels[16];
  for (int64_t p0 = 0; p0 == 0 || p0 < k; p0 += blocking.depth) {
    const int64_t depth = std::min(blocking.depth, k - p0);
    const bool last = p0 + depth >= k;
    for (int64_t i = i0; i < i1; i += kRows) {
      a_panels[(i - i0) / kRows] = panel<kRows>(a, i, p0, depth, a_block + (i - i0) * depth);
    }
    for (int64_t j = j0; j < j1; j += kCols) {
      const int cols = static_cast<int>(std::min<int64_t>(kCols, j1 - j));
      const Acc* bp = panel<kCols>(b, j, p0, depth, b_panel);
      for (int64_t i = i0; i < i1; i += kRows) {
        const int rows = static_cast<int>(std::min<int64_t>(kRows, i1 - i));
        Acc* tile = one_pass ? c_block : c_block + (i - i0) * ldc + (j - j0);
        multiply_panels_for<Acc>(rows, cols)(depth, a_panels[(i - i0) / kRows], bp, tile, ldc,
                                             p0 > 0);
        if (last) sink(i, j, rows, cols, tile, ldc);
      }
    }
  }
}

template <class Acc, class A, class B, class Sink>
void gemm_tasks(int64_t m, int64_t n, int64_t k, const Blocking& blocking, const A& a, const B& b,
                const Sink& sink) {
  using Tile = RegisterTile<Acc>;
  parallel_for(0, blocking.row_blocks * blocking.col_ranges, 1, [&](int64_t begin, int64_t end) {
    Scratch<Acc> a_block(blocking.block_rows * blocking.depth);
    Scratch<Acc> b_panel(Tile::kCols * blocking.depth);
    Scratch<Acc> c_block(blocking.block_rows * std::max<int64_t>(blocking.range_cols, Tile::kCols));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i0 = task % blocking.row_blocks * blocking.block_rows;
      const int64_t j0 = task / blocking.row_blocks * blocking.range_cols;
      gemm_block(blocking, i0, std::min(m, i0 + blocking.block_rows), j0,
                 std::min(n, j0 + blocking.range_cols), k, a, b, sink, a_block.get(), b_panel.get(),
                 c_block.get());
    }
  });
}

// sink(i, j, rows, cols, tile, ld) once for each finished tile of the m×n result; k = 0 gives
// zeros.
template <class A, class B, class Sink>
void gemm(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const Sink& sink) {
  using Acc = typename A::Acc;
  static_assert(std::is_same_v<Acc, typename B::Acc>);
  if (m == 0 || n == 0) return;
  const Blocking blocking = choose_blocking<Acc>(m, n, k);
  if constexpr (!std::is_same_v<B, PackedOperand<Acc>>) {
    if (B::kPackOnce && blocking.row_blocks > 1) {
      constexpr int kCols = RegisterTile<Acc>::kCols;
      Scratch<Acc> packed(ceil_div(n, kCols) * kCols * std::max<int64_t>(k, 1));
      pack_whole<kCols>(b, n, k, packed.get());
      return gemm_tasks<Acc>(m, n, k, blocking, a, PackedOperand<Acc>{packed.get(), k}, sink);
    }
  }
  gemm_tasks<Acc>(m, n, k, blocking, a, b, sink);
}

// Writes tiles to a row-major matrix: c = relu?(tile + bias [+ c]).
template <class T>
struct MatrixSink {
  using Acc = acc_t<T>;
  T* c;
  int64_t row_stride;
  const T* col_bias = nullptr;  // one per column
  bool relu = false;
  bool accumulate = false;

  void operator()(int64_t i, int64_t j, int rows, int cols, const Acc* tile, int64_t ld) const {
    using V = Vec<Acc>;
    for (int r = 0; r < rows; ++r) {
      T* out = c + (i + r) * row_stride + j;
      for (int q = 0; q < cols; q += V::kWidth) {
        const int n = std::min(V::kWidth, cols - q);
        V x = V::load(tile + r * ld + q, n);
        if (col_bias != nullptr) x = x + V::load(col_bias + j + q, n);
        if (accumulate) x = x + V::load(out + q, n);
        // max returns its second operand for NaN, which keeps NaN as ReLU does.
        if (relu) x = V::max(V::zero(), x);
        n == V::kWidth ? x.store(out + q) : x.store(out + q, n);
      }
    }
  }
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
