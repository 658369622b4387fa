// Correlation with vector registers: an image is written once as float32 pixels with the padding
// around (pixel_grid_simd.h), where the taps of a position are a few runs of memory, whatever the
// stride; so nothing is packed, nor stored, for each tap. A tile is positions of a row, broadcast
// from their pixels, times vectors of channels.
//
// A task is a band of rows of one image, whose pixels stay in L2. A stretch of a panel of weights
// stays in L1 while a range of positions meets it.
#pragma once

#include "conv2d/grid_sink_simd.h"
#include "conv2d/pixel_grid_simd.h"
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
  static constexpr int rows(int vecs) { return kSums / vecs; }
};

// f(integral_constant of the vectors that so many channels of a panel take).
template <class F>
auto with_vectors(int64_t channels, const F& f) {
  return channels > Vec<float>::kWidth ? f(std::integral_constant<int, 2>{})
                                       : f(std::integral_constant<int, 1>{});
}

// Taps side by side, of which the first lies `offset` from a position's pixel.
struct TapRun {
  int64_t offset, length;
};

// Taps from the first on, by runs: their products are one running sum.
struct TapStretch {
  const TapRun* runs;
  int64_t count, first, taps;
};

// Numbers a step apart, by a pointer to every third.
template <int kRows>
struct SteppedColumn {
  static constexpr int kThird = 3, kPointers = (kRows + kThird - 1) / kThird;
  const float* thirds[kPointers];
  int64_t step;

  SteppedColumn(const float* first, int64_t distance) : step(distance) {
#pragma GCC unroll 8
    for (int t = 0; t < kPointers; ++t) thirds[t] = first + t * kThird * step;
  }
  [[gnu::always_inline]] const float& operator[](int row) const {
    return thirds[row / kThird][row % kThird * step];
  }
  [[gnu::always_inline]] void advance(int numbers) {
#pragma GCC unroll 8
    for (int t = 0; t < kPointers; ++t) thirds[t] += numbers;
  }
};

// put(Σ_p pixels[row * step + tap p] · panel[p, column]) for kRows × kVecs vectors
template <int kRows, int kVecs, class Put>
[[gnu::always_inline]] inline void multiply_runs(const TapStretch& taps, const float* pixels,
                                                 int64_t step, const float* panel, const Put& put) {
  constexpr int kCols = kVecs * Vec<float>::kWidth;
  Vec<float> sums[kRows][kVecs];
  clear<float>(sums);
  for (const TapRun* run = taps.runs; run < taps.runs + taps.count; ++run) {
    SteppedColumn<kRows> column(pixels + run->offset, step);
#pragma GCC unroll 4
    for (int64_t p = 0; p < run->length; ++p, panel += kCols) {
      add_outer_product<float>(column, panel, sums);
      column.advance(1);
    }
  }
  put_sums<float>(sums, put);
}

// How the taps of a grid's positions are summed: by parts of its runs, in stretches. A running sum
// of more products would lose more digits than float32 results may.
class TapStretches {
 public:
  explicit TapStretches(const PixelGrid& grid)
      : run_(grid.run()),
        parts_(ceil_div(run_, kMost)),
        runs_count_(grid.runs() * parts_),
        count_(ceil_div(runs_count_, kMost / ceil_div(run_, parts_))),
        runs_(runs_count_) {
    for (int64_t i = 0; i < runs_count_; ++i) {
      const int64_t run = i / parts_, tap = first_tap(i);
      runs_[i] = {grid.run_offset(run) + tap - run * run_, first_tap(i + 1) - tap};
    }
  }

  int64_t count() const { return count_; }
  TapStretch operator[](int64_t i) const {
    const int64_t begin = runs_count_ * i / count_, end = runs_count_ * (i + 1) / count_;
    const int64_t tap = first_tap(begin);
    return {&runs_[begin], end - begin, tap, first_tap(end) - tap};
  }

 private:
  static constexpr int64_t kMost = 112;

  int64_t first_tap(int64_t i) const { return i / parts_ * run_ + run_ * (i % parts_) / parts_; }

  const int64_t run_, parts_, runs_count_, count_;
  const Scratch<TapRun> runs_;
};

// Whether the images are what a grid would be a copy of.
template <bool kMasked, class T>
bool lies_in_place(const Correlation<T>& c) {
  const auto has_no_padding = [](const Axis& a) {
    return a.origin >= 0 && a.at(a.positions - 1, a.taps - 1) < a.size;
  };
  return std::is_same_v<T, float> && !kMasked && c.channels_last && has_no_padding(c.images.y) &&
         has_no_padding(c.images.x);
}

template <bool kMasked, class T>
class VectorCorrelation {
 public:
  explicit VectorCorrelation(const Correlation<T>& c)
      : c_(c),
        in_place_(lies_in_place<kMasked>(c)),
        grid_(in_place_ ? PixelGrid::in_place(c.images) : PixelGrid(c.images)),
        stretches_(grid_),
        columns_(c.images.x.positions),
        piece_(ceil_div(columns_, ceil_div(columns_, kPositions))),
        taps_(c.images.taps()),
        weight_(ceil_div(c.channels, V::kWidth) * V::kWidth * taps_) {}

