// Depthwise convolutions of planes of rows: vectors run along a row of a plane that was copied with
// its padding.
#pragma once

#include "conv2d/patches_simd.h"
#include "conv2d/weights_simd.h"
#include "core/lanes_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// A plane with its padding. The columns of a row are sorted by their residue modulo the stride, so
// that neighbouring positions find a tap's elements side by side.
template <class T>
struct PaddedPlane {
  using Acc = acc_t<T>;
  static constexpr int kV = Vec<Acc>::kWidth;  // rows are read in whole vectors
  Axis y, x;
  int64_t height, width;  // rows, and columns of one residue

  explicit PaddedPlane(const Images<T>& images)
      : y(images.y),
        x(images.x),
        height((y.positions - 1) * y.stride + reach(y) + 1),
        width(ceil_div(x.positions + reach(x) / x.stride + kV, kV) * kV) {}

  // From the first tap to the last. A phase of an input gradient may have none.
  static int64_t reach(const Axis& axis) {
    return std::max<int64_t>(0, axis.taps - 1) * axis.dilation;
  }

  int64_t row_stride() const { return x.stride * width; }
  int64_t size() const { return height * row_stride(); }
  int64_t taps() const { return y.taps * x.taps; }

  // Of tap t, relative to the position's own element.
  int64_t tap_offset(int64_t t) const {
    const int64_t column = t % x.taps * x.dilation;
    return t / x.taps * y.dilation * row_stride() + column % x.stride * width + column / x.stride;
  }

  // Into memory that was zero before the first plane: the padding stays so.
  void fill(const Images<T>& images, int64_t plane_offset, Acc* out) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t r = std::max<int64_t>(0, -y.origin); r < std::min(height, y.size - y.origin);
         ++r) {
      const int64_t row = plane_offset + (r + y.origin) * x.size;
      for (int64_t i = 0; i < x.size; i += kLine) {
        prefetch_to_read(images.data + row + y.size * x.size + i);  // of the next plane
      }
      Acc* to = out + r * row_stride();
      if (x.stride == 1) {
        fill_row(images, row, to);
      } else if (x.stride == 2) {
        fill_residues(images, row, to);
      } else {
        for (int64_t residue = 0; residue < x.stride; ++residue) {
          const auto [begin, end] = columns(residue);
          copy_rows<false>(images, row + x.origin + residue + begin * x.stride, 0, x.stride,
                           to + residue * width + begin, 0, 1, end - begin);
        }
      }
    }
  }

 private:
  // Those of a residue that are in the image.
  Inside columns(int64_t residue) const {
    const int64_t ix = x.origin + residue;  // of column 0
    return {std::max<int64_t>(0, ceil_div_signed(-ix, x.stride)),
            std::min(width - kV + 1, ceil_div_signed(x.size - ix, x.stride))};
  }

  // Whole vectors are stored: behind the last column there is room, for zeros.
  void fill_row(const Images<T>& images, int64_t row, Acc* to) const {
    const auto [begin, end] = columns(0);
    for (int64_t i = begin; i < end; i += kV) {
      const int n = static_cast<int>(std::min<int64_t>(kV, end - i));
      load_masked<T, false>(images, row + x.origin + i, n).store(to + i);
    }
  }

  // Both residues at once: neighbours in the image are the same column of one and of the other.
  void fill_residues(const Images<T>& images, int64_t row, Acc* to) const {
    const Inside even = columns(0), odd = columns(1);
    // An odd padding begins with an element that has no left neighbour.
    if (odd.begin < even.begin) {
      to[width + odd.begin] = load_masked<T, false>(images, row, 1).sum();
    }
    for (int64_t i = even.begin; i < std::max(even.end, odd.end); i += kV) {
      const int64_t from = x.origin + 2 * i, left = x.size - from;
      const auto load = [&](int64_t first) {
        const int n = static_cast<int>(std::clamp<int64_t>(left - first, 0, kV));
        return load_masked<T, false>(images, row + from + first, n);
      };
      const auto [evens, odds] = split<T>(load(0), load(kV));
      Vec<Acc>{in_order<T>(evens.v)}.store(to + i);
      Vec<Acc>{in_order<T>(odds.v)}.store(to + width + i);
    }
  }
};

