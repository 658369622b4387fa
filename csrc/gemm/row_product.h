// C = A·B of bfloat16 without a matrix unit, where A's rows are read where they lie.
//
// Rows along the depth need no packing (row_tiles.h); B does, in panels of up to four vectors of
// columns, a block of as many as fit half of L2. So the larger operand had better be A, and where
// it is B, the transposed product is computed.
#pragma once

#include "core/cache.h"
#include "gemm/lines.h"
#include "gemm/row_source.h"
#include "gemm/vector_engine.h"

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

// A block of the depth of as many columns of B as fit half of L2 meets all rows of a task; a
// quarter is for sums that wait for the next block.
struct RowBlocking {
  int64_t depth, depth_blocks;
  Cuts rows, cols;

  RowBlocking(int64_t m, int64_t n, int64_t k)
      : depth(round_up(ceil_div(k, ceil_div(k, kMaxDepth)), 32)),
        depth_blocks(ceil_div(k, depth)),
        rows{m, 16, 1},
        cols{n, kPanelCols, 1} {
    const int64_t panel = kPanelCols * depth * int64_t{sizeof(BFloat16)};
    cols.count = ceil_div(cols.units(), std::max<int64_t>(1, l2_bytes() / 2 / panel));
    if (depth_blocks > 1) {
      const int64_t most = l2_bytes() / 4 / (cols.longest() * int64_t{sizeof(float)});
      rows.count = ceil_div(m, std::max<int64_t>(kGroupRows, most));
    }
    share_among(num_threads());
  }

 private:
  static constexpr int64_t kMaxDepth = 1536;

  // As many tasks for every thread, by cutting few into rows, which leaves them L2's block of B, or
  // else columns.
  void share_among(int64_t threads) {
    const int64_t tasks = rows.count * cols.count;
    if (tasks % threads == 0) return;
    if (rows.extent >= cols.extent && tasks < 8 * threads) {
      rows.count = std::min(round_up(rows.count, threads), ceil_div(rows.extent, kGroupRows));
    } else {
      cols.share_among(threads);
    }
  }
};

template <bool kMaskedA, bool kMaskedB, class Sink>
class RowProduct {
 public:
  using A = StridedOperand<BFloat16, kMaskedA>;
  using B = StridedOperand<BFloat16, kMaskedB>;

  RowProduct(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const Sink& sink)
      : m_(m), n_(n), k_(k), a_(a, k), b_(b), sink_(sink), blocking_(m, n, k) {}

  void run() {
    const int64_t blocks = blocking_.depth_blocks;
    const Cuts &rows = blocking_.rows, &cols = blocking_.cols;
    const bool once = rows.count > 1;
    Scratch<uint16_t> all(once ? blocks * block_elements(0, n_) : 0);
    if (once) {
      parallel_for(0, blocks * ceil_div(n_, kPanelCols), 1, [&](int64_t t0, int64_t t1) {
        for (int64_t t = t0; t < t1; ++t) {
          const int64_t block = t % blocks, j = t / blocks * kPanelCols;
          pack_panel(j, block, all.get() + block * block_elements(0, n_) + block_elements(0, j));
        }
      });
    }
    parallel_for(0, rows.count * cols.count, 1, [&](int64_t t0, int64_t t1) {
      const Scratch<uint16_t> own(once ? 0 : cols.longest() * blocking_.depth);
      const Scratch<float> sums(kGroupRows * kPanelCols +
                                (one_pass() ? 0 : rows.longest() * cols.longest()));
      const Scratch<BFloat16> room(a_.room(blocking_.depth));
      for (int64_t t = t0; t < t1; ++t) {
        const int64_t block = t / cols.count, range = t % cols.count;
        const Task task{rows.begin(block), rows.end(block), cols.begin(range), cols.end(range)};
        run_task(task, once ? all.get() : nullptr, own.get(), sums.get(), room.get());
      }
    });
  }

 private:
  struct Task {
    int64_t i0, i1, j0, j1;
  };

  bool one_pass() const { return blocking_.depth_blocks == 1; }
  int64_t depth_at(int64_t block) const {
    return std::min(blocking_.depth, k_ - block * blocking_.depth);
  }
  // Elements of the panels of columns [j0, j1), one block of the depth.
  int64_t block_elements(int64_t j0, int64_t j1) const {
    return round_up(j1 - j0, 16) * blocking_.depth;
  }

  void pack_panel(int64_t j, int64_t block, uint16_t* panel) const {
    const int64_t vecs = ceil_div(std::min<int64_t>(kPanelCols, n_ - j), 16), row = vecs * 32;
    for (int64_t v = 0; v < vecs; v += 2) {
      const int halves = static_cast<int>(std::min<int64_t>(2, vecs - v));
      pack_words<false>(b_, j + v * 16, block * blocking_.depth, depth_at(block),
                        {.row = row, .half = 32, .step = row * kTilePairs}, halves, panel + v * 32);
    }
  }

