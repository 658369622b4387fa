// Products with few rows. A step of a recurrence multiplies B rows by a weight that stays the same
// for all steps: it is packed once per sequence, as an engine of gemm/ wants it, then streamed from
// L2. With up to four rows that stream is the limit, not the arithmetic, and tiles are not worth
// packing the rows.
#pragma once

#include "gemm/short_sums.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

inline constexpr int kFewRows = 4;

// What of a core's 2 MiB L2 a weight may fill to stay there from step to step.
inline constexpr int64_t kCacheBytes = int64_t{3} << 19;

// Multiply-adds worth starting a second thread for: about 3 µs of one core.
inline constexpr int64_t kForkWork = int64_t{1} << 17;

inline int64_t fork_grain(int64_t work_per_item) {
  return std::max<int64_t>(1, kForkWork / std::max<int64_t>(1, work_per_item));
}

// Numbers of type X multiplied as faithfully as numbers of type T deserve: float32 gradients of
// bfloat16 tensors need no split in tiles.
template <class T, class X>
struct OperandLike : StridedOperand<X> {
  using Element = T;
};

// A copy in the type arithmetic is done in; zeros for null.
template <class T>
void widen(const void* from, int64_t count, acc_t<T>* to) {
  using V = Vec<acc_t<T>>;
  const auto* values = static_cast<const T*>(from);
  for_vectors<acc_t<T>>(count, [&](int64_t j, auto n) {
    store(values != nullptr ? load(values + j, n) : V::zero(), to + j, n);
  });
}
template <class T>
void narrow(const acc_t<T>* from, int64_t count, void* to) {
  if (to == nullptr) return;
  for_vectors<acc_t<T>>(
      count, [&](int64_t j, auto n) { store(load(from + j, n), static_cast<T*>(to) + j, n); });
}

// Products to a sum, which a sum of sums follows: its error grows with the longer of the two.
inline constexpr int64_t kShortSum = 128;

// tile = a·W for the first `cols` columns of a W whose columns are adjacent in memory, where a is
// (kRows, depth). A full panel comes with a constant `cols`.
template <int kRows, class Acc, class T, class Columns>
void multiply_rows(int64_t depth, const Acc* a, const StridedOperand<T>& w, Columns cols,
                   Acc* tile) {
  using V = Vec<Acc>;
  constexpr int kCols = RegisterTile<Acc>::kCols;
  // Eight independent sums hide the latency of the multiply-add.
  constexpr int kUnroll = kFewRows / kRows;
  const int low = std::min<int>(cols, V::kWidth), high = cols - low;
  V acc[kUnroll][kRows][2], total[kRows][2];
  for (auto& row : total) row[0] = row[1] = V::zero();
  const auto add = [&](int64_t p, V(&sums)[kRows][2]) {
    const T* b = w.data + p * w.p_stride;
    const V b0 = load(b, low), b1 = high > 0 ? load(b + V::kWidth, high) : V::zero();
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const V av = V::set1(a[r * depth + p]);
      sums[r][0] = V::fma(av, b0, sums[r][0]);
      sums[r][1] = V::fma(av, b1, sums[r][1]);
    }
  };
  for (int64_t p = 0, end; p < depth; p = end) {
    end = std::min(depth, p + kShortSum);
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[u][r][0] = acc[u][r][1] = V::zero();
    }
    for (; p + kUnroll <= end; p += kUnroll) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) add(p + u, acc[u]);
    }
    for (; p < end; ++p) add(p, acc[0]);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        V sum = acc[0][r][v];
#pragma GCC unroll 4
        for (int u = 1; u < kUnroll; ++u) sum = sum + acc[u][r][v];
        total[r][v] = total[r][v] + sum;
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    total[r][0].store(tile + r * kCols);
    total[r][1].store(tile + r * kCols + V::kWidth);
  }
}

// Few rows of a times W; panel(j) is W from column j on.
template <class X, class PanelAt, class Sink>
void multiply_few_rows(int64_t m, int64_t n, int64_t k, const X* a, const PanelAt& panel,
                       const Sink& sink) {
  using Acc = acc_t<X>;
  constexpr int kCols = RegisterTile<Acc>::kCols;
  constexpr std::integral_constant<int, kCols> kFull;
  Scratch<Acc> wide(m * k);
  widen<X>(a, m * k, wide.get());
  with_constant<kFewRows>(m, [&](auto rows) {
    parallel_for(0, ceil_div(n, kCols), fork_grain(m * k * kCols), [&](int64_t p0, int64_t p1) {
      alignas(64) Acc tile[kFewRows * kCols];
      for (int64_t j = p0 * kCols; j < std::min(n, p1 * kCols); j += kCols) {
        const int cols = static_cast<int>(std::min<int64_t>(kCols, n - j));
        if (cols == kCols) {
          multiply_rows<rows.value>(k, wide.get(), panel(j), kFull, tile);
        } else {
          multiply_rows<rows.value>(k, wide.get(), panel(j), cols, tile);
        }
        sink(0, j, static_cast<int>(m), cols, tile, kCols);
      }
    });
  });
}

