// C = A·B of bfloat16 without a matrix unit, where A's rows are read where they lie.
//
// Rows along the depth need no packing (row_tiles.h); B does, in panels of up to four vectors of
// columns, a block of as many as fit half of L2. So the larger operand had better be A, and where
// it is B, the transposed product is computed.
#pragma once

#include "core/cache.h"
#include "core/scratch.h"
#include "gemm/lines.h"
#include "gemm/row_tiles.h"
#include "gemm/word_tiles.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Hands a tile of the transposed product to the sink of the product.
template <class Sink>
class TransposedTiles {
 public:
  explicit TransposedTiles(const Sink& sink) : sink_(sink) {}

  // Of the product that is computed, before a tile of it is.
  void prefetch(int64_t i, int64_t j, int rows, int cols) const {
    if constexpr (KnowsLines<Sink>) {
      const auto lines = sink_.lines(j, i, cols, rows);
      if (lines.out != nullptr) lines.prefetch(cols, rows);
    }
  }

  // The tile has room for whole vectors, of rows too.
  void operator()(int64_t i, int64_t j, int rows, int cols, const float* tile, int64_t ld) const {
    if constexpr (KnowsLines<Sink>) {
      const auto lines = sink_.lines(j, i, cols, rows);
      if (lines.out != nullptr) {
        return for_blocks(rows, cols, tile, ld, [&](int r, int q, const auto& block) {
          for (int e = 0; e < std::min(kV, cols - q); ++e) {
            r + kV <= rows ? lines.put(block[e], q + e, r, std::integral_constant<int, kV>{})
                           : lines.put(block[e], q + e, r, rows - r);
          }
        });
      }
    }
    alignas(64) float turned[kPanelCols * kGroupRows];
    for_blocks(rows, cols, tile, ld, [&](int r, int q, const auto& block) {
      for (int e = 0; e < kV; ++e) block[e].store(turned + (q + e) * kGroupRows + r);
    });
    sink_(j, i, cols, rows, turned, kGroupRows);
  }

 private:
  static constexpr int kV = Vec<float>::kWidth;

  // f(row, column, a square of the tile from there on, turned)
  template <class F>
  static void for_blocks(int rows, int cols, const float* tile, int64_t ld, const F& f) {
    for (int q = 0; q < cols; q += kV) {
      for (int r = 0; r < rows; r += kV) {
        Vec<float> block[kV];
        for (int e = 0; e < kV; ++e) block[e] = Vec<float>::load(tile + (r + e) * ld + q);
        transpose(block);
        f(r, q, block);
      }
    }
  }

  const Sink& sink_;
};

template <bool kMaskedA, bool kMaskedB, class Sink>
class RowProduct {
 public:
  using A = StridedOperand<BFloat16, kMaskedA>;
  using B = StridedOperand<BFloat16, kMaskedB>;

  RowProduct(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const Sink& sink)
      : m_(m), n_(n), k_(k), a_(a), b_(b), sink_(sink) {
    constexpr int64_t kMaxDepth = 1536;
    depth_blocks_ = ceil_div(k, kMaxDepth);
    depth_ = round_up(ceil_div(k, depth_blocks_), 32);
    depth_blocks_ = ceil_div(k, depth_);
    // Half of L2 is for a block of B, a quarter for sums that wait for the next.
    const int64_t most_cols = l2_bytes() / 2 / (depth_ * int64_t{sizeof(BFloat16)});
    col_ranges_ = ceil_div(n, std::max<int64_t>(kPanelCols, most_cols / kPanelCols * kPanelCols));
    range_cols_ = round_up(ceil_div(n, col_ranges_), kPanelCols);
    const int64_t most_rows = l2_bytes() / 4 / (range_cols_ * int64_t{sizeof(float)});
    row_blocks_ = depth_blocks_ == 1 ? 1 : ceil_div(m, std::max<int64_t>(kGroupRows, most_rows));
    share_among(num_threads());
  }

  // Whether A's rows are read in place: pairs, of no mask.
  static bool in_place(const A& a, int64_t k) { return !kMaskedA && a.p_stride == 1 && k % 2 == 0; }

