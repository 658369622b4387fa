// The forward is a correlation (correlation_simd.h).
//
// The input gradient gathers: it is a correlation of grad_y with the transposed weights, one for
// each residue of the input coordinate modulo the stride, so that no zero is multiplied. The weight
// gradient sums over positions; threads take slices of them and the partial sums are added in
// order. The ReLU mask is applied while grad_y is packed.
#pragma once

#include <cstring>
#include <utility>

#include "conv2d/bias_gradient_simd.h"
#include "conv2d/correlation_simd.h"
#include "conv2d/depthwise_gradient_simd.h"
#include "conv2d/merged_phases_simd.h"
#include "conv2d/planes_as_pixels_simd.h"
#include "conv2d/weight_gradient_simd.h"
#include "conv2d/winograd_gradient_simd.h"
#include "gemm/short_sums.h"
#if defined(__AVX512BF16__)
#include "conv2d/weight_gradient_bf16.h"
#include "conv2d/weight_gradient_pixels_bf16.h"
#endif

namespace pyops::PYOPS_ISA_NAMESPACE {

// Groups are done one after the other, depthwise ones all at once.
inline int64_t passes(const Conv2dShape& s) { return is_depthwise(s) ? 1 : s.groups; }

// The input channels of a pass, met by the outputs.
template <class T>
Images<T> input_images(const Conv2dShape& s, const void* x, int64_t pass) {
  const int64_t channels = s.c / passes(s);
  return {static_cast<const T*>(x) + channel_offset(s.channels_last, pass * channels, s.h * s.w),
          nullptr,
          channels,
          s.c,
          forward_axis_y(s),
          forward_axis_x(s)};
}

template <class T>
const T* pass_weight(const Conv2dShape& s, const void* weight, int64_t pass) {
  return static_cast<const T*>(weight) + pass * s.group_o() * s.group_c() * s.kh * s.kw;
}

// The gradient of a pass's outputs, met by the inputs.
template <class T>
Images<T> gradient_images(const Conv2dBackwardParams& p, int64_t pass, const Axis& y,
                          const Axis& x) {
  const int64_t channels = p.o / passes(p);
  const int64_t at = channel_offset(p.channels_last, pass * channels, p.oh * p.ow);
  const auto* mask = static_cast<const T*>(p.y);
  return {static_cast<const T*>(p.grad_y) + at,
          mask != nullptr ? mask + at : nullptr,
          channels,
          p.o,
          y,
          x};
}

// Rows [row, row + rows) of the outputs of `batch` images from image n on, to the dense y.
template <class T>
void forward_rows(const Conv2dParams& p, int64_t n, int64_t batch, int64_t row, int64_t rows,
                  T* y) {
  const int64_t channels = p.o / passes(p), plane = rows * p.ow;
  const auto* bias = static_cast<const T*>(p.bias);
  for (int64_t pass = 0; pass < passes(p); ++pass) {
    auto images = row_band(input_images<T>(p, p.x, pass), row, rows);
    images.data += n * p.c * p.h * p.w;
    const Weights<T> weights(pass_weight<T>(p, p.weight, pass), channels,
                             p.channels_last && !is_depthwise(p), images);
    correlate<false, T>({.channels_last = p.channels_last,
                         .depthwise = is_depthwise(p),
                         .images = images,
                         .all_rows = p.oh,
                         .batch = batch,
                         .weights = &weights,
                         .channels = channels,
                         .result = y + channel_offset(p.channels_last, pass * channels, plane),
                         .channel_stride = plane,
                         .map = dense_map(p.channels_last, batch, plane, p.o),
                         .epilogue = {bias != nullptr ? bias + pass * channels : nullptr, p.relu},
                         .precision = p.precision});
  }
}

template <class T>
void conv2d_forward(const Conv2dParams& p) {
  forward_rows(p, 0, p.n, 0, p.oh, static_cast<T*>(p.y));
}

template <class T, bool kMasked>
void backward_input(const Conv2dBackwardParams& p, int64_t pass, const GradientPhase& y,
                    const GradientPhase& x, const GradientColumns<T>& columns) {
  const int64_t channels = p.c / passes(p), plane = p.h * p.w, pixel = p.channels_last ? p.c : 1;
  const Weights<T> weights(p, pass_weight<T>(p, p.weight, pass), y, x, columns);
  const bool dense = y.axis.positions == p.h && x.axis.positions == p.w;
  const PositionMap strided{x.axis.positions, y.axis.positions, p.c * plane,
                            p.stride_h * p.w * pixel, p.stride_w * pixel};
  correlate<kMasked, T>({.channels_last = p.channels_last,
                         .depthwise = is_depthwise(p),
                         .images = gradient_images<T>(p, pass, y.axis, x.axis),
                         .all_rows = y.axis.positions,
                         .batch = p.n,
                         .weights = &weights,
                         .channels = channels,
                         .result = static_cast<T*>(p.grad_x) +
                                   channel_offset(p.channels_last, pass * channels, plane) +
                                   (y.first * p.w + x.first) * pixel,
                         .channel_stride = plane,
                         .map = dense ? dense_map(p.channels_last, p.n, plane, p.c) : strided,
                         .epilogue = {nullptr, false},
                         .precision = p.precision});
}

template <class T, bool kMasked>
void backward_inputs(const Conv2dBackwardParams& p) {
  if constexpr (!kMasked) {
    if (DepthwiseHalvedGradient<T>::pays(p)) return DepthwiseHalvedGradient<T>::run(p);
    if (DepthwiseGradient<T>::pays(p)) return DepthwiseGradient<T>(p).run();
  }
  if (MergedPhases<T, kMasked>::pays(p)) return MergedPhases<T, kMasked>(p).run();
  const auto is_seen = [](const GradientPhase& y, const GradientPhase& x) {
    return y.axis.taps > 0 && x.axis.taps > 0;
  };
  bool all_seen = true;
  for_phases(p, [&](const auto& y, const auto& x) { all_seen = all_seen && is_seen(y, x); });
  if (!all_seen) {
    auto* bytes = static_cast<char*>(p.grad_x);
    parallel_for(0, p.n * p.c * p.h * p.w * static_cast<int64_t>(sizeof(T)), 1 << 16,
                 [&](int64_t begin, int64_t end) { std::memset(bytes + begin, 0, end - begin); });
  }
  for (int64_t pass = 0; pass < passes(p); ++pass) {
    const GradientColumns<T> columns(p, pass_weight<T>(p, p.weight, pass));
    for_phases(p, [&](const GradientPhase& y, const GradientPhase& x) {
      if (is_seen(y, x)) backward_input<T, kMasked>(p, pass, y, x, columns);
    });
  }
}

// sums[r, t] = Σ_position grad_y[r, position] · x[tap t at position], positions [begin, end).
template <class T, bool kMasked, class Sink>
void sum_over_positions(const Conv2dBackwardParams& p, int64_t pass, int64_t begin, int64_t end,
                        const Sink& sink) {
  const auto x = input_images<T>(p, p.x, pass);
  const Axis points{p.oh * p.ow, p.oh * p.ow, 1, 1, 0, 1}, single{1, 1, 1, 1, 0, 1};
  const auto g = gradient_images<T>(p, pass, single, points);
  const int64_t count = end - begin;
  if (p.channels_last) {
    const int64_t at = begin * p.o;
    const StridedOperand<T, kMasked> gradient{g.data + at, p.group_o(), 1, p.o,
                                              kMasked ? g.mask + at : nullptr};
    const auto sum = [&](const auto& pixels) {
      gemm_in_short_sums(p.group_o(), x.taps(), count, gradient, pixels, sink, p.precision);
    };
    x.is_identity() ? sum(StridedOperand<T>{x.data + begin * p.c, x.taps(), 1, p.c})
                    : sum(PixelPatches<T>{x, begin});
  } else {
    const PlanarPixels<T, kMasked> gradient{g, begin};
    const auto sum = [&](const auto& pixels) {
      gemm_in_short_sums(p.group_o(), x.taps(), count, gradient, pixels, sink, p.precision);
    };
    x.is_identity() ? sum(PlanarPixels<T>{x, begin})
                    : sum(Transposed<PlanarPatches<T>>{{x, begin, count}, x.taps()});
  }
}

// Of all threads together, and how many are many for one.
inline constexpr int64_t kManySums = 8 << 20, kManyWeights = 1 << 20;

// Of a pass that sees the images x.
template <class T>
bool winograd_pays_for_weights(const Conv2dBackwardParams& p, const Images<T>& x) {
  constexpr int64_t kFewTiles = 48;  // beside the transforms of all weights
  const int64_t points = TileGrid::kPoints * p.group_o() * x.channels;
  return vectors_pay<T>(p.precision) && winograd_pays(x, p.group_o()) && fills_panel(x.channels) &&
         TileGrid(x.y, x.x, p.n).count >= kFewTiles && points * num_threads() <= kManySums;
}

// Whether it was done, from the images themselves. Every thread keeps sums of all weights, in its
// L2 or not far from it.
template <class T, bool kMasked>
bool backward_weight_on_grid(const Conv2dBackwardParams& p, int64_t pass, T* grad) {
  if constexpr (std::is_same_v<acc_t<T>, float>) {
#if defined(__AVX512BF16__)
    const int64_t many_weights = p.channels_last ? 512 << 10 : 3 << 19;
#else
    constexpr int64_t many_weights = kManyWeights;
#endif
    const auto x = input_images<T>(p, p.x, pass);
    const Axis y_points{p.oh, p.oh, 1, 1, 0, 1}, x_points{p.ow, p.ow, 1, 1, 0, 1};
    const auto g = gradient_images<T>(p, pass, y_points, x_points);
    const int64_t weights = p.group_o() * x.taps();
    if (winograd_pays_for_weights(p, x)) {
      if (WinogradWeightGradient<kMasked, T>(x, g, p.n, p.channels_last).run(grad)) return true;
    }
    if (weights > many_weights || weights * num_threads() > kManySums || x.taps() < 8) return false;
    const auto run = [&]<class Lanes>(Lanes) {
      VectorWeightGradient<Lanes, kMasked, T>(x, g, p.n, p.channels_last).run(grad);
      return true;
    };
    if (vectors_pay<T>(p.precision) && p.group_o() <= LineLanes::kOuts) return run(LineLanes{});
#if defined(__AVX512BF16__)
    if (p.group_o() < 8) return false;
    // Without a matrix unit pixels as they lie are the panels' rows, and copies would be a third.
    if constexpr (!kMatrixUnit && std::is_same_v<T, BFloat16>) {
      if (p.channels_last && x.is_identity()) {
        const int64_t positions = p.n * x.positions_per_image();
        if (!suits_pixel_pairs(weights, positions)) return false;
        PixelWeightGradient<kMasked>(x, g, positions).run(grad);
        return true;
      }
    }
    return with_parts<T>(p.precision, [&](auto parts) {
      constexpr int kParts = decltype(parts)::value;
      if (kParts > 1 && !splitting_pays(x)) return false;
      return SplitWeightGradient<kParts, kMasked, T>(x, g, p.n, p.channels_last).run(grad);
    });
#else
    // Without patches it is a product of matrices, which gemm() blocks for the caches.
    constexpr int64_t kManyChannels = 128;
    if (x.is_identity() && (x.channels >= kManyChannels || x.channels > p.group_o())) return false;
    return p.group_o() > Vec<float>::kWidth ? run(OutLanes<2>{}) : run(OutLanes<1>{});
#endif
  }
  return false;
}

template <class T, bool kMasked>
void backward_weight(const Conv2dBackwardParams& p, int64_t pass) {
  using Acc = acc_t<T>;
  const int64_t taps = p.group_c() * p.kh * p.kw, elements = p.group_o() * taps;
  const int64_t positions = p.n * p.oh * p.ow;
  T* grad = static_cast<T*>(p.grad_weight) + pass * elements;
  if constexpr (!kMasked) {
    if (is_depthwise(p)) {
      const auto x = input_images<T>(p, p.x, 0), g = gradient_images<T>(p, 0, x.y, x.x);
      return depthwise_weight(p.channels_last, x, g, p.n, grad);
    }
  }
  if (backward_weight_on_grid<T, kMasked>(p, pass, grad)) return;
  // With fewer weights than this, splitting them among threads would repeat the packing; a slice
  // of positions should still amortise its own partial sums.
  constexpr int64_t kFewWeights = 256 << 10, kMinSlice = 1024;
  const int64_t slices =
      elements > kFewWeights ? 1 : std::clamp<int64_t>(positions / kMinSlice, 1, num_threads());
  if (slices == 1) {
    sum_over_positions<T, kMasked>(p, pass, 0, positions, MatrixSink<T>{grad, taps});
    return;
  }
  Scratch<Acc> partial(slices * elements);
  const int64_t length = ceil_div(positions, slices);
  parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      const MatrixSink<Acc> sink{partial.get() + slice * elements, taps};
      sum_over_positions<T, kMasked>(p, pass, slice * length,
                                     std::min(positions, (slice + 1) * length), sink);
    }
  });
  parallel_for(0, elements, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Acc sum = partial[i];
      for (int64_t slice = 1; slice < slices; ++slice) sum += partial[slice * elements + i];
      grad[i] = static_cast<T>(sum);
    }
  });
}

