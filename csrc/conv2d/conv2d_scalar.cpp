// The definition, as loops: the oracle of the other kernels and what machines without AVX2 run.
// Sums are double, whatever the dtype.
#include "conv2d/conv2d_coordinates.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace pyops {
namespace {

struct Geometry {
  const Conv2dShape& s;
  ImageStrides x, w, y;

  explicit Geometry(const Conv2dShape& shape)
      : s(shape), x(input_strides(s)), w(weight_strides(s)), y(output_strides(s)) {}

  // f(ky, kx, iy, ix) for the taps of output (oy, ox) that meet the input.
  template <class F>
  void each_tap(int64_t oy, int64_t ox, F&& f) const {
    for (int64_t ky = 0; ky < s.kh; ++ky) {
      const int64_t iy = oy * s.stride_h - s.padding_h + ky * s.dilation_h;
      if (iy < 0 || iy >= s.h) continue;
      for (int64_t kx = 0; kx < s.kw; ++kx) {
        const int64_t ix = ox * s.stride_w - s.padding_w + kx * s.dilation_w;
        if (ix >= 0 && ix < s.w) f(ky, kx, iy, ix);
      }
    }
  }
};

template <class T>
struct Forward {
  const Conv2dParams& p;
  Geometry layout;

  explicit Forward(const Conv2dParams& params) : p(params), layout(params) {}

  T at(int64_t n, int64_t o, int64_t oy, int64_t ox) const {
    const auto *x = static_cast<const T*>(p.x), *w = static_cast<const T*>(p.weight);
    const auto* bias = static_cast<const T*>(p.bias);
    const int64_t c0 = o / p.group_o() * p.group_c();
    double sum = 0;
    layout.each_tap(oy, ox, [&](int64_t ky, int64_t kx, int64_t iy, int64_t ix) {
      for (int64_t c = 0; c < p.group_c(); ++c) {
        sum +=
            to_double(x[layout.x.at(n, c0 + c, iy, ix)]) * to_double(w[layout.w.at(o, c, ky, kx)]);
      }
    });
    if (bias != nullptr) sum += to_double(bias[o]);
    return from_double<T>(p.relu && sum <= 0 ? 0.0 : sum);
  }
};

template <class T>
void forward(const Conv2dParams& p) {
  const Forward<T> y(p);
  parallel_for(0, p.n * p.o, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t oy = 0; oy < p.oh; ++oy) {
        for (int64_t ox = 0; ox < p.ow; ++ox) {
          static_cast<T*>(p.y)[y.layout.y.at(i / p.o, i % p.o, oy, ox)] =
              y.at(i / p.o, i % p.o, oy, ox);
        }
      }
    }
  });
}

template <class T>
struct Backward {
  const Conv2dBackwardParams& p;
  Geometry layout;

  explicit Backward(const Conv2dBackwardParams& params) : p(params), layout(params) {}

  // dy where the ReLU let it through.
  double grad(int64_t n, int64_t o, int64_t oy, int64_t ox) const {
    const int64_t at = layout.y.at(n, o, oy, ox);
    const auto* y = static_cast<const T*>(p.y);
    if (y != nullptr && to_double(y[at]) <= 0) return 0;
    return to_double(static_cast<const T*>(p.grad_y)[at]);
  }

  void x() const {
    const auto* w = static_cast<const T*>(p.weight);
    const int64_t plane = p.h * p.w;
    parallel_for(0, p.n * p.groups, 1, [&](int64_t begin, int64_t end) {
      Scratch<double> sums(p.group_c() * plane);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / p.groups, group = i % p.groups;
        for (int64_t j = 0; j < p.group_c() * plane; ++j) sums[j] = 0;
        each_output(
            n, group, [&](int64_t o, int64_t ky, int64_t kx, int64_t iy, int64_t ix, double g) {
              for (int64_t c = 0; c < p.group_c(); ++c) {
                sums[(c * p.h + iy) * p.w + ix] += g * to_double(w[layout.w.at(o, c, ky, kx)]);
              }
            });
        for (int64_t j = 0; j < p.group_c() * plane; ++j) {
          const int64_t c = group * p.group_c() + j / plane;
          static_cast<T*>(p.grad_x)[layout.x.at(n, c, j % plane / p.w, j % p.w)] =
              from_double<T>(sums[j]);
        }
      }
    });
  }

  void weight() const {
    const auto* x = static_cast<const T*>(p.x);
    const int64_t elements = p.group_o() * p.group_c() * p.kh * p.kw;
    parallel_for(0, p.groups, 1, [&](int64_t begin, int64_t end) {
      Scratch<double> sums(elements);
      for (int64_t group = begin; group < end; ++group) {
        const int64_t first = group * elements;
        for (int64_t j = 0; j < elements; ++j) sums[j] = 0;
        for (int64_t n = 0; n < p.n; ++n) {
          each_output(n, group,
                      [&](int64_t o, int64_t ky, int64_t kx, int64_t iy, int64_t ix, double g) {
                        for (int64_t c = 0; c < p.group_c(); ++c) {
                          const int64_t at = layout.x.at(n, group * p.group_c() + c, iy, ix);
                          sums[layout.w.at(o, c, ky, kx) - first] += g * to_double(x[at]);
                        }
                      });
        }
        for (int64_t j = 0; j < elements; ++j) {
          static_cast<T*>(p.grad_weight)[first + j] = from_double<T>(sums[j]);
        }
      }
    });
  }

  void bias() const {
    for (int64_t o = 0; o < p.o; ++o) {
      double sum = 0;
      for (int64_t n = 0; n < p.n; ++n) {
        for (int64_t i = 0; i < p.oh * p.ow; ++i) sum += grad(n, o, i / p.ow, i % p.ow);
      }
      static_cast<T*>(p.grad_bias)[o] = from_double<T>(sum);
    }
  }

 private:
  // f(o, ky, kx, iy, ix, g) for every output of a group and the taps it used.
  template <class F>
  void each_output(int64_t n, int64_t group, F&& f) const {
    for (int64_t o = group * p.group_o(); o < (group + 1) * p.group_o(); ++o) {
      for (int64_t i = 0; i < p.oh * p.ow; ++i) {
        const double g = grad(n, o, i / p.ow, i % p.ow);
        layout.each_tap(i / p.ow, i % p.ow, [&](int64_t ky, int64_t kx, int64_t iy, int64_t ix) {
          f(o, ky, kx, iy, ix, g);
        });
      }
    }
  }
};