  // Rows and columns of a task, over the whole depth.
  void run_task(const Task& task, const uint16_t* all, uint16_t* own, float* sums,
                BFloat16* room) const {
    for (int64_t block = 0; block < blocking_.depth_blocks; ++block) {
      const uint16_t* b = own;
      if (all != nullptr) {
        b = all + block * block_elements(0, n_) + block_elements(0, task.j0);
      } else {
        for (int64_t j = task.j0; j < task.j1; j += kPanelCols) {
          pack_panel(j, block, own + block_elements(task.j0, j));
        }
      }
      for (int64_t i = task.i0; i < task.i1; i += kGroupRows) {
        const int count = static_cast<int>(std::min<int64_t>(kGroupRows, task.i1 - i));
        const int64_t depth = depth_at(block);
        Group group{.rows = a_.rows(i, count, block * blocking_.depth, depth, room),
                    .count = count,
                    .more = a_.lie_in_memory() && i + 2 * kGroupRows <= task.i1,
                    .pairs = ceil_div(depth, 2),
                    .panels = static_cast<int>(ceil_div(task.j1 - task.j0, kPanelCols)),
                    .ldc = one_pass() ? kPanelCols : blocking_.cols.longest(),
                    .add = block > 0};
        float* c = one_pass() ? sums : sums + (i - task.i0) * blocking_.cols.longest();
        for (int64_t j = task.j0; j < task.j1; j += kPanelCols) {
          group.panel = static_cast<int>((j - task.j0) / kPanelCols);
          group.b = b + block_elements(task.j0, j);
          group.c = one_pass() ? c : c + (j - task.j0);
          const int cols = static_cast<int>(std::min<int64_t>(kPanelCols, task.j1 - j));
          run_group(group, i, j, cols, block + 1 == blocking_.depth_blocks);
        }
      }
    }
  }

  // A group of rows times a panel: where the sums lie that wait for the next block of the depth.
  struct Group {
    WordRows rows;
    int count;
    bool more;  // whether as many come next, to be asked for by all panels
    int64_t pairs;
    int panels;
    int64_t ldc;
    bool add;
    int panel = 0;
    const uint16_t* b = nullptr;
    float* c = nullptr;
  };

  // With the last block to the sink.
  void run_group(const Group& group, int64_t i, int64_t j, int cols, bool last) const {
    const auto run = [&](const auto& lines) {
      with_constant<4>(ceil_div(cols, 16),
                       [&](auto vecs) { multiply_group<vecs.value>(group, cols, lines); });
    };
    if constexpr (KnowsLines<Sink>) {
      if (last) {
        const auto lines = sink_.lines(i, j, group.count, cols);
        if (lines.out != nullptr) {
          lines.prefetch(group.count, cols);
          return run(lines);
        }
      }
    }
    if constexpr (requires { sink_.prefetch(i, j, group.count, cols); }) {
      if (last) sink_.prefetch(i, j, group.count, cols);
    }
    run(Lines<float>{});
    if (last) sink_(i, j, group.count, cols, group.c, group.ldc);
  }

  // The last rows of a group that has no multiple of a tile's are computed together with some that
  // were before.
  template <int kVecs, class L>
  static void multiply_group(const Group& g, int cols, const L& lines) {
    constexpr int kRows = rows_of_panel(kVecs);
    for (int begin = 0; begin < g.count; begin += kRows) {
      const int row = std::min(begin, g.count - kRows);
      multiply_rows<kRows, kVecs>(g, row, begin - row, cols, lines);
    }
  }

  // Rows from `row` on, to lines, or if there are none, to where the sums wait: without the first
  // `skip`, which are there. A function of its own, where the loop finds enough registers.
  template <int kRows, int kVecs, class L>
  [[gnu::noinline]] static void multiply_rows(const Group& g, int row, int skip, int cols,
                                              const L& lines) {
    const int64_t stride = g.rows.stride;
    const BFloat16* a = g.rows.data + row * stride;
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
  const RowSource<kMaskedA> a_;
  const B b_;
  const Sink& sink_;
  const RowBlocking blocking_;
};

// Whether rows are better even where tiles do not pay, for sums of a few numbers: there are so many
// of these that they wait for memory. 4096 by 4096 of eight numbers take 0.9 ms instead of 2.2
// (Zen 5, November 2026).
inline bool rows_pay(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kManySums = 128 << 10;
  return k > 0 && k < 16 && m * n >= kManySums;
}

// Whether it was done so. The larger operand had better be the one that is read in place.
template <bool kMaskedA, bool kMaskedB, class Sink>
bool row_product(int64_t m, int64_t n, int64_t k, const StridedOperand<BFloat16, kMaskedA>& a,
                 const StridedOperand<BFloat16, kMaskedB>& b, const Sink& sink) {
  if (!packs_as_words(a) || !packs_as_words(b)) return false;
  const auto copied = [k]<bool kMasked>(const StridedOperand<BFloat16, kMasked>& x) {
    return RowSource<kMasked>::in_place(x, k) ? 0 : x.extent * k;
  };
  // Turning a result takes about as long as packing two numbers.
  if (n >= kLeastRows && copied(b) + m * k + 2 * m * n < copied(a) + n * k) {
    const TransposedTiles<Sink> turned(sink);
    RowProduct<kMaskedB, kMaskedA, TransposedTiles<Sink>>(n, m, k, b, a, turned).run();
    return true;
  }
  constexpr int64_t kMostCopied = int64_t{32} << 20;  // a layer's gradient may be of any size
  if (m < kLeastRows || (a.p_stride != 1 && m * k > kMostCopied)) return false;
  RowProduct<kMaskedA, kMaskedB, Sink>(m, n, k, a, b, sink).run();
  return true;
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