// One plane of the result.
template <class T>
class DepthwisePlane {
  using Acc = acc_t<T>;
  using V = Vec<Acc>;

 public:
  DepthwisePlane(const PaddedPlane<T>& plane, const int64_t* tap_offsets, const PlanarSink<T>& to)
      : padded_(plane), offsets_(tap_offsets), sink_(to) {}

  void run(const Acc* image, const T* weight, int64_t channel, int64_t first_position) const {
    const Axis& y = padded_.y;
    const Plane plane{image, weight, V::set1(sink_.bias(channel)),
                      sink_.y + channel * sink_.channel_stride + sink_.map.offset(first_position)};
    const bool square = y.taps == 3 && padded_.x.taps == 3 && y.dilation == 1;
    if (square && y.stride <= 2 && y.positions >= kRows) {
      if (y.stride == 2) return run_square<2, false>(plane);
      constexpr bool kMayShift = std::is_same_v<V, Vec<float>> && V::kWidth == 16;
      const bool shift = kMayShift && padded_.x.stride == 1 && padded_.x.dilation == 1;
      shift ? run_square<1, kMayShift>(plane) : run_square<1, false>(plane);
    } else {
      run_rows(plane);
    }
  }

 private:
  static constexpr int kRows = 4, kVectors = 4;
  static constexpr int64_t kAhead = 1024 / sizeof(T);

  struct Plane {
    const Acc* image;
    const T* weight;
    V bias;
    T* out;

    V tap(int64_t t) const { return V::set1(static_cast<Acc>(weight[t])); }
  };

  const Acc* row(const Plane& plane, int64_t qy) const {
    return plane.image + qy * padded_.y.stride * padded_.row_stride();
  }
  T* position(const Plane& plane, int64_t qy, int64_t q) const {
    return plane.out + qy * row_step() + q * sink_.map.col_stride;
  }
  int64_t row_step() const { return sink_.map.row_step(padded_.x.positions); }

  // The last vector of a row reaches back over the one before rather than beyond the row.
  int64_t last_vector() const { return std::max<int64_t>(0, padded_.x.positions - V::kWidth); }

  // 3×3 taps, their weights in registers. A vector of the image is read once for all taps of
  // kRows rows of positions that meet it. kShift: what a row's second and third tap meet comes out
  // of registers, since of loads as long as a line all but the aligned ones cost two.
  template <int kStride, bool kShift>
  void run_square(const Plane& plane) const {
    const int64_t positions = padded_.x.positions, last = last_vector();
    V taps[9];
    for (int t = 0; t < 9; ++t) taps[t] = plane.tap(t);
    for (int64_t block = 0; block < padded_.y.positions; block += kRows) {
      const int64_t qy = std::min(block, padded_.y.positions - kRows);
      for (int64_t q = 0; q < positions; q += V::kWidth) {
        const int64_t at = kShift ? q : std::min(q, last);
        const int n = static_cast<int>(std::min<int64_t>(V::kWidth, positions - at));
        V sums[kRows];
        sum_square<kStride, kShift>(row(plane, qy) + at, taps, sums);
        sink_.map.col_stride == 1 ? put_lines(sums, plane, qy, at, n) : put(sums, plane, qy, at, n);
      }
    }
  }

