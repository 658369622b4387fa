// What the launchers take from CUTLASS, whose kernels are PTX: kernels by plain loops in their
// place, with the same parameters, grids and tiles, that refuse what those could not load.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <type_traits>

#include "core/dtype.h"

namespace cutlass {

using bfloat16_t = pyops::BFloat16;
using half_t = pyops::Float16;
struct tfloat32_t {
  static tfloat32_t bitcast(uint32_t);
};

namespace arch {
struct OpMultiplyAdd {};
struct OpMultiplyAddFastF32 {};
struct OpClassTensorOp {};
struct Sm80 {};
}  // namespace arch

namespace layout {
struct RowMajor {
  static int64_t at(int64_t row, int64_t column, int64_t line) { return row * line + column; }
};
struct ColumnMajor {
  static int64_t at(int64_t row, int64_t column, int64_t line) { return column * line + row; }
};
struct TensorNHWC {
  int64_t strides[3];

  explicit TensorNHWC(const int (&s)[3]) : strides{s[0], s[1], s[2]} {}
  int64_t at(int64_t n, int64_t h, int64_t w, int64_t c) const {
    return n * strides[2] + h * strides[1] + w * strides[0] + c;
  }
};
}  // namespace layout

template <class T, class Layout>
struct TensorRef {
  T* data;
  Layout layout;
};

// What tensor cores multiply of an element: float32 is rounded to TF32, but where an operator takes
// it apart.
template <class Operator, class T>
double factor(T x) {
  const auto number = static_cast<float>(x);
  if (!std::is_same_v<T, float> || !std::is_same_v<Operator, arch::OpMultiplyAdd>) return number;
  if (!std::isfinite(number)) return number;
  return pyops::bits_float((pyops::float_bits(number) + 0x1000) & 0xffffe000);
}

// Loads and stores are of 16 bytes.
inline void require_packs(const void* data, int64_t line, size_t element) {
  if (data == nullptr) return;
  const bool fits =
      reinterpret_cast<uintptr_t>(data) % 16 == 0 && line * static_cast<int64_t>(element) % 16 == 0;
  if (!fits) emulated::fail("an operand of CUTLASS is not aligned to 16 bytes");
}

namespace gemm {

struct GemmCoord {
  int m_, n_, k_;

  GemmCoord(int m, int n, int k) : m_(m), n_(n), k_(k) {}
  int m() const { return m_; }
  int n() const { return n_; }
  int k() const { return k_; }
};

template <int kRows, int kColumns, int kDepth>
struct GemmShape {
  static constexpr int kM = kRows, kN = kColumns, kK = kDepth;
};

template <class Tile, class Warp>
inline constexpr int kThreadsOf = 32 * (Tile::kM / Warp::kM) * (Tile::kN / Warp::kN);
template <class T, class Tile, int kStages>
struct StorageOf {
  T stages[kStages][(Tile::kM + Tile::kN) * Tile::kK];
};

namespace threadblock {
template <int>
struct GemmIdentityThreadblockSwizzle {
  static GemmCoord get_tiled_shape(GemmCoord size, GemmCoord tile, int slices) {
    return {(size.m() + tile.m() - 1) / tile.m(), (size.n() + tile.n() - 1) / tile.n(), slices};
  }
  static dim3 get_grid_shape(GemmCoord tiles) {
    return dim3(static_cast<unsigned>(tiles.m()), static_cast<unsigned>(tiles.n()),
                static_cast<unsigned>(tiles.k()));
  }
};
}  // namespace threadblock

// f(row, column) of a tile's elements that are inside.
template <class Tile, class F>
void for_tile(int64_t rows, int64_t columns, const F& f) {
  for (auto e = int64_t{threadIdx.x}; e < Tile::kM * Tile::kN; e += blockDim.x) {
    const int64_t row = int64_t{blockIdx.x} * Tile::kM + e / Tile::kN;
    const int64_t column = int64_t{blockIdx.y} * Tile::kN + e % Tile::kN;
    if (row < rows && column < columns) f(row, column);
  }
}

namespace warp {
template <class Shape, class Instruction, class A, class LayoutA, class B, class LayoutB, class C,
          class LayoutC, class Operator, int kPartitions, bool kRowMajor>
struct DefaultMmaTensorOp;
}  // namespace warp

namespace device {
template <class A, class OfA, class B, class OfB, class C, class OfC, class Sum, class Class,
          class Arch, class Tile, class Warp, class Instruction, class Epilogue, class Swizzle,
          int kStages, int kAlignmentA, int kAlignmentB, bool kSplitSerial, class Operator>
struct Gemm {
  using ElementA = A;
  using LayoutA = OfA;
  using LayoutB = OfB;
  using ElementC = C;
  using ThreadblockShape = Tile;
  using ThreadblockSwizzle = Swizzle;
  using EpilogueOutputOp = Epilogue;

