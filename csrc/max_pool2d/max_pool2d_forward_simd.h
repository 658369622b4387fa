// Planar tensors, and with channels last: there the channels are the lanes.
#pragma once

#include "core/parallel.h"
#include "max_pool2d/max_pool2d_planar_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class T, Argmax kArgmax>
class ChannelsForward {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Code = lane_t<A>;
  static constexpr int kV = V::kWidth;
  static constexpr bool kCodes = kArgmax != Argmax::kNone;

 public:
  explicit ChannelsForward(const MaxPool2dParams& params) : p(params) {}

  // Output rows of all images.
  void run(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const PoolWindow rows = p.h.window(row % p.oh);
      const T* image = static_cast<const T*>(p.x) + row / p.oh * p.h.size * p.w.size * p.c;
      for (int64_t ow = 0; ow < p.ow; ++ow) {
        const PoolWindow columns = p.w.window(ow);
        const int64_t out = (row * p.ow + ow) * p.c;
        int64_t c = 0;
        const auto pool_all = [&]<int kVectors>() {
          for (; c + kVectors * kV <= p.c; c += kVectors * kV) {
            pool<kVectors>(image + c, rows, columns, out + c, kV);
          }
        };
        pool_all.template operator()<4>();
        pool_all.template operator()<1>();
        if (c < p.c) pool<0>(image + c, rows, columns, out + c, static_cast<int>(p.c - c));
      }
    }
  }

 private:
  // kVectors registers of channels, which share the way through the window; 0: one of n lanes.
  template <int kVectors>
  void pool(const T* x, const PoolWindow& rows, const PoolWindow& columns, int64_t out,
            int n) const {
    constexpr int kBest = kVectors ? kVectors : 1;
    const CodeSteps steps = code_steps<kArgmax>(p);
    int64_t row_code = first_row_code<kArgmax>(p, rows) + first_column_code<kArgmax>(columns);
    Best<A, kCodes, false> best[kBest];
    for (auto& b : best) b.code += static_cast<Code>(row_code);
    for (int64_t i = rows.begin; i < rows.end; i += p.h.dilation, row_code += steps.row) {
      Lanes<A> code = Lanes<A>{} + static_cast<Code>(row_code);
      const T* at = x + (i * p.w.size + columns.begin) * p.c;
      for (int64_t j = columns.begin; j < columns.end; j += p.w.dilation) {
#pragma GCC unroll 4
        for (int v = 0; v < kBest; ++v) {
          if (kVectors) prefetch_to_read(at + v * kV + kAhead / 2 / sizeof(T));
          best[v].update(kVectors ? V::load(at + v * kV) : V::load(at, n), code);
        }
        code += static_cast<Code>(steps.column);
        at += p.w.dilation * p.c;
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kBest; ++v, out += kV) {
      T* y = static_cast<T*>(p.y) + out;
      kVectors ? best[v].value.store(y) : best[v].value.store(y, n);
      if constexpr (kCodes) {
        store_lanes<A>(best[v].code, static_cast<where_t<kArgmax>*>(p.where) + out,
                       kVectors ? kV : n);
      }
    }
  }

  const MaxPool2dParams& p;
};

template <class T, Argmax kArgmax>
void max_pool2d_forward(const MaxPool2dParams& p) {
  const int64_t planes = p.channels_last ? p.n : p.n * p.c;
  const int64_t row = p.w.size * p.h.stride * (p.channels_last ? p.c : 1);
  parallel_for(0, planes * p.oh, row_grain(row), [&](int64_t begin, int64_t end) {
    if (p.channels_last) return ChannelsForward<T, kArgmax>(p).run(begin, end);
    // The usual kernels unrolled: a quarter less time than with their size at run time.
    constexpr bool kUnroll = sizeof(T) < 8;
    const bool two = kUnroll && p.w.kernel == 2, three = kUnroll && p.w.kernel == 3;
    const auto pool = [&]<int kStride, int kKernel>() {
      PlanarForward<T, kArgmax, kStride, kUnroll ? kKernel : 0>(p).run(begin, end);
    };
    if (p.w.stride == 1 && three) return pool.template operator()<1, 3>();
    if (p.w.stride == 1) return pool.template operator()<1, 0>();
    if (p.w.stride > 2 || p.w.dilation > 1 || p.w.kernel == 1) {
      return pool.template operator()<0, 0>();
    }
    if (two) return pool.template operator()<2, 2>();
    if (three) return pool.template operator()<2, 3>();
    pool.template operator()<2, 0>();
  });
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
