// The weight gradient with vector registers: elements of x along a line of taps times output
// channels of grad_y, summed over positions; vectors of the channels, or of the elements where
// channels are few, and the others broadcast.
//
// A band of x is written once as float32 pixels with their padding, a block of grad_y once as
// panels of channels; every tap is then an offset, and nothing is packed for it. A thread takes a
// slice of the images' bands and keeps its own sums of all weights; slices are added in order.
#pragma once

#include "conv2d/correlate_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// put(Σ_p from[offsets[p] + row] · panel[p, column]) for kRows × kVecs vectors
template <int kRows, int kVecs, class Put>
[[gnu::always_inline]] inline void multiply_at(int64_t depth, const float* from,
                                               const int64_t* offsets, const float* panel,
                                               const Put& put) {
  const auto columns = [=](int64_t p) { return from + offsets[p]; };
  const auto rows = [=](int64_t p) { return panel + p * kVecs * Vec<float>::kWidth; };
  multiply_rows<float, kRows, kVecs>(depth, columns, rows, put);
}

// Elements of a line of taps, from[offsets[p]] on at position p.
struct Elements {
  const float* from;
  const int64_t* offsets;
  int64_t count;
};

// A tile of kLine elements of a line and kOuts output channels, of which kVecs vectors.
template <int kVecs>
struct OutLanes {
  static constexpr int kLine = TapTile::kSums / kVecs, kOuts = kVecs * Vec<float>::kWidth;
  static constexpr int kElementStride = kOuts;

  // Sums of n channels from o on, of the element that begins there.
  static Vec<float> load_outs(const float* element, int64_t o, int n) {
    return load(element + o, n);
  }
  static void multiply(int64_t count, const Elements& elements, const float* panel,
                       int64_t /*outs*/, float* sums, bool add) {
    with_constant<kLine>(elements.count, [&]<int kSome>(std::integral_constant<int, kSome>) {
      multiply_at<kSome, kVecs>(count, elements.from, elements.offsets, panel,
                                Tile<float>{sums, kOuts, add});
    });
  }
};

// The same with vectors of elements, for up to kOuts channels.
struct LineLanes {
  static constexpr int kVecs = 3, kLine = kVecs * Vec<float>::kWidth, kOuts = 4;
  static constexpr int kElementStride = 1;

  static Vec<float> load_outs(const float* element, int64_t o, int n) {
    return load_strided(element + o * kLine, kLine, n);
  }
  static void multiply(int64_t count, const Elements& elements, const float* panel, int64_t outs,
                       float* sums, bool add) {
    const auto columns = [=](int64_t p) { return panel + p * kOuts; };
    const auto rows = [=](int64_t p) { return elements.from + elements.offsets[p]; };
    with_constant<kOuts>(outs, [&]<int kSome>(std::integral_constant<int, kSome>) {
      multiply_rows<float, kSome, kVecs>(count, columns, rows, Tile<float>{sums, kLine, add});
    });
  }
};

template <class Lanes, bool kMasked, class T>
class VectorWeightGradient {
 public:
  // x meets the taps; g, of the same positions, has axes of one tap.
  VectorWeightGradient(const Images<T>& x, const Images<T>& g, int64_t batch, bool channels_last)
      : x_(x),
        g_(g),
        channels_last_(channels_last),
        grid_(x),
        line_(grid_.run()),
        lines_(grid_.runs()),
        line_panels_(ceil_div(line_, kLine)),
        out_panels_(ceil_div(g.channels, kOuts)),
        bands_(cut_rows(
            x.y.positions, batch, kBandBytes,
            [this](int64_t rows) { return pixel_elements(rows) * int64_t{sizeof(float)}; })),
        units_(batch * bands_.count),
        slices_(std::min<int64_t>(num_threads(), units_)) {}