// gemm() for a row-major A, with a path of its own for few rows.
template <class X, class T, class Sink>
void multiply(int64_t m, int64_t n, int64_t k, const X* a, const StridedOperand<T>& w,
              const Sink& sink, Precision precision) {
  if (m == 0 || n == 0) return;
  if (m > kFewRows || w.i_stride != 1) {
    const OperandLike<T, X> x{{a, m, k, 1}};
    return w.i_stride == 1 ? gemm_in_short_sums(m, n, k, x, w, sink, precision)
                           : gemm(m, n, k, x, w, sink, precision);
  }
  multiply_few_rows(
      m, n, k, a,
      [&](int64_t j) { return StridedOperand<T>{w.data + j, w.extent - j, 1, w.p_stride}; }, sink);
}

// Rows times W (k deep, n wide), step after step.
template <class T>
class StepProduct {
 public:
  using Acc = acc_t<T>;

  // rows: what a step has on average.
  StepProduct(int64_t n, int64_t k, const StridedOperand<T>& w, int64_t steps, int64_t rows,
              Precision precision)
      : n_(n),
        k_(k),
        w_(w),
        precision_(precision),
        in_place_(steps == 1 || k == 0 || streams_as_it_lies(rows)),
        parts_(tile_parts(rows)),
        packed_(in_place_ ? 0 : packed_bytes()) {
    if (in_place_ || pack()) return;
    parts_ = 0;  // tiles cannot represent the weight
    pack();
  }

  template <class X, class Sink>
  void operator()(int64_t rows, const X* a, const Sink& sink) const {
    if (in_place_) return multiply(rows, n_, k_, a, w_, sink, precision_);
    if (parts_ == 0 && rows <= kFewRows) {
      const auto panel = [&](int64_t j) {
        constexpr int kCols = RegisterTile<Acc>::kCols;
        const auto* data = reinterpret_cast<const Acc*>(packed_.get()) + j * k_;
        return StridedOperand<Acc>{data, kCols, 1, kCols};
      };
      return multiply_few_rows(rows, n_, k_, a, panel, sink);
    }
    with_engine([&](auto engine) { multiply_tiles(engine, rows, a, sink); });
  }

 private:
  template <class Engine>
  struct Use {
    using type = Engine;
  };

  template <class F>
  auto with_engine(F&& f) const {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<Acc, float>) {
      if (parts_ == 1) return f(Use<TileEngine<1>>{});
      constexpr int kMost = bf16_parts_of<StridedOperand<T>>(Precision::kHighest);
      if constexpr (kMost >= 2) {
        if (parts_ == 2) return f(Use<TileEngine<2>>{});
      }
      if constexpr (kMost == 3) {
        if (parts_ == 3) return f(Use<TileEngine<3>>{});
      }
    }
#endif
    return f(Use<VectorEngine<Acc>>{});
  }

  // Rows that lie one after the other, beyond any cache: their stream is the limit, packed or not.
  bool streams_as_it_lies(int64_t rows) const {
    return rows <= kFewRows && w_.p_stride == 1 &&
           n_ * k_ * static_cast<int64_t>(sizeof(T)) > 2 * kCacheBytes;
  }

  // Parts of a number in tiles; 0 without them. The weight is split once, so a few rows pay: on the
  // matrix unit; elsewhere a row is as much work as a tile of 8.
  int tile_parts([[maybe_unused]] int64_t rows) const {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<Acc, float>) {
      const int parts = bf16_parts_of<StridedOperand<T>>(precision_);
      const int64_t few = parts > 1 ? 12 : kMatrixUnit ? 1 : 8;
      if (k_ >= 16 && rows >= few) return parts;
    }