// One tap sees what lies at its stride, in runs that are short for vectors: the gradient is that of
// a convolution of these pixels alone, which are copied to `seen`.
template <class T>
Conv2dBackwardParams of_seen_pixels(Conv2dBackwardParams p, T* seen) {
  const int64_t pixel = p.channels_last ? p.c : 1, rows = p.n * p.c / pixel * p.oh;
  parallel_for(0, rows, ceil_div(64, pixel), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t line = row / p.oh * p.h + row % p.oh * p.stride_h;
      const T* from = static_cast<const T*>(p.x) + line * p.w * pixel;
      T* to = seen + row * p.ow * pixel;
      for (int64_t i = 0; i < p.ow; ++i) {
        for (int64_t c = 0; c < pixel; ++c) to[i * pixel + c] = from[i * p.stride_w * pixel + c];
      }
    }
  });
  p.x = seen;
  p.h = p.oh, p.w = p.ow, p.stride_h = p.stride_w = 1;
  return p;
}

// Whether planes had better be pixels: for dot products of bfloat16 where they are small and fill
// no panel of positions, or strided and read in pieces (Zen 5, November 2026; the table in
// docs/performance.md); else where patches of them would be transposed for so many weights.
template <class T>
bool pays_as_pixels(const Conv2dBackwardParams& p) {
  const int64_t taps = p.kh * p.kw;
  if (p.channels_last || p.groups > 1) return false;
#if defined(__AVX512BF16__)
  if (!kMatrixUnit && std::is_same_v<T, BFloat16>) {
    constexpr int64_t kSmallPlane = 192, kFewPositions = 256, kFewChannels = 32;
    const int64_t plane = p.oh * p.ow;
    if (std::min(p.c, p.o) < kFewChannels) return false;
    if (taps > 1 && p.n * plane < kFewPositions) return false;  // the weights' way back
    return plane < kSmallPlane || (taps > 1 && p.stride_w > 1);
  }
  if (!vectors_pay<T>(p.precision)) return false;
#endif
  return taps > 1 && p.o * p.c * taps > kManyWeights &&
         !winograd_pays_for_weights(p, input_images<T>(p, p.x, 0));
}

