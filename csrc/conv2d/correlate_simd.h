// Correlation with vector registers: an image is written to float32 planes on a grid (grid_simd.h)
// once, where the next positions of a tap are the next numbers; so nothing is packed, nor stored,
// for each tap. A tile is positions, broadcast from the planes, times vectors of channels.
//
// A task is a band of rows of one image, whose planes stay in L2. A stretch of a panel of weights
// stays in L1 while a range of positions meets it.
#pragma once

#include "conv2d/grid_sink_simd.h"
#include "conv2d/weights_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Register tiles of one vector or two: with two, a stretch of a panel of weights takes 14 KiB of an
// L1 that a neighbour may share, and its products are as fast as those of four.
struct TapTile {
#if defined(__AVX512F__)
  static constexpr int kSums = 24;
#else
  static constexpr int kSums = 12;
#endif
  static constexpr int kCols = 2 * Vec<float>::kWidth;
  static constexpr int kPositions = 48;  // a multiple of every tile's rows
  static constexpr int rows(int vecs) { return kSums / vecs; }
  // Whether registers suffice for a pointer for each row.
  static constexpr bool crosses_rows(int vecs) { return rows(vecs) <= 6; }
};

// f(integral_constant of the vectors that so many channels of a panel take).
template <class F>
auto with_vectors(int64_t channels, const F& f) {
  return channels > Vec<float>::kWidth ? f(std::integral_constant<int, 2>{})
                                       : f(std::integral_constant<int, 1>{});
}

// put(Σ_p from[offsets[p] + row] · panel[p, column]) for kRows × kVecs vectors
template <int kRows, int kVecs, class Put>
[[gnu::always_inline]] inline void multiply_at(int64_t depth, const float* from,
                                               const int64_t* offsets, const float* panel,
                                               const Put& put) {
  const auto columns = [=](int64_t p) { return from + offsets[p]; };
  const auto rows = [=](int64_t p) { return panel + p * kVecs * Vec<float>::kWidth; };
  multiply_rows<float, kRows, kVecs>(depth, columns, rows, put);
}

// The same with from[row][offsets[p]].
template <int kRows, int kVecs, class Put>
[[gnu::always_inline]] inline void multiply_at(int64_t depth, const float* const (&from)[kRows],
                                               const int64_t* offsets, const float* panel,
                                               const Put& put) {
  struct Column {
    const float* const* from;
    int64_t offset;
    float operator[](int row) const { return from[row][offset]; }
  };
  const auto columns = [&](int64_t p) { return Column{from, offsets[p]}; };
  const auto rows = [=](int64_t p) { return panel + p * kVecs * Vec<float>::kWidth; };
  multiply_rows<float, kRows, kVecs>(depth, columns, rows, put);
}

// Where positions begin in the planes: at column x of rows of `columns`, with `gap` elements that
// are no positions between these.
struct Rows {
  const float* image;
  int64_t x, columns, gap;

  bool hold(int count) const { return gap == 0 || x + count <= columns; }
  void advance(int count) {
    image += count, x += count;
    for (; x >= columns; x -= columns) image += gap;
  }
};

// The image at the offsets of `depth` taps · a panel of weights, for parts of `count` positions,
// the last one maybe of fewer; put_of(part, parts) goes before each and says where its sums go.
//
// By reference, as below: a structure written by parts and copied as a whole waits for all stores
// before, those of results among them.
template <int kVecs, class PutOf>
void multiply_taps(int64_t depth, const Rows& first, int64_t count, const int64_t* offsets,
                   const float* weight, const PutOf& put_of) {
  constexpr int kRows = TapTile::rows(kVecs);
  Rows from = first;
  const int parts = static_cast<int>(ceil_div(count, kRows));
  for (int part = 0; part < parts; ++part) {
    const auto put = put_of(part, parts);
    const int64_t left = count - part * kRows;
    if (left < kRows && from.hold(static_cast<int>(left))) {
      with_constant<kRows - 1>(left, [&]<int kLeft>(std::integral_constant<int, kLeft>) {
        multiply_at<kLeft, kVecs>(depth, from.image, offsets, weight, put);
      });
    } else if (from.hold(kRows)) {
      multiply_at<kRows, kVecs>(depth, from.image, offsets, weight, put);
      from.advance(kRows);
    } else if constexpr (TapTile::crosses_rows(kVecs)) {
      const float* images[kRows];
      for (int64_t r = 0, p = part * kRows; r < kRows; ++r) {
        images[r] = from.image;
        if (++p < count) from.advance(1);  // behind the last row there may be no memory
      }
      multiply_at<kRows, kVecs>(depth, images, offsets, weight, put);
    }
  }
}