  void run() {
    const bool in_place = RowProduct::in_place(a_, k_), once = row_blocks_ > 1;
    const int64_t copy_stride = round_up(k_, 32) + 32;  // no power of two
    Scratch<BFloat16> copy(in_place ? 0 : round_up(m_, 32) * copy_stride);
    if (!in_place) copy_rows(copy.get(), copy_stride);
    const Rows rows = in_place ? Rows{a_.data, a_.i_stride} : Rows{copy.get(), copy_stride};
    Scratch<uint16_t> all(once ? depth_blocks_ * block_elements(0, n_) : 0);
    if (once) {
      parallel_for(0, depth_blocks_ * ceil_div(n_, kPanelCols), 1, [&](int64_t t0, int64_t t1) {
        for (int64_t t = t0; t < t1; ++t) {
          const int64_t block = t % depth_blocks_, j = t / depth_blocks_ * kPanelCols;
          pack_panel(j, block, all.get() + block * block_elements(0, n_) + block_elements(0, j));
        }
      });
    }
    parallel_for(0, row_blocks_ * col_ranges_, 1, [&](int64_t t0, int64_t t1) {
      Scratch<uint16_t> own(once ? 0 : range_cols_ * depth_);
      const int64_t held = depth_blocks_ == 1 ? kGroupRows * kPanelCols
                                              : round_up(block_rows_, kGroupRows) * range_cols_;
      Scratch<float> sums(held);
      for (int64_t t = t0; t < t1; ++t) {
        Task task{rows, t / col_ranges_ * block_rows_, 0, t % col_ranges_ * range_cols_, 0};
        task.i1 = std::min(m_, task.i0 + block_rows_);
        task.j1 = std::min(n_, task.j0 + range_cols_);
        run_task(task, once ? all.get() : nullptr, own.get(), sums.get());
      }
    });
  }

 private:
  struct Rows {
    const BFloat16* data;
    int64_t stride;
  };
  struct Task {
    Rows rows;
    int64_t i0, i1, j0, j1;
  };

  static int64_t round_up(int64_t x, int64_t to) { return ceil_div(x, to) * to; }

  // As many tasks for every thread, by cutting rows, which leaves them L2's block of B, or else
  // columns.
  void share_among(int64_t threads) {
    constexpr int64_t kLeast = 16;
    if (row_blocks_ * col_ranges_ % threads != 0 && row_blocks_ * col_ranges_ < 8 * threads) {
      if (m_ >= n_) {
        row_blocks_ = std::min(round_up(row_blocks_, threads), ceil_div(m_, kGroupRows));
      } else {
        col_ranges_ = std::min(round_up(col_ranges_, threads), ceil_div(n_, kPanelCols));
        range_cols_ = round_up(ceil_div(n_, col_ranges_), kPanelCols);
        col_ranges_ = ceil_div(n_, range_cols_);
      }
    }
    block_rows_ = round_up(ceil_div(m_, row_blocks_), kLeast);
    row_blocks_ = ceil_div(m_, block_rows_);
  }

  // Elements of the panels of columns [j0, j1), one block of the depth.
  int64_t block_elements(int64_t j0, int64_t j1) const { return round_up(j1 - j0, 16) * depth_; }
  int64_t depth_at(int64_t block) const { return std::min(depth_, k_ - block * depth_); }

  void pack_panel(int64_t j, int64_t block, uint16_t* panel) const {
    const int64_t vecs = ceil_div(std::min<int64_t>(kPanelCols, n_ - j), 16), row = vecs * 32;
    for (int64_t v = 0; v < vecs; v += 2) {
      const int halves = static_cast<int>(std::min<int64_t>(2, vecs - v));
      pack_words<false>(b_, j + v * 16, block * depth_, depth_at(block),
                        {.row = row, .half = 32, .step = row * kTilePairs}, halves, panel + v * 32);
    }
  }

  void copy_rows(BFloat16* to, int64_t stride) const {
    constexpr int64_t kSlice = 256;
    const int64_t slices = ceil_div(k_, kSlice);
    parallel_for(0, ceil_div(m_, 32) * slices, 4, [&](int64_t t0, int64_t t1) {
      for (int64_t t = t0; t < t1; ++t) {
        const int64_t i = t / slices * 32, p = t % slices * kSlice;
        pack_words<true>(a_, i, p, std::min(kSlice, k_ - p),
                         {.row = stride, .half = kTileRows * stride, .step = 32}, 2,
                         reinterpret_cast<uint16_t*>(to + i * stride + p));
      }
    });
  }

  // Rows and columns of a task, over the whole depth.
  void run_task(const Task& task, const uint16_t* all, uint16_t* own, float* sums) const {
    for (int64_t block = 0; block < depth_blocks_; ++block) {
      const uint16_t* b = own;
      if (all != nullptr) {
        b = all + block * block_elements(0, n_) + block_elements(0, task.j0);
      } else {
        for (int64_t j = task.j0; j < task.j1; j += kPanelCols) {
          pack_panel(j, block, own + block_elements(task.j0, j));
        }
      }
      for (int64_t i = task.i0; i < task.i1; i += kGroupRows) {
        for (int64_t j = task.j0; j < task.j1; j += kPanelCols) {
          const bool one_pass = depth_blocks_ == 1;
          float* c = one_pass ? sums : sums + (i - task.i0) * range_cols_ + (j - task.j0);
          run_group(task, block, i, j, b + block_elements(task.j0, j), c,
                    one_pass ? kPanelCols : range_cols_);
        }
      }
    }
  }

