// The weight gradient by tiles of bfloat16: taps × positions times positions × output channels,
// both numbered by a grid (split_image_bf16.h), so that a tap's row of 32 positions is a copy.
//
// A matrix unit wants those copies, 32 taps at a time. Dot products of pairs find them among the
// parts, and those of planes of a 1×1 kernel in the images themselves, which then have no parts.
//
// A thread takes a slice of the images' bands and keeps its own sums of all weights; the slices are
// added in order. Sums leave the tiles every kMaxDepth positions, which keeps float32's accuracy.
#pragma once

#include "conv2d/split_image_bf16.h"
#include "conv2d/tile_products_bf16.h"
#include "conv2d/weight_sums_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Rows of the result's gradient as an operand, numbered as the positions of a grid whose rows are
// `pitch` apart: zero at their ends.
template <bool kMasked, class T>
class GridGradient {
 public:
  using Element = T;
  using Acc = float;
  static constexpr bool kWords = std::is_same_v<T, BFloat16>;

  // Of up to `panels` panels of positions.
  GridGradient(const Images<T>& g, bool channels_last, int64_t panels)
      : g_(g),
        channels_last_(channels_last),
        chunks_(2 * panels),
        runs_(kWords ? panels * kGridStep : 0),
        first_run_(kWords ? panels + 1 : 0) {}

  // Rows of the images from now on: `rows` of them from `row` on of image n.
  void set_rows(int64_t n, int64_t row, int64_t rows, int64_t pitch) {
    const int64_t width = g_.x.size, panels = ceil_div((rows - 1) * pitch + width, kGridStep);
    first_ = (n * g_.total_channels * g_.y.size + row) * width;
    if (channels_last_) first_ = (n * g_.y.size + row) * width * g_.total_channels;
    for (int64_t chunk = 0; chunk < 2 * panels; ++chunk) {
      const int64_t y = chunk * 16 / pitch, x = chunk * 16 % pitch;
      unsigned mask = 0;
      for (int64_t lane = 0, cy = y, cx = x; lane < 16; ++lane, ++cx) {
        if (cx == pitch) cx = 0, ++cy;
        mask |= static_cast<unsigned>(cx < width && cy < rows) << lane;
      }
      chunks_[chunk] = {std::min(y * width + std::min(x, width), rows * width), mask};
    }
    if (kWords && !channels_last_) find_runs(panels);
  }

  bool rows_contiguous() const { return !channels_last_; }

  // 32 channels from c on at position p of pixels.
  __m512i words(int64_t c, int64_t p) const
    requires kWords
  {
    const int64_t place = place_of(p);
    if (place < 0) return _mm512_setzero_si512();
    const int64_t at = pixel(place) + c;
    // By itself the machine has as many lines underway as pixels it looks ahead, ten or so.
    const int64_t ahead = at + 64 * g_.total_channels;
    prefetch_to_read(g_.data + ahead);
    if constexpr (kMasked) prefetch_to_read(g_.mask + ahead);
    return load_words<kMasked>(g_, at, first_words(g_.channels - c));
  }

  // 32 positions from p on of a planar channel.
  __m512i row_words(int64_t channel, int64_t p) const
    requires kWords
  {
    __m512i words = _mm512_setzero_si512();
    if (channel >= g_.channels) return words;
    const int64_t plane = first_ + channel * g_.y.size * g_.x.size;
    for (int64_t i = first_run_[p / kGridStep]; i < first_run_[p / kGridStep + 1]; ++i) {
      const int64_t at = plane + runs_[i].start;
      // 32 channels, and as many masks, are more streams than the machine follows.
      prefetch_to_read(g_.data + at + kAhead);
      if constexpr (kMasked) prefetch_to_read(g_.mask + at + kAhead);
      words = _mm512_or_si512(words, load_words<kMasked>(g_, at, runs_[i].lanes));
    }
    return words;
  }

  // 16 positions from p on of a planar channel: dense in memory, spread over the grid.
  Vec<float> load_row(int64_t channel, int64_t p, int) const {
    const Chunk& chunk = chunks_[p / 16];
    if (channel >= g_.channels || chunk.mask == 0) return Vec<float>::zero();
    const int64_t at = first_ + channel * g_.y.size * g_.x.size + chunk.start;
    // 32 channels, and as many masks, are more streams than the machine follows.
    prefetch_to_l2(g_.data + at + kAhead);
    if constexpr (kMasked) prefetch_to_l2(g_.mask + at + kAhead);
    const auto x = load_masked<T, kMasked>(g_, at, __builtin_popcount(chunk.mask));
    return {_mm512_maskz_expand_ps(static_cast<__mmask16>(chunk.mask), x.v)};
  }

  template <int kWidth>
  void pack(int64_t c, int64_t p, int64_t depth, float* panel) const {
    for (int64_t q = 0; q < depth; ++q, panel += kWidth) {
      const int64_t place = place_of(p + q);
      for (int v = 0; v < kWidth; v += 16) {
        const int n = static_cast<int>(std::clamp<int64_t>(g_.channels - c - v, 0, 16));
        const auto x = place >= 0 && n > 0 ? load_masked<T, kMasked>(g_, pixel(place) + c + v, n)
                                           : Vec<float>::zero();
        x.store(panel + v);
      }
    }
  }

