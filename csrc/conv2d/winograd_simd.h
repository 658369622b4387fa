// Correlation with 3×3 windows at stride 1 by Winograd's minimal filtering (winograd_tiles_simd.h).
//
// A unit is a block of tiles of any images. Their transformed pixels V[16][tile, channel] times the
// transformed weights U[16][channel, result] are M[16][tile, result], for some panels of results at
// a time, which stay in L2 until they are transformed to results.
#pragma once

#include <atomic>

#include "conv2d/weights_simd.h"
#include "conv2d/winograd_tiles_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class V>
void transform_weight(const V (&w)[3], V (&out)[4]) {
  const V half = V::set1(0.5f), sides = half * (w[0] + w[2]), middle = half * w[1];
  out[0] = w[0];
  out[1] = sides + middle;
  out[2] = sides - middle;
  out[3] = w[2];
}
template <class V>
void transform_output(const V (&m)[4], V (&out)[2]) {
  out[0] = m[0] + m[1] + m[2];
  out[1] = m[1] - m[2] - m[3];
}

// Of transformed weights, so that products among subnormal numbers keep their digits.
inline constexpr float kWeightScale = 0x1p24f;

// taps[9][channel][kCols] to out[point][channel][kCols].
[[gnu::noinline]] inline void transform_weights(int64_t channels, const float* taps, float* out) {
  using V = Vec<float>;
  constexpr int kCols = TapTile::kCols;
  const V scale = V::set1(kWeightScale);
  for (int64_t at = 0; at < channels * kCols; at += V::kWidth) {
    V columns[3][4];
    for (int x = 0; x < 3; ++x) {
      V w[3];
      for (int y = 0; y < 3; ++y) {
        w[y] = V::load(taps + (3 * y + x) * channels * kCols + at) * scale;
      }
      transform_weight(w, columns[x]);
    }
    for (int y = 0; y < 4; ++y) {
      V row[4];
      transform_weight({columns[0][y], columns[1][y], columns[2][y]}, row);
      for (int x = 0; x < 4; ++x) row[x].store(out + (4 * y + x) * channels * kCols + at);
    }
  }
}

// m[16 points, `point` apart][tile][kCols] to two rows of results, out[2, `row` apart][2 * tile].
// Whether they are finite.
[[gnu::noinline]] inline bool transform_products(int64_t tiles, const float* m, int64_t point,
                                                 float* out, int64_t row) {
  using V = Vec<float>;
  constexpr int kCols = TapTile::kCols;
  const V scale = V::set1(1 / kWeightScale);
  V zeros = V::zero();  // NaN once a result is not finite
  for (int64_t t = 0; t < tiles; ++t, m += kCols, out += 2 * kCols) {
    for (int v = 0; v < kCols; v += V::kWidth) {
      V columns[4][2];
      for (int x = 0; x < 4; ++x) {
        V points[4];
        for (int y = 0; y < 4; ++y) points[y] = V::load(m + (4 * y + x) * point + v);
        transform_output(points, columns[x]);
      }
      for (int y = 0; y < 2; ++y) {
        V line[2];
        transform_output({columns[0][y], columns[1][y], columns[2][y], columns[3][y]}, line);
        for (int x = 0; x < 2; ++x) {
          line[x] = line[x] * scale;
          line[x].store(out + y * row + x * kCols + v);
          zeros = V::fma(line[x], V::zero(), zeros);
        }
      }
    }
  }
  return zeros.sum() == 0;
}

// m[tile, column] = Σ_p input[tile * pitch + p] · panel[p, column]. In stretches, as one running
// sum over many channels would lose more digits than the transforms.
[[gnu::noinline]] inline void multiply_tiles(int64_t tiles, int64_t depth, const float* input,
                                             int64_t pitch, const float* panel, float* m) {
  constexpr int kCols = TapTile::kCols, kRows = TapTile::rows(2);
  constexpr int64_t kStretch = 48;
  struct Column {
    const float* at;
    int64_t pitch;
    float operator[](int row) const { return at[row * pitch]; }
  };
  const int64_t length = ceil_div(depth, ceil_div(depth, kStretch));
  for (int64_t p = 0; p < depth; p += length, input += length, panel += length * kCols) {
    for (int64_t t = 0; t < tiles; t += kRows) {
      const float* from = input + t * pitch;
      const auto columns = [=](int64_t q) { return Column{from + q, pitch}; };
      const auto rows = [=](int64_t q) { return panel + q * kCols; };
      multiply_rows<float, kRows, 2>(std::min(length, depth - p), columns, rows,
                                     Tile<float>{m + t * kCols, kCols, p > 0});
    }
  }
}

template <bool kMasked, class T>
class WinogradCorrelation {
 public:
  explicit WinogradCorrelation(const Correlation<T>& c)
      : c_(c),
        channels_(c.images.channels),
        panels_(ceil_div(c.channels, kCols)),
        tiles_(c.images.y, c.images.x, c.batch),
        units_(choose_units(tiles_.count)),
        unit_(ceil_div(tiles_.count, units_)),
        ranges_(std::min(panels_, ceil_div(int64_t{num_threads()}, units_))),
        range_(ceil_div(panels_, ranges_)),
        weight_(units_ > kFewUnits ? panels_ * panel_elements() : 0),
        irregular_(c.batch) {}

