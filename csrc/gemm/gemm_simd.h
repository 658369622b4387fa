// C = A·B, written once for every instruction set.
//
// Operands are read through sources (operands.h); results leave through a sink that owns the
// epilogue. A task is a block of A's rows (packed, in L2) times a range of B's panels (one at a
// time, in L1); the engine's tile keeps every accumulator of the inner loop (BLIS, Van Zee & van de
// Geijn 2015). When several row blocks would pack B again and again, B is packed once up front.
#pragma once

#include <limits>
#include <type_traits>

#include "core/cache.h"
#include "core/precision.h"
#include "core/scratch.h"
#include "gemm/dot_products.h"
#include "gemm/lines.h"
#include "gemm/thin_products.h"
#include "gemm/vector_engine.h"
#if defined(__AVX512BF16__)
#include "gemm/dot_pairs.h"
#include "gemm/row_product.h"
#include "gemm/tile_engine.h"
#endif

namespace pyops::PYOPS_ISA_NAMESPACE {

struct Blocking {
  int64_t depth, depth_blocks;
  Cuts rows, cols;
  bool shares_rows;  // among threads, not columns

  // The blocks of rows and ranges of columns, in the order in which threads take them.
  struct Place {
    int64_t block, range;
  };
  Place place(int64_t task) const {
    return shares_rows ? Place{task / cols.count, task % cols.count}
                       : Place{task % rows.count, task / rows.count};
  }
};

// Half of L2 is for a block of A; if its depth takes several passes, a quarter, another for that of
// the next pass, and three eighths for its results. A small A is one block in five eighths, so that
// a B of many columns need not be packed for each block, or before them all: 512 channels of 28×28
// to 256 gained a tenth (Zen 5, two threads).
template <class Engine>
Blocking choose_blocking(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kRows = Engine::kRows, kCols = Engine::kCols;
  const int64_t steps = ceil_div(std::max<int64_t>(k, 1), Engine::kDepthStep);
  const int64_t max_steps = Engine::kMaxDepth / Engine::kDepthStep;
  const int64_t depth = ceil_div(steps, ceil_div(steps, max_steps)) * Engine::kDepthStep;
  const int64_t depth_blocks = ceil_div(std::max<int64_t>(k, 1), depth);
  const bool one_pass = depth_blocks == 1;

  const int64_t row_panels = ceil_div(m, kRows), col_panels = ceil_div(n, kCols);
  const int64_t panel =
      Engine::panel_elements(kRows, depth) * static_cast<int64_t>(sizeof(typename Engine::Element));
  const int64_t tile = kRows * kCols * static_cast<int64_t>(sizeof(typename Engine::Acc));
  const bool whole = n >= 2 * m && row_panels * panel <= l2_bytes() * 5 / 8;
  const int64_t space = l2_bytes() / (one_pass ? 2 : 4);
  const int64_t max_rows = whole ? row_panels : std::clamp<int64_t>(space / panel, 1, row_panels);
  const int64_t max_cols =
      one_pass ? col_panels : std::max<int64_t>(1, l2_bytes() * 3 / 8 / (max_rows * tile));
  int64_t row_blocks = ceil_div(row_panels, max_rows), col_ranges = ceil_div(col_panels, max_cols);
  // As many for every thread, by cutting what there is more of, if that comes out even, or else
  // both: what a thread packs of it no other reads, and less of the other operand comes from
  // another core's cache.
  const int64_t threads = num_threads(), tasks = row_blocks * col_ranges;
  const auto longest = [&](int64_t extent, int64_t unit) {
    return static_cast<double>(Cuts{extent, unit, threads}.longest()) / static_cast<double>(extent);
  };
  constexpr double kUneven = 1.0 / 32;
  const bool shares_rows =
      m > n && (longest(m, kRows) - longest(n, kCols)) * static_cast<double>(threads) <= kUneven;
  const auto cut = [&](int64_t& most, int64_t panels, int64_t& other, int64_t other_panels) {
    most = std::min(panels, ceil_div(round_up(tasks, threads), other));
    const int64_t wanted = round_up(most * other, threads);
    other = std::max(other, std::min(other_panels, ceil_div(wanted, most)));
  };
  if (tasks % threads != 0) {
    shares_rows ? cut(row_blocks, row_panels, col_ranges, col_panels)
                : cut(col_ranges, col_panels, row_blocks, row_panels);
  }
  return {depth, depth_blocks, {m, kRows, row_blocks}, {n, kCols, col_ranges}, shares_rows};
}

// Room for packed panels of one size, with whether the engine's products of them come out right
// (see tile_engine.h).
template <class Element>
class Panels {
 public:
  Panels(int64_t count, int64_t elements)
      : elements_(elements), data_(count * elements), regular_(count) {}

