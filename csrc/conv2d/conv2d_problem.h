// A call as a batch of products for the blocks of a GPU, one a group, and in the backward one for
// every phase of the inputs or every stretch of the positions. What comes between two barriers is a
// function of the thread, so that a CPU can run the threads in turn.
#pragma once

#include <algorithm>
#include <type_traits>

#include "conv2d/conv2d_product.h"

namespace pyops {

// Blocks that a product is cut into to occupy a GPU, and positions that make a stretch worth it.
inline constexpr int64_t kWantedTiles = 1024, kLeastStretch = 256;
// Of what is summed in parts, elements that are kept at most.
inline constexpr int64_t kMostParts = int64_t{1} << 26;

// Stretches of positions that grad_weight is summed over apart. They depend on the shape alone: so
// does the order of the sum.
inline int64_t weight_splits(const Conv2dShape& s) {
  constexpr int64_t kTile = 64;
  const auto tiles = [](int64_t lines) { return (lines + kTile - 1) / kTile; };
  const int64_t columns = s.group_c() * s.kh * s.kw;
  const int64_t products = s.groups * tiles(s.group_o()) * tiles(columns);
  const int64_t room = std::max<int64_t>(1, kMostParts / (s.o * columns));
  const int64_t useful = std::max<int64_t>(1, s.n * s.oh * s.ow / kLeastStretch);
  return std::min({std::max<int64_t>(1, kWantedTiles / products), room, useful});
}

// One input channel a group: nothing of the input is used by two outputs of a position.
inline bool has_single_channels(const Conv2dShape& s) {
  return s.group_c() == 1 && s.group_o() <= 4;
}
inline bool has_single_channels(const Conv2dParams& p) {
  return has_single_channels(static_cast<const Conv2dShape&>(p));
}
inline bool has_single_channels(const Conv2dBackwardParams& p) {
  return has_single_channels(static_cast<const Conv2dShape&>(p));
}
inline constexpr const char* kHasSingleChannels = "one input and at most 4 output channels a group";

inline PositionSums position_sums(const Conv2dShape& s, bool weight, bool bias) {
  const int64_t taps = s.kh * s.kw;
  PositionSums sums{s.o, weight ? 0 : taps, bias ? taps + 1 : taps, 1};
  const int64_t threads = int64_t{1} << 20;
  sums.splits = std::clamp<int64_t>(threads / std::max<int64_t>(1, sums.count()), 32, 256);
  return sums;
}

inline bool is_pooled_by_fours(const Conv2dPoolParams& p) {
  return p.pool_h.kernel == 2 && p.pool_w.kernel == 2 && p.pool_h.stride >= 2 &&
         p.pool_w.stride >= 2;
}
inline constexpr const char* kIsPooledByFours = "pooling windows of 2x2 that do not overlap";

inline int64_t acc_bytes(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : 4; }

template <bool kLast, class Product>
using Oriented = std::conditional_t<kLast, Upright<Product>, Transposed<Product>>;

template <class T, bool kLast>
struct ForwardProblem {
  Conv2dParams p;

  PYOPS_HOST_DEVICE int64_t products() const { return p.groups; }
  PYOPS_HOST_DEVICE auto product(int64_t group) const {
    return Oriented<kLast, ForwardProduct<T, kLast>>{{p, group}};
  }
};

// The first phase of an axis has the most inputs, so the first product has the most tiles.
template <class T, bool kLast>
struct BackwardXProblem {
  Conv2dBackwardParams p;

  PYOPS_HOST_DEVICE int64_t phases() const { return axis_h(p).phases() * axis_w(p).phases(); }
  PYOPS_HOST_DEVICE int64_t products() const { return p.groups * phases(); }
  PYOPS_HOST_DEVICE auto product(int64_t number) const {
    const GradientPhases at(p, number % phases());
    return Oriented<kLast, BackwardXProduct<T, kLast>>{{p, number / phases(), at}};
  }
};

template <class T, bool kLast>
struct BackwardWeightProblem {
  Conv2dBackwardParams p;
  int64_t splits;