#endif
    return 0;
  }

  // Room for the panels of the engine, or of the one it falls back to.
  int64_t packed_bytes() const {
    const auto bytes = [&]<class Engine>(Use<Engine>) {
      const int64_t panel = Engine::panel_elements(Engine::kCols, k_) * sizeof(Element<Engine>);
      return ceil_div(n_, Engine::kCols) * panel;
    };
    return std::max(with_engine(bytes), bytes(Use<VectorEngine<Acc>>{}));
  }

  // Whether the engine can represent the weight.
  bool pack() {
    return with_engine([&](auto use) {
      using Engine = typename decltype(use)::type;
      const int64_t panels = ceil_div(n_, Engine::kCols);
      const int64_t work = k_ * Engine::kCols;
      Scratch<bool> regular(panels);
      parallel_for(0, panels, fork_grain(work), [&](int64_t begin, int64_t end) {
        Engine engine;
        for (int64_t j = begin; j < end; ++j) {
          regular[j] = engine.pack_b(w_, j * Engine::kCols, 0, k_, panel<Engine>(j));
        }
      });
      return std::all_of(regular.get(), regular.get() + panels, [](bool r) { return r; });
    });
  }

  template <class Engine>
  using Element = typename Engine::Element;

  template <class Engine>
  Element<Engine>* panel(int64_t j) const {
    return reinterpret_cast<Element<Engine>*>(packed_.get()) +
           j * Engine::panel_elements(Engine::kCols, k_);
  }

  // Tiles of equal height in vector registers: 16 rows go as 8 + 8, for 14 + 2 would leave the
  // second one idle.
  template <class Engine>
  static int64_t tile_height(int64_t rows) {
    if (!std::is_same_v<Engine, VectorEngine<Acc>>) return Engine::kRows;
    return ceil_div(rows, ceil_div(rows, Engine::kRows));
  }

  template <class Engine, class X, class Sink>
  void multiply_tiles(Use<Engine>, int64_t rows, const X* a, const Sink& sink) const {
    const int64_t height = tile_height<Engine>(rows), tiles = ceil_div(rows, height);
    const int64_t a_elements = Engine::panel_elements(Engine::kRows, k_);
    Scratch<Element<Engine>> a_panels(tiles * a_elements);
    bool regular = true;
    {
      Engine engine;
      for (int64_t i = 0; i < rows; i += height) {
        const OperandLike<T, X> block{{a, std::min(rows, i + height), k_, 1}};
        regular &= engine.pack_a(block, i, 0, k_, a_panels.get() + i / height * a_elements);
      }
    }
    if (!regular) {
      const OperandLike<T, X> x{{a, rows, k_, 1}};
      return Gemm<VectorEngine<Acc>, OperandLike<T, X>, StridedOperand<T>, Sink>(rows, n_, k_, x,
                                                                                 w_, sink)
          .run();
    }
    const int64_t panels = ceil_div(n_, Engine::kCols), work = rows * k_ * Engine::kCols;
    parallel_for(0, panels, fork_grain(work), [&](int64_t begin, int64_t end) {
      Engine engine;
      Scratch<Acc> buffer(tiles * Engine::kRows * Engine::kCols);
      for (int64_t j = begin; j < end; ++j) {
        multiply_panel(engine, j, rows, height, a_panels.get(), buffer.get(), sink);
      }
    });
  }

  // A panel of the weight, in slices that stay in L1, times all rows.
  template <class Engine, class Sink>
  void multiply_panel(Engine& engine, int64_t j, int64_t rows, int64_t height,
                      const Element<Engine>* a_panels, Acc* buffer, const Sink& sink) const {
    constexpr int64_t kRows = Engine::kRows, kCols = Engine::kCols;
    const int cols = static_cast<int>(std::min(kCols, n_ - j * kCols));
    for (int64_t p = 0; p < k_; p += Engine::kMaxDepth) {
      const int64_t depth = std::min(Engine::kMaxDepth, k_ - p);
      const auto* b = panel<Engine>(j) + Engine::panel_elements(kCols, p);
      for (int64_t i = 0, at = 0; i < rows; i += height, ++at) {
        const int tile_rows = static_cast<int>(std::min(height, rows - i));
        const auto* a =
            a_panels + at * Engine::panel_elements(kRows, k_) + Engine::panel_elements(kRows, p);
        Acc* tile = buffer + at * kRows * kCols;
        engine.multiply(tile_rows, cols, depth, a, b, tile, kCols, p > 0);
        if (p + depth == k_) sink(i, j * kCols, tile_rows, cols, tile, kCols);
      }
    }
  }

  const int64_t n_, k_;
  const StridedOperand<T> w_;
  const Precision precision_;
  const bool in_place_;
  int parts_;
  const Scratch<unsigned char> packed_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