  // grad[o, tap], taps in the order of the layout.
  void run(T* grad) const {
    const int64_t sums = lines_ * line_panels_ * out_panels_ * kTileSums;
    Scratch<float> partial(slices_ * sums);
    const int64_t length = ceil_div(units_, slices_);
    parallel_for(0, slices_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t slice = begin; slice < end; ++slice) {
        Worker worker(*this, partial.get() + slice * sums);
        worker.run(slice * length, std::min(units_, (slice + 1) * length));
      }
    });
    write(partial.get(), sums, grad);
  }

 private:
  using V = Vec<float>;
  static constexpr int kLine = Lanes::kLine, kOuts = Lanes::kOuts;
  static constexpr int64_t kTileSums = kLine * kOuts;
  // The pixels of a band and the sums of many a layer share an L2 of 512 KiB.
  static constexpr int64_t kBandBytes = 256 << 10;
  // Positions of a block: 7 KiB of a panel of grad_y with as much of x in L1. One running sum over
  // more would lose more digits than float32 results may.
  static constexpr int64_t kBlock = 112;

  // Of a band; the last panel of the last line reads on, in whole vectors.
  int64_t pixel_elements(int64_t rows) const { return grid_.elements(rows) + kLine + V::kWidth; }
  // Of panel j of a line: panels of about the same length.
  int64_t first_element(int64_t j) const { return line_ * j / line_panels_; }

  // The slices' sums, `stride` apart, added up to grad: by blocks, since a tap's channels lie side
  // by side among the sums, a channel's taps in grad.
  void write(const float* sums, int64_t stride, T* grad) const {
    constexpr int64_t kWidth = V::kWidth;
    const int64_t taps = x_.taps(), blocks = ceil_div(taps, kWidth);
    Scratch<int64_t> begins(taps);
    for (int64_t at = 0; at < taps; ++at) begins[at] = sums_begin(at);
    parallel_for(0, ceil_div(g_.channels, kWidth) * blocks, 64, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t o = unit / blocks * kWidth, at = unit % blocks * kWidth;
        const int outs = static_cast<int>(std::min(kWidth, g_.channels - o));
        const int some = static_cast<int>(std::min(kWidth, taps - at));
        const float* tiles = sums + o / kOuts * kTileSums;
        V block[kWidth];
        for (int k = 0; k < kWidth; ++k) {
          block[k] = V::zero();
          if (k >= some) continue;
          for (int64_t s = 0; s < slices_; ++s) {
            const float* element = tiles + s * stride + begins[at + k];
            block[k] = block[k] + Lanes::load_outs(element, o % kOuts, outs);
          }
        }
        transpose(block);
        for (int k = 0; k < outs; ++k) store(block[k], grad + (o + k) * taps + at, some);
      }
    });
  }
  // Of the tap that grad has at `at`, for the first panel of channels.
  int64_t sums_begin(int64_t at) const {
    const int64_t window = x_.y.taps * x_.x.taps;
    const int64_t tap = channels_last_ ? at : at % window * x_.channels + at / window;
    const int64_t element = tap % line_, j = ((element + 1) * line_panels_ - 1) / line_;
    const int64_t tile = (tap / line_ * line_panels_ + j) * out_panels_;
    return tile * kTileSums + (element - first_element(j)) * Lanes::kElementStride;
  }

  class Worker {
   public:
    Worker(const VectorWeightGradient& job, float* sums)
        : job_(job),
          sums_(sums),
          pixels_(job.pixel_elements(job.bands_.rows)),
          panels_(job.out_panels_ * kBlock * kOuts),
          line_panel_(kBlock * kLine + V::kWidth),
          offsets_(job.bands_.rows * job.x_.x.positions),
          line_offsets_(kBlock) {
      const int64_t positions = job.x_.x.positions;
      for (int64_t p = 0; p < job.bands_.rows * positions; ++p) {
        offsets_[p] = job.grid_.position(p / positions, p % positions);
      }
      for (int64_t q = 0; q < kBlock; ++q) line_offsets_[q] = q * kLine;
      std::memset(pixels_.get(), 0, sizeof(float) * job.pixel_elements(job.bands_.rows));
    }

    // Bands [first, last) of all images.
    void run(int64_t first, int64_t last) {
      const int64_t positions = job_.x_.x.positions;
      bool add = false;
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t n = unit / job_.bands_.count,
                      row = unit % job_.bands_.count * job_.bands_.rows;
        const int64_t rows = std::min(job_.bands_.rows, job_.x_.y.positions - row);
        fill_pixels<false>(job_.x_, job_.grid_, job_.channels_last_, n, row, rows, pixels_.get());
        const int64_t all = rows * positions, block = ceil_div(all, ceil_div(all, kBlock));
        for (int64_t p = 0; p < all; p += block, add = true) {
          const int64_t count = std::min(block, all - p);
          fill_panels(n, row * positions + p, count);
          multiply(p, count, add);
        }
      }
      if (!add) {
        const int64_t tiles = job_.lines_ * job_.line_panels_ * job_.out_panels_;
        std::memset(sums_, 0, sizeof(float) * tiles * kTileSums);
      }
    }

   private:
    // Positions [first, first + count) of image n of grad_y.
    void fill_panels(int64_t n, int64_t first, int64_t count) {
      const Images<T>& g = job_.g_;
      const int64_t plane = g.y.size * g.x.size, image = n * g.total_channels * plane;
      for (int64_t k = 0; k < job_.out_panels_; ++k) {
        const int64_t o = k * kOuts, pixel = job_.channels_last_ ? g.total_channels : 1;
        copy_pixels<kMasked>(g, job_.channels_last_,
                             image + channel_offset(job_.channels_last_, o, plane) + first * pixel,
                             count, std::min<int64_t>(kOuts, g.channels - o),
                             panels_.get() + k * kBlock * kOuts, kOuts, kOuts);
      }
    }

    void multiply(int64_t p, int64_t count, bool add) {
      float* tile = sums_;
      for (int64_t line = 0; line < job_.lines_; ++line) {
        for (int64_t j = 0; j < job_.line_panels_; ++j) {
          const Elements elements = line_elements(line, j, p, count);
          for (int64_t k = 0; k < job_.out_panels_; ++k, tile += kTileSums) {
            const float* panel = panels_.get() + k * kBlock * kOuts;
            Lanes::multiply(count, elements, panel, job_.g_.channels, tile, add);
          }
        }
      }
    }

    // Panel j of a line at positions [p, p + count): where many panels of channels will meet it a
    // copy, because pixels a power of two apart share few sets of L1.
    Elements line_elements(int64_t line, int64_t j, int64_t p, int64_t count) {
      constexpr int64_t kMany = 4;
      const int64_t first = job_.first_element(j), some = job_.first_element(j + 1) - first;
      const float* from = pixels_.get() + job_.grid_.run_offset(line) + first;
      const int64_t* offsets = offsets_.get() + p;
      if (job_.out_panels_ < kMany) return {from, offsets, some};
      for (int64_t q = 0; q < count; ++q) {
        for (int64_t e = 0; e < kLine; e += V::kWidth) {
          V::load(from + offsets[q] + e).store(&line_panel_[q * kLine + e]);
        }
      }
      return {line_panel_.get(), line_offsets_.get(), some};
    }

    const VectorWeightGradient& job_;
    float* const sums_;
    Scratch<float> pixels_, panels_, line_panel_;
    Scratch<int64_t> offsets_, line_offsets_;
  };

  const Images<T> x_, g_;
  const bool channels_last_;
  const PixelGrid grid_;
  const int64_t line_, lines_, line_panels_, out_panels_;
  const RowBands bands_;
  const int64_t units_, slices_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