// What lies between the rows is computed too, but where the tiles of all panels can do without.
template <class T>
Numbering numbering(const Correlation<T>& c, const Axis& y, const Axis& x) {
  const int64_t last = c.channels % TapTile::kCols;
  const int vecs = last > 0 && last <= Vec<float>::kWidth ? 1 : 2;
  const bool dense = TapTile::crosses_rows(vecs) || x.positions % TapTile::rows(vecs) == 0;
  return dense ? Numbering{x.positions, y.positions * x.positions} : PaddedGrid(y, x).flat();
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
  const int64_t* offsets;  // of the taps, in the order (channel, ky, kx)
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
      tap_offsets(band, grid, /*channels_last=*/false, offsets.get());
      GridPlanes<kMasked, T> planes(band, grid, c.channels_last, band.channels);
      worker({n, row, band.y.positions, grid, planes.fill(n, 0, band.channels), offsets.get()});
    }
  });
}

template <bool kMasked, class T>
class VectorCorrelation {
 public:
  explicit VectorCorrelation(const Correlation<T>& c)
      : c_(c),
        taps_(c.images.taps()),
        weight_(ceil_div(c.channels, V::kWidth) * V::kWidth * taps_) {}

  void run() {
    pack_weight();
    for_bands<kMasked>(c_, [&] { return Worker(*this); });
  }

 private:
  using V = Vec<float>;
  static constexpr int kCols = TapTile::kCols, kPositions = TapTile::kPositions;
  static_assert(kPositions <= GridSink<T>::kMaxPositions);
  static constexpr int64_t kRange = 2 * kPositions;  // whose sums share L1 with the weights

  // Panels of kCols channels, the last one of one vector where that is enough; the depth in the
  // order (channel, ky, kx), in which a stretch meets few planes.
  void pack_weight() {
    parallel_for(0, ceil_div(c_.channels, kCols), 1, [&](int64_t begin, int64_t end) {
      Scratch<float> window(kCols * c_.images.channels);
      for (int64_t i = begin * kCols; i < std::min(c_.channels, end * kCols); i += kCols) {
        with_vectors(c_.channels - i, [&]<int kVecs>(std::integral_constant<int, kVecs>) {
          c_.weights->template pack_taps<kVecs * V::kWidth>(i, window.get(),
                                                            weight_.get() + i * taps_);
        });
      }
    });
  }

  class Worker {
   public:
    explicit Worker(const VectorCorrelation& job)
        : job_(job), sums_(kRange * kCols), sink_(job.c_) {}

    void operator()(const GridBand& band) {
      const Axis x = job_.c_.images.x, y = row_band(job_.c_.images, band.row, band.rows).y;
      const Numbering all = numbering(job_.c_, y, x);
      // Long rows one by one where these lie apart: lines do not go on beyond a row's end.
      const bool apart =
          job_.c_.channels_last && all.pitch > x.positions && x.positions >= kPositions;
      const int64_t length = apart ? x.positions : all.span, step = apart ? all.pitch : all.span;
      for (int64_t first = 0; first < all.span; first += step) {
        for (int64_t p = 0; p < length; p += kRange) {
          multiply(band, GridStretch(all, first + p, std::min(kRange, length - p)), all);
        }
      }
    }