  // redo(n) for images with results that are not finite.
  template <class Redo>
  void run(const Redo& redo) {
    std::memset(irregular_.get(), 0, c_.batch);
    if (units_ > kFewUnits) {
      parallel_for(0, panels_, 1, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
          pack_panel(panel, weight_.get() + panel * panel_elements());
        }
      });
    }
    parallel_for(0, units_ * ranges_, 1, [&](int64_t begin, int64_t end) {
      Worker worker(*this);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t unit = task / ranges_ * unit_, panel = task % ranges_ * range_;
        worker.run(unit, std::min(tiles_.count, unit + unit_), panel,
                   std::min(panels_, panel + range_));
      }
    });
    for (int64_t n = 0; n < c_.batch; ++n) {
      if (irregular_[n]) redo(n);
    }
  }

 private:
  using V = Vec<float>;
  static constexpr int kPoints = TileGrid::kPoints;
  static constexpr int kCols = TapTile::kCols, kRows = TapTile::rows(2);
  static constexpr int64_t kMostTiles = 96;       // to which a weight read from L3 is applied
  static constexpr int64_t kPanels = 64 / kCols;  // of products kept at a time
  // So few that each transforms the weights for itself, into L2, instead of all at once.
  static constexpr int64_t kFewUnits = 2;

  static int64_t choose_units(int64_t tiles) {
    const int64_t units = ceil_div(tiles, kMostTiles), threads = num_threads();
    return units < threads ? units : ceil_div(units, threads) * threads;
  }

  int64_t panel_elements() const { return kPoints * channels_ * kCols; }

  // [point][channel][kCols] of a panel of channels of the result.
  void pack_panel(int64_t panel, float* out) const {
    Scratch<float> taps(kCols * channels_ * 9);
    c_.weights->template pack_taps<kCols>(panel * kCols, taps.get());
    transform_weights(channels_, taps.get(), out);
  }

  class Worker {
   public:
    explicit Worker(const WinogradCorrelation& job)
        : job_(job),
          pixels_(job.c_.images, job.c_.channels_last, room()),
          input_(job.channels_, pixels_.pitch(), room()),
          products_(kPanels * kPoints * point()),
          weight_(job.units_ > kFewUnits ? 0 : kPanels * job.panel_elements()),
          sink_(job.c_),
          all_{job.c_.images.x.positions, job.c_.images.positions_per_image()} {}

    // Tiles [begin, end), panels [first, last) of channels.
    void run(int64_t begin, int64_t end, int64_t first, int64_t last) {
      job_.tiles_.for_segments(begin, end, [&](const TileGrid::Segment& segment, int64_t t) {
        input_.fill(pixels_.fill(segment), segment.count, t - begin);
      });
      for (int64_t panel = first; panel < last; panel += kPanels) {
        const int64_t some = std::min(kPanels, last - panel);
        const float* weight = weights(panel, some);
        for (int64_t k = 0; k < kPoints; ++k) {
          for (int64_t p = 0; p < some; ++p) {
            multiply_tiles(end - begin, job_.channels_, input_.point(k), input_.pitch(),
                           weight + (p * kPoints + k) * job_.channels_ * kCols, products(p, k));
          }
        }
        for (int64_t p = 0; p < some; ++p) {
          job_.tiles_.for_segments(begin, end, [&](const TileGrid::Segment& segment, int64_t t) {
            store(segment, products(p, 0) + (t - begin) * kCols, (panel + p) * kCols);
          });
        }
      }
    }

   private:
    static constexpr int64_t kRun = GridSink<T>::kMaxPositions / 2;  // tiles stored at a time
    static constexpr int64_t kSumsRow = 2 * kRun * kCols;

    // Tiles of a unit, and elements between the points of a panel of products: not a multiple of
    // 4 KiB, as a tile's points would share few sets of L1.
    int64_t room() const { return ceil_div(job_.unit_, kRows) * kRows; }
    int64_t point() const { return (room() + 1) * kCols; }
    float* products(int64_t panel, int64_t k) const {
      return products_.get() + (panel * kPoints + k) * point();
    }

    // Of `some` panels from `panel` on.
    const float* weights(int64_t panel, int64_t some) {
      if (job_.units_ > kFewUnits) return job_.weight_.get() + panel * job_.panel_elements();
      for (int64_t p = 0; p < some; ++p) {
        job_.pack_panel(panel + p, weight_.get() + p * job_.panel_elements());
      }
      return weight_.get();
    }

    // Results of a segment for a panel of channels from i on.
    void store(const TileGrid::Segment& segment, const float* m, int64_t i) {
      const Correlation<T>& c = job_.c_;
      const int64_t channels = std::min<int64_t>(kCols, c.channels - i);
      for (int64_t t = 0; t < segment.count; t += kRun) {
        const int64_t run = std::min(kRun, segment.count - t);
        if (!transform_products(run, m + t * kCols, point(), sums_, kSumsRow)) {
          std::atomic_ref(job_.irregular_[segment.n]).store(1, std::memory_order_relaxed);
        }
        const int64_t row = 2 * segment.line, column = 2 * (segment.column + t);
        const int64_t count = std::min(2 * run, c.images.x.positions - column);
        for (int64_t y = 0; y < std::min<int64_t>(2, c.images.y.positions - row); ++y) {
          const GridStretch at(all_, row + y, column, count);
          sink_.store_positions(all_, at, i, channels, {sums_ + y * kSumsRow, kCols},
                                sink_.rows(segment.n, 0));
        }
      }
    }

    const WinogradCorrelation& job_;
    TilePixels<4, kMasked, T> pixels_;
    InputTiles input_;
    Scratch<float> products_, weight_;
    alignas(64) float sums_[2 * kSumsRow];
    const GridSink<T> sink_;
    const Numbering all_;
  };

  const Correlation<T>& c_;
  const int64_t channels_, panels_;
  const TileGrid tiles_;
  const int64_t units_, unit_;    // blocks of tiles, of so many
  const int64_t ranges_, range_;  // of panels
  const Scratch<float> weight_;
  const Scratch<uint8_t> irregular_;  // by image
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
