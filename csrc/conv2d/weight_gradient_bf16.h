// The weight gradient by tiles of bfloat16: taps × positions times positions × output channels,
// both numbered by a grid (split_image_bf16.h), so that a tap's row of 32 positions is a copy.
//
// A thread takes a slice of the images' bands and keeps its own sums of all weights; the slices are
// added in order. Sums leave the tiles every kMaxDepth positions, which keeps float32's accuracy.
#pragma once

#include "conv2d/split_image_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Rows of the result's gradient as an operand, numbered as the positions of a grid whose rows are
// `pitch` apart: zero at their ends.
template <bool kMasked, class T>
class GridGradient {
 public:
  using Element = T;
  using Acc = float;

  // Of up to `panels` panels of positions.
  GridGradient(const Images<T>& g, bool channels_last, int64_t panels)
      : g_(g), channels_last_(channels_last), chunks_(2 * panels) {}

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
  }

  bool rows_contiguous() const { return !channels_last_; }

  // 32 channels from c on at position p of pixels.
  __m512i words(int64_t c, int64_t p) const
    requires std::is_same_v<T, BFloat16>
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

  // 16 positions from p on of a planar channel: dense in memory, spread over the grid.
  Vec<float> load_row(int64_t channel, int64_t p, int) const {
    const Chunk& chunk = chunks_[p / 16];
    if (channel >= g_.channels || chunk.mask == 0) return Vec<float>::zero();
    const int64_t at = first_ + channel * g_.y.size * g_.x.size + chunk.start;
    // 32 channels, and as many masks, are more streams than the machine follows.
    __builtin_prefetch(g_.data + at + kAhead, 0, 2);
    if constexpr (kMasked) __builtin_prefetch(g_.mask + at + kAhead, 0, 2);
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
};

template <int kParts, bool kMasked, class T>
class SplitWeightGradient {
  using Engine = TileEngine<kParts>;

 public:
  // x meets the taps; g, of the same positions, has axes of one tap.
  SplitWeightGradient(const Images<T>& x, const Images<T>& g, int64_t batch, bool channels_last)
      : x_(x),
        g_(g),
        channels_last_(channels_last),
        taps_(x.taps()),
        tap_panels_(ceil_div(taps_, kPanel)),
        out_panels_(ceil_div(g.channels, kPanel)),
        bands_(cut_rows(x.y.positions, batch, kBandBytes,
                        [this](int64_t rows) { return band_bytes(rows); })),
        units_(batch * bands_.count),
        slices_(std::min<int64_t>(num_threads(), units_)) {}