  template <class T>
  struct Matrix {
    T* data;
    int64_t line;
  };

  struct GemmKernel {
    static constexpr int kThreadCount = kThreadsOf<Tile, Warp>;
    using SharedStorage = StorageOf<A, Tile, kStages>;
    struct Params {
      GemmCoord size, tiles;
      Matrix<A> a;
      Matrix<B> b;
      Matrix<C> c, d;
      typename Epilogue::Params store;

      Params(GemmCoord of_all, GemmCoord of_tiles, Matrix<A> of_a, Matrix<B> of_b, Matrix<C> of_c,
             Matrix<C> of_d, typename Epilogue::Params epilogue)
          : size(of_all), tiles(of_tiles), a(of_a), b(of_b), c(of_c), d(of_d), store(epilogue) {}
    };

    void operator()(const Params& p, SharedStorage&) const {
      require_packs(p.a.data, p.a.line, sizeof(A));
      require_packs(p.b.data, p.b.line, sizeof(B));
      require_packs(p.c.data, p.c.line, sizeof(C));
      require_packs(p.d.data, p.d.line, sizeof(C));
      for_tile<Tile>(p.size.m(), p.size.n(), [&](int64_t row, int64_t column) {
        double sum = 0;
        for (int64_t q = 0; q < p.size.k(); ++q) {
          sum += factor<Operator>(p.a.data[OfA::at(row, q, p.a.line)]) *
                 factor<Operator>(p.b.data[OfB::at(q, column, p.b.line)]);
        }
        const C* c = p.c.data == nullptr ? nullptr : p.c.data + row * p.c.line + column;
        p.d.data[row * p.d.line + column] = p.store.result(sum, c);
      });
    }
  };
};
}  // namespace device

}  // namespace gemm

namespace epilogue::thread {
template <class D, int, class Sum, class Scale>
struct LinearCombination {
  using ElementOutput = D;
  struct Params {
    float alpha, beta;

    Params(float of_sum, float of_c) : alpha(of_sum), beta(of_c) {}
    D result(double sum, const D* c) const { return static_cast<D>(total(sum, c)); }
    float total(double sum, const D* c) const {
      const float product = alpha * static_cast<float>(sum);
      return beta == 0 ? product : product + beta * static_cast<float>(*c);
    }
  };
};
template <class D, int kCount, class Sum, class Scale>
struct LinearCombinationRelu {
  using ElementOutput = D;
  struct Params : LinearCombination<D, kCount, Sum, Scale>::Params {
    using Base = typename LinearCombination<D, kCount, Sum, Scale>::Params;
    float threshold;

    Params(float of_sum, float of_c, float least = 0) : Base(of_sum, of_c), threshold(least) {}
    D result(double sum, const D* c) const {
      const float x = this->total(sum, c);
      return static_cast<D>(x < threshold ? threshold : x);
    }
  };
};
}  // namespace epilogue::thread

namespace conv {

enum class Mode { kCrossCorrelation };
enum class StrideSupport { kStrided, kUnity };
enum class IteratorAlgorithm { kOptimized };
enum class SplitKMode { kNone, kParallel };

struct Conv2dProblemSize {
  int n, h, w, c, k, r, s, p, q, pad_h, pad_w, stride_h, stride_w, dilation_h, dilation_w;
  Mode mode;
  int slices;

