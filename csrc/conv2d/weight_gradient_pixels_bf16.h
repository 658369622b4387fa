// The weight gradient of a 1×1 kernel among pixels of bfloat16 by dot products of pairs.
//
// The depth of the product is positions, one after the other in memory, and a pair of them is two
// rows of channels. Those of x are interleaved, a block of positions at a time, where products
// broadcast them; those of grad_y on their way to the products. Nothing is transposed.
#pragma once

#include "conv2d/tile_products_bf16.h"
#include "conv2d/weight_sums_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Panels of 32 channels as rows of A: each pair of positions has all channels' side by side.
struct PixelPairs {
  const uint16_t* data;

  const uint16_t* at(int64_t step) const { return data + step * kTilePairs * pair(); }
  static constexpr int64_t row() { return 2; }
  static constexpr int64_t half() { return kTileRows * row(); }
  static constexpr int64_t pair() { return 2 * half(); }
  static constexpr int pairs(int64_t) { return kTilePairs; }
};

// Whether so many positions are whole pairs, and the sums of all weights stay in L2; gemm() blocks
// more of them.
inline bool suits_pixel_pairs(int64_t weights, int64_t positions) {
  constexpr int64_t kManyWeights = 64 << 10;
  return weights < kManyWeights && positions % 2 == 0;
}

template <bool kMasked>
class PixelWeightGradient {
 public:
  // Of so many positions of all images.
  PixelWeightGradient(const Images<BFloat16>& x, const Images<BFloat16>& g, int64_t positions)
      : x_(x),
        g_(g),
        positions_(positions),
        blocks_(ceil_div(positions, kBlock)),
        sums_(x.channels, g.channels, std::min<int64_t>(num_threads(), blocks_)) {}

  // grad[o, channel of x]
  void run(BFloat16* grad) const {
    sums_.for_slices(blocks_, [&](int64_t slice, int64_t first, int64_t last) {
      Worker(*this, slice).run(first, last);
    });
    sums_.write<false>(grad);
  }

 private:
  // Positions whose panels of x and g share L1.
  static constexpr int64_t kBlock = 256, kPanel = WeightSums::kPanel;

  class Worker {
   public:
    Worker(const PixelWeightGradient& job, int64_t slice)
        : job_(job),
          slice_(slice),
          pairs_(job.sums_.tap_panels() * kBlock * kPanel),
          masked_(kMasked ? kBlock * job.g_.channels : 0) {}

    void run(int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * kBlock;
        const int64_t count = std::min(kBlock, job_.positions_ - begin);
        interleave(begin, count);
        multiply(count, gradient(begin, count), block > first);
      }
    }

   private:
    void interleave(int64_t begin, int64_t count) {
      const __m512i low = interleaving(0), high = interleaving(16);
      const Images<BFloat16>& x = job_.x_;
      const BFloat16* from = x.data + begin * x.total_channels;
      for (int64_t pair = 0; pair < count / 2; ++pair, from += 2 * x.total_channels) {
        uint16_t* to = pairs_.get() + pair * PixelPairs::pair();
        for (int64_t c = 0; c < x.channels; c += kPanel, to += kBlock * kPanel) {
          const __mmask32 lanes = first_words(x.channels - c);
          prefetch_to_read(from + c + kAhead * x.total_channels);
          prefetch_to_read(from + c + (kAhead + 1) * x.total_channels);
          const __m512i even = _mm512_maskz_loadu_epi16(lanes, from + c);
          const __m512i odd = _mm512_maskz_loadu_epi16(lanes, from + c + x.total_channels);
          _mm512_store_si512(to, _mm512_permutex2var_epi16(even, low, odd));
          _mm512_store_si512(to + kPanel, _mm512_permutex2var_epi16(even, high, odd));
        }
      }
    }

    // Rows of the gradient, with the mask applied.
    PlaneTiles gradient(int64_t begin, int64_t count) {
      const Images<BFloat16>& g = job_.g_;
      const int64_t at = begin * g.total_channels;
      if constexpr (kMasked) {
        for (int64_t p = 0; p < count; ++p) {
          for (int64_t c = 0; c < g.channels; c += kPanel) {
            const __mmask32 lanes = first_words(g.channels - c);
            prefetch_to_read(g.data + at + (p + kAhead) * g.total_channels + c);
            prefetch_to_read(g.mask + at + (p + kAhead) * g.total_channels + c);
            const __m512i words =
                load_words<true>(g.data, g.mask, at + p * g.total_channels + c, lanes);
            _mm512_mask_storeu_epi16(&masked_[p * g.channels + c], lanes, words);
          }
        }
        return {masked_.get(), g.channels, count, 0, kAhead * g.channels};
      }
      const auto* data = reinterpret_cast<const uint16_t*>(g.data) + at;
      return {data, g.total_channels, count, 0, kAhead * g.total_channels};
    }

    void multiply(int64_t count, PlaneTiles outs, bool add) {
      const uint16_t* const first = outs.image;
      for (int64_t i = 0; i < job_.sums_.tap_panels(); ++i) {
        const PixelPairs taps{pairs_.get() + i * kBlock * kPanel};
        const int rows = static_cast<int>(std::min(kPanel, job_.x_.channels - i * kPanel));
        for (int64_t j = 0; j < job_.sums_.out_panels(); ++j) {
          outs.image = first + j * kPanel;
          outs.lanes = first_words(job_.g_.channels - j * kPanel);
          const TileSums sums{job_.sums_.tile(slice_, i, j), kPanel, 16, 16 * kPanel};
          multiply_tiles<1, true, true>(ceil_div(count, kPanel), rows, taps, outs, sums, add,
                                        [] {});
        }
      }
    }

    static constexpr int64_t kAhead = 32;  // rows

    const PixelWeightGradient& job_;
    const int64_t slice_;
    Scratch<uint16_t> pairs_, masked_;
  };

  const Images<BFloat16> x_, g_;
  const int64_t positions_, blocks_;
  const WeightSums sums_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