template <class T, bool kMasked>
void backward_weights(Conv2dBackwardParams p) {
  const bool one_tap = p.kh * p.kw == 1 && p.padding_h + p.padding_w == 0;
  const bool skips = one_tap && p.stride_w > 1;
  const Scratch<T> seen(skips ? p.n * p.c * p.oh * p.ow : 0);
  if (skips) p = of_seen_pixels<T>(p, seen.get());
  if constexpr (std::is_same_v<acc_t<T>, float>) {
    if (pays_as_pixels<T>(p)) {
      const PlanesAsPixels<kMasked, T> planes(p);
      backward_weight<T, false>(planes.pixels(), 0);
      return planes.put_in_order();
    }
  }
  for (int64_t pass = 0; pass < passes(p); ++pass) backward_weight<T, kMasked>(p, pass);
}

template <class T, bool kMasked>
void conv2d_backward(const Conv2dBackwardParams& p) {
  if (p.grad_bias != nullptr) backward_bias<T, kMasked>(p);
  if (p.grad_weight != nullptr) backward_weights<T, kMasked>(p);
  if (p.grad_x != nullptr) backward_inputs<T, kMasked>(p);
}

// With the ReLU's mask applied to the gradient beforehand.
template <class T>
void conv2d_backward_masked_once(Conv2dBackwardParams p) {
  using V = Vec<acc_t<T>>;
  const auto *grad = static_cast<const T*>(p.grad_y), *mask = static_cast<const T*>(p.y);
  const int64_t count = p.n * p.o * p.oh * p.ow;
  Scratch<T> gradient(count);
  parallel_for(0, ceil_div(count, V::kWidth), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * V::kWidth; i < std::min(end * V::kWidth, count); i += V::kWidth) {
      const int n = static_cast<int>(std::min<int64_t>(V::kWidth, count - i));
      store(V::where_positive(load(mask + i, n), load(grad + i, n)), &gradient[i], n);
    }
  });
  p.grad_y = gradient.get(), p.y = nullptr;
  conv2d_backward<T, false>(p);
}