  void run() {
    pack_weight();
    const RowBands bands = cut_rows(c_.images.y.positions, c_.batch, kBandBytes, [&](int64_t rows) {
      return in_place_ ? 0 : grid_.elements(rows) * static_cast<int64_t>(sizeof(float));
    });
    parallel_for(0, c_.batch * bands.count, 1, [&](int64_t begin, int64_t end) {
      Worker worker(*this, bands.rows);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit % bands.count * bands.rows;
        worker.run(unit / bands.count, row, std::min(bands.rows, c_.images.y.positions - row));
      }
    });
  }

 private:
  using V = Vec<float>;
  static constexpr int kCols = TapTile::kCols;
  static constexpr int kPositions = GridSink<T>::kMaxPositions;  // of a piece of a row
  static constexpr int64_t kRange = 2 * kPositions;  // whose sums share L1 with the weights
  static constexpr int64_t kBandBytes = 512 << 10;   // half an L2 of 1 MiB

  // Panels of kCols channels, the last one of one vector where that is enough.
  void pack_weight() {
    parallel_for(0, ceil_div(c_.channels, kCols), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kCols; i < std::min(c_.channels, end * kCols); i += kCols) {
        with_vectors(c_.channels - i, [&]<int kVecs>(std::integral_constant<int, kVecs>) {
          c_.weights->template pack_taps<kVecs * V::kWidth>(i, weight_.get() + i * taps_);
        });
      }
    });
  }

  class Worker {
   public:
    Worker(const VectorCorrelation& job, int64_t rows)
        : job_(job),
          room_(job.in_place_ ? 0 : job.grid_.elements(rows)),
          sums_((kRange + V::kWidth) * kCols),
          sink_(job.c_) {
      if (!job.in_place_) {
        std::memset(room_.get(), 0, sizeof(float) * job.grid_.elements(rows));
      }
    }

    // Rows [row, row + rows) of image n, a range of whole rows or of one's pieces at a time.
    void run(int64_t n, int64_t row, int64_t rows) {
      const Correlation<T>& c = job_.c_;
      place_pixels(n, row, rows);
      const int64_t columns = job_.columns_, height = std::max<int64_t>(1, kRange / columns);
      const int64_t width = columns <= kRange ? columns : kRange / job_.piece_ * job_.piece_;
      const Numbering all{columns, rows * columns};
      for (int64_t y = 0; y < rows; y += height) {
        for (int64_t x = 0; x < columns; x += width) {
          const Range range{y, std::min(y + height, rows), x, std::min(x + width, columns)};
          for (int64_t i = 0; i < c.channels; i += kCols) {
            const int64_t channels = std::min<int64_t>(kCols, c.channels - i);
            with_vectors(channels, [&]<int kVecs>(std::integral_constant<int, kVecs>) {
              multiply<kVecs>(range, {all, i, channels, sink_.rows(n, row)});
            });
          }
        }
      }
    }

   private:
    // Rows and columns of positions.
    struct Range {
      int64_t y, y_end, x, x_end;
    };
    // A panel of channels from i on, and where its results go.
    struct Panel {
      const Numbering& all;
      int64_t i, channels;
      T* out;
    };
    // A stretch's taps and their weights; and whether its pixels are read for the first time.
    struct Factors {
      TapStretch taps;
      const float* weight;
      bool asks;
    };

    void place_pixels(int64_t n, int64_t row, int64_t rows) {
      const Correlation<T>& c = job_.c_;
      if constexpr (std::is_same_v<T, float>) {
        if (job_.in_place_) {
          const Axis &y = c.images.y, &x = c.images.x;
          const int64_t first = (n * y.size + y.origin + row * y.stride) * x.size + x.origin;
          pixels_ = c.images.data + first * c.images.total_channels;
          return;
        }
      }
      fill_pixels<kMasked>(c.images, job_.grid_, c.channels_last, n, row, rows, room_.get());
      pixels_ = room_.get();
    }

    template <int kVecs>
    void multiply(const Range& range, const Panel& panel) {
      const float* weight = job_.weight_.get() + panel.i * job_.taps_;
      for (int64_t s = 0; s < job_.stretches_.count(); ++s) {
        const bool last = s + 1 == job_.stretches_.count();
        const Factors factors{job_.stretches_[s], weight, job_.in_place_ && panel.i == 0};
        float* sums = sums_.get();
        for (int64_t y = range.y; y < range.y_end; ++y) {
          for (int64_t x = range.x; x < range.x_end; x += job_.piece_) {
            const GridStretch at(panel.all, y, x, std::min(job_.piece_, range.x_end - x));
            multiply_piece<kVecs>(factors, at, panel, {sums, kCols, s > 0}, last);
            sums += at.count * kCols;
          }
        }
        weight += factors.taps.taps * kVecs * V::kWidth;
      }
    }

    // The last taps send the sums on while the next ones' products are computed, or at once.
    template <int kVecs>
    void multiply_piece(const Factors& factors, const GridStretch& at, const Panel& panel,
                        const Tile<float>& tile, bool last) {
      if constexpr (std::is_same_v<T, float>) {
        if (last && panel.channels == kVecs * V::kWidth && job_.c_.channels_last) {
          const Lines<T> lines = sink_.pixel_lines(at, panel.i, panel.out);
          return multiply_tiles<kVecs>(factors, at, [&](int first, int rows, int, int) {
            const Leaving<T> put{tile.below(first), lines.below(first)};
            put.lines.below(kPositions).prefetch(rows, kVecs * V::kWidth);
            return put;
          });
        }
      }
      multiply_tiles<kVecs>(factors, at, [&](int first, int, int part, int tiles) {
        if (last) sink_.prefetch(panel.all, at, panel.i, panel.channels, panel.out, part, tiles);
        return tile.below(first);
      });
      if (last) {
        sink_.store_positions(panel.all, at, panel.i, panel.channels, {tile.c, kCols}, panel.out);
      }
    }

    // In tiles of about as many positions each; put_of(first, positions, tile, tiles) goes before
    // each and says where its sums go.
    template <int kVecs, class PutOf>
    void multiply_tiles(const Factors& factors, const GridStretch& at, const PutOf& put_of) {
      constexpr int kRows = TapTile::rows(kVecs);
      const int64_t step = job_.grid_.step();
      const float* pixels = pixels_ + job_.grid_.position(at.y, at.x);
      const int count = static_cast<int>(at.count), tiles = (count + kRows - 1) / kRows;
      const int even = count / tiles, more = count - even * tiles;  // of so many tiles one more
      int first = 0, tile = 0;
      const auto multiply = [&](int rows, int some) {
        with_constant<kRows>(rows, [&]<int kSome>(std::integral_constant<int, kSome>) {
          for (int k = 0; k < some; ++k, ++tile, first += kSome) {
            if (factors.asks) ask_for_pixels(factors.taps, pixels + first * step, kSome);
            multiply_runs<kSome, kVecs>(factors.taps, pixels + first * step, step, factors.weight,
                                        put_of(first, kSome, tile, tiles));
          }
        });
      };
      multiply(even + 1, more);
      multiply(even, tiles - more);
    }

    // What the taps of as many positions will meet, a piece further on.
    void ask_for_pixels(const TapStretch& taps, const float* pixels, int count) const {
      constexpr int64_t kLine = 64 / sizeof(float);
      const int64_t step = job_.grid_.step();
      for (int r = kPositions; r < kPositions + count; ++r) {
        for (const TapRun* run = taps.runs; run < taps.runs + taps.count; ++run) {
          const float* from = pixels + r * step + run->offset;
          for (int64_t k = 0; k < run->length; k += kLine) prefetch_to_read(from + k);
        }
      }
    }

    const VectorCorrelation& job_;
    Scratch<float> room_, sums_;
    const float* pixels_ = nullptr;  // of a band
    const GridSink<T> sink_;
  };

  const Correlation<T>& c_;
  const bool in_place_;
  const PixelGrid grid_;
  const TapStretches stretches_;
  const int64_t columns_, piece_, taps_;
  const Scratch<float> weight_;
};