 private:
  struct Chunk {
    int64_t start;  // positions before it
    unsigned mask;  // its lanes that are positions
  };
  // Lanes of a panel that are positions of one row; the first lane's would be at `start`.
  struct Run {
    int64_t start;
    __mmask32 lanes;
  };

  void find_runs(int64_t panels) {
    int64_t count = 0;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const Chunk &low = chunks_[2 * panel], &high = chunks_[2 * panel + 1];
      int64_t place = low.mask != 0 ? low.start : high.start;
      first_run_[panel] = count;
      for (__mmask32 rest = low.mask | high.mask << 16; rest != 0;) {
        const int lane = __builtin_ctz(rest);
        const int length = __builtin_ctzll(~(uint64_t{rest} >> lane));
        const __mmask32 lanes = first_words(length) << lane;
        runs_[count++] = {place - lane, lanes};
        place += length;
        rest &= ~lanes;
      }
    }
    first_run_[panels] = count;
  }

  // How many positions of the image lie before p in these rows, or -1 at a row's end.
  int64_t place_of(int64_t p) const {
    const Chunk& chunk = chunks_[p / 16];
    const unsigned below = chunk.mask & ((1u << p % 16) - 1);
    return chunk.mask >> p % 16 & 1 ? chunk.start + __builtin_popcount(below) : -1;
  }
  int64_t pixel(int64_t place) const { return first_ + place * g_.total_channels; }

  static constexpr int64_t kAhead = 256 / sizeof(T);

  const Images<T> g_;
  const bool channels_last_;
  int64_t first_ = 0;
  Scratch<Chunk> chunks_;
  Scratch<Run> runs_;
  Scratch<int64_t> first_run_;
};

template <int kParts, bool kMasked, class T>
class SplitWeightGradient {
  using Engine = TileEngine<kParts>;
  static constexpr bool kListed = kUnsplit<kParts, T> && !kMatrixUnit;  // taps are where they are

 public:
  // x meets the taps; g, of the same positions, has axes of one tap.
  SplitWeightGradient(const Images<T>& x, const Images<T>& g, int64_t batch, bool channels_last)
      : x_(x),
        g_(g),
        channels_last_(channels_last),
        bare_(kListed && !channels_last && x.is_identity() && x.x.size % 2 == 0),
        taps_(x.taps()),
        bands_(cut_rows(x.y.positions, batch, kBandBytes,
                        [this](int64_t rows) { return band_bytes(rows); })),
        units_(batch * bands_.count),
        sums_(taps_, g.channels, std::min<int64_t>(num_threads(), units_)) {}

  // grad[o, tap]; false when bfloat16 parts cannot hold the numbers: grad is undefined then.
  bool run(T* grad) const {
    Scratch<bool> regular(sums_.slices());
    sums_.for_slices(units_, [&](int64_t slice, int64_t first, int64_t last) {
      regular[slice] = Worker(*this, slice).run(first, last);
    });
    if (!std::all_of(regular.get(), regular.get() + sums_.slices(), [](bool r) { return r; })) {
      return false;
    }
    sums_.template write<true>(grad);
    return true;
  }

 private:
  static constexpr int64_t kPanel = WeightSums::kPanel;
  // The parts of a band of x and the panels of g share a 2 MiB L2 with the sums.
  static constexpr int64_t kBandBytes = 768 << 10;

  int64_t band_bytes(int64_t rows) const {
    const PaddedGrid grid = band_grid(x_, rows);
    return (grid.part_elements(x_.channels) + grid.panels() * kGridStep * g_.channels) * kParts * 2;
  }

  class Worker {
   public:
    Worker(const SplitWeightGradient& job, int64_t slice)
        : job_(job),
          slice_(slice),
          grid_(band_grid(job.x_, job.bands_.rows)),
          gradient_(job.g_, job.channels_last_, grid_.panels()),
          offsets_(job.sums_.tap_panels() * kPanel),
          steps_(kListed ? grid_.panels() : 0),
          parts_(job.bare_ ? 0 : kParts * grid_.part_elements(job.x_.channels)),
          a_panel_(kListed ? 0 : Engine::kMaxDepth / kGridStep * Engine::kStepElements),
          b_panels_(job.sums_.out_panels() * grid_.panels() * Engine::kStepElements) {
      place_taps();
    }

    // Bands [first, last) of all images; returns whether the parts were faithful.
    bool run(int64_t first, int64_t last) {
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t row = unit % job_.bands_.count * job_.bands_.rows;
        const int64_t rows = std::min(job_.bands_.rows, job_.x_.y.positions - row);
        if (rows != grid_.y.axis.positions) {
          grid_ = band_grid(job_.x_, rows);
          place_taps();
        }
        const int64_t n = unit / job_.bands_.count;
        if (!set_image(n, row, rows) || !pack_gradient(n, row, rows)) return false;
        multiply(unit > first);
      }
      return true;
    }

