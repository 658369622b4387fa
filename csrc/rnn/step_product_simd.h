// Products with few rows. A step of a recurrence multiplies B rows by a weight that stays the same
// for all steps: it is packed once per sequence, then streamed from L2. With up to four rows that
// stream is the limit, not the arithmetic, so these rows share each load and go without tiles.
#pragma once

#include "gemm/gemm_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline constexpr int kFewRows = 4;

// Multiply-adds worth starting a second thread for: about 3 µs of one core.
inline constexpr int64_t kForkWork = int64_t{1} << 17;

// What the gates of one unit cost, in multiply-adds.
inline constexpr int64_t kUnitWork = 64;

inline int64_t fork_grain(int64_t work_per_item) {
  return std::max<int64_t>(1, kForkWork / std::max<int64_t>(1, work_per_item));
}

template <class T>
auto load(const T* p, int n) {
  using V = Vec<acc_t<T>>;
  return n == V::kWidth ? V::load(p) : V::load(p, n);
}
template <class V, class T>
void store(V x, T* p, int n) {
  n == V::kWidth ? x.store(p) : x.store(p, n);
}

// tile = a·W for columns j.. of a W whose columns are adjacent in memory.
template <int kRows, class Acc, class T>
void multiply_adjacent_columns(int64_t depth, const StridedOperand<Acc>& a,
                               const StridedOperand<T>& w, int64_t j, int cols, Acc* tile) {
  using V = Vec<Acc>;
  constexpr int kCols = RegisterTile<Acc>::kCols;
  // Eight independent sums hide the latency of the multiply-add.
  constexpr int kUnroll = kFewRows / kRows;
  const int low = std::min(cols, V::kWidth), high = cols - low;
  V acc[kUnroll][kRows][2];
  for (auto& rows : acc) {
    for (auto& row : rows) row[0] = row[1] = V::zero();
  }
  const auto add = [&](int64_t p, V(&sums)[kRows][2]) {
    const T* b = w.data + p * w.p_stride + j;
    const V b0 = load(b, low), b1 = high > 0 ? load(b + V::kWidth, high) : V::zero();
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const V av = V::set1(a.data[r * a.i_stride + p]);
      sums[r][0] = V::fma(av, b0, sums[r][0]);
      sums[r][1] = V::fma(av, b1, sums[r][1]);
    }
  };
  int64_t p = 0;
  for (; p + kUnroll <= depth; p += kUnroll) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) add(p + u, acc[u]);
  }
  for (; p < depth; ++p) add(p, acc[0]);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 2; ++v) {
      V sum = acc[0][r][v];
      for (int u = 1; u < kUnroll; ++u) sum = sum + acc[u][r][v];
      sum.store(tile + r * kCols + v * V::kWidth);
    }
  }
}

// The same for a W whose depth is adjacent in memory: scalar products.
template <int kRows, class X, class T>
void multiply_adjacent_depth(int64_t depth, const StridedOperand<X>& a, const StridedOperand<T>& w,
                             int64_t j, int cols, acc_t<T>* tile) {
  using V = Vec<acc_t<T>>;
  constexpr int kCols = RegisterTile<acc_t<T>>::kCols, kBlock = 4;
  for (int c = 0; c < cols; c += kBlock) {
    const int columns = std::min(kBlock, cols - c);
    V acc[kRows][kBlock];
    for (auto& row : acc) {
      for (V& sum : row) sum = V::zero();
    }
    for (int64_t p = 0; p < depth; p += V::kWidth) {
      const int n = static_cast<int>(std::min<int64_t>(V::kWidth, depth - p));
      V b[kBlock];
#pragma GCC unroll 4
      for (int q = 0; q < kBlock; ++q) {
        b[q] = load(w.data + (j + c + std::min(q, columns - 1)) * w.i_stride + p, n);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const V av = load(a.data + r * a.i_stride + p, n);
#pragma GCC unroll 4
        for (int q = 0; q < kBlock; ++q) acc[r][q] = V::fma(av, b[q], acc[r][q]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int q = 0; q < columns; ++q) tile[r * kCols + c + q] = acc[r][q].sum();
    }
  }
}

// f(std::integral_constant<int, rows>) for 1 to kFewRows rows.
template <class F>
void with_rows(int64_t rows, F&& f) {
  switch (rows) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    default:
      return f(std::integral_constant<int, 4>{});
  }
}

// Calls tile(rows, j, cols, buffer), then the sink, for each panel of columns.
template <class Acc, class Tile, class Sink>
void for_few_rows(int64_t m, int64_t n, int64_t k, const Tile& tile, const Sink& sink) {
  constexpr int kCols = RegisterTile<Acc>::kCols;
  with_rows(m, [&](auto rows) {
    parallel_for(0, ceil_div(n, kCols), fork_grain(m * k * kCols), [&](int64_t p0, int64_t p1) {
      alignas(64) Acc buffer[kFewRows * kCols];
      for (int64_t j = p0 * kCols; j < std::min(n, p1 * kCols); j += kCols) {
        const int cols = static_cast<int>(std::min<int64_t>(kCols, n - j));
        tile(rows, j, cols, buffer);
        sink(0, j, static_cast<int>(m), cols, buffer, kCols);
      }
    });
  });
}

