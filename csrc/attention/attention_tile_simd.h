// What forward and backward share: products of packed tiles, and the rows of a score tile.
//
// In a score tile queries are rows and keys are columns, as in the mask and the dropout pattern, so
// both are read a vector of keys at a time.
#pragma once

#include <bit>
#include <limits>
#include <type_traits>

#include "attention/attention.h"
#include "attention/attention_softmax.h"
#include "gemm/gemm_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Keys per tile: a panel of query rows with 256 scores (14 KiB) stays in L1 until its exponentials
// meet the values, and rescaling a row costs little beside 256 keys.
inline constexpr int64_t kMaxBlockKeys = 256;
static_assert(kMaxBlockKeys % Dropout::kKeys == 0);

// The two tile products behind every direction, by one engine (gemm/): operands are packed in
// panels, each with its whole depth, and multiplied as often as they are needed. Dropout::kKeys is
// a multiple of every engine's columns.
template <class Engine>
class TileProduct {
 public:
  using Acc = typename Engine::Acc;
  using Element = typename Engine::Element;
  static constexpr int64_t kRows = Engine::kRows, kCols = Engine::kCols;
  static_assert(Dropout::kKeys % kCols == 0);

  struct Packed {
    const Element* data;
    int64_t depth;
  };

  // What packing takes at most.
  static int64_t left_elements(int64_t extent, int64_t depth) {
    return ceil_div(extent, kRows) * Engine::panel_elements(kRows, depth);
  }
  static int64_t right_elements(int64_t extent, int64_t depth) {
    return ceil_div(extent, kCols) * Engine::panel_elements(kCols, depth);
  }

  template <class Operand>
  Packed pack_left(const Operand& operand, int64_t depth, Element* packed) {
    Element* panel = packed;
    for (int64_t i = 0; i < operand.extent; i += kRows) {
      engine_.pack_a(operand, i, 0, depth, panel);
      panel += Engine::panel_elements(kRows, depth);
    }
    return {packed, depth};
  }
  template <class Operand>
  Packed pack_right(const Operand& operand, int64_t depth, Element* packed) {
    Element* panel = packed;
    for (int64_t j = 0; j < operand.extent; j += kCols) {
      engine_.pack_b(operand, j, 0, depth, panel);
      panel += Engine::panel_elements(kCols, depth);
    }
    return {packed, depth};
  }

  // Left panels from row i on, a multiple of kRows.
  static Packed from_row(const Packed& left, int64_t i) {
    return {left.data + i / kRows * Engine::panel_elements(kRows, left.depth), left.depth};
  }

  // c (m×n, whole vectors of columns) = or += a·b over the first `depth` of the summed dimension.
  void multiply(int64_t m, int64_t n, int64_t depth, const Packed& a, const Packed& b, Acc* c,
                int64_t ldc, bool add) {
    const int64_t a_panel = Engine::panel_elements(kRows, a.depth);
    const int64_t b_panel = Engine::panel_elements(kCols, b.depth);
    for (int64_t j = 0; j < n; j += kCols) {
      const int cols = static_cast<int>(std::min(kCols, n - j));
      for (int64_t i = 0; i < m; i += kRows) {
        const int rows = static_cast<int>(std::min(kRows, m - i));
        engine_.multiply(rows, cols, depth, a.data + i / kRows * a_panel,
                         b.data + j / kCols * b_panel, c + i * ldc + j, ldc, add);
      }
    }
  }

 private:
  Engine engine_;
};

// A (b, h) slice as an operand, its rows or its columns along the unsummed dimension.
template <class T>
StridedOperand<T> by_rows(const ConstRows& t, int64_t b, int64_t h, int64_t row, int64_t rows) {
  return {row_of<T>(t, b, h, row), rows, t.row, 1};
}
template <class T>
StridedOperand<T> by_columns(const ConstRows& t, int64_t b, int64_t h, int64_t row,
                             int64_t columns) {
  return {row_of<T>(t, b, h, row), columns, 1, t.row};
}

// 0 for true, -inf for false, in integers: so it becomes vector code.
template <class Acc>
Acc zero_if(bool seen) {
  if constexpr (sizeof(Acc) == sizeof(double)) {
    return std::bit_cast<double>((static_cast<uint64_t>(seen) - 1) & 0xfff0000000000000);
  } else {
    return bits_float((static_cast<uint32_t>(seen) - 1u) & 0xff800000u);
  }
}

// Mask rows as contiguous numbers to be added: the mask itself where it is that already, else a
// copy of one row, kept while the same row is asked for (a mask without a query dimension).
template <class T>
class MaskRows {
  using Acc = acc_t<T>;

 public:
  explicit MaskRows(const AttentionMask& mask) : mask_(mask), row_(kMaxBlockKeys) {}

  // Null without a mask.
  const Acc* row(int64_t b, int64_t h, int64_t l, int64_t s0, int64_t keys) {
    const int64_t at = b * mask_.b + h * mask_.h + l * mask_.row + s0 * mask_.key;
    if (mask_.kind == MaskKind::kNone) return nullptr;
    if (mask_.kind == MaskKind::kBool) {
      return converted(static_cast<const bool*>(mask_.data) + at, keys, zero_if<Acc>);
    }
    return mask_.dtype == Dtype::kFloat32
               ? numbers(static_cast<const float*>(mask_.data) + at, keys)
               : numbers(static_cast<const T*>(mask_.data) + at, keys);
  }

 private:
  template <class M>
  const Acc* numbers(const M* from, int64_t keys) {
    if constexpr (std::is_same_v<M, Acc>) {
      if (mask_.key == 1) return from;
    }
    return converted(from, keys, [](M x) { return static_cast<Acc>(x); });
  }