  // The pixel of x that an output sees by a tap; null outside.
  bool sees(int64_t y, int64_t z, int64_t tap_h, int64_t tap_w, int64_t* row, int64_t* col) const {
    *row = y * stride_h - pad_h + tap_h * dilation_h;
    *col = z * stride_w - pad_w + tap_w * dilation_w;
    return *row >= 0 && *row < h && *col >= 0 && *col < w;
  }
};

namespace threadblock {
template <int kLog>
using StridedDgradIdentityThreadblockSwizzle =
    gemm::threadblock::GemmIdentityThreadblockSwizzle<kLog>;
}  // namespace threadblock

namespace kernel {

using layout::TensorNHWC;

// Products are given by kind(problem): rows, columns and, of an element, the sum over a slice.
template <class Kind, class T, class D, class Tile, class Warp, class Epilogue, class Swizzle,
          int kStages, class Operator>
struct Convolution {
  using ThreadblockSwizzle = Swizzle;
  using SharedStorage = gemm::StorageOf<T, Tile, kStages>;
  static constexpr int kThreadCount = gemm::kThreadsOf<Tile, Warp>;

  struct Arguments {
    Conv2dProblemSize problem;
    TensorRef<T, TensorNHWC> a, b;
    TensorRef<D, TensorNHWC> c, d;
    typename Epilogue::Params store;
    SplitKMode mode;

    Arguments(const Conv2dProblemSize& size, TensorRef<T, TensorNHWC> of_a,
              TensorRef<T, TensorNHWC> of_b, TensorRef<D, TensorNHWC> of_c,
              TensorRef<D, TensorNHWC> of_d, typename Epilogue::Params epilogue,
              SplitKMode split = SplitKMode::kNone)
        : problem(size), a(of_a), b(of_b), c(of_c), d(of_d), store(epilogue), mode(split) {}
  };
  struct Params : Arguments {
    gemm::GemmCoord grid_tiled_shape;

    explicit Params(const Arguments& arguments)
        : Arguments(arguments),
          grid_tiled_shape(
              Swizzle::get_tiled_shape({static_cast<int>(Kind::rows(arguments.problem)),
                                        static_cast<int>(Kind::columns(arguments.problem)), 0},
                                       {Tile::kM, Tile::kN, Tile::kK}, arguments.problem.slices)) {}
  };

  void operator()(const Params& p, SharedStorage&) const {
    for (const auto& [data, layout] : {p.a, p.b}) require_packs(data, layout.strides[0], sizeof(T));
    for (const auto& [data, layout] : {p.c, p.d}) require_packs(data, layout.strides[0], sizeof(D));
    const Conv2dProblemSize& size = p.problem;
    const int64_t depth = Kind::depth(size);
    const int64_t steps = (depth + Tile::kK - 1) / Tile::kK;
    const int64_t each = (steps + size.slices - 1) / size.slices * Tile::kK;
    const int64_t first = blockIdx.z * each;
    const int64_t end = first + each < depth ? first + each : depth;
    D* to = p.d.data + blockIdx.z * Kind::rows(size) * Kind::columns(size);
    gemm::for_tile<Tile>(Kind::rows(size), Kind::columns(size), [&](int64_t row, int64_t column) {
      double sum = 0;
      for (int64_t q = first; q < end; ++q)
        sum += Kind::template product<Operator>(p, row, column, q);
      const D* c =
          p.c.data == nullptr ? nullptr : p.c.data + Kind::place(p, p.c.layout, row, column);
      to[Kind::place(p, p.d.layout, row, column)] = p.store.result(sum, c);
    });
  }
};

template <class Operator, class T>
double number(const TensorRef<T, TensorNHWC>& t, int64_t n, int64_t h, int64_t w, int64_t c) {
  return factor<Operator>(t.data[t.layout.at(n, h, w, c)]);
}

struct OfOutputs {
  static int64_t rows(const Conv2dProblemSize& s) { return int64_t{s.n} * s.p * s.q; }
  static int64_t columns(const Conv2dProblemSize& s) { return s.k; }
  static int64_t depth(const Conv2dProblemSize& s) { return int64_t{s.r} * s.s * s.c; }

  template <class Operator, class P>
  static double product(const P& p, int64_t row, int64_t column, int64_t e) {
    const Conv2dProblemSize& s = p.problem;
    const int64_t c = e % s.c, tap_w = e / s.c % s.s, tap_h = e / s.c / s.s;
    int64_t y = 0, x = 0;
    if (!s.sees(row / s.q % s.p, row % s.q, tap_h, tap_w, &y, &x)) return 0;
    return number<Operator>(p.a, row / s.q / s.p, y, x, c) *
           number<Operator>(p.b, column, tap_h, tap_w, c);
  }
  template <class P>
  static int64_t place(const P& p, const TensorNHWC& layout, int64_t row, int64_t column) {
    const Conv2dProblemSize& s = p.problem;
    return layout.at(row / s.q / s.p, row / s.q % s.p, row % s.q, column);
  }
};

struct OfInputs {
  static int64_t rows(const Conv2dProblemSize& s) { return int64_t{s.n} * s.h * s.w; }
  static int64_t columns(const Conv2dProblemSize& s) { return s.c; }
  static int64_t depth(const Conv2dProblemSize& s) { return int64_t{s.r} * s.s * s.k; }