  template <int kStride, bool kShift>
  [[gnu::always_inline]] void sum_square(const Acc* from, const V (&taps)[9],
                                         V (&sums)[kRows]) const {
    constexpr int kImageRows = (kRows - 1) * kStride + 3;
#pragma GCC unroll 4
    for (V& s : sums) s = V::zero();
#pragma GCC unroll 9
    for (int i = 0; i < kImageRows; ++i, from += padded_.row_stride()) {
      V x[3];
      if constexpr (kShift) {
        const V next = V::load(from + V::kWidth);
        x[0] = V::load(from);
        x[1] = shifted<1>(x[0], next);
        x[2] = shifted<2>(x[0], next);
      } else {
#pragma GCC unroll 3
        for (int kx = 0; kx < 3; ++kx) x[kx] = V::load(from + offsets_[kx]);
      }
#pragma GCC unroll 3
      for (int kx = 0; kx < 3; ++kx) {
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const int ky = i - r * kStride;
          if (ky >= 0 && ky < 3) sums[r] = V::fma(taps[ky * 3 + kx], x[kx], sums[r]);
        }
      }
    }
  }

  // A row narrower than a vector is stored as a whole one where the next row comes to lie over
  // what is too much.
  [[gnu::always_inline]] void put_lines(const V (&sums)[kRows], const Plane& plane, int64_t qy,
                                        int64_t q, int n) const {
    const int64_t positions = padded_.x.positions, step = row_step();
    const V floor = V::set1(Lines<T>::relu_floor(sink_.epilogue.relu));
    T* to = position(plane, qy, q);
    const bool narrow = step == positions && positions < V::kWidth;
    int64_t room = narrow ? (padded_.y.positions - qy) * positions : n;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r, to += step) {
      prefetch_to_write(to + kAhead);
      const V x = V::max(floor, sums[r] + plane.bias);
      room >= V::kWidth ? x.store(to) : x.store(to, n);
      if (narrow) room -= positions;
    }
  }
  void put(const V (&sums)[kRows], const Plane& plane, int64_t qy, int64_t q, int n) const {
    for (int r = 0; r < kRows; ++r) sink_.put(sums[r] + plane.bias, position(plane, qy + r, q), n);
  }

  // Any taps.
  void run_rows(const Plane& plane) const {
    const int64_t positions = padded_.x.positions, last = last_vector();
    for (int64_t qy = 0; qy < padded_.y.positions; ++qy) {
      int64_t q = 0;
      for (; q + kVectors * V::kWidth <= positions; q += kVectors * V::kWidth) {
        sum<kVectors>(plane, qy, q, V::kWidth);
      }
      const int rest = static_cast<int>(std::min<int64_t>(V::kWidth, positions));
      for (; q < positions; q += V::kWidth) sum<1>(plane, qy, std::min(q, last), rest);
    }
  }

  template <int kSome>
  void sum(const Plane& plane, int64_t qy, int64_t q, int n) const {
    const Acc* from = row(plane, qy) + q;
    V sums[kSome];
#pragma GCC unroll 4
    for (V& s : sums) s = V::zero();
    for (int64_t t = 0; t < padded_.taps(); ++t) {
      const V w = plane.tap(t);
#pragma GCC unroll 4
      for (int v = 0; v < kSome; ++v) {
        sums[v] = V::fma(w, V::load(from + offsets_[t] + v * V::kWidth), sums[v]);
      }
    }
    for (int v = 0; v < kSome; ++v) {
      T* to = position(plane, qy, q + v * V::kWidth);
      prefetch_to_write(to + kAhead);
      sink_.put(sums[v] + plane.bias, to, n);
    }
  }

  const PaddedPlane<T>& padded_;
  const int64_t* offsets_;
  const PlanarSink<T>& sink_;
};

