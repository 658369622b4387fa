// The weight gradient of 3×3 windows at stride 1 by Winograd's minimal filtering, the forward's
// adjoint: dU[16][channel, result] = Σ_tile V[16][tile, channel] · dM[16][tile, result] of
// transformed pixels and gradients, dw = Gᵀ dU G.
//
// A thread takes a slice of the tiles, block by block, and keeps its own sums; slices are added in
// order. Sums that no cache holds are kept once: the threads share a block's tiles, then its sums.
#pragma once

#include <atomic>

#include "conv2d/winograd_tiles_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class V>
void transform_gradient(const V (&g)[2], V (&out)[4]) {
  out[0] = g[0];
  out[1] = g[0] + g[1];
  out[2] = g[0] - g[1];
  out[3] = V::zero() - g[1];
}
template <class V>
void transform_sums(const V (&u)[4], V (&out)[3]) {
  const V half = V::set1(0.5f), sides = half * (u[1] + u[2]);
  out[0] = u[0] + sides;
  out[1] = half * (u[1] - u[2]);
  out[2] = sides + u[3];
}

// Two rows of pixels to out[16 points, `point` apart][tile][kCols], of kCols channels.
[[gnu::noinline]] inline void transform_gradients(int64_t tiles, const float* top,
                                                  const float* bottom, int64_t pitch, float* out,
                                                  int64_t point) {
  using V = Vec<float>;
  for (int64_t t = 0; t < tiles; ++t, top += 2 * pitch, bottom += 2 * pitch) {
    for (int v = 0; v < TapTile::kCols; v += V::kWidth, out += V::kWidth) {
      V columns[2][4];
      for (int x = 0; x < 2; ++x) {
        transform_gradient({V::load(top + x * pitch + v), V::load(bottom + x * pitch + v)},
                           columns[x]);
      }
      for (int y = 0; y < 4; ++y) {
        V row[4];
        transform_gradient({columns[0][y], columns[1][y]}, row);
        for (int x = 0; x < 4; ++x) row[x].store(out + (4 * y + x) * point);
      }
    }
  }
}

// sums[row, column] (+)= Σ_tile input[tile * pitch + row] · gradient[tile, column]
[[gnu::noinline]] inline void sum_tiles(int64_t tiles, const float* input, int64_t pitch,
                                        const float* gradient, float* sums, bool add) {
  constexpr int kCols = TapTile::kCols;
  const auto columns = [=](int64_t t) { return input + t * pitch; };
  const auto rows = [=](int64_t t) { return gradient + t * kCols; };
  multiply_rows<float, TapTile::rows(2), 2>(tiles, columns, rows, Tile<float>{sums, kCols, add});
}

template <bool kMasked, class T>
class WinogradWeightGradient {
 public:
  // x meets the taps; g, of the same positions, has axes of one tap.
  WinogradWeightGradient(const Images<T>& x, const Images<T>& g, int64_t batch, bool channels_last)
      : x_(x),
        g_(g),
        channels_last_(channels_last),
        tiles_(x.y, x.x, batch),
        rows_(ceil_div(x.channels, kRows)),
        panels_(ceil_div(g.channels, kCols)),
        shared_(slice_sums() > kSumsCached / 4),
        unit_(unit_tiles()),
        units_(ceil_div(tiles_.count, unit_)),
        slice_(shared_ ? units_ : ceil_div(units_, num_threads())),
        slices_(ceil_div(units_, slice_)),
        sums_(slices_ * slice_sums()) {}