  // pack(data) writes panel `at`.
  template <class Pack>
  void fill(int64_t at, const Pack& pack) {
    regular_[at] = pack(data(at));
  }
  // pack(data, distance from each to the next) writes `count` panels from `at` on, or says no.
  template <class Pack>
  bool fill_group(int64_t at, int64_t count, const Pack& pack) {
    if (!pack(data(at), elements_)) return false;
    std::fill_n(&regular_[at], count, true);
    return true;
  }
  Element* data(int64_t at) const { return data_.get() + at * elements_; }
  bool regular(int64_t at) const { return regular_[at]; }

 private:
  int64_t elements_;
  Scratch<Element> data_;
  Scratch<bool> regular_;
};

template <class Engine, class A, class B, class Sink>
class Gemm {
 public:
  Gemm(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const Sink& sink)
      : m_(m),
        n_(n),
        k_(k),
        a_(a),
        b_(b),
        sink_(sink),
        blocking_(choose_blocking<Engine>(m, n, k)),
        a_once_(pays_to_pack_once<A>(m, blocking_.cols.count, 64 << 20)),
        b_once_(
            pays_to_pack_once<B>(n, blocking_.rows.count, std::numeric_limits<int64_t>::max())) {}

  void run() {
    const int64_t a_panels = ceil_div(m_, kRows), b_panels = ceil_div(n_, kCols);
    Panels<Element> a(a_once_ ? a_panels * blocking_.depth_blocks : 0, a_panel_elements());
    Panels<Element> b(b_once_ ? b_panels * blocking_.depth_blocks : 0, b_panel_elements());
    if (a_once_) {
      pack_all(ceil_div(a_panels, kGroup), [&](Engine& engine, int64_t group, int64_t block) {
        const int64_t first = group * kGroup, count = std::min<int64_t>(kGroup, a_panels - first);
        pack_a(engine, first * kRows, count, block, a, block * a_panels + first);
      });
    }
    if (b_once_) {
      pack_all(b_panels, [&](Engine& engine, int64_t panel, int64_t block) {
        pack_b(engine, panel * kCols, block, b, block * b_panels + panel);
      });
    }
    run_tasks(a, b);
  }

 private:
  using Acc = typename Engine::Acc;
  using Element = typename Engine::Element;
  static constexpr int kRows = Engine::kRows, kCols = Engine::kCols;

  int64_t depth_at(int64_t block) const {
    return std::min(blocking_.depth, k_ - block * blocking_.depth);
  }
  int64_t a_panel_elements() const { return Engine::panel_elements(kRows, blocking_.depth); }
  int64_t b_panel_elements() const { return Engine::panel_elements(kCols, blocking_.depth); }

  // Whether an operand that tasks need `times` is packed before them. Patches are many times the
  // image that they are packed from, and A may be a layer's input of any size.
  template <class Source>
  bool pays_to_pack_once(int64_t extent, int64_t times, int64_t most) const {
    constexpr int64_t kManyBytes = 16 << 20;
    const int64_t bytes = extent * k_ * static_cast<int64_t>(sizeof(Element));
    return times > 1 && bytes <= (Source::kPackOnce ? most : kManyBytes);
  }

  // Panels of A that are packed at a time.
  static constexpr int64_t kGroup = [] {
    if constexpr (requires { Engine::kGroup; }) return Engine::kGroup;
    return 1;
  }();

  template <class Pack>
  void pack_all(int64_t panels, const Pack& pack) {
    parallel_for(0, panels * blocking_.depth_blocks, 4, [&](int64_t begin, int64_t end) {
      Engine engine;
      for (int64_t at = begin; at < end; ++at) {
        pack(engine, at / blocking_.depth_blocks, at % blocking_.depth_blocks);
      }
    });
  }

  // `count` panels from row i on.
  void pack_a(Engine& engine, int64_t i, int64_t count, int64_t block, Panels<Element>& panels,
              int64_t at) const {
    const int64_t p = block * blocking_.depth, depth = depth_at(block);
    if constexpr (kGroup > 1) {
      const auto pack = [&](Element* data, int64_t apart) {
        return engine.pack_group(a_, i, count, p, depth, data, apart);
      };
      if (panels.fill_group(at, count, pack)) return;
    }
    for (int64_t end = at + count; at < end; ++at, i += kRows) {
      panels.fill(at, [&](Element* data) { return engine.pack_a(a_, i, p, depth, data); });
    }
  }
  void pack_b(Engine& engine, int64_t j, int64_t block, Panels<Element>& panels, int64_t at) const {
    panels.fill(at, [&](Element* data) {
      return engine.pack_b(b_, j, block * blocking_.depth, depth_at(block), data);
    });
  }