// gemm() for a row-major A, with a path of its own for few rows.
template <class X, class T, class Sink>
void multiply(int64_t m, int64_t n, int64_t k, const StridedOperand<X>& a,
              const StridedOperand<T>& w, const Sink& sink) {
  using Acc = acc_t<T>;
  if (m == 0 || n == 0) return;
  if (m > kFewRows) return gemm(m, n, k, a, w, sink);
  if (w.p_stride == 1) {
    const auto tile = [&](auto rows, int64_t j, int cols, Acc* buffer) {
      multiply_adjacent_depth<rows.value>(k, a, w, j, cols, buffer);
    };
    return for_few_rows<Acc>(m, n, k, tile, sink);
  }
  if constexpr (std::is_same_v<X, Acc>) {
    const auto tile = [&](auto rows, int64_t j, int cols, Acc* buffer) {
      multiply_adjacent_columns<rows.value>(k, a, w, j, cols, buffer);
    };
    return for_few_rows<Acc>(m, n, k, tile, sink);
  } else {
    gemm(m, n, k, a, w, sink);
  }
}

// Rows times W (k deep, n wide), step after step. A single step reads W where it lies.
template <class T>
class StepProduct {
 public:
  using Acc = acc_t<T>;

  StepProduct(int64_t n, int64_t k, const StridedOperand<T>& w, bool one_step)
      : n_(n), k_(k), w_(w), one_step_(one_step), packed_(one_step ? 0 : panels() * kCols * k) {
    if (!one_step_) pack_whole<kCols>(w_, n_, k_, packed_.get());
  }

  template <class Sink>
  void operator()(int64_t rows, const Acc* a, const Sink& sink) const {
    const StridedOperand<Acc> x{a, rows, k_, 1};
    if (one_step_) return multiply(rows, n_, k_, x, w_, sink);
    if (rows > kFewRows) return multiply_tiles(rows, x, sink);
    const auto tile = [&](auto r, int64_t j, int, Acc* buffer) {
      const StridedOperand<Acc> panel{packed_.get() + j * k_, kCols, 1, kCols};
      multiply_adjacent_columns<r.value>(k_, x, panel, 0, kCols, buffer);
    };
    for_few_rows<Acc>(rows, n_, k_, tile, sink);
  }

 private:
  static constexpr int kRows = RegisterTile<Acc>::kRows, kCols = RegisterTile<Acc>::kCols;
  // A panel of 320 rows stays in L1 for all rows of the step.
  static constexpr int64_t kMaxDepth = 320;

  int64_t panels() const { return ceil_div(n_, kCols); }

  template <class Sink>
  void multiply_tiles(int64_t rows, const StridedOperand<Acc>& x, const Sink& sink) const {
    // Tiles of equal height: 16 rows go as 8 + 8, for 14 + 2 would leave the second one idle.
    const int64_t tiles = ceil_div(rows, kRows), height = ceil_div(rows, tiles);
    Scratch<Acc> a_panels(tiles * kRows * k_);
    for (int64_t i = 0; i < rows; i += height) {
      const StridedOperand<Acc> block{x.data, std::min(rows, i + height), x.i_stride, 1};
      block.template pack<kRows>(i, 0, k_, a_panels.get() + i / height * kRows * k_);
    }
    parallel_for(0, panels(), fork_grain(rows * k_ * kCols), [&](int64_t begin, int64_t end) {
      Scratch<Acc> buffer(tiles * kRows * kCols);
      for (int64_t j = begin * kCols; j < std::min(n_, end * kCols); j += kCols) {
        multiply_panel(j, rows, height, a_panels.get(), buffer.get(), sink);
      }
    });
  }

  template <class Sink>
  void multiply_panel(int64_t j, int64_t rows, int64_t height, const Acc* a_panels, Acc* buffer,
                      const Sink& sink) const {
    const int cols = static_cast<int>(std::min<int64_t>(kCols, n_ - j));
    for (int64_t p = 0; p < k_; p += kMaxDepth) {
      const int64_t depth = std::min(kMaxDepth, k_ - p);
      for (int64_t i = 0, at = 0; i < rows; i += height, ++at) {
        const int tile_rows = static_cast<int>(std::min(height, rows - i));
        Acc* tile = buffer + at * kRows * kCols;
        multiply_panels_for<Acc>(tile_rows, cols)(depth, a_panels + (at * k_ + p) * kRows,
                                                  packed_.get() + j * k_ + p * kCols, tile, kCols,
                                                  p > 0);
        if (p + depth == k_) sink(i, j, tile_rows, cols, tile, kCols);
      }
    }
  }

  const int64_t n_, k_;
  const StridedOperand<T> w_;
  const bool one_step_;
  const Scratch<Acc> packed_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