  // A group of rows times a panel, and to the sink with the last block.
  void run_group(const Task& task, int64_t block, int64_t i, int64_t j, const uint16_t* b, float* c,
                 int64_t ldc) const {
    const int rows = static_cast<int>(std::min<int64_t>(kGroupRows, task.i1 - i));
    const int cols = static_cast<int>(std::min<int64_t>(kPanelCols, task.j1 - j));
    const bool last = block + 1 == depth_blocks_;
    Group group{task.rows.data + i * task.rows.stride + block * depth_,
                ceil_div(depth_at(block), 2),
                b,
                c,
                ldc,
                rows,
                static_cast<int>((j - task.j0) / kPanelCols),
                static_cast<int>(ceil_div(task.j1 - task.j0, kPanelCols)),
                block > 0,
                i + 2 * kGroupRows <= task.i1};
    const auto run = [&](const auto& lines) {
      switch (ceil_div(cols, 16)) {
        case 1:
          return multiply_group<1>(task.rows.stride, group, cols, lines);
        case 2:
          return multiply_group<2>(task.rows.stride, group, cols, lines);
        case 3:
          return multiply_group<3>(task.rows.stride, group, cols, lines);
        default:
          return multiply_group<4>(task.rows.stride, group, cols, lines);
      }
    };
    if constexpr (KnowsLines<Sink>) {
      if (last) {
        const auto lines = sink_.lines(i, j, rows, cols);
        if (lines.out != nullptr) {
          lines.prefetch(rows, cols);
          return run(lines);
        }
      }
    }
    if constexpr (requires { sink_.prefetch(i, j, rows, cols); }) {
      if (last) sink_.prefetch(i, j, rows, cols);
    }
    run(Lines<float>{});
    if (last) sink_(i, j, rows, cols, c, ldc);
  }

  struct Group {
    const BFloat16* a;
    int64_t pairs;
    const uint16_t* b;
    float* c;
    int64_t ldc;
    int rows, panel, panels;
    bool add, more;
  };

  // The last rows of a group that has no multiple of a tile's are computed together with some that
  // were before.
  template <int kVecs, class L>
  static void multiply_group(int64_t stride, const Group& g, int cols, const L& lines) {
    constexpr int kRows = rows_of_panel(kVecs);
    for (int begin = 0; begin < g.rows; begin += kRows) {
      const int row = std::min(begin, g.rows - kRows);
      multiply_rows<kRows, kVecs>(stride, g, row, begin - row, cols, lines);
    }
  }

  // Rows from `row` on, to lines, or if there are none, to where the sums wait: without the first
  // `skip`, which are there. A function of its own, where the loop finds enough registers.
  template <int kRows, int kVecs, class L>
  [[gnu::noinline]] static void multiply_rows(int64_t stride, const Group& g, int row, int skip,
                                              int cols, const L& lines) {
    const BFloat16* a = g.a + row * stride;
    const RowsAhead ahead{a + (g.more ? kGroupRows * stride : 0), g.panel * kRows / g.panels,
                          (g.panel + 1) * kRows / g.panels};
    __m512 sums[kRows][kVecs];
    multiply_row_pairs(g.pairs, a, stride, g.b, ahead, sums);
    const L own = lines;
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      if (r < skip) continue;
      float* to = g.c + (row + r) * g.ldc;
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        Vec<float> sum;
        sum.v = sums[r][v];
        if (g.add) sum = sum + Vec<float>::load(to + v * 16);
        if (own.out == nullptr) {
          sum.store(to + v * 16);
        } else if (cols >= (v + 1) * 16) {
          own.put(sum, row + r, v * 16, std::integral_constant<int, 16>{});
        } else {
          own.put(sum, row + r, v * 16, cols - v * 16);
        }
      }
    }
  }

  const int64_t m_, n_, k_;
  const A a_;
  const B b_;
  const Sink& sink_;
  int64_t depth_blocks_, depth_, col_ranges_, range_cols_, row_blocks_, block_rows_;
};

// Whether it was done so. The larger operand had better be the one that is read in place.
template <bool kMaskedA, bool kMaskedB, class Sink>
bool row_product(int64_t m, int64_t n, int64_t k, const StridedOperand<BFloat16, kMaskedA>& a,
                 const StridedOperand<BFloat16, kMaskedB>& b, const Sink& sink) {
  constexpr int64_t kMostCopied = int64_t{32} << 20;
  if (!packs_as_words(a) || !packs_as_words(b)) return false;
  const int64_t copy_a = RowProduct<kMaskedA, kMaskedB, Sink>::in_place(a, k) ? 0 : m * k;
  const int64_t copy_b = RowProduct<kMaskedB, kMaskedA, Sink>::in_place(b, k) ? 0 : n * k;
  // Turning a result takes about as long as packing two numbers.
  if (n >= kLeastRows && copy_b <= kMostCopied && copy_b + m * k + m * n * 2 < copy_a + n * k) {
    const TransposedTiles<Sink> turned(sink);
    RowProduct<kMaskedB, kMaskedA, TransposedTiles<Sink>>(n, m, k, b, a, turned).run();
    return true;
  }
  if (m < kLeastRows || copy_a > kMostCopied) return false;
  RowProduct<kMaskedA, kMaskedB, Sink>(m, n, k, a, b, sink).run();
  return true;
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
