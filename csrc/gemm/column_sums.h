// Sums of a tall matrix's columns, the gradient of a bias: a block of threads takes 8 packs of
// columns, a thread every 32nd row of one, so that a warp reads four lines of the memory at once.
// Sums run in the same order at every run. What happens between two barriers is a function of the
// thread, so that a CPU can run the threads in turn.
#pragma once

#include "core/pack.h"

namespace pyops {

// `matrix` is (rows, columns), aligned to 16 bytes, the columns a multiple of a pack.
template <class T, class To = T>
struct ColumnSums {
  using Acc = acc_t<T>;
  static constexpr int kThreads = 256, kWidth = Pack<T>::kWidth, kPacks = 8, kUnrolled = 8;
  static constexpr int kColumns = kPacks * kWidth, kLines = kThreads / kPacks;

  struct Shared {
    Acc sums[kLines][kColumns];
  };

  const T* matrix;
  To* sums;
  int64_t rows, columns;

  PYOPS_HOST_DEVICE int64_t blocks() const { return (columns + kColumns - 1) / kColumns; }

  // One of `parts` stretches of the rows, whose sums lie one after the other.
  PYOPS_HOST_DEVICE ColumnSums part(int64_t number, int64_t parts) const {
    const int64_t stretch = (rows + parts - 1) / parts, first = number * stretch;
    const int64_t left = rows - first;
    return {matrix + first * columns, sums + number * columns, left < stretch ? left : stretch,
            columns};
  }

  PYOPS_HOST_DEVICE void accumulate(int64_t block, int thread, Shared& shared) const {
    const int64_t column = block * kColumns + thread % kPacks * kWidth;
    if (column >= columns) return;
    Acc sum[kWidth]{};
    for (int64_t row = thread / kPacks; row < rows; row += kLines * kUnrolled) {
      Pack<T> packs[kUnrolled]{};
      PYOPS_UNROLL for (int k = 0; k < kUnrolled; ++k) {
        const int64_t at = row + k * kLines;
        if (at < rows) packs[k] = load_pack(matrix + at * columns + column);
      }
      PYOPS_UNROLL for (int k = 0; k < kUnrolled; ++k) {
        PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) sum[v] += static_cast<Acc>(packs[k].at[v]);
      }
    }
    PYOPS_UNROLL for (int v = 0; v < kWidth; ++v) {
      shared.sums[thread / kPacks][thread % kPacks * kWidth + v] = sum[v];
    }
  }

  PYOPS_HOST_DEVICE void finish(int64_t block, int thread, const Shared& shared) const {
    const int64_t column = block * kColumns + thread;
    if (thread >= kColumns || column >= columns) return;
    Acc sum = 0;
    for (int line = 0; line < kLines; ++line) sum += shared.sums[line][thread];
    sums[column] = static_cast<To>(sum);
  }
};

inline int64_t column_blocks(Dtype dtype, int64_t columns) {
  int64_t blocks = 0;
  dispatch_dtype(dtype, [&]<class T>(T) { blocks = ColumnSums<T>{{}, {}, 0, columns}.blocks(); });
  return blocks;
}

}  // namespace pyops