// Positions of a row for as many sums as FMAs are underway.
inline constexpr int64_t kLeastRow = 5;

// An element meets several taps, and an image has positions enough for weights that are read anew
// for each.
template <class T>
bool grid_pays(const Correlation<T>& c) {
  constexpr int64_t kLeast = 96;
  return c.images.y.taps * c.images.x.taps > 1 && c.images.x.positions >= kLeastRow &&
         c.images.positions_per_image() >= kLeast;
}

// The pixels of a batch in rows of as many as a piece may have, where each is a position.
template <class T>
Correlation<T> in_long_rows(const Correlation<T>& c) {
  const int64_t positions = c.batch * c.images.positions_per_image();
  int64_t width = GridSink<T>::kMaxPositions;
  while (positions % width != 0) --width;
  if (!c.images.is_identity() || c.map.cols != positions || width < kLeastRow) return c;
  const auto axis = [](int64_t size) { return Axis{size, size, 1, 1, 0, 1}; };
  Correlation<T> rows = c;
  rows.images.x = axis(width), rows.images.y = axis(positions / width);
  rows.all_rows = rows.images.y.positions, rows.batch = 1;
  return rows;
}

// Whether pixels had better be read where they lie than packed for a product of matrices: that has
// fewer results than numbers to pack, or waits for memory (Zen 5, November 2026).
// Of all rows, whichever band of them is asked for.
template <bool kMasked, class T>
bool pays_in_place(const Correlation<T>& all) {
  constexpr int64_t kLeast = 192, kLarge = 256 << 10;
  const Axis &y = all.images.y, &x = all.images.x;
  const bool one_tap = y.taps == 1 && x.taps == 1;
  const int64_t positions = all.images.positions_per_image(), channels = all.images.channels;
  return lies_in_place<kMasked>(all) && one_tap && x.positions >= kLeastRow &&
         positions >= kLeast &&
         (all.channels <= channels || positions * channels * int64_t{sizeof(T)} >= kLarge);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
