// The sums of a weight gradient in tiles of 32 taps × 32 output channels: those of every thread's
// slice of the positions, which are added in order.
#pragma once

#include "conv2d/grid_sink_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

class WeightSums {
 public:
  static constexpr int64_t kPanel = 32, kTile = kPanel * kPanel;

  WeightSums(int64_t taps, int64_t outs, int64_t slices)
      : taps_(taps),
        outs_(outs),
        out_panels_(ceil_div(outs, kPanel)),
        tiles_(ceil_div(taps, kPanel) * out_panels_),
        slices_(slices),
        sums_(slices * tiles_ * kTile) {}

  int64_t slices() const { return slices_; }
  int64_t tap_panels() const { return tiles_ / out_panels_; }
  int64_t out_panels() const { return out_panels_; }

  // The tile of panel i of the taps and j of the output channels.
  float* tile(int64_t slice, int64_t i, int64_t j) const {
    return sums_.get() + (slice * tiles_ + i * out_panels_ + j) * kTile;
  }

  // run(slice, first, last) of every slice: its share of the units. One without any has no sums.
  template <class Run>
  void for_slices(int64_t units, const Run& run) const {
    const int64_t length = ceil_div(units, slices_);
    parallel_for(0, slices_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t slice = begin; slice < end; ++slice) {
        const int64_t first = slice * length, last = std::min(units, first + length);
        if (first >= last) std::memset(tile(slice, 0, 0), 0, sizeof(float) * tiles_ * kTile);
        run(slice, first, last);
      }
    });
  }

  // To grad[o, tap]. kOrdered: the columns of a tile are in their order, not that of order_columns.
  template <bool kOrdered, class T>
  void write(T* grad) const {
    parallel_for(0, tiles_, 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        write_tile<kOrdered>(t / out_panels_, t % out_panels_, grad);
      }
    });
  }

 private:
  template <bool kOrdered, class T>
  void write_tile(int64_t i, int64_t j, T* grad) const {
    const int64_t t0 = i * kPanel, o0 = j * kPanel;
    for (int64_t t = 0; t < std::min(kPanel, taps_ - t0); t += 16) {
      Vec<float> low[16], high[16];
      const int64_t at = (tile(0, i, j) - sums_.get()) + t * kPanel;
      for (int k = 0; k < 16; ++k) {
        low[k] = sum_of_slices(at + k * kPanel);
        high[k] = sum_of_slices(at + k * kPanel + 16);
        if (!kOrdered) order_columns(low[k].v, high[k].v);
      }
      const int n = static_cast<int>(std::min<int64_t>(16, taps_ - t0 - t));
      write_columns(low, n, o0, grad + t0 + t);
      write_columns(high, n, o0 + 16, grad + t0 + t);
    }
  }

  Vec<float> sum_of_slices(int64_t at) const {
    auto sum = Vec<float>::load(&sums_[at]);
    for (int64_t s = 1; s < slices_; ++s) {
      sum = sum + Vec<float>::load(&sums_[s * tiles_ * kTile + at]);
    }
    return sum;
  }

  // Sixteen channels from o on of n taps.
  template <class T>
  void write_columns(Vec<float> (&block)[16], int n, int64_t o, T* grad) const {
    if (o >= outs_) return;
    transpose(block);
    for (int64_t k = 0; k < std::min<int64_t>(16, outs_ - o); ++k) {
      block[k].store(grad + (o + k) * taps_, n);
    }
  }

  const int64_t taps_, outs_, out_panels_, tiles_, slices_;
  Scratch<float> sums_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
