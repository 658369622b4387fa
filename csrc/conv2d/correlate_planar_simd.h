// Correlation of planes to lines of positions: a tile is channels, broadcast from the weights,
// times vectors of positions of one row, read from the planes of the grid (grid_simd.h) at a tap's
// offset. The lines of a planar result leave from the registers, where tiles of positions times
// channels (correlate_simd.h) would be transposed; in return they end with their rows. Those of
// channels too few for a vector are written an element at a time where they are no runs.
#pragma once

#include "conv2d/grid_sink_simd.h"
#include "conv2d/weights_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// As many channels as registers hold sums of, in panels of about the same height; times as many
// vectors as there are registers for, so that sums of few channels hide the latency of an FMA too.
struct PlanarTile {
#if defined(__AVX512F__)
  static constexpr int kRows = 8, kRegisters = 32;
#else
  static constexpr int kRows = 6, kRegisters = 16;
#endif
  // Beside the sums: the vectors of positions, and a weight.
  static constexpr int vecs(int rows) { return std::min(4, (kRegisters - 1) / (rows + 1)); }
  static constexpr int cols(int rows) { return vecs(rows) * Vec<float>::kWidth; }
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

// The sums of a tile of `vecs` vectors, of which `rest` columns are in use: to its memory, or on to
// lines from column x on. (The caller does not cut the lines: they would be written by parts and
// read as a whole, which waits for all stores before.)
template <int kRows, class T>
void multiply_planar_tile(int64_t depth, const float* panel, const float* from,
                          const int64_t* offsets, const Tile<float>& tile, const Lines<T>* lines,
                          int64_t x, int64_t vecs, int64_t rest) {
  constexpr int kVecs = PlanarTile::vecs(kRows);
  if (lines == nullptr) {
    return with_constant<kVecs>(vecs, [&]<int kSome>(std::integral_constant<int, kSome>) {
      multiply_planes<kRows, kSome>(depth, panel, from, offsets, tile);
    });
  }
  const Leaving<T> leaving{tile, lines->from(x)};
  if (vecs == kVecs && rest >= PlanarTile::cols(kRows)) {
    leaving.lines.from(2 * PlanarTile::cols(kRows)).prefetch(kRows, PlanarTile::cols(kRows));
    return multiply_planes<kRows, kVecs>(depth, panel, from, offsets, leaving);
  }
  const LeavingSome<T> some{leaving, rest};
  with_constant<kVecs>(vecs, [&]<int kSome>(std::integral_constant<int, kSome>) {
    multiply_planes<kRows, kSome>(depth, panel, from, offsets, some);
  });
}

// Taps whose products are one running sum: as VectorEngine's, for the same digits.
inline int64_t tap_stretch(int64_t taps) {
  constexpr int64_t kStretch = 112;
  return ceil_div(taps, ceil_div(taps, kStretch));
}

// A band of rows of image n, from row `row` on, on its grid.
struct GridBand {
  int64_t n, row, rows;
  const PaddedGrid& grid;
  const float* image;
  const int64_t* offsets;  // of the taps, in the order (ky, kx, channel)
};

// worker(band) for every band of rows, with a worker = make_worker() for each thread. Its planes
// stay in L2.
template <bool kMasked, class T, class MakeWorker>
void for_bands(const Correlation<T>& c, const MakeWorker& make_worker) {
  constexpr int64_t kPlaneBytes = 512 << 10;  // half an L2 of 1 MiB
  const Images<T>& images = c.images;
  const RowBands bands = cut_rows(images.y.positions, c.batch, kPlaneBytes, [&](int64_t rows) {
    return band_grid(images, rows).part_elements(images.channels) *
           static_cast<int64_t>(sizeof(float));
  });
  parallel_for(0, c.batch * bands.count, 1, [&](int64_t begin, int64_t end) {
    auto worker = make_worker();
    Scratch<int64_t> offsets(images.taps());
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / bands.count, row = unit % bands.count * bands.rows;
      const Images<T> band = row_band(images, row, std::min(bands.rows, images.y.positions - row));
      const PaddedGrid grid(band.y, band.x);
      tap_offsets(band, grid, /*channels_last=*/true, offsets.get());
      GridPlanes<kMasked, T> planes(band, grid, c.channels_last, band.channels);
      worker({n, row, band.y.positions, grid, planes.fill(n, 0, band.channels), offsets.get()});
    }
  });
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
      c_.weights->template pack_taps<kRows>(first(k), weight_.get() + k * kRows * taps_);
    }
    for_bands<kMasked>(c_, [&] { return Worker(*this); });
  }

 private:
  static constexpr int kRows = PlanarTile::kRows;

  int64_t first(int64_t panel) const { return c_.channels * panel / panels_; }

  class Worker {
   public:
    explicit Worker(const PlanarCorrelation& job)
        : job_(job), length_(tap_stretch(job.taps_)), sums_(kRows * sums_stride()), sink_(job.c_) {}

    void operator()(const GridBand& band) {
      for (int64_t k = 0; k < job_.panels_; ++k) {
        const int64_t height = job_.first(k + 1) - job_.first(k);
        with_constant<kRows>(height, [&]<int kHeight>(std::integral_constant<int, kHeight>) {
          for (int64_t y = 0; y < band.rows; ++y) multiply_row<kHeight>(band, y, k);
        });
      }
    }

   private:
    int64_t cols() const { return job_.c_.images.x.positions; }
    // Tiles compute beyond the row.
    int64_t sums_stride() const { return cols() + PlanarTile::cols(1); }

    // Row y of the channels of panel k.
    template <int kHeight>
    void multiply_row(const GridBand& band, int64_t y, int64_t k) {
      const int64_t channel = job_.first(k), pitch = band.grid.pitch();
      constexpr int64_t kWidth = Vec<float>::kWidth, kVecs = PlanarTile::vecs(kHeight);
      const bool leaves = sink_.has_plane_lines();
      const Lines<T> lines = sink_.plane_lines(channel, band.n, band.row + y);
      for (int64_t t = 0; t < job_.taps_; t += length_) {
        const int64_t depth = std::min(length_, job_.taps_ - t);
        const bool out = leaves && t + depth == job_.taps_;
        const float* panel = job_.weight_.get() + (k * job_.taps_ + t) * kRows;
        for (int64_t x = 0, vecs; x < cols(); x += vecs * kWidth) {
          // One vector left over would have too few sums to hide the latency of an FMA.
          const int64_t left = ceil_div(cols() - x, kWidth);
          vecs = left == kVecs + 1 ? left / 2 : std::min(left, kVecs);
          multiply_planar_tile<kHeight>(depth, panel, band.image + y * pitch + x, band.offsets + t,
                                        Tile<float>{sums_.get() + x, sums_stride(), t > 0},
                                        out ? &lines : nullptr, x, vecs, cols() - x);
        }
      }
      if (!leaves) sink_.store_row(channel, kHeight, {sums_.get(), sums_stride()}, lines.out);
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

// For planes, what tiles compute beyond the rows' ends is less than what transposing them would
// take; or less than the lanes that channels leave empty in the other tiles.
template <class T>
bool planar_pays(const Correlation<T>& c) {
  constexpr int64_t kTransposed = 16;  // as many products as a tile's transposition
  constexpr int64_t kFew = 8, kWidth = Vec<float>::kWidth;
  const int64_t cols = c.images.x.positions, computed = ceil_div(cols, kWidth) * kWidth;
  if (c.channels < kFew) return c.channels * computed < kFew * cols;
  return !c.channels_last && c.map.col_stride == 1 &&
         (computed - cols) * c.images.taps() <= kTransposed * cols;
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