  template <class Operator, class P>
  static double product(const P& p, int64_t row, int64_t column, int64_t e) {
    const Conv2dProblemSize& s = p.problem;
    const int64_t k = e % s.k, tap_w = e / s.k % s.s, tap_h = e / s.k / s.s;
    const int64_t y = row / s.w % s.h + s.pad_h - tap_h * s.dilation_h;
    const int64_t x = row % s.w + s.pad_w - tap_w * s.dilation_w;
    const bool meets = y >= 0 && x >= 0 && y % s.stride_h == 0 && x % s.stride_w == 0 &&
                       y / s.stride_h < s.p && x / s.stride_w < s.q;
    if (!meets) return 0;
    return number<Operator>(p.a, row / s.w / s.h, y / s.stride_h, x / s.stride_w, k) *
           number<Operator>(p.b, k, tap_h, tap_w, column);
  }
  template <class P>
  static int64_t place(const P& p, const TensorNHWC& layout, int64_t row, int64_t column) {
    const Conv2dProblemSize& s = p.problem;
    return layout.at(row / s.w / s.h, row / s.w % s.h, row % s.w, column);
  }
};

struct OfWeights {
  static int64_t rows(const Conv2dProblemSize& s) { return s.k; }
  static int64_t columns(const Conv2dProblemSize& s) { return int64_t{s.r} * s.s * s.c; }
  static int64_t depth(const Conv2dProblemSize& s) { return int64_t{s.n} * s.p * s.q; }

  template <class Operator, class P>
  static double product(const P& p, int64_t row, int64_t column, int64_t e) {
    const Conv2dProblemSize& s = p.problem;
    int64_t y = 0, x = 0;
    const int64_t tap_w = column / s.c % s.s, tap_h = column / s.c / s.s;
    if (!s.sees(e / s.q % s.p, e % s.q, tap_h, tap_w, &y, &x)) return 0;
    const int64_t n = e / s.q / s.p;
    return number<Operator>(p.a, n, e / s.q % s.p, e % s.q, row) *
           number<Operator>(p.b, n, y, x, column % s.c);
  }
  template <class P>
  static int64_t place(const P& p, const TensorNHWC& layout, int64_t row, int64_t column) {
    const Conv2dProblemSize& s = p.problem;
    return layout.at(row, column / s.c / s.s, column / s.c % s.s, column % s.c);
  }
};

template <class A, class OfA, class B, class OfB, class C, class OfC, class Sum, class Class,
          class Arch, class Tile, class Warp, class Instruction, class Epilogue, class Swizzle,
          int kStages, class Operator, IteratorAlgorithm kAlgorithm>
struct DefaultConv2dFprop {
  using Kernel = Convolution<OfOutputs, A, C, Tile, Warp, Epilogue, Swizzle, kStages, Operator>;
};
template <class A, class OfA, class B, class OfB, class C, class OfC, class Sum, class Class,
          class Arch, class Tile, class Warp, class Instruction, class Epilogue, class Swizzle,
          int kStages, class Operator, IteratorAlgorithm kAlgorithm, StrideSupport kStride>
struct DefaultConv2dDgrad {
  using Kernel = Convolution<OfInputs, A, C, Tile, Warp, Epilogue, Swizzle, kStages, Operator>;
};
template <class A, class OfA, class B, class OfB, class C, class OfC, class Sum, class Class,
          class Arch, class Tile, class Warp, class Instruction, class Epilogue, class Swizzle,
          int kStages, class Operator, IteratorAlgorithm kAlgorithm>
struct DefaultConv2dWgrad {
  using Kernel = Convolution<OfWeights, A, C, Tile, Warp, Epilogue, Swizzle, kStages, Operator>;
};

}  // namespace kernel
}  // namespace conv

}  // namespace cutlass