  void run_tasks(Panels<Element>& all_a, Panels<Element>& all_b) {
    const Cuts &rows = blocking_.rows, &cols = blocking_.cols;
    parallel_for(0, rows.count * cols.count, 1, [&](int64_t begin, int64_t end) {
      Engine engine;
      Panels<Element> own_a(a_once_ ? 0 : rows.longest() / kRows, a_panel_elements());
      Panels<Element> own_b(b_once_ ? 0 : 1, b_panel_elements());
      Scratch<Acc> c_block(one_pass() ? kRows * kCols : rows.longest() * cols.longest());
      for (int64_t task = begin; task < end; ++task) {
        const auto [block, range] = blocking_.place(task);
        run_task(engine, {rows.begin(block), rows.end(block), cols.begin(range), cols.end(range)},
                 a_once_ ? all_a : own_a, b_once_ ? all_b : own_b, c_block.get());
      }
    });
  }

  bool one_pass() const { return blocking_.depth_blocks == 1; }

  // Rows [i0, i1) times columns [j0, j1), over the whole depth.
  struct Task {
    int64_t i0, i1, j0, j1;
  };
  void run_task(Engine& engine, const Task& task, Panels<Element>& a, Panels<Element>& b,
                Acc* c_block) {
    const auto [i0, i1, j0, j1] = task;
    const int64_t ldc = one_pass() ? kCols : blocking_.cols.longest();
    for (int64_t block = 0; block < blocking_.depth_blocks; ++block) {
      if (!a_once_) {
        const int64_t panels = ceil_div(i1 - i0, kRows);
        for (int64_t k = 0; k < panels; k += kGroup) {
          pack_a(engine, i0 + k * kRows, std::min(kGroup, panels - k), block, a, k);
        }
      }
      for (int64_t j = j0; j < j1; j += kCols) {
        if (!b_once_) pack_b(engine, j, block, b, 0);
        const int64_t b_at = b_once_ ? block * ceil_div(n_, kCols) + j / kCols : 0;
        const int cols = static_cast<int>(std::min<int64_t>(kCols, j1 - j));
        const Ahead<Element> ahead = ahead_of(a, block, i0, i1, (j - j0) / kCols);
        for (int64_t i = i0, tiles; i < i1; i += tiles * kRows) {
          const int64_t a_at = a_once_ ? block * ceil_div(m_, kRows) + i / kRows : (i - i0) / kRows;
          const Part part{i, j, i1 - i, cols, block, block + 1 == blocking_.depth_blocks, ahead};
          Acc* tile = one_pass() ? c_block : c_block + (i - i0) * ldc + (j - j0);
          tiles = multiply_column(engine, part, a.data(a_at), b.data(b_at), tile, ldc);
          if (tiles > 0) continue;
          multiply_tile(engine, part, {a.data(a_at), a.regular(a_at)},
                        {b.data(b_at), b.regular(b_at)}, tile, ldc);
          tiles = 1;
        }
      }
    }
  }

  // The next block of A, packed before, of which every column of a task asks for its share.
  Ahead<Element> ahead_of(const Panels<Element>& a, int64_t block, int64_t i0, int64_t i1,
                          int64_t column) const {
    if (!a_once_ || block + 1 == blocking_.depth_blocks) return {};
    constexpr int64_t kLine = 64 / sizeof(Element);
    const int64_t columns = blocking_.cols.longest() / kCols;
    const int64_t share = round_up(ceil_div(a_panel_elements(), columns), kLine);
    const Element* next = a.data((block + 1) * ceil_div(m_, kRows) + i0 / kRows);
    return {next + column * ceil_div(i1 - i0, kRows) * share, share};
  }

  // Products over a block of the depth, of rows from i on.
  struct Part {
    int64_t i, j, rows;
    int cols;
    int64_t block;
    bool last;
    Ahead<Element> ahead;
  };

  // As many whole tiles below each other as leave from the registers at once; maybe none.
  int64_t multiply_column([[maybe_unused]] Engine& engine, [[maybe_unused]] const Part& at,
                          [[maybe_unused]] const Element* a, [[maybe_unused]] const Element* b,
                          [[maybe_unused]] Acc* tile, [[maybe_unused]] int64_t ldc) const {
    if constexpr (requires { Engine::is_whole(0); }) {
      int64_t tiles = at.rows / kRows;
      if (tiles == 0 || !Engine::is_whole(at.cols)) return 0;
      const auto multiply = [&](const auto& lines) {
        engine.multiply_column({tiles, at.cols, depth_at(at.block), a, a_panel_elements(), b, tile,
                                one_pass() ? 0 : kRows * ldc, ldc, at.block > 0, at.ahead},
                               lines);
        return tiles;
      };
      if (!at.last) return multiply(Lines<Acc>{});
      if constexpr (KnowsLines<Sink>) {
        const auto lines = sink_.lines(at.i, at.j, tiles * kRows, at.cols);
        if (lines.out != nullptr) return multiply(lines);
        tiles = 1;
        const auto some = sink_.lines(at.i, at.j, kRows, at.cols);
        if (some.out != nullptr) return multiply(some);
      }
    }
    return 0;
  }

