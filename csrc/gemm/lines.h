// Where tiles of C go: lines of memory, and the epilogue on the way there.
#pragma once

#include <limits>

#include "core/parallel.h"
#include "core/simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Rows of a tile as lines `stride` apart: line = relu?(sums + bias [+ line]).
template <class T>
struct Lines {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;
  T* out;  // null: they do not all lie so
  int64_t stride;
  const T* col_bias = nullptr;  // one per column, or
  const T* row_bias = nullptr;  // one per row
  bool accumulate = false;
  Acc floor = relu_floor(false);

  static constexpr Acc relu_floor(bool relu) {
    return relu ? Acc{0} : -std::numeric_limits<Acc>::infinity();
  }

  // The same lines from column q on.
  Lines from(int64_t q) const {
    Lines rest = *this;
    rest.out += q;
    if (col_bias != nullptr) rest.col_bias += q;
    return rest;
  }

  // From row r on.
  Lines below(int64_t r) const {
    Lines rest = *this;
    rest.out += r * stride;
    if (row_bias != nullptr) rest.row_bias += r;
    return rest;
  }

  // n, a number or a constant, elements of row r from column q on.
  template <class Count>
  [[gnu::always_inline]] void put(V x, int64_t r, int64_t q, Count n) const {
    T* to = out + r * stride + q;
    if (col_bias != nullptr) x = x + load(col_bias + q, n);
    if (row_bias != nullptr) x = x + V::set1(static_cast<Acc>(row_bias[r]));
    if (accumulate) x = x + load(to, n);
    // max returns its second operand for NaN, which keeps NaN as ReLU does.
    store(V::max(V::set1(floor), x), to, n);
  }

  void put_tile(const Acc* tile, int64_t ld, int rows, int cols) const {
    const Lines own = *this;  // for all the compiler knows, a store changes the shared one
    for (int r = 0; r < rows; ++r, tile += ld) {
      int q = 0;
      for (; q + V::kWidth <= cols; q += V::kWidth) {
        own.put(V::load(tile + q), r, q, std::integral_constant<int, V::kWidth>{});
      }
      if (q < cols) own.put(V::load(tile + q, cols - q), r, q, cols - q);
    }
  }

  // Lines are of many pages: they are asked for before the products are computed. Rows of whole
  // 2 KiB share so few sets of L1 that they would push each other out, and the operands with them:
  // these are asked for into L2.
  void prefetch(int rows, int cols) const {
    const bool share = stride * static_cast<int64_t>(sizeof(T)) % 2048 == 0;
    share ? ask(rows, cols, prefetch_to_l2) : ask(rows, cols, prefetch_to_write);
  }

 private:
  template <class Prefetch>
  [[gnu::always_inline]] void ask(int rows, int cols, const Prefetch& prefetch) const {
    constexpr int kLine = 64 / sizeof(T);
    for (int r = 0; r < rows; ++r) {
      for (int q = 0; q < cols; q += kLine) prefetch(out + r * stride + q);
    }
  }
};

// A sink that can tell the lines of tiles' rows: it is asked to before they are computed, and sums
// then go there from their registers.
template <class Sink>
concept KnowsLines = requires(const Sink& s) { s.lines(int64_t{}, int64_t{}, int64_t{}, 0); };

// Writes tiles to a row-major matrix.
template <class T>
struct MatrixSink {
  using Acc = acc_t<T>;
  T* c;
  int64_t row_stride;
  const T* col_bias = nullptr;
  bool relu = false;
  bool accumulate = false;

  Lines<T> lines(int64_t i, int64_t j, int64_t /*rows*/, int /*cols*/) const {
    return {.out = c + i * row_stride + j,
            .stride = row_stride,
            .col_bias = col_bias != nullptr ? col_bias + j : nullptr,
            .accumulate = accumulate,
            .floor = Lines<T>::relu_floor(relu)};
  }
  void operator()(int64_t i, int64_t j, int rows, int cols, const Acc* tile, int64_t ld) const {
    lines(i, j, rows, cols).put_tile(tile, ld, rows, cols);
  }
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