   private:
    // Where taps lie among the parts, or in the planes of the image, and steps in each.
    void place_taps() {
      if (job_.bare_) {
        for (int64_t t = 0; t < job_.taps_; ++t) offsets_[t] = t * job_.x_.y.size * job_.x_.x.size;
      } else {
        tap_offsets(job_.x_, grid_, job_.channels_last_, offsets_.get());
      }
      std::fill(&offsets_[job_.taps_], &offsets_[job_.sums_.tap_panels() * kPanel], offsets_[0]);
      for (int64_t s = 0; kListed && s < grid_.panels(); ++s) {
        const int64_t rest = job_.bare_ ? grid_.span - s * kGridStep : kGridStep;
        steps_[s] = {s * kGridStep, static_cast<int>(std::min(kGridStep, rest)) / 2};
      }
    }

    // Whether its numbers may meet what is no gradient but zero, at the ends of rows.
    bool set_image(int64_t n, int64_t row, int64_t rows) {
      const Images<T>& x = job_.x_;
      if (job_.bare_) {
        const T* data = x.data + (n * x.total_channels * x.y.size + row) * x.x.size;
        image_ = reinterpret_cast<const uint16_t*>(data);
        return true;
      }
      image_ = parts_.get();
      const Magnitude magnitude =
          split_image<kParts, false>(row_band(x, row, rows), job_.channels_last_, n, parts_.get());
      return kUnsplit<kParts, T> ? magnitude.finite() : magnitude.regular();
    }

    bool pack_gradient(int64_t n, int64_t row, int64_t rows) {
      gradient_.set_rows(n, row, rows, grid_.pitch());
      bool regular = true;
      for (int64_t j = 0; j < job_.sums_.out_panels(); ++j) {
        regular &= engine_.pack_b(gradient_, j * kPanel, 0, grid_.panels() * kGridStep,
                                  b_panels_.get() + j * grid_.panels() * Engine::kStepElements);
      }
      return regular;
    }

    void multiply(bool add) {
      const int64_t panels = grid_.panels();
      const int64_t blocks = ceil_div(panels, Engine::kMaxDepth / kGridStep);
      const int64_t length = ceil_div(panels, blocks);
      for (int64_t step = 0; step < panels; step += length, add = true) {
        const int64_t count = std::min(length, panels - step);
        for (int64_t i = 0; i < job_.sums_.tap_panels(); ++i) {
          const auto taps = tap_tiles(i * kPanel, step, count);
          const int rows = static_cast<int>(std::min(kPanel, job_.taps_ - i * kPanel));
          for (int64_t j = 0; j < job_.sums_.out_panels(); ++j) {
            const int cols = static_cast<int>(std::min(kPanel, job_.g_.channels - j * kPanel));
            const PackedTiles<kParts> outs{b_panels_.get() +
                                           (j * panels + step) * Engine::kStepElements};
            engine_.multiply(rows, cols, count * kGridStep, taps, outs,
                             job_.sums_.tile(slice_, i, j), kPanel, add);
          }
        }
      }
    }

    // 32 taps from t0 on, `count` steps of 32 positions.
    auto tap_tiles(int64_t t0, int64_t step, int64_t count) {
      if constexpr (kListed) {
        return ListedTiles{image_, &steps_[step], &offsets_[t0], kGridStep};
      } else {
        pack_taps(t0, step, count);
        return PackedTiles<kParts>{a_panel_.get()};
      }
    }
    void pack_taps(int64_t t0, int64_t step, int64_t count) {
      const int64_t part = grid_.part_elements(job_.x_.channels);
      for (int64_t r = 0; r < kPanel; ++r) {
        uint16_t* out = a_panel_.get() + r * kGridStep;
        const bool some = t0 + r < job_.taps_;
        const uint16_t* from = parts_.get() + (some ? offsets_[t0 + r] : 0) + step * kGridStep;
        for (int64_t s = 0; s < count; ++s, from += kGridStep, out += Engine::kStepElements) {
          for (int p = 0; p < kParts; ++p) {
            _mm512_store_si512(out + p * Engine::kPartElements,
                               some ? _mm512_loadu_si512(from + p * part) : _mm512_setzero_si512());
          }
        }
      }
    }

    const SplitWeightGradient& job_;
    const int64_t slice_;
    Engine engine_;
    PaddedGrid grid_;
    GridGradient<kMasked, T> gradient_;
    Scratch<int64_t> offsets_;
    Scratch<ImageStep> steps_;
    Scratch<uint16_t> parts_, a_panel_, b_panels_;
    const uint16_t* image_ = nullptr;
  };

  const Images<T> x_, g_;
  const bool channels_last_;
  const bool bare_;  // whole pairs of positions are read from the planes of x
  const int64_t taps_;
  const RowBands bands_;
  const int64_t units_;
  const WeightSums sums_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
