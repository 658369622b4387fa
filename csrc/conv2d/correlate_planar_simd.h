// Correlation of planar images to planar results: a tile is channels, broadcast from the weights,
// times vectors of positions of one row, read from the planes of the grid (grid_simd.h) at a tap's
// offset. Its lines leave from the registers, where tiles of positions times channels
// (correlate_simd.h) would be transposed; in return they end with their rows.
#pragma once

#include "conv2d/correlate_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// As many channels as registers hold sums of, in panels of about the same height: enough of them
// to hide the latency of an FMA.
struct PlanarTile {
#if defined(__AVX512F__)
  static constexpr int kRows = 8;
#else
  static constexpr int kRows = 6;
#endif
  static constexpr int kLeast = kRows / 2 + 1, kCols = 2 * Vec<float>::kWidth;
};

// put(sums of a panel's first kRows channels at kVecs vectors of positions)
template <int kRows, int kVecs, class Put>
[[gnu::always_inline]] inline void multiply_planes(int64_t depth, const float* panel,
                                                   const float* from, const int64_t* offsets,
                                                   const Put& put) {
  const auto columns = [=](int64_t p) { return panel + p * PlanarTile::kRows; };
  const auto rows = [=](int64_t p) { return from + offsets[p]; };
  multiply_rows<float, kRows, kVecs>(depth, columns, rows, put);
}

template <bool kMasked, class T>
class PlanarCorrelation {
 public:
  explicit PlanarCorrelation(const Correlation<T>& c)
      : c_(c),
        taps_(c.images.taps()),
        panels_(ceil_div(c.channels, kRows)),
        weight_(panels_ * kRows * taps_) {}

  void run() {
    for (int64_t k = 0; k < panels_; ++k) {
      pack_taps<kRows>(c_, first(k), nullptr, weight_.get() + k * kRows * taps_);
    }
    for_bands<kMasked>(c_, [&] { return Worker(*this); });
  }

 private:
  using V = Vec<float>;
  static constexpr int kRows = PlanarTile::kRows, kCols = PlanarTile::kCols;

  int64_t first(int64_t panel) const { return c_.channels * panel / panels_; }

  class Worker {
   public:
    explicit Worker(const PlanarCorrelation& job)
        : job_(job), length_(tap_stretch(job.taps_)), sums_(kRows * sums_stride()), sink_(job.c_) {}

    void operator()(const GridBand& band) {
      for (int64_t k = 0; k < job_.panels_; ++k) {
        const int64_t first = job_.first(k);
        with_height(
            job_.first(k + 1) - first, [&]<int kHeight>(std::integral_constant<int, kHeight>) {
              for (int64_t y = 0; y < band.rows; ++y) {
                multiply_row<kHeight>(band, y, k, sink_.plane_lines(first, band.n, band.row + y));
              }
            });
      }
    }

   private:
    int64_t cols() const { return job_.c_.images.x.positions; }
    int64_t sums_stride() const { return ceil_div(cols(), kCols) * kCols; }

    // Row y of the channels of panel k.
    template <int kHeight>
    void multiply_row(const GridBand& band, int64_t y, int64_t k, const Lines<T>& lines) {
      const float* from = band.image + y * band.grid.pitch();
      for (int64_t t = 0; t < job_.taps_; t += length_) {
        const float* panel = job_.weight_.get() + (k * job_.taps_ + t) * kRows;
        for (int64_t x = 0; x < cols(); x += kCols) {
          multiply_tile<kHeight>(t, panel, from + x, band.offsets + t, x, lines);
        }
      }
    }

    template <class F>
    static void with_height(int64_t height, const F& f) {
      [&]<int... kMore>(std::integer_sequence<int, kMore...>) {
        ((height == PlanarTile::kLeast + kMore
              ? f(std::integral_constant<int, PlanarTile::kLeast + kMore>{})
              : void()),
         ...);
      }(std::make_integer_sequence<int, kRows - PlanarTile::kLeast + 1>{});
    }

    // Taps from t on at positions from x on.
    template <int kHeight>
    void multiply_tile(int64_t t, const float* panel, const float* from, const int64_t* offsets,
                       int64_t x, const Lines<T>& lines) {
      const int64_t depth = std::min(length_, job_.taps_ - t), rest = cols() - x;
      const Tile<float> tile{sums_.get() + x, sums_stride(), t > 0};
      if (t + depth < job_.taps_) {
        return multiply_planes<kHeight, 2>(depth, panel, from, offsets, tile);
      }
      const Leaving<T> leaving{tile, lines.from(x)};
      if (rest >= kCols) {
        return multiply_planes<kHeight, 2>(depth, panel, from, offsets, leaving);
      }
      const LeavingSome<T> some{leaving, rest};
      rest > V::kWidth ? multiply_planes<kHeight, 2>(depth, panel, from, offsets, some)
                       : multiply_planes<kHeight, 1>(depth, panel, from, offsets, some);
    }

    const PlanarCorrelation& job_;
    const int64_t length_;
    Scratch<float> sums_;
    const GridSink<T> sink_;
  };

  const Correlation<T>& c_;
  const int64_t taps_;
  const int64_t panels_;
  const Scratch<float> weight_;
};

// What tiles compute beyond the rows' ends is less than what transposing them would take.
template <class T>
bool planar_pays(const Correlation<T>& c) {
  constexpr int64_t kTransposed = 16;  // as many products as a tile's transposition
  const int64_t cols = c.images.x.positions, taps = c.images.taps();
  const int64_t tiles = ceil_div(cols, PlanarTile::kCols), more = tiles * PlanarTile::kCols - cols;
  return !c.channels_last && c.channels > PlanarTile::kRows + 1 && c.map.col_stride == 1 &&
         more * taps <= kTransposed * cols;
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