  struct Panel {
    const Element* data;
    bool regular;
  };
  // The first tile of a part, and to the sink with the last block.
  void multiply_tile(Engine& engine, const Part& at, const Panel& a, const Panel& b, Acc* tile,
                     int64_t ldc) const {
    const int rows = static_cast<int>(std::min<int64_t>(kRows, at.rows));
    if constexpr (KnowsLines<Sink>) {
      if (at.last) {
        const auto lines = sink_.lines(at.i, at.j, rows, at.cols);
        if (lines.out != nullptr) lines.prefetch(rows, at.cols);
      }
    }
    if (a.regular && b.regular) {
      engine.multiply(rows, at.cols, depth_at(at.block), a.data, b.data, tile, ldc, at.block > 0);
    } else {
      multiply_exactly(at, tile, ldc);
    }
    if (at.last) sink_(at.i, at.j, rows, at.cols, tile, ldc);
  }

  // A tile whose numbers the engine cannot represent, from the operands themselves. Rare, so plain.
  void multiply_exactly(const Part& at, Acc* tile, int64_t ldc) const {
    const int64_t p0 = at.block * blocking_.depth, depth = depth_at(at.block);
    Scratch<Acc> a(kRows * depth), b(kCols * depth);
    a_.template pack<kRows>(at.i, p0, depth, a.get());
    b_.template pack<kCols>(at.j, p0, depth, b.get());
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kCols; c += Vec<Acc>::kWidth) {
        auto sum = Vec<Acc>::zero();
        for (int64_t p = 0; p < depth; ++p) {
          const auto row = Vec<Acc>::load(&b[p * kCols + c]);
          sum = Vec<Acc>::fma(Vec<Acc>::set1(a[p * kRows + r]), row, sum);
        }
        Acc* out = tile + r * ldc + c;
        (at.block > 0 ? sum + Vec<Acc>::load(out) : sum).store(out);
      }
    }
  }

  const int64_t m_, n_, k_;
  const A& a_;
  const B& b_;
  const Sink& sink_;
  const Blocking blocking_;
  const bool a_once_, b_once_;
};

// sink(i, j, rows, cols, tile, ld) once for each finished tile of the m×n result; k = 0 gives
// zeros. `precision` says how faithfully float32 operands are multiplied.
template <class A, class B, class Sink>
void gemm(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const Sink& sink,
          [[maybe_unused]] Precision precision = Precision::kHighest) {
  using Acc = typename A::Acc;
  static_assert(std::is_same_v<Acc, typename B::Acc>);
  if (m == 0 || n == 0) return;
  if constexpr (RowReadable<A> && RowReadable<B>) {
    if (a.rows_contiguous() && b.rows_contiguous() && dot_products_pay(m, n, k)) {
#if defined(__AVX512BF16__)
      using Words = StridedOperand<BFloat16>;
      if constexpr (std::is_same_v<A, Words> && std::is_same_v<B, Words>) {
        if (std::min(m, n) <= kFewDotRows) return dot_pairs(m, n, k, a, b, sink);
      }
#endif
      return dot_products(m, n, k, a, b, sink);
    }
  }
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<Acc, float>) {
    const int parts = bf16_parts<A, B>(precision);
    const bool tiles = tiles_pay(m, n, k, parts);
    if constexpr (!kMatrixUnit && kIsWords<A> && kIsWords<B>) {
      if ((tiles || rows_pay(m, n, k)) && row_product(m, n, k, a, b, sink)) return;
    }
    if (tiles) {
      constexpr int kMost = bf16_parts<A, B>(Precision::kHighest);
      return with_constant<kMost>(parts, [&]<int kParts>(std::integral_constant<int, kParts>) {
        Gemm<TileEngine<kParts>, A, B, Sink>(m, n, k, a, b, sink).run();
      });
    }
  }
#endif
  if constexpr (ColumnReadable<B>) {
    if (m <= kThin && b.i_stride == 1) return thin_rows(m, n, k, a, b, sink);
    // Rows of whole 4 KiB share one set of L1: a tile of some goes by L2, line by line.
    const bool share = n * static_cast<int64_t>(sizeof(Acc)) % 4096 == 0;
    if (k <= kThin && (m <= kThin || share)) return thin_depth(m, n, k, a, b, sink);
  }
  constexpr int64_t kStretch = std::min(stretch_of<A>(), stretch_of<B>());
  Gemm<VectorEngine<Acc, kStretch>, A, B, Sink>(m, n, k, a, b, sink).run();
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
