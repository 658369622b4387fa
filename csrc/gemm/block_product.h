// Products on a GPU's ordinary units, for any type and layout: a block of threads computes a tile
// of 64×64 from panels that it loads together, 16 deep, each thread a piece of 4×4. What happens
// between two barriers is a function of the thread, so that a CPU can run the threads in turn.
//
// A `Product` has rows, columns and depth, a(row, q) and b(q, column), which are summed over q in
// order, and store(row, column, sum), or store_four(row, column, sums) for four neighbouring
// columns at once; a_along_q and b_along_q say how its operands lie in memory.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace pyops {

template <class T>
PYOPS_HOST_DEVICE inline acc_t<T> element(const void* matrix, int64_t at) {
  return static_cast<acc_t<T>>(static_cast<const T*>(matrix)[at]);
}

template <class Product>
struct BlockProduct {
  using Acc = typename Product::Acc;
  static constexpr int kThreads = 256, kTile = 64, kDepth = 16, kPiece = 4;

  // Rows are a multiple of 16 bytes apart, four numbers longer than a tile: loads along q spread
  // over the banks.
  struct alignas(16) Panels {
    Acc a[kDepth][kTile + 4], b[kDepth][kTile + 4];
  };
  // A thread's sums.
  struct Piece {
    Acc at[kPiece][kPiece];
  };

  PYOPS_HOST_DEVICE static int64_t tiles(const Product& p) {
    return ((p.rows + kTile - 1) / kTile) * ((p.columns + kTile - 1) / kTile);
  }

  // First row and column of a tile.
  PYOPS_HOST_DEVICE static int64_t row_of(const Product& p, int64_t tile) {
    return tile / ((p.columns + kTile - 1) / kTile) * kTile;
  }
  PYOPS_HOST_DEVICE static int64_t column_of(const Product& p, int64_t tile) {
    return tile % ((p.columns + kTile - 1) / kTile) * kTile;
  }

  // Neighbouring threads load neighbouring elements; beyond the edges lie zeros.
  PYOPS_HOST_DEVICE static void load(const Product& p, int64_t tile, int64_t q, int thread,
                                     Panels& panels) {
    const int64_t row = row_of(p, tile), column = column_of(p, tile);
    PYOPS_UNROLL for (int e = thread; e < kTile * kDepth; e += kThreads) {
      const int d = Product::a_along_q ? e % kDepth : e / kTile;
      const int i = Product::a_along_q ? e / kDepth : e % kTile;
      const bool inside = row + i < p.rows && q + d < p.depth;
      panels.a[d][i] = inside ? p.a(row + i, q + d) : Acc(0);
    }
    PYOPS_UNROLL for (int e = thread; e < kTile * kDepth; e += kThreads) {
      const int d = Product::b_along_q ? e % kDepth : e / kTile;
      const int j = Product::b_along_q ? e / kDepth : e % kTile;
      const bool inside = column + j < p.columns && q + d < p.depth;
      panels.b[d][j] = inside ? p.b(q + d, column + j) : Acc(0);
    }
  }

  // The panels' products are summed before they are added: a sum of sums is off by less than one
  // long sum. Float64 can do without, and has no registers left for it.
  PYOPS_HOST_DEVICE static void accumulate(const Panels& panels, int thread, Piece& sums) {
    constexpr bool kApart = sizeof(Acc) == sizeof(float);
    const int i = thread / (kTile / kPiece) * kPiece, j = thread % (kTile / kPiece) * kPiece;
    Piece own{};
    Piece& to = kApart ? own : sums;
    PYOPS_UNROLL for (int d = 0; d < kDepth; ++d) {
      PYOPS_UNROLL for (int r = 0; r < kPiece; ++r) {
        PYOPS_UNROLL for (int c = 0; c < kPiece; ++c) {
          to.at[r][c] += panels.a[d][i + r] * panels.b[d][j + c];
        }
      }
    }
    if constexpr (kApart) {
      PYOPS_UNROLL for (int r = 0; r < kPiece; ++r) {
        PYOPS_UNROLL for (int c = 0; c < kPiece; ++c) sums.at[r][c] += own.at[r][c];
      }
    }
  }

  PYOPS_HOST_DEVICE static void store(const Product& p, int64_t tile, int thread,
                                      const Piece& sums) {
    const int64_t row = row_of(p, tile) + thread / (kTile / kPiece) * kPiece;
    const int64_t column = column_of(p, tile) + thread % (kTile / kPiece) * kPiece;
    PYOPS_UNROLL for (int r = 0; r < kPiece; ++r) {
      if constexpr (requires { p.store_four(row, column, sums.at[r]); }) {
        if (row + r < p.rows && column < p.columns) p.store_four(row + r, column, sums.at[r]);
      } else {
        PYOPS_UNROLL for (int c = 0; c < kPiece; ++c) {
          const bool inside = row + r < p.rows && column + c < p.columns;
          if (inside) p.store(row + r, column + c, sums.at[r][c]);
        }
      }
    }
  }
};

}  // namespace pyops
