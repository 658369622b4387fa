// A block of threads of a GPU and one tile of scores, for any type, shape and stride. Rows and
// columns of the tile are called owners and others: queries and keys, or keys and queries. Panels
// of two operands, 16 deep, give the tile's products; what becomes of them are weights, and
// weights · rows of a third operand are summed into a chunk of the output's columns.
//
// Thread t has the owners t/16 + 16·r and the others t%16 + 16·c: keys that lie 16 apart share a
// counter of dropout's generator.
//
// An algorithm is written for a team: `team.each(f)` calls f(thread, state of the thread) for every
// thread of the block, with a barrier behind. On a CPU a team is a loop, so that tests run all of
// it.
#pragma once

#include <cstdint>

#include "attention/attention.h"
#include "attention/attention_softmax.h"
#include "core/pack.h"

namespace pyops {

// Rows of a matrix from a tile's first row on, of which `rows` exist; zeros lie beyond the edges.
template <class T>
struct Strip {
  const T* first;
  int64_t stride, columns;
  int rows;  // as far as a tile can see
  bool is_aligned;

  PYOPS_HOST_DEVICE Strip(const ConstRows& matrix, int64_t b, int64_t h, int64_t row,
                          int64_t all_rows, int64_t columns_)
      : first(static_cast<const T*>(matrix.data) + b * matrix.b + h * matrix.h + row * matrix.row),
        stride(matrix.row),
        columns(columns_),
        rows(static_cast<int>(all_rows - row < INT16_MAX ? all_rows - row : INT16_MAX)),
        is_aligned(reinterpret_cast<uintptr_t>(first) % kPackBytes == 0 &&
                   stride % Pack<T>::kWidth == 0) {}

  PYOPS_HOST_DEVICE Pack<T> pack(int row, int64_t column) const {
    constexpr int kWidth = Pack<T>::kWidth;
    const T* from = first + row * stride + column;
    if (is_aligned && row < rows && column + kWidth <= columns) return load_pack(from);
    Pack<T> pack;
    PYOPS_UNROLL for (int w = 0; w < kWidth; ++w) {
      pack.at[w] = row < rows && column + w < columns ? from[w] : T{};
    }
    return pack;
  }
};

// kWide: how many times the tile's width a chunk of the output is wide.
template <class T, int kWide>
struct AttentionBlock {
  using Acc = acc_t<T>;
  static constexpr int kSide = 16, kThreads = kSide * kSide, kDepth = 16;
  static constexpr int kPiece = sizeof(Acc) > sizeof(float) ? 2 : 4;  // of a thread, each way
  static constexpr int kTile = kSide * kPiece, kChunk = kWide * kTile;
  static constexpr int kWidth = Pack<T>::kWidth, kPad = 16 / sizeof(Acc);

  struct Piece {
    Acc at[kPiece][kPiece];  // owner, other
  };
  struct Sums {
    Acc at[kPiece][kWide][kPiece];  // owner, and columns kTile·n + kPiece·(t%16) + c of the chunk
  };
  struct alignas(16) Shared {
    Acc a[kDepth][kTile + kPad], b[kDepth][kTile + kPad];  // by place_of(row)
    Acc z[kDepth][kChunk + kPad];
    Acc weights[kTile][kTile];  // by other and weight_at(owner): a store meets every bank once
    Acc rows[kSide][kTile];     // of each thread's owners, one number
  };

  PYOPS_HOST_DEVICE static constexpr int owner_of(int thread, int r) {
    return thread / kSide + kSide * r;
  }
  PYOPS_HOST_DEVICE static constexpr int other_of(int thread, int c) {
    return thread % kSide + kSide * c;
  }
  // Where a tile's row stands in a panel: a thread's rows next to each other.
  PYOPS_HOST_DEVICE static constexpr int place_of(int row) {
    return row % kSide * kPiece + row / kSide;
  }
  // Where the owners of a group of threads stand among an other's weights.
  PYOPS_HOST_DEVICE static constexpr int weight_at(int group, int other) {
    return (group ^ other % kSide) * kPiece;
  }
  PYOPS_HOST_DEVICE static constexpr int64_t tiles(int64_t rows) {
    return (rows + kTile - 1) / kTile;
  }
  // One at least: the softmax has no columns.
  PYOPS_HOST_DEVICE static constexpr int64_t chunks(int64_t columns) {
    return columns <= kChunk ? 1 : (columns + kChunk - 1) / kChunk;
  }

  // sum = a · bᵀ, of the tile's rows.
  template <class Team, class State>
  PYOPS_HOST_DEVICE static void multiply(const Strip<T>& a, const Strip<T>& b, Shared& shared,
                                         Team& team, Piece State::* sum) {
    team.each([&](int, State& state) { state.*sum = Piece{}; });
    for (int64_t q = 0; q < a.columns; q += kDepth) {
      team.each([&](int thread, State&) {
        load_panel(a, q, thread, shared.a);
        load_panel(b, q, thread, shared.b);
      });
      team.each([&](int thread, State& state) { accumulate(shared, thread, state.*sum); });
    }
  }

  // sums += weights · z, of the columns from `column` on. The weights are in place, before the
  // barrier.
  template <class Team, class State>
  PYOPS_HOST_DEVICE static void add_weighted(const Strip<T>& z, int64_t column, Shared& shared,
                                             Team& team, Sums State::* sums) {
    for (int other = 0; other < kTile && other < z.rows; other += kDepth) {
      team.each([&](int thread, State&) { load_chunk(z, other, column, thread, shared); });
      team.each([&](int thread, State& state) { weigh(shared, other, thread, state.*sums); });
    }
  }