  // grad[o, tap], taps in the order of the layout. Whether it was done: not where it is not finite.
  bool run(T* grad) const {
    parallel_for(0, slices_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t slice = begin; slice < end; ++slice) {
        Worker worker(*this, sums_.get() + slice * slice_sums());
        worker.run(slice * slice_, std::min(units_, (slice + 1) * slice_));
      }
    });
    std::atomic<bool> finite{true};
    parallel_for(0, ceil_div(x_.channels, kWidth), 1, [&](int64_t begin, int64_t end) {
      Scratch<float> block(kTaps * kWidth * kWidth);
      V zeros = V::zero();  // NaN once a weight is not finite
      for (int64_t c = begin * kWidth; c < std::min(x_.channels, end * kWidth); c += kWidth) {
        for (int64_t o = 0; o < g_.channels; o += kWidth) {
          const int64_t count = std::min(kWidth, x_.channels - c);
          for (int64_t i = 0; i < count; ++i) make_window(c + i, i, o, block.get(), zeros);
          write_weights(c, count, o, block.get(), grad);
        }
      }
      if (zeros.sum() != 0) finite = false;
    });
    return finite;
  }

 private:
  using V = Vec<float>;
  static constexpr int64_t kWidth = V::kWidth;
  static constexpr int kPoints = TileGrid::kPoints, kTaps = 9;
  static constexpr int kCols = TapTile::kCols, kRows = TapTile::rows(2);
  static constexpr int64_t kTileSums = kRows * kCols;
  static constexpr int64_t kMostTiles = 48;  // of one running sum

  static constexpr int64_t kSumsCached = 2 << 20;  // bytes

  // Tiles that are transformed before any is multiplied: shared evenly by the threads, or four
  // running sums of them where each time all sums, which no cache holds, are read and written.
  int64_t unit_tiles() const {
    const int64_t most = shared_ ? 4 * kMostTiles : kMostTiles;
    const int64_t share = shared_ ? tiles_.count : ceil_div(tiles_.count, num_threads());
    return ceil_div(share, ceil_div(share, most));
  }

  int64_t slice_sums() const { return kPoints * rows_ * panels_ * kTileSums; }

  // Of a tile of sums: kRows channels by kCols results.
  int64_t place(int64_t point, int64_t row, int64_t panel) const {
    return ((point * rows_ + row) * panels_ + panel) * kTileSums;
  }

  // The window of channel c, the i-th of a block, for a vector of results from o on: a vector for
  // each tap, where write_weights() reads it.
  void make_window(int64_t c, int64_t i, int64_t o, float* block, V& zeros) const {
    const float* sums = sums_.get() + c % kRows * kCols + o % kCols;
    const int64_t tap = channels_last_ ? kWidth : 1, first = channels_last_ ? i : kTaps * i;
    V columns[4][3];
    for (int x = 0; x < 4; ++x) {
      V u[4];
      for (int y = 0; y < 4; ++y) {
        const float* from = sums + place(4 * y + x, c / kRows, o / kCols);
        u[y] = V::load(from);
        for (int64_t s = 1; s < slices_; ++s) u[y] = u[y] + V::load(from + s * slice_sums());
      }
      transform_sums(u, columns[x]);
    }
    for (int y = 0; y < 3; ++y) {
      V row[3];
      transform_sums({columns[0][y], columns[1][y], columns[2][y], columns[3][y]}, row);
      for (int x = 0; x < 3; ++x) {
        zeros = V::fma(row[x], V::zero(), zeros);
        row[x].store(block + (first + (3 * y + x) * tap) * kWidth);
      }
    }
  }

  // Windows of `count` channels from c on and of results from o on, which lie in vectors of
  // results: as many vectors of what one result has side by side, a tap's channels or all taps of
  // channels.
  void write_weights(int64_t c, int64_t count, int64_t o, const float* block, T* grad) const {
    const int64_t outs = std::min(kWidth, g_.channels - o);
    for (int64_t j = 0; j < kTaps; ++j) {
      const int64_t all = channels_last_ ? count : kTaps * count - j * kWidth;
      const int some = static_cast<int>(std::min(kWidth, all));
      if (some <= 0) return;
      V rows[kWidth];
      for (int64_t k = 0; k < kWidth; ++k) rows[k] = V::load(block + (j * kWidth + k) * kWidth);
      transpose(rows);
      T* out = grad + o * kTaps * x_.channels +
               (channels_last_ ? j * x_.channels + c : kTaps * c + j * kWidth);
      for (int64_t k = 0; k < outs; ++k) store(rows[k], out + k * kTaps * x_.channels, some);
    }
  }

  class Worker {
   public:
    Worker(const WinogradWeightGradient& job, float* sums)
        : job_(job),
          sums_(sums),
          input_(job.x_.channels, TilePixels<4, false, T>(job.x_, job.channels_last_, 1).pitch(),
                 job.unit_),
          point_((job.unit_ + 1) * kCols),
          gradient_(job.panels_ * kPoints * point_) {}

    void run(int64_t first, int64_t last) {
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t begin = unit * job_.unit_;
        const int64_t tiles = std::min(job_.tiles_.count - begin, job_.unit_);
        parallel_for(0, tiles, kTilesToShare,
                     [&](int64_t from, int64_t to) { transform(begin, begin + from, begin + to); });
        parallel_for(0, kPoints * job_.rows_, 1, [&](int64_t from, int64_t to) {
          for (int64_t i = from; i < to; ++i) {
            multiply(tiles, i / job_.rows_, i % job_.rows_, unit > first);
          }
        });
      }
    }

   private:
    static constexpr int64_t kTilesToShare = 16;

    float* gradient(int64_t panel, int64_t point) const {
      return gradient_.get() + (panel * kPoints + point) * point_;
    }

    // Tiles from `begin` to `end` of the unit that starts at `unit`.
    void transform(int64_t unit, int64_t begin, int64_t end) {
      TilePixels<4, false, T> pixels(job_.x_, job_.channels_last_, end - begin);
      TilePixels<2, kMasked, T> gradient_pixels(job_.g_, job_.channels_last_, end - begin);
      job_.tiles_.for_segments(begin, end, [&](const TileGrid::Segment& segment, int64_t t) {
        input_.fill(pixels.fill(segment), segment.count, t - unit);
        const auto rows = gradient_pixels.fill(segment);
        for (int64_t panel = 0; panel < job_.panels_; ++panel) {
          transform_gradients(segment.count, rows[0] + panel * kCols, rows[1] + panel * kCols,
                              gradient_pixels.pitch(), gradient(panel, 0) + (t - unit) * kCols,
                              point_);
        }
      });
    }

    void multiply(int64_t tiles, int64_t point, int64_t row, bool add) const {
      const int64_t pitch = input_.pitch();
      const int64_t length = ceil_div(tiles, ceil_div(tiles, kMostTiles));
      const float* from = input_.point(point) + row * kRows;
      for (int64_t panel = 0; panel < job_.panels_; ++panel) {
        for (int64_t t = 0; t < tiles; t += length) {
          sum_tiles(std::min(length, tiles - t), from + t * pitch, pitch,
                    gradient(panel, point) + t * kCols, sums_ + job_.place(point, row, panel),
                    add || t > 0);
        }
      }
    }

    const WinogradWeightGradient& job_;
    float* const sums_;
    InputTiles input_;
    // Between the points of a panel, not a multiple of 4 KiB: see WinogradCorrelation.
    const int64_t point_;
    Scratch<float> gradient_;
  };

  const Images<T> x_, g_;
  const bool channels_last_;
  const TileGrid tiles_;
  const int64_t rows_, panels_;  // of tiles of sums: kRows channels, kCols results
  const bool shared_;            // whether all threads keep the same sums
  const int64_t unit_;           // tiles
  const int64_t units_, slice_, slices_;
  const Scratch<float> sums_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
