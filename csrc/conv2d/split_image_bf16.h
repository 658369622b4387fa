// An image as its bfloat16 parts (gemm/tile_engine.h) on a padded grid: an element is split once,
// not once for every tap that meets it.
#pragma once

#include "conv2d/grid_simd.h"
#include "gemm/tile_engine.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// f(integral_constant of the parts that products of this precision take): whether it did it.
template <class T, class F>
bool with_parts(Precision precision, const F& f) {
  using Source = StridedOperand<T>;
  bool done = false;
  with_constant<bf16_parts<Source, Source>(Precision::kHighest)>(
      bf16_parts<Source, Source>(precision), [&](auto parts) { done = f(parts); });
  return done;
}

// bfloat16 is not split: the unit does with it what native's does.
template <int kParts, class T>
inline constexpr bool kUnsplit = std::is_same_v<T, BFloat16> && kParts == 1;

// Image n of planes, whose rows are runs, as it is; returns the magnitude met.
template <bool kMasked>
Magnitude copy_planes(const Images<BFloat16>& images, const PaddedGrid& grid, int64_t n,
                      uint16_t* to) {
  const PhasedAxis &y = grid.y, &x = grid.x;
  const int64_t begin = x.begin(0), length = x.end(0) - begin, size = y.axis.size * x.axis.size;
  const BFloat16 *data = images.data, *mask = images.mask;
  __m512i largest = _mm512_setzero_si512();
  for (int64_t c = 0; c < images.channels; ++c, to += grid.plane) {
    const int64_t plane = (n * images.total_channels + c) * size;
    std::memset(to, 0, sizeof(uint16_t) * grid.plane);
    for (int64_t phase = 0; phase < y.phases; ++phase) {
      for (int64_t row = y.begin(phase); row < y.end(phase); ++row) {
        const int64_t at = plane + y.coordinate(phase, row) * x.axis.size + x.coordinate(0, begin);
        uint16_t* out = to + grid.offset(phase, 0, row) + begin;
        for (int64_t i = 0; i < length; i += 32) {
          const __mmask32 lanes = first_words(length - i);
          prefetch_to_read(data + at + i + size);  // of the next plane
          if constexpr (kMasked) prefetch_to_read(mask + at + i + size);
          const __m512i words = load_words<kMasked>(data, mask, at + i, lanes);
          largest = _mm512_max_epu16(largest, _mm512_and_si512(words, _mm512_set1_epi16(0x7fff)));
          _mm512_mask_storeu_epi16(out + i, lanes, words);
        }
      }
    }
  }
  const __m512i odd = _mm512_and_si512(largest, _mm512_set1_epi32(~0xffff));
  return {_mm512_max_epu32(_mm512_slli_epi32(largest, 16), odd)};
}

// The same of any image, which is split.
template <int kParts, bool kMasked, class T>
Magnitude split_planes(const Images<T>& images, const PaddedGrid& grid, bool channels_last,
                       int64_t n, uint16_t* parts) {
  const int64_t part = grid.part_elements(images.channels);
  const int64_t together = std::min<int64_t>(images.channels, channels_last ? 16 : 1);
  GridPlanes<kMasked, T> planes(images, grid, channels_last, together);
  Magnitude magnitude;
  for (int64_t c = 0; c < images.channels; c += together) {
    const int64_t count = std::min(together, images.channels - c);
    const float* from = planes.fill(n, c, count);
    uint16_t* to = parts + c * grid.plane;
    for (int64_t i = 0; i < count * grid.plane; i += kGridStep) {
      const __m512 low = _mm512_load_ps(from + i), high = _mm512_load_ps(from + i + 16);
      magnitude.see(low);
      magnitude.see(high);
      split_row<kParts>(low, high, to + i, part);
    }
  }
  return magnitude;
}

// Image n to `parts`, one every part_elements; returns the magnitude met.
template <int kParts, bool kMasked, class T>
Magnitude split_image(const Images<T>& images, bool channels_last, int64_t n, uint16_t* parts) {
  const PaddedGrid grid(images.y, images.x);
  const int64_t all = images.channels * grid.plane, part = grid.part_elements(images.channels);
  for (int p = 0; p < kParts; ++p) {
    std::memset(parts + p * part + all, 0, sizeof(uint16_t) * (part - all));
  }
  if constexpr (kUnsplit<kParts, T>) {
    const bool runs = !channels_last && images.x.stride == 1;
    if (runs) return copy_planes<kMasked>(images, grid, n, parts);
  }
  return split_planes<kParts, kMasked>(images, grid, channels_last, n, parts);
}

// Whether splitting an element once rather than for each tap outweighs the padded grid.
template <class T>
bool splitting_pays(const Images<T>& images) {
  const int64_t panels = PaddedGrid(images.y, images.x).panels();
  return images.y.taps * images.x.taps > 1 &&
         5 * images.positions_per_image() >= 4 * kGridStep * panels;
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