// A window that covers the image is one tap, with all of the image's elements for its channels.
template <class Params>
Params as_pointwise(Params p) {
  const bool covers = p.kh == p.h && p.kw == p.w && p.oh * p.ow == 1;
  if (!covers || p.groups > 1 || p.padding_h > 0 || p.padding_w > 0) return p;
  p.c *= p.h * p.w;
  p.h = p.w = p.kh = p.kw = 1;
  p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = 1;
  p.channels_last = true;
  return p;
}

// A column of pixels is a row of them, along which tiles run.
template <class Params>
Params as_row(Params p) {
  if (p.w > 1 || p.kw > 1 || p.ow > 1 || p.padding_w > 0) return p;
  std::swap(p.h, p.w), std::swap(p.kh, p.kw), std::swap(p.oh, p.ow);
  std::swap(p.stride_h, p.stride_w), std::swap(p.padding_h, p.padding_w);
  std::swap(p.dilation_h, p.dilation_w);
  return p;
}

inline void conv2d_forward(const Conv2dParams& params) {
  const Conv2dParams p = as_pointwise(as_row(params));
  dispatch_dtype<kKernelTypes>(p.dtype, [&](auto t) { conv2d_forward<decltype(t)>(p); });
}

inline void conv2d_backward(const Conv2dBackwardParams& params) {
  const Conv2dBackwardParams p = as_pointwise(as_row(params));
  dispatch_dtype<kKernelTypes>(p.dtype, [&](auto t) {
    using T = decltype(t);
    if (p.y == nullptr) return conv2d_backward<T, false>(p);
    is_depthwise(p) ? conv2d_backward_masked_once<T>(p) : conv2d_backward<T, true>(p);
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
