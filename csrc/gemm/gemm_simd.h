// C = A·B, written once for every instruction set.
//
// Operands are read through sources (operands.h); results leave through a sink that owns the
// epilogue. A task is a block of A's rows (packed, in L2) times a range of B's panels (one at a
// time, in L1); the engine's tile keeps every accumulator of the inner loop (BLIS, Van Zee & van de
// Geijn 2015). When several row blocks would pack B again and again, B is packed once up front.
#pragma once

#include "core/precision.h"
#include "core/scratch.h"
#include "gemm/dot_products.h"
#include "gemm/thin_products.h"
#include "gemm/vector_engine.h"
#if defined(__AMX_TILE__)
#include "gemm/amx_engine.h"
#endif

namespace pyops::PYOPS_ISA_NAMESPACE {

struct Blocking {
  int64_t depth, depth_blocks, row_blocks, block_rows, col_ranges, range_cols;
};

template <class Engine>
Blocking choose_blocking(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kRows = Engine::kRows, kCols = Engine::kCols;
  Blocking blocking{};
  const int64_t steps = ceil_div(std::max<int64_t>(k, 1), Engine::kDepthStep);
  const int64_t max_steps = Engine::kMaxDepth / Engine::kDepthStep;
  blocking.depth = ceil_div(steps, ceil_div(steps, max_steps)) * Engine::kDepthStep;
  blocking.depth_blocks = ceil_div(std::max<int64_t>(k, 1), blocking.depth);

  const int64_t row_panels = ceil_div(m, kRows), col_panels = ceil_div(n, kCols);
  blocking.row_blocks = ceil_div(row_panels, Engine::kMaxRowPanels);
  blocking.col_ranges = ceil_div(col_panels, Engine::kMaxColPanels);
  const int64_t threads = num_threads();
  if (blocking.row_blocks * blocking.col_ranges < threads) {
    blocking.col_ranges = std::min(col_panels, ceil_div(threads, blocking.row_blocks));
    // Never fewer than before: a block has room for kMaxRowPanels.
    blocking.row_blocks =
        std::max(blocking.row_blocks, std::min(row_panels, ceil_div(threads, blocking.col_ranges)));
  }
  blocking.block_rows = ceil_div(row_panels, blocking.row_blocks) * kRows;
  blocking.range_cols = ceil_div(col_panels, blocking.col_ranges) * kCols;
  blocking.row_blocks = ceil_div(m, blocking.block_rows);
  blocking.col_ranges = ceil_div(n, blocking.range_cols);
  return blocking;
}

// A panel as an engine packed it, and whether its products come out right (see amx_engine.h).
template <class Element>
struct Panel {
  const Element* data;
  bool regular;
};

// All of B, packed panel by panel, each in blocks of the blocking's depth.
template <class Engine>
struct PackedPanels {
  typename Engine::Element* data = nullptr;
  bool* regular = nullptr;
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
        blocking_(choose_blocking<Engine>(m, n, k)) {}

