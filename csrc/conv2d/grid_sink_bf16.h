// Where the sums of tiles go: by lines of positions to a result.
#pragma once

#include "conv2d/grid_sink_simd.h"
#include "conv2d/split_image_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Columns leave SplitPlanes::tiles in the order of the 128-bit lanes' halves; this puts 32 back in
// order.
inline void order_columns(__m512& low, __m512& high) {
  const __m512 even = low, odd = high;
  low = _mm512_permutex2var_ps(
      even, _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23), odd);
  high = _mm512_permutex2var_ps(
      even, _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31), odd);
}

// Writes finished tiles, channels × flat positions of a grid, where the result's positions lie.
template <class T>
class TileSink {
 public:
  TileSink(const Correlation<T>& c, int64_t panels)
      : sink_(c),
        line_stride_(panels * kGridStep + 16),  // no power of two: lines share no cache set
        lines_(16 * line_stride_) {}

  // `rows` channels from i on; the tiles of the stretch follow each other.
  void operator()(const Numbering& all, const GridStretch& at, int64_t i, int rows,
                  const float* tiles, T* out) const {
    for (int r = 0; r < rows; r += 16) {
      const int some = std::min(16, rows - r);
      for (int64_t p = 0; p < at.count; p += kGridStep) {
        read_tile(some, tiles + p * 32 + r * 32, &lines_[p]);
      }
      sink_.store_channels(all, at, i + r, some, {lines_.get(), line_stride_}, out);
    }
  }

 private:
  // 32 positions of `some` channels to their lines.
  void read_tile(int some, const float* tile, float* line) const {
    for (int k = 0; k < some; ++k, tile += 32, line += line_stride_) {
      __m512 low = _mm512_loadu_ps(tile), high = _mm512_loadu_ps(tile + 16);
      order_columns(low, high);
      _mm512_storeu_ps(line, low);
      _mm512_storeu_ps(line + 16, high);
    }
  }

  const GridSink<T> sink_;
  const int64_t line_stride_;
  Scratch<float> lines_;  // 16 channels of a stretch
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