template <class T>
struct PoolForward {
  const Conv2dPoolParams& p;
  Forward<T> y;

  explicit PoolForward(const Conv2dPoolParams& params) : p(params), y(params) {}

  void operator()(int64_t n, int64_t o, int64_t py, int64_t px, int64_t at) const {
    const PoolWindow rows = p.pool_h.window(py), cols = p.pool_w.window(px);
    T best = static_cast<T>(-__builtin_inff());
    int64_t tap = 0, ky = rows.first_tap;
    for (int64_t oy = rows.begin; oy < rows.end; oy += p.pool_h.dilation, ++ky) {
      int64_t kx = cols.first_tap;
      for (int64_t ox = cols.begin; ox < cols.end; ox += p.pool_w.dilation, ++kx) {
        const T value = y.at(n, o, oy, ox);
        const auto v = static_cast<acc_t<T>>(value);
        if (v > static_cast<acc_t<T>>(best) || v != v) {
          best = value;
          tap = ky * p.pool_w.kernel + kx;
        }
      }
    }
    static_cast<T*>(p.y)[at] = best;
    if (p.offsets == nullptr) return;
    const bool passes = !(static_cast<acc_t<T>>(best) <= 0);
    p.store_offset(at, passes ? static_cast<int32_t>(tap) : kNoTap);
  }
};

template <class T>
void pool_forward(const Conv2dPoolParams& p) {
  const PoolForward<T> pool(p);
  const ImageStrides pooled(p.channels_last, p.o, p.pooled_h, p.pooled_w);
  parallel_for(0, p.n * p.o, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t py = 0; py < p.pooled_h; ++py) {
        for (int64_t px = 0; px < p.pooled_w; ++px) {
          pool(i / p.o, i % p.o, py, px, pooled.at(i / p.o, i % p.o, py, px));
        }
      }
    }
  });
}

// Scatters in the order of memory; windows that overlap add up in the order of the windows.
template <class T>
void pool_backward(const Conv2dPoolBackwardParams& p) {
  // One task: a plane, or with channels last an image.
  const int64_t channels = p.channels_last ? p.o : 1, tasks = p.n * (p.o / channels);
  const int64_t full = p.oh * p.ow * channels, pooled = p.pooled_h * p.pooled_w * channels;
  parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    Scratch<acc_t<T>> sums(full);
    for (int64_t task = begin; task < end; ++task) {
      const auto* grad = static_cast<const T*>(p.grad_pooled) + task * pooled;
      auto* grad_y = static_cast<T*>(p.grad_y) + task * full;
      for (int64_t j = 0; j < full; ++j) sums[j] = 0;
      for (int64_t py = 0, j = 0; py < p.pooled_h; ++py) {
        for (int64_t px = 0; px < p.pooled_w; ++px) {
          for (int64_t c = 0; c < channels; ++c, ++j) {
            const int64_t tap = p.tap(task * pooled + j);
            if (tap == kNoTap) continue;
            const int64_t oy = p.pool_h.start(py) + tap / p.pool_w.kernel * p.pool_h.dilation;
            const int64_t ox = p.pool_w.start(px) + tap % p.pool_w.kernel * p.pool_w.dilation;
            // Offsets of another call must not write elsewhere.
            if (oy < 0 || oy >= p.oh || ox < 0 || ox >= p.ow) continue;
            sums[(oy * p.ow + ox) * channels + c] += static_cast<acc_t<T>>(grad[j]);
          }
        }
      }
      for (int64_t j = 0; j < full; ++j) grad_y[j] = static_cast<T>(sums[j]);
    }
  });
}

}  // namespace

void conv2d_forward_scalar(const Conv2dParams& params) {
  dispatch_dtype(params.dtype, [&](auto t) { forward<decltype(t)>(params); });
}

void conv2d_backward_scalar(const Conv2dBackwardParams& params) {
  dispatch_dtype(params.dtype, [&](auto t) {
    const Backward<decltype(t)> backward(params);
    if (params.grad_x != nullptr) backward.x();
    if (params.grad_weight != nullptr) backward.weight();
    if (params.grad_bias != nullptr) backward.bias();
  });
}

void conv2d_pool_forward_scalar(const Conv2dPoolParams& params) {
  dispatch_dtype(params.dtype, [&](auto t) { pool_forward<decltype(t)>(params); });
}

void conv2d_pool_backward_scalar(const Conv2dPoolBackwardParams& params) {
  dispatch_dtype(params.dtype, [&](auto t) { pool_backward<decltype(t)>(params); });
}

}  // namespace pyops