  void run() {
    if (!B::kPackOnce || blocking_.row_blocks == 1) return run_tasks({});
    const int64_t blocks = ceil_div(n_, kCols) * blocking_.depth_blocks;
    Scratch<Element> data(blocks * b_panel_elements());
    Scratch<bool> regular(blocks);
    parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
      Engine engine;
      for (int64_t block = begin; block < end; ++block) {
        const int64_t j = block / blocking_.depth_blocks * kCols;
        const int64_t p0 = block % blocking_.depth_blocks * blocking_.depth;
        regular[block] = engine.pack_b(b_, j, p0, depth_at(p0), &data[block * b_panel_elements()]);
      }
    });
    run_tasks({data.get(), regular.get()});
  }

 private:
  using Acc = typename Engine::Acc;
  using Element = typename Engine::Element;
  static constexpr int kRows = Engine::kRows, kCols = Engine::kCols;

  struct Workspace {
    Element *a_block, *b_panel;
    Acc* c_block;
  };

  int64_t depth_at(int64_t p0) const { return std::min(blocking_.depth, k_ - p0); }
  int64_t a_panel_elements() const { return Engine::panel_elements(kRows, blocking_.depth); }
  int64_t b_panel_elements() const { return Engine::panel_elements(kCols, blocking_.depth); }

  void run_tasks(PackedPanels<Engine> packed) {
    parallel_for(
        0, blocking_.row_blocks * blocking_.col_ranges, 1, [&](int64_t begin, int64_t end) {
          Engine engine;
          Scratch<Element> a_block(blocking_.block_rows / kRows * a_panel_elements());
          Scratch<Element> b_panel(b_panel_elements());
          Scratch<Acc> c_block(blocking_.block_rows * blocking_.range_cols);
          for (int64_t task = begin; task < end; ++task) {
            const int64_t i0 = task % blocking_.row_blocks * blocking_.block_rows;
            const int64_t j0 = task / blocking_.row_blocks * blocking_.range_cols;
            run_task(engine, i0, j0, packed, {a_block.get(), b_panel.get(), c_block.get()});
          }
        });
  }

  // Rows from i0 times columns from j0, over the whole depth.
  void run_task(Engine& engine, int64_t i0, int64_t j0, PackedPanels<Engine> packed,
                const Workspace& space) {
    const int64_t i1 = std::min(m_, i0 + blocking_.block_rows);
    const int64_t j1 = std::min(n_, j0 + blocking_.range_cols);
    const bool one_pass = blocking_.depth_blocks == 1;
    const int64_t ldc = one_pass ? kCols : blocking_.range_cols;
    Panel<Element> a_panels[Engine::kMaxRowPanels];
    for (int64_t block = 0; block < blocking_.depth_blocks; ++block) {
      const int64_t p0 = block * blocking_.depth, depth = depth_at(p0);
      for (int64_t i = i0, at = 0; i < i1; i += kRows, ++at) {
        Element* data = space.a_block + at * a_panel_elements();
        a_panels[at] = {data, engine.pack_a(a_, i, p0, depth, data)};
      }
      for (int64_t j = j0; j < j1; j += kCols) {
        const int cols = static_cast<int>(std::min<int64_t>(kCols, j1 - j));
        const Panel<Element> b = b_panel(engine, j, block, depth, packed, space.b_panel);
        for (int64_t i = i0, at = 0; i < i1; i += kRows, ++at) {
          const int rows = static_cast<int>(std::min<int64_t>(kRows, i1 - i));
          if constexpr (requires { sink_.prefetch(i, j, rows, cols); }) {
            if (block + 1 == blocking_.depth_blocks) sink_.prefetch(i, j, rows, cols);
          }
          Acc* tile = one_pass ? space.c_block : space.c_block + (i - i0) * ldc + (j - j0);
          if (a_panels[at].regular && b.regular) {
            engine.multiply(rows, cols, depth, a_panels[at].data, b.data, tile, ldc, block > 0);
          } else {
            multiply_exactly(i, j, p0, depth, tile, ldc, block > 0);
          }
          if (block + 1 == blocking_.depth_blocks) sink_(i, j, rows, cols, tile, ldc);
        }
      }
    }
  }

  Panel<Element> b_panel(Engine& engine, int64_t j, int64_t block, int64_t depth,
                         PackedPanels<Engine> packed, Element* buffer) const {
    if (packed.data == nullptr) {
      return {buffer, engine.pack_b(b_, j, block * blocking_.depth, depth, buffer)};
    }
    const int64_t at = j / kCols * blocking_.depth_blocks + block;
    return {packed.data + at * b_panel_elements(), packed.regular[at]};
  }

  // A tile whose numbers the engine cannot represent, from the operands themselves. Rare, so plain.
  void multiply_exactly(int64_t i, int64_t j, int64_t p0, int64_t depth, Acc* tile, int64_t ldc,
                        bool add) const {
    Scratch<Acc> a(kRows * depth), b(kCols * depth);
    a_.template pack<kRows>(i, p0, depth, a.get());
    b_.template pack<kCols>(j, p0, depth, b.get());
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kCols; c += Vec<Acc>::kWidth) {
        auto sum = Vec<Acc>::zero();
        for (int64_t p = 0; p < depth; ++p) {
          const auto row = Vec<Acc>::load(&b[p * kCols + c]);
          sum = Vec<Acc>::fma(Vec<Acc>::set1(a[p * kRows + r]), row, sum);
        }
        Acc* out = tile + r * ldc + c;
        (add ? sum + Vec<Acc>::load(out) : sum).store(out);
      }
    }
  }

  const int64_t m_, n_, k_;
  const A& a_;
  const B& b_;
  const Sink& sink_;
  const Blocking blocking_;
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
    if (a.rows_contiguous() && b.rows_contiguous() && dot_products_pay(m, n)) {
      return dot_products(m, n, k, a, b, sink);
    }
  }
#if defined(__AMX_TILE__)
  if constexpr (std::is_same_v<Acc, float>) {
    const int parts = bf16_parts<A, B>(precision);
    if (amx_pays(m, n, k, parts)) {
      if (parts == 1) return Gemm<AmxEngine<1>, A, B, Sink>(m, n, k, a, b, sink).run();
      if (parts == 2) return Gemm<AmxEngine<2>, A, B, Sink>(m, n, k, a, b, sink).run();
      if constexpr (bf16_parts<A, B>(Precision::kHighest) == 3) {
        return Gemm<AmxEngine<3>, A, B, Sink>(m, n, k, a, b, sink).run();
      }
    }
  }
#endif
  if constexpr (ColumnReadable<B>) {
    if (b.i_stride == 1 && m <= kThin) return thin_rows(m, n, k, a, b, sink);
    if (b.i_stride == 1 && k <= kThin) return thin_depth(m, n, k, a, b, sink);
  }
  Gemm<VectorEngine<Acc>, A, B, Sink>(m, n, k, a, b, sink).run();
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

  // A tile is a few lines of many pages: they are asked for before its products are computed.
  void prefetch(int64_t i, int64_t j, int rows, int cols) const {
    constexpr int kLine = 64 / sizeof(T);
    if constexpr (sizeof(T) == 2) return;
    for (int r = 0; r < rows; ++r) {
      const T* out = c + (i + r) * row_stride + j;
      for (int q = 0; q < cols; q += kLine) prefetch_to_write(out + q);
    }
  }

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