   private:
    // A panel of channels from i on, and where its results go.
    struct Panel {
      const Numbering& all;
      int64_t i, channels;
      T* out;
    };

    void multiply(const GridBand& band, const GridStretch& range, const Numbering& all) {
      for (int64_t i = 0; i < job_.c_.channels; i += kCols) {
        const int64_t channels = std::min<int64_t>(kCols, job_.c_.channels - i);
        multiply(band, range, {all, i, channels, sink_.rows(band.n, band.row)});
      }
    }

    // The last taps send the sums on while the next ones' products are computed, or at once.
    void multiply(const GridBand& band, const GridStretch& range, const Panel& panel) {
      const int64_t taps = job_.taps_, length = tap_stretch(taps), pitch = band.grid.pitch();
      for (int64_t t = 0; t < taps; t += length) {
        const int64_t depth = std::min(length, taps - t);
        for (int64_t q = 0; q < range.count; q += kPositions) {
          const GridStretch at = range.part(panel.all, q, q + kPositions);
          const Rows from{band.image + at.y * pitch + at.x, at.x, panel.all.pitch,
                          pitch - panel.all.pitch};
          const Tile<float> tile{sums_.get() + q * kCols, kCols, t > 0};
          with_vectors(panel.channels, [&]<int kVecs>(std::integral_constant<int, kVecs>) {
            multiply_block<kVecs>(t, depth, band.offsets + t, from, at, panel, tile);
          });
        }
      }
    }

    // Taps from t on of up to kPositions positions.
    template <int kVecs>
    void multiply_block(int64_t t, int64_t depth, const int64_t* offsets, const Rows& from,
                        const GridStretch& at, const Panel& panel, const Tile<float>& tile) {
      constexpr int kRows = TapTile::rows(kVecs);
      const bool last = t + depth == job_.taps_;
      const float* weight = job_.weight_.get() + panel.i * job_.taps_ + t * kVecs * V::kWidth;
      if constexpr (std::is_same_v<T, float>) {
        const Lines<T> lines =
            last && panel.channels == kVecs * V::kWidth ? pixel_lines(at, panel) : Lines<T>{};
        if (lines.out != nullptr) {
          return multiply_taps<kVecs>(depth, from, at.count, offsets, weight, [&](int part, int) {
            const Leaving<T> put{tile.below(part * kRows), lines.below(part * kRows)};
            const int64_t left = at.count - part * kRows;
            put.lines.below(kPositions)
                .prefetch(static_cast<int>(std::min<int64_t>(kRows, left)), kVecs * V::kWidth);
            return put;
          });
        }
      }
      multiply_taps<kVecs>(depth, from, at.count, offsets, weight, [&](int part, int parts) {
        if (last) sink_.prefetch(panel.all, at, panel.i, panel.channels, panel.out, part, parts);
        return tile.below(part * kRows);
      });
      if (last) {
        sink_.store_positions(panel.all, at, panel.i, panel.channels, {tile.c, kCols}, panel.out);
      }
    }

    // Where sums can leave from the registers.
    Lines<T> pixel_lines(const GridStretch& at, const Panel& panel) const {
      if (!job_.c_.channels_last || at.count == 0) return {};
      return sink_.pixel_lines(panel.all, at, panel.i, panel.out);
    }

    const VectorCorrelation& job_;
    Scratch<float> sums_;
    const GridSink<T> sink_;
  };

  const Correlation<T>& c_;
  const int64_t taps_;
  const Scratch<float> weight_;
};

// Most positions of the tiles are no row's end, an element meets several taps, and an image has
// positions enough for weights that are read anew for each.
template <class T>
bool grid_pays(const Correlation<T>& c) {
  const Axis &y = c.images.y, &x = c.images.x;
  const int64_t span = numbering(c, y, x).span, positions = c.images.positions_per_image();
  const int64_t computed = ceil_div(span, TapTile::rows(2)) * TapTile::rows(2);
  return y.taps * x.taps > 1 && positions >= 2 * TapTile::kPositions &&
         5 * positions >= 4 * computed;
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