  template <class M, class Convert>
  const Acc* converted(const M* from, int64_t keys, Convert convert) {
    if (from == held_ && keys <= held_keys_) return row_.get();
    Acc* row = row_.get();
    if (mask_.key == 1) {
      for (int64_t j = 0; j < keys; ++j) row[j] = convert(from[j]);
    } else {
      for (int64_t j = 0; j < keys; ++j) row[j] = convert(from[j * mask_.key]);
    }
    held_ = from;
    held_keys_ = keys;
    return row_.get();
  }

  const AttentionMask& mask_;
  Scratch<Acc> row_;
  const void* held_ = nullptr;
  int64_t held_keys_ = 0;
};

// How a forward cuts the query rows of a head: into blocks of up to 16 panels, which share what is
// packed of the keys as it comes from L2 or beyond; into more where heads are fewer than threads.
struct QueryBlocks {
  int64_t block_rows, row_blocks;

  QueryBlocks(const AttentionParams& p, int64_t panel_rows) {
    constexpr int64_t kPanels = 16;
    const int64_t panels = ceil_div(p.queries, panel_rows), heads = p.batch * p.heads;
    row_blocks = std::min(
        panels, std::max(ceil_div(panels, kPanels), ceil_div(int64_t{num_threads()}, heads)));
    block_rows = ceil_div(panels, row_blocks) * panel_rows;
    row_blocks = ceil_div(p.queries, block_rows);
  }
};

// worker.run(b, h, first row) for every block of query rows. Below `least_work` multiply-adds a
// second thread costs more than it brings.
template <class Worker>
void run_query_blocks(const AttentionParams& p, int64_t least_work) {
  const typename Worker::Blocking blocking(p);
  const int64_t work = blocking.block_rows * p.keys * (p.dim + p.value_dim);
  const int64_t grain = std::max<int64_t>(1, least_work / std::max<int64_t>(work, 1));
  parallel_for(0, p.batch * p.heads * blocking.row_blocks, grain, [&](int64_t begin, int64_t end) {
    Worker worker(p, blocking);
    for (int64_t task = begin; task < end; ++task) {
      // Causal blocks grow with the row: taken from both ends, every share weighs the same.
      const int64_t turn = task % blocking.row_blocks, head = task / blocking.row_blocks;
      const int64_t block = turn % 2 == 0 ? turn / 2 : blocking.row_blocks - 1 - turn / 2;
      worker.run(head / p.heads, head % p.heads, block * blocking.block_rows);
    }
  });
}

// How many tasks a backward deals the key blocks of each of its units out to: as few as keep every
// thread busy nine tenths of the time, for each has a gradient of all of the unit's queries.
inline int64_t key_splits(int64_t units) {
  const int64_t threads = num_threads();
  int64_t splits = 1;
  while (10 * units * splits < 9 * threads * ceil_div(units * splits, threads)) ++splits;
  return splits;
}

// So few query rows read the keys where they lie: packing them costs more.
inline bool meets_keys_alone(const AttentionShape& p) { return p.queries <= 4; }

// x[s] = q·k[s], added up lane by lane. Forward and backward must round a row's scores alike: the
// weights of a row sum to 1 only then.
template <class T>
void multiply_row(const StridedOperand<T>& q, const StridedOperand<T>& k, int64_t keys, int64_t dim,
                  acc_t<T>* x) {
  using V = Vec<acc_t<T>>;
  alignas(64) acc_t<T> tile[V::kWidth];
  for (int64_t s = 0; s < keys; s += kDotCols) {
    dot_tile<1>(0, s, dim, q, k, tile);
    V::load(tile).store(x + s, static_cast<int>(std::min<int64_t>(kDotCols, keys - s)));
  }
}

// x[0, visible) becomes scale·x + mask and x[visible, width) -inf; the maximum lane by lane, NaN
// aside. `width` is a multiple of the vector width.
template <class Acc>
Vec<Acc> finish_scores(Acc* x, Acc scale, const Acc* mask, int64_t visible, int64_t width) {
  using V = Vec<Acc>;
  V max = V::set1(lowest<Acc>());
  const V factor = V::set1(scale);
  for (int64_t j = 0; j < visible; j += V::kWidth) {
    const int n = static_cast<int>(std::min<int64_t>(V::kWidth, visible - j));
    V score = V::load(x + j);
    score = mask == nullptr ? score * factor : V::fma(score, factor, V::load(mask + j, n));
    score.store(x + j);
    if (n < V::kWidth) {
      std::fill(x + visible, x + j + V::kWidth, -std::numeric_limits<Acc>::infinity());
      score = V::load(x + j);
    }
    max = V::max(max, score);
  }
  std::fill(x + std::min(width, round_up(visible, V::kWidth)), x + width,
            -std::numeric_limits<Acc>::infinity());
  return max;
}

// x = e^(x - max); their sum.
template <class Acc>
Acc exponentials(Acc* x, Acc max, int64_t width) {
  using V = Vec<Acc>;
  V sum = V::zero();
  const V m = V::set1(max);
  for (int64_t j = 0; j < width; j += V::kWidth) {
    const V weight = exp(V::load(x + j) - m);
    weight.store(x + j);
    sum = sum + weight;
  }
  return sum.sum();
}

// Dropout factors of keys [s0, s0 + keys) of one row, at most kMaxBlockKeys.
template <class Acc>
void dropout_row(const Dropout& dropout, int64_t row, int64_t s0, int64_t keys, Acc* factors) {
  for (int64_t j = 0; j < keys; j += Dropout::kKeys) dropout.factors(row, s0 + j, factors + j);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