  PYOPS_HOST_DEVICE static void keep_weight(Shared& shared, int thread, int r, int c, Acc weight) {
    const int other = other_of(thread, c);
    shared.weights[other][weight_at(thread / kSide, other) + r] = weight;
  }

  // Writes the sums to the rows of `out` from `row` on.
  PYOPS_HOST_DEVICE static void store(const Rows& out, int64_t b, int64_t h, int64_t row,
                                      int64_t rows, int64_t column, int64_t columns, int thread,
                                      const Sums& sums) {
    T* const to = static_cast<T*>(out.data) + b * out.b + h * out.h;
    PYOPS_UNROLL for (int r = 0; r < kPiece; ++r) {
      const int64_t i = row + owner_of(thread, r);
      PYOPS_UNROLL for (int n = 0; n < kWide; ++n) {
        PYOPS_UNROLL for (int c = 0; c < kPiece; ++c) {
          const int64_t j = column + n * kTile + thread % kSide * kPiece + c;
          if (i < rows && j < columns) to[i * out.row + j] = static_cast<T>(sums.at[r][n][c]);
        }
      }
    }
  }

 private:
  // Neighbouring threads load neighbouring rows: they write neighbouring places, and the L1 cache
  // keeps the rest of the rows' sectors for the next.
  PYOPS_HOST_DEVICE static void load_panel(const Strip<T>& from, int64_t q, int thread,
                                           Acc (&panel)[kDepth][kTile + kPad]) {
    PYOPS_UNROLL for (int e = thread; e < kTile * kDepth / kWidth; e += kThreads) {
      const int row = e % kTile, d = e / kTile * kWidth;
      const Pack<T> pack = from.pack(row, q + d);
      PYOPS_UNROLL for (int w = 0; w < kWidth; ++w) {
        panel[d + w][place_of(row)] = static_cast<Acc>(pack.at[w]);
      }
    }
  }

  PYOPS_HOST_DEVICE static void load_chunk(const Strip<T>& from, int first, int64_t column,
                                           int thread, Shared& shared) {
    PYOPS_UNROLL for (int e = thread; e < kDepth * kChunk / kWidth; e += kThreads) {
      const int row = e / (kChunk / kWidth), j = e % (kChunk / kWidth) * kWidth;
      const Pack<T> pack = from.pack(first + row, column + j);
      PYOPS_UNROLL for (int w = 0; w < kWidth; ++w) {
        shared.z[row][j + w] = static_cast<Acc>(pack.at[w]);
      }
    }
  }

  PYOPS_HOST_DEVICE static void accumulate(const Shared& shared, int thread, Piece& sum) {
    const int i = thread / kSide * kPiece, j = thread % kSide * kPiece;
    PYOPS_UNROLL for (int d = 0; d < kDepth; ++d) {
      PYOPS_UNROLL for (int r = 0; r < kPiece; ++r) {
        PYOPS_UNROLL for (int c = 0; c < kPiece; ++c) {
          sum.at[r][c] += shared.a[d][i + r] * shared.b[d][j + c];
        }
      }
    }
  }

  PYOPS_HOST_DEVICE static void weigh(const Shared& shared, int first, int thread, Sums& sums) {
    const int j = thread % kSide * kPiece;
    PYOPS_UNROLL for (int d = 0; d < kDepth; ++d) {
      const Acc* weights = &shared.weights[first + d][weight_at(thread / kSide, d)];
      PYOPS_UNROLL for (int r = 0; r < kPiece; ++r) {
        PYOPS_UNROLL for (int n = 0; n < kWide; ++n) {
          PYOPS_UNROLL for (int c = 0; c < kPiece; ++c) {
            sums.at[r][n][c] += weights[r] * shared.z[d][n * kTile + j + c];
          }
        }
      }
    }
  }
};

// Of the scores: which there are, and what scale and mask make of a product.
PYOPS_HOST_DEVICE inline bool is_visible(const AttentionShape& p, int64_t l, int64_t s) {
  return l < p.queries && s < p.keys && !(p.is_causal && s > l);
}

// For a visible key.
template <class T>
PYOPS_HOST_DEVICE inline acc_t<T> score(const AttentionShape& p, const AttentionMask& m, int64_t b,
                                        int64_t h, int64_t l, int64_t s, acc_t<T> product) {
  using Acc = acc_t<T>;
  const Acc scaled = product * static_cast<Acc>(p.scale);
  if (m.kind == MaskKind::kNone) return scaled;
  const int64_t at = b * m.b + h * m.h + l * m.row + s * m.key;
  if (m.kind == MaskKind::kBool) {
    return scaled + (static_cast<const bool*>(m.data)[at] ? Acc(0) : -static_cast<Acc>(INFINITY));
  }
  if (m.dtype == Dtype::kFloat32) return scaled + static_cast<const float*>(m.data)[at];
  return scaled + static_cast<Acc>(static_cast<const T*>(m.data)[at]);
}

PYOPS_HOST_DEVICE inline baseline::Dropout dropout_of(const AttentionShape& p) {
  const uint64_t seed = p.gpu_seed == nullptr ? 0 : static_cast<uint64_t>(*p.gpu_seed);
  return {seed, p.dropout_p};
}

}  // namespace pyops
