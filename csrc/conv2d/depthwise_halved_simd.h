// Depthwise convolutions of small planes by 3×3 windows two apart, padded by one: a row of results
// fits a register, and so do the even and the odd columns of a row of the image, which are all that
// its taps meet. Rows are read once, in place.
#pragma once

#include "conv2d/depthwise_run_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class T>
class HalvedRows {
  using Acc = acc_t<T>;

 public:
  using V = Vec<Acc>;
  static constexpr int kTaps = 3;

  // Of a forward; a lane is left for the column beside the last one.
  static bool suits(const Axis& y, const Axis& x) {
    const auto halved = [](const Axis& a) {
      return a.taps == kTaps && a.stride == 2 && a.dilation == 1;
    };
    return halved(y) && halved(x) && x.origin == -1 && x.positions < V::kWidth;
  }

  // The even and the odd columns.
  static VecPair<Acc> columns(const T* row, int64_t size) {
    prefetch_to_read(row + kAhead);
    prefetch_to_read(row + kAhead + kLine);
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<T, BFloat16>) {
      return split_words((Lanes<float>)_mm512_maskz_loadu_epi16(first_words(size), row));
    }
#endif
    const int low = static_cast<int>(std::min<int64_t>(size, V::kWidth));
    const int high = static_cast<int>(size) - low;
    const auto [even, odd] = split<T>(load(row, low), load(row + V::kWidth, high));
    return {{in_order<T>(even.v)}, {in_order<T>(odd.v)}};
  }
  // The way back, of a row behind which `room` numbers, its own among them, are yet to be written:
  // whole vectors are stored quicker than some of their lanes.
  static void put(const VecPair<Acc>& x, T* row, int64_t size, int64_t room) {
    prefetch_to_write(row + kAhead);
    const int64_t count = room >= 2 * V::kWidth ? 2 * V::kWidth : size;
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<T, BFloat16>) {
      const __m512i words = join_words(x);
      return count < 32 ? _mm512_mask_storeu_epi16(row, first_words(count), words)
                        : _mm512_storeu_si512(row, words);
    }
#endif
    const auto [first, second] = interleave(x.first, x.second);
    put(first, row, std::min<int64_t>(count, V::kWidth));
    if (size > V::kWidth) put(second, row + V::kWidth, count - V::kWidth);
  }
  static void put(V x, T* row, int64_t count) {
    count < V::kWidth ? x.store(row, static_cast<int>(count)) : x.store(row);
  }

  // What the columns of taps meet in a row of the image.
  struct Met {
    V tap[kTaps];
  };
  static Met meet(const T* image, const Axis& y, const Axis& x, int64_t row) {
    if (row < 0 || row >= y.size) return {V::zero(), V::zero(), V::zero()};
    const auto [even, odd] = columns(image + row * x.size, x.size);
    return {shifted<V::kWidth - 1>(V::zero(), odd), even, odd};
  }
  // f(position's row, what its rows of taps meet) for all rows.
  template <class F>
  [[gnu::always_inline]] static void each(const T* image, const Axis& y, const Axis& x,
                                          const F& f) {
    Met first = meet(image, y, x, y.at(0, 0));
    for (int64_t q = 0; q < y.positions; ++q) {
      const Met rows[] = {first, meet(image, y, x, y.at(q, 1)), meet(image, y, x, y.at(q, 2))};
      f(q, rows);
      first = rows[2];
    }
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(T), kAhead = 32 * kLine;
};

template <class T>
class DepthwiseHalved {
  using Rows = HalvedRows<T>;
  using V = typename Rows::V;
  static constexpr int kTaps = Rows::kTaps;

 public:
  static bool pays(const Correlation<T>& c) {
    return !c.channels_last && c.map.col_stride == 1 && Rows::suits(c.images.y, c.images.x);
  }

  static void run(const Correlation<T>& c) {
    const Axis y = c.images.y, x = c.images.x;
    const int64_t step = c.map.row_step(x.positions), count = x.positions;
    const V least = V::set1(Lines<T>::relu_floor(c.epilogue.relu));
    for_planes(c, [&](const T* image, const T* weights, acc_t<T> bias, T* result) {
      V taps[kTaps * kTaps];
      for (int t = 0; t < kTaps * kTaps; ++t) taps[t] = V::set1(static_cast<acc_t<T>>(weights[t]));
      const V start = V::set1(bias);
      Rows::each(image, y, x, [&](int64_t q, const auto& rows) __attribute__((always_inline)) {
        // In turn, for a product waits for the sum before.
        V sums[] = {start, V::zero(), V::zero()};
#pragma GCC unroll 3
        for (int ky = 0; ky < kTaps; ++ky) {
#pragma GCC unroll 3
          for (int kx = 0; kx < kTaps; ++kx) {
            sums[kx] = V::fma(taps[ky * kTaps + kx], rows[ky].tap[kx], sums[kx]);
          }
        }
        const int64_t room = step == count ? (y.positions - q) * step : count;
        Rows::put(V::max(least, sums[0] + sums[1] + sums[2]), result + q * step,
                  room < V::kWidth ? count : V::kWidth);
      });
    });
  }
};

