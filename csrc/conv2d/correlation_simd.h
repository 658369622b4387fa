// How a correlation is computed: by the kernels without patches, which are Winograd's
// (winograd_simd.h), those of the grid (correlate_simd.h, correlate_planar_simd.h) and the
// depthwise ones, or else as an implicit GEMM over the shared engine, the weights times the image's
// patches.
#pragma once

#include "conv2d/correlate_planar_simd.h"
#include "conv2d/correlate_simd.h"
#include "conv2d/depthwise_simd.h"
#include "conv2d/patches_simd.h"
#include "conv2d/winograd_simd.h"
#if defined(__AVX512BF16__)
#include "conv2d/correlate_bf16.h"
#endif

namespace pyops::PYOPS_ISA_NAMESPACE {

// Through the shared engine, panels packed straight from the images.
template <bool kMasked, class T>
void correlate_patches(const Correlation<T>& c) {
  Images<T> images = c.images;
  const bool identity = images.is_identity();
  if (identity) {
    // One long row, whose runs no panel breaks.
    const int64_t plane = images.y.size * images.x.size;
    images.x.size = images.x.positions = plane;
    images.y.size = images.y.positions = 1;
  }
  const int64_t positions = c.batch * images.positions_per_image(), taps = images.taps();
  if (!c.channels_last) {
    gemm(c.channels, positions, taps, c.weights->matrix(),
         PlanarPatches<T, kMasked>{images, 0, positions},
         PlanarSink<T>{c.result, c.channel_stride, c.map, c.epilogue}, c.precision);
    return;
  }
  const PixelSink<T> sink{c.result, c.map, c.epilogue};
  if (identity) {
    const StridedOperand<T, kMasked> pixels{images.data, positions, images.total_channels, 1,
                                            images.mask};
    gemm(positions, c.channels, taps, pixels, c.weights->matrix(), sink, c.precision);
  } else {
    const Transposed<PixelPatches<T, kMasked>> patches{{images, 0}, positions};
    gemm(positions, c.channels, taps, patches, c.weights->matrix(), sink, c.precision);
  }
}

// Rows [row, row + rows) of image n alone.
template <class T>
Correlation<T> band_of(const Correlation<T>& c, int64_t n, int64_t row, int64_t rows) {
  Correlation<T> band = c;
  band.map = grid_map(c);
  band.result += n * band.map.image_stride + row * band.map.row_stride;
  band.map.rows = rows;
  Images<T>& images = band.images;
  images = row_band(images, row, rows);
  const int64_t image = n * images.total_channels * images.y.size * images.x.size;
  images.data += image;
  if (images.mask != nullptr) images.mask += image;
  band.batch = 1;
  return band;
}

#if defined(__AVX512BF16__)
// Whether it was done.
template <bool kMasked, class T>
bool correlate_tiles(const Correlation<T>& c) {
  if constexpr (std::is_same_v<acc_t<T>, float>) {
    const auto patches = [&](int64_t n, int64_t row, int64_t rows) {
      correlate_patches<kMasked>(band_of(c, n, row, rows));
    };
    return with_parts<T>(c.precision, [&](auto parts) {
      return split_pays(c, parts) && correlate_split<decltype(parts)::value, kMasked>(c, patches);
    });
  }
  return false;
}
#endif

// Where the AMX unit would multiply six times, vector registers are as fast on a quiet machine and
// faster where neighbours share the unit (Sapphire Rapids, November 2026).
template <class T>
bool vectors_pay([[maybe_unused]] Precision precision) {
#if defined(__AVX512BF16__)
  if (bf16_parts<StridedOperand<T>, StridedOperand<T>>(precision) < 3) return false;
#endif
  return true;
}

// The sums as they are defined.
template <bool kMasked, class T>
void correlate_directly(const Correlation<T>& c) {
  if constexpr (std::is_same_v<acc_t<T>, float>) {
    const Correlation<T> all = uncut(c);
    if (vectors_pay<T>(c.precision) && grid_pays(all)) {
      if constexpr (std::is_same_v<T, float>) {
        if (planar_pays(all)) return PlanarCorrelation<kMasked, T>(c).run();
      }
      if (c.channels >= 8 || c.channels_last) return VectorCorrelation<kMasked, T>(c).run();
    }
    if (vectors_pay<T>(c.precision) && pays_in_place<kMasked>(all)) {
      const Correlation<T> rows = in_long_rows(c);
      return VectorCorrelation<kMasked, T>(rows).run();
    }
  }
#if defined(__AVX512BF16__)
  if (correlate_tiles<kMasked>(c)) return;
#endif
  correlate_patches<kMasked>(c);
}

template <bool kMasked, class T>
void correlate(const Correlation<T>& c) {
  if constexpr (!kMasked) {
    if (c.depthwise) return depthwise(c);
  }
  if constexpr (std::is_same_v<acc_t<T>, float>) {
    if (vectors_pay<T>(c.precision) && winograd_pays(uncut(c).images, c.channels)) {
      return WinogradCorrelation<kMasked, T>(c).run(
          [&](int64_t n) { correlate_directly<kMasked>(band_of(c, n, 0, c.images.y.positions)); });
    }
  }
  correlate_directly<kMasked>(c);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