template <class T>
void depthwise_planar(const Correlation<T>& c) {
  const PaddedPlane<T> padded(c.images);
  const int64_t plane = padded.y.size * padded.x.size, taps = padded.taps();
  Scratch<int64_t> offsets(taps);
  for (int64_t t = 0; t < taps; ++t) offsets[t] = padded.tap_offset(t);
  const PlanarSink<T> sink{c.result, c.channel_stride, c.map, c.epilogue};
  const T* weight = c.weights->matrix().data;
  const DepthwisePlane<T> planes(padded, offsets.get(), sink);
  parallel_for(0, c.batch * c.channels, 1, [&](int64_t begin, int64_t end) {
    Scratch<acc_t<T>> image(padded.size());
    std::fill(image.get(), image.get() + padded.size(), acc_t<T>{0});
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / c.channels, channel = task % c.channels;
      padded.fill(c.images, task * plane, image.get());
      planes.run(image.get(), weight + channel * taps, channel, n * c.images.positions_per_image());
    }
  });
}

// sums[t] += Σ g · x at taps [0, kTaps) from `offsets` on, over one plane.
template <int kTaps, class T>
void depthwise_weight_taps(const PaddedPlane<T>& padded, const acc_t<T>* image,
                           const Images<T>& gradient, int64_t plane_offset, const int64_t* offsets,
                           acc_t<T>* sums) {
  using V = Vec<acc_t<T>>;
  V sum[kTaps];
#pragma GCC unroll 9
  for (V& s : sum) s = V::zero();
  for (int64_t qy = 0; qy < padded.y.positions; ++qy) {
    const int64_t row = plane_offset + qy * padded.x.positions;
    const acc_t<T>* from = image + qy * padded.y.stride * padded.row_stride();
    const auto add = [&](int64_t qx, int lanes) {
      prefetch_to_read(gradient.data + row + qx + padded.y.positions * padded.x.positions);
      const V g = load_masked<T, false>(gradient, row + qx, lanes);
#pragma GCC unroll 9
      for (int t = 0; t < kTaps; ++t) {
        const acc_t<T>* at = from + offsets[t] + qx;
        // Beyond the row may lie what a zero does not silence.
        sum[t] = V::fma(g, lanes == V::kWidth ? V::load(at) : V::load(at, lanes), sum[t]);
      }
    };
    int64_t qx = 0;
    for (; qx + V::kWidth <= padded.x.positions; qx += V::kWidth) add(qx, V::kWidth);
    if (qx < padded.x.positions) add(qx, static_cast<int>(padded.x.positions - qx));
  }
  for (int t = 0; t < kTaps; ++t) sums[t] += sum[t].sum();
}

template <class T>
void depthwise_weight_planar(const Images<T>& x, const Images<T>& gradient, int64_t batch,
                             T* grad_weight) {
  using Acc = acc_t<T>;
  const PaddedPlane<T> padded(x);
  const int64_t taps = padded.taps(), channels = x.channels;
  const int64_t plane = x.y.size * x.x.size, positions = x.positions_per_image();
  parallel_for(0, channels, 1, [&](int64_t begin, int64_t end) {
    Scratch<Acc> image(padded.size()), sums(taps);
    std::fill(image.get(), image.get() + padded.size(), Acc{0});
    Scratch<int64_t> offsets(taps);
    for (int64_t t = 0; t < taps; ++t) offsets[t] = padded.tap_offset(t);
    for (int64_t channel = begin; channel < end; ++channel) {
      std::fill(sums.get(), sums.get() + taps, Acc{0});
      for (int64_t n = 0; n < batch; ++n) {
        const int64_t at = n * channels + channel;
        padded.fill(x, at * plane, image.get());
        int64_t t = 0;
        for (; t + 9 <= taps; t += 9) {
          depthwise_weight_taps<9>(padded, image.get(), gradient, at * positions, offsets.get() + t,
                                   sums.get() + t);
        }
        for (; t < taps; ++t) {
          depthwise_weight_taps<1>(padded, image.get(), gradient, at * positions, offsets.get() + t,
                                   sums.get() + t);
        }
      }
      for (int64_t t = 0; t < taps; ++t) {
        grad_weight[channel * taps + t] = static_cast<T>(sums[t]);
      }
    }
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