// Its weight gradient, images in their order.
template <class T>
class DepthwiseHalvedWeights {
  using Rows = HalvedRows<T>;
  using V = typename Rows::V;
  static constexpr int kTaps = Rows::kTaps;

 public:
  static bool pays(const Images<T>& x) { return Rows::suits(x.y, x.x); }

  static void run(const Images<T>& images, const Images<T>& gradient, int64_t batch,
                  T* grad_weight) {
    const Axis y = images.y, x = images.x;
    const int64_t plane = y.size * x.size, positions = images.positions_per_image();
    const int count = static_cast<int>(x.positions);
    parallel_for(0, images.channels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t channel = begin; channel < end; ++channel) {
        V sums[kTaps * kTaps];  // of images, whose own are short, as their errors are
#pragma GCC unroll 9
        for (V& s : sums) s = V::zero();
        for (int64_t n = 0; n < batch; ++n) {
          V image_sums[kTaps * kTaps];
#pragma GCC unroll 9
          for (V& s : image_sums) s = V::zero();
          const int64_t number = n * images.channels + channel;
          const T* g = gradient.data + number * positions;
          Rows::each(images.data + number * plane, y, x,
                     [&](int64_t q, const auto& rows) __attribute__((always_inline)) {
                       const V of_row = load(g + q * x.positions, count);
#pragma GCC unroll 9
                       for (int t = 0; t < kTaps * kTaps; ++t) {
                         V& sum = image_sums[t];
                         sum = V::fma(of_row, rows[t / kTaps].tap[t % kTaps], sum);
                       }
                     });
#pragma GCC unroll 9
          for (int t = 0; t < kTaps * kTaps; ++t) sums[t] = sums[t] + image_sums[t];
        }
        for (int t = 0; t < kTaps * kTaps; ++t) {
          // Beside the last position lies a column that a zero may not have silenced.
          alignas(64) acc_t<T> lanes[V::kWidth];
          sums[t].store(lanes);
          grad_weight[channel * kTaps * kTaps + t] = static_cast<T>(V::load(lanes, count).sum());
        }
      }
    });
  }
};

// And that of its inputs: columns 2q meet the middle tap of position q, columns 2q + 1 the last one
// of q and the first of q + 1; rows likewise.
template <class T>
class DepthwiseHalvedGradient {
  using Rows = HalvedRows<T>;
  using V = typename Rows::V;

 public:
  static bool pays(const Conv2dShape& s) {
    const Axis y = forward_axis_y(s);
    return is_depthwise(s) && !s.channels_last && y.origin == -1 &&
           Rows::suits(y, forward_axis_x(s));
  }

  static void run(const Conv2dBackwardParams& p) {
    constexpr int64_t kWindow = Rows::kTaps * Rows::kTaps;
    parallel_for(0, p.n * p.c, 1, [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        V taps[kWindow];
        const T* weights = static_cast<const T*>(p.weight) + plane % p.c * kWindow;
        for (int t = 0; t < kWindow; ++t) taps[t] = V::set1(static_cast<acc_t<T>>(weights[t]));
        run_plane(p, static_cast<const T*>(p.grad_y) + plane * p.oh * p.ow, taps,
                  static_cast<T*>(p.grad_x) + plane * p.h * p.w);
      }
    });
  }

 private:
  // A row of the gradient, and with every lane the next one's.
  struct Row {
    V here, next;
  };

  [[gnu::always_inline]] static void run_plane(const Conv2dBackwardParams& p, const T* gradient,
                                               const V (&taps)[9], T* out) {
    const auto read = [&](int64_t row) -> Row {
      if (row >= p.oh) return {V::zero(), V::zero()};
      const V here = load(gradient + row * p.ow, static_cast<int>(p.ow));
      return {here, shifted<1>(here, V::zero())};
    };
    // What a row of taps gives to even and odd columns, added.
    const auto add = [&](const Row& g, int ky, VecPair<acc_t<T>>& x) {
      const V* tap = taps + ky * 3;
      x.first = V::fma(tap[1], g.here, x.first);
      x.second = V::fma(tap[0], g.next, V::fma(tap[2], g.here, x.second));
    };
    Row row = read(0);
    for (int64_t q = 0, room = p.h * p.w; q < p.oh; ++q, out += 2 * p.w, room -= 2 * p.w) {
      const Row below = read(q + 1);
      VecPair<acc_t<T>> even{V::zero(), V::zero()}, odd = even;
      add(row, 1, even);
      Rows::put(even, out, p.w, room);
      if (2 * q + 1 == p.h) break;
      add(row, 2, odd);
      add(below, 0, odd);
      Rows::put(odd, out + p.w, p.w, room - p.w);
      row = below;
    }
  }
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