  // grad[o, tap]; false when bfloat16 parts cannot hold the numbers: grad is undefined then.
  bool run(T* grad) const {
    const int64_t sums = tap_panels_ * out_panels_ * kTileSums;
    Scratch<float> partial(slices_ * sums);
    Scratch<bool> regular(slices_);
    const int64_t length = ceil_div(units_, slices_);
    parallel_for(0, slices_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t slice = begin; slice < end; ++slice) {
        Worker worker(*this, partial.get() + slice * sums);
        regular[slice] = worker.run(slice * length, std::min(units_, (slice + 1) * length));
      }
    });
    if (!std::all_of(regular.get(), regular.get() + slices_, [](bool r) { return r; })) {
      return false;
    }
    parallel_for(0, tap_panels_ * out_panels_, 4, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        write_tile(partial.get() + tile * kTileSums, sums, tile, grad);
      }
    });
    return true;
  }

 private:
  static constexpr int64_t kPanel = 32, kTileSums = kPanel * kPanel;
  // The parts of a band of x and the panels of g share a 2 MiB L2 with the sums.
  static constexpr int64_t kBandBytes = 768 << 10;

  int64_t band_bytes(int64_t rows) const {
    const PaddedGrid grid = band_grid(x_, rows);
    return (grid.part_elements(x_.channels) + grid.panels() * kGridStep * g_.channels) * kParts * 2;
  }

  void write_tile(const float* sums, int64_t stride, int64_t tile, T* grad) const {
    const int64_t t0 = tile / out_panels_ * kPanel, o0 = tile % out_panels_ * kPanel;
    for (int64_t t = 0; t < std::min(kPanel, taps_ - t0); t += 16) {
      for (int64_t o = 0; o < std::min(kPanel, g_.channels - o0); o += 16) {
        Vec<float> block[16];
        for (int k = 0; k < 16; ++k) {
          const float* row = sums + (t + k) * kPanel + o;
          block[k] = Vec<float>::load(row);
          for (int64_t s = 1; s < slices_; ++s) {
            block[k] = block[k] + Vec<float>::load(row + s * stride);
          }
        }
        transpose(block);
        const int n = static_cast<int>(std::min<int64_t>(16, taps_ - t0 - t));
        for (int64_t k = 0; k < std::min<int64_t>(16, g_.channels - o0 - o); ++k) {
          block[k].store(grad + (o0 + o + k) * taps_ + t0 + t, n);
        }
      }
    }
  }

  class Worker {
   public:
    Worker(const SplitWeightGradient& job, float* sums)
        : job_(job),
          sums_(sums),
          grid_(band_grid(job.x_, job.bands_.rows)),
          gradient_(job.g_, job.channels_last_, grid_.panels()),
          offsets_(job.taps_),
          parts_(kParts * grid_.part_elements(job.x_.channels)),
          a_panel_(Engine::kMaxDepth / kGridStep * Engine::kStepElements),
          b_panels_(job.out_panels_ * grid_.panels() * Engine::kStepElements) {
      tap_offsets(job.x_, grid_, job.channels_last_, offsets_.get());
    }

    // Bands [first, last) of all images; returns whether the parts were faithful.
    bool run(int64_t first, int64_t last) {
      if (first >= last) {
        std::memset(sums_, 0, sizeof(float) * kTileSums * job_.tap_panels_ * job_.out_panels_);
      }
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t row = unit % job_.bands_.count * job_.bands_.rows;
        const int64_t rows = std::min(job_.bands_.rows, job_.x_.y.positions - row);
        if (rows != grid_.y.axis.positions) {
          grid_ = band_grid(job_.x_, rows);
          tap_offsets(job_.x_, grid_, job_.channels_last_, offsets_.get());
        }
        const int64_t n = unit / job_.bands_.count;
        const Magnitude x = split_image<kParts, false>(row_band(job_.x_, row, rows),
                                                       job_.channels_last_, n, parts_.get());
        // Even unsplit x must be finite: at a row's end it meets zeros that are no gradients.
        if (!(kUnsplit<kParts, T> ? x.finite() : x.regular()) || !pack_gradient(n, row, rows))
          return false;
        multiply(unit > first);
      }
      return true;
    }

   private:
    bool pack_gradient(int64_t n, int64_t row, int64_t rows) {
      gradient_.set_rows(n, row, rows, grid_.pitch());
      bool regular = true;
      for (int64_t j = 0; j < job_.out_panels_; ++j) {
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
        for (int64_t i = 0; i < job_.tap_panels_; ++i) {
          pack_taps(i * kPanel, step, count);
          const int rows = static_cast<int>(std::min(kPanel, job_.taps_ - i * kPanel));
          for (int64_t j = 0; j < job_.out_panels_; ++j) {
            const int cols = static_cast<int>(std::min(kPanel, job_.g_.channels - j * kPanel));
            engine_.multiply(rows, cols, count * kGridStep, a_panel_.get(),
                             b_panels_.get() + (j * panels + step) * Engine::kStepElements,
                             sums_ + (i * job_.out_panels_ + j) * kTileSums, kPanel, add);
          }
        }
      }
    }

    // 32 taps from t0 on, rows of 32 positions.
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
    float* const sums_;
    Engine engine_;
    PaddedGrid grid_;
    GridGradient<kMasked, T> gradient_;
    Scratch<int64_t> offsets_;
    Scratch<uint16_t> parts_, a_panel_, b_panels_;
  };

  const Images<T> x_, g_;
  const bool channels_last_;
  const int64_t taps_, tap_panels_, out_panels_;
  const RowBands bands_;
  const int64_t units_, slices_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