  PYOPS_HOST_DEVICE int64_t products() const { return p.groups * splits; }
  PYOPS_HOST_DEVICE auto product(int64_t number) const {
    return Upright<BackwardWeightProduct<T, kLast>>{{p, number / splits, number % splits, splits}};
  }
};

// Rows of a convolution that is pooled: four to a pooled position, the taps of its window, so that
// a thread's piece of four rows is a window. Taps beyond the convolution's result are left out when
// the maximum is taken.
template <class T, bool kLast>
struct WindowInput {
  using Line = ImagePart;
  using Depth = ImagePart;
  static constexpr bool along_q = kLast;

  const Conv2dPoolParams& p;
  TapsOfInput<T> x;

  PYOPS_HOST_DEVICE Line line(int64_t i) const {
    const int64_t pooled = i / 4, row = pooled / p.pooled_w, tap = i % 4;
    return x.at_output(row / p.pooled_h, output_row(row % p.pooled_h, tap),
                       output_col(pooled % p.pooled_w, tap));
  }
  PYOPS_HOST_DEVICE Depth depth(int64_t q) const { return x.tap(q); }
  PYOPS_HOST_DEVICE acc_t<T> at(const Line& line, const Depth& depth) const {
    return x(line, depth);
  }

  PYOPS_HOST_DEVICE int64_t output_row(int64_t py, int64_t tap) const {
    return p.pool_h.start(py) + tap / 2 * p.pool_h.dilation;
  }
  PYOPS_HOST_DEVICE int64_t output_col(int64_t px, int64_t tap) const {
    return p.pool_w.start(px) + tap % 2 * p.pool_w.dilation;
  }
};

template <class T, bool kLast>
struct PoolProduct {
  using Acc = acc_t<T>;

  const Conv2dPoolParams& p;
  int64_t group;
  int64_t rows = p.n * p.pooled_h * p.pooled_w * 4, columns = p.group_o();
  int64_t depth = p.group_c() * p.kh * p.kw;
  WindowInput<T, kLast> a{p, {p.x, p, group}};
  ForwardWeight<T> b{p.weight, group * p.group_o(), depth};

  PYOPS_HOST_DEVICE const auto& a_operand() const { return a; }
  PYOPS_HOST_DEVICE const auto& b_operand() const { return b; }

  // The window whose taps are the rows from i on.
  PYOPS_HOST_DEVICE void store_window(int64_t i, int64_t j, const Acc (&sums)[4]) const {
    const int64_t pooled = i / 4, area = p.pooled_h * p.pooled_w, o = group * columns + j;
    const int64_t py = pooled / p.pooled_w % p.pooled_h, px = pooled % p.pooled_w;
    WindowMaximum<T> best;
    PYOPS_UNROLL for (int tap = 0; tap < 4; ++tap) {
      const int64_t y = a.output_row(py, tap), x = a.output_col(px, tap);
      if (y < 0 || y >= p.oh || x < 0 || x >= p.ow) continue;
      best.take(finished<T>(p, o, sums[tap]), tap);
    }
    const int64_t at = kLast ? pooled * p.o + o : (pooled / area * p.o + o) * area + pooled % area;
    store_pooled(p, at, best);
  }
};

template <class T, bool kLast>
struct PoolProblem {
  Conv2dPoolParams p;

  PYOPS_HOST_DEVICE int64_t products() const { return p.groups; }
  PYOPS_HOST_DEVICE auto product(int64_t group) const { return PoolProduct<T, kLast>{p, group}; }
};

// A thread's windows of a tile.
template <class Block, class Product>
PYOPS_HOST_DEVICE inline void store_windows(const Product& p, int64_t tile, int thread,
                                            const typename Block::Piece& sums) {
  constexpr int kAcross = Block::kTile / Block::kPiece;
  const int64_t row = Block::row_of(p, tile) + thread / kAcross * Block::kPiece;
  const int64_t column = Block::column_of(p, tile) + thread % kAcross * Block::kPiece;
  PYOPS_UNROLL for (int c = 0; c < Block::kPiece; ++c) {
    if (row >= p.rows || column + c >= p.columns) continue;
    const typename Block::Acc window[4] = {sums.at[0][c], sums.at[1][c], sums.at[2][c],
                                           sums.at[3][c]};
    p.store_window(row, column + c, window);
  }
}

}  // namespace pyops
