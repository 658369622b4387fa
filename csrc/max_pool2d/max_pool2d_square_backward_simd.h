// The gradient of the usual square windows over planes of rows, unrolled. kStride rows by kStride
// columns of the input make a cell; the cells of a row have the outputs over them side by side, so
// a register of outputs is loaded once for a register of cells, and which tap of which output an
// element of the cell is, is known when this is compiled. Elements receive their windows' gradients
// in the order of the outputs.
#pragma once

#include <algorithm>
#include <array>

#include "core/lanes_simd.h"
#include "max_pool2d/max_pool2d.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// As many numbers as there is room for.
template <class A, class T>
void store_within(Vec<A> x, T* to, int64_t room) {
  if (room >= Vec<A>::kWidth) return x.store(to);
  if (room > 0) x.store(to, static_cast<int>(room));
}

template <class T, int kKernel, int kStride, int kPadding>
class SquareBackward {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Code = lane_t<A>;
  static constexpr int kV = V::kWidth;
  // The outputs over cell n are n + kFirst … n + kLast, in each direction.
  static constexpr int kFirst = -((kKernel - 1 - kPadding) / kStride);
  static constexpr int kLast = (kStride - 1 + kPadding) / kStride;
  static constexpr int kOutputs = kLast - kFirst + 1;

 public:
  static bool suits(const MaxPool2dBackwardParams& p) {
    const auto usual = [](const PoolAxis& axis) {
      return axis.kernel == kKernel && axis.stride == kStride && axis.padding == kPadding &&
             axis.dilation == 1;
    };
    return p.argmax == Argmax::kTap && usual(p.h) && usual(p.w);
  }

  explicit SquareBackward(const MaxPool2dBackwardParams& params)
      : p(params), cells_((p.w.size + kStride - 1) / kStride) {}

  // Rows of cells in a plane.
  static int64_t rows(const MaxPool2dBackwardParams& p) {
    return (p.h.size + kStride - 1) / kStride;
  }

  // Rows of cells of all planes.
  void run(int64_t begin, int64_t end) const {
    const int64_t height = rows(p), all = p.n * p.c * p.oh * p.ow;
    // The last block of a row reaches back over the one before rather than beyond the row.
    const int64_t last = p.w.size % kStride == 0 ? std::max<int64_t>(0, cells_ - kV) : cells_;
    int64_t plane = begin / height, m = begin % height;
    for (int64_t row = begin; row < end; ++row) {
      std::array<int64_t, kOutputs> offsets;  // of the output rows over the cells, or -1
      for (int d = 0; d < kOutputs; ++d) {
        const int64_t oh = m + kFirst + d;
        offsets[d] = oh >= 0 && oh < p.oh ? (plane * p.oh + oh) * p.ow : -1;
      }
      T* grad_x = static_cast<T*>(p.grad_x) + (plane * p.h.size + m * kStride) * p.w.size;
      const int64_t height_left = p.h.size - m * kStride;
      // Where each cell has one output, those behind the row's concern no cell of the row.
      const int64_t outputs = kOutputs == 1 && cells_ == p.ow ? all - offsets[0] : p.ow;
      for (int64_t next = 0; next < cells_; next += kV) {
        const int64_t n = std::min(next, last);
        const bool inside = n + kFirst >= 0 && n + kLast + kV <= outputs;
        inside ? write<true>(offsets, n, grad_x, height_left)
               : write<false>(offsets, n, grad_x, height_left);
      }
      if (++m == height) {
        m = 0;
        ++plane;
      }
    }
  }

 private:
  struct Gradients {
    V grad;
    Lanes<A> tap;
  };

  // Cells n, n + 1, … of a row.
  template <bool kInside>
  void write(const std::array<int64_t, kOutputs>& offsets, int64_t n, T* grad_x,
             int64_t height_left) const {
    V sums[kStride][kStride];
#pragma GCC unroll 2
    for (auto& row : sums) {
#pragma GCC unroll 2
      for (V& sum : row) sum = V::zero();
    }
#pragma GCC unroll 4
    for (int d = 0; d < kOutputs; ++d) {
      if (offsets[d] < 0) continue;
#pragma GCC unroll 4
      for (int e = 0; e < kOutputs; ++e) {
        const auto [grad, tap] = load<kInside>(offsets[d], n + kFirst + e);
#pragma GCC unroll 2
        for (int i = 0; i < kStride; ++i) {
          const int row = i + kPadding - kStride * (kFirst + d);
#pragma GCC unroll 2
          for (int j = 0; j < kStride; ++j) {
            const int column = j + kPadding - kStride * (kFirst + e);
            if (row < 0 || row >= kKernel || column < 0 || column >= kKernel) continue;
            const auto mine = tap == Lanes<A>{} + static_cast<Code>(row * kKernel + column);
            sums[i][j] = sums[i][j] + V{mine ? grad.v : V::zero().v};
          }
        }
      }
    }
    const int64_t room = p.w.size - n * kStride;
#pragma GCC unroll 2
    for (int i = 0; i < kStride; ++i) {
      if (i < height_left) store(sums[i], grad_x + i * p.w.size + n * kStride, room);
    }
  }

  // Of outputs o, o + 1, … of the row at `row`; those that it lacks name no element.
  template <bool kInside>
  Gradients load(int64_t row, int64_t o) const {
    const T* grad = static_cast<const T*>(p.grad_y) + row + o;
    const uint8_t* tap = static_cast<const uint8_t*>(p.where) + row + o;
    if constexpr (kInside) return {V::load(grad), load_lanes<A>(tap, kV)};
    const Lanes<A> column = lane_numbers<A>() + static_cast<Code>(o);
    const auto here = (column >= 0) & (column < static_cast<Code>(p.ow));
    const int64_t all = p.n * p.c * p.oh * p.ow;
    if (row + o >= 0 && row + o + kV <= all) [[likely]] {
      return {V::load(grad), here ? load_lanes<A>(tap, kV) : Lanes<A>{} - 1};
    }
    // The memory beside the first and the last row is not the tensor's.
    T grads[kV] = {};
    Code taps[kV];
    for (int i = 0; i < kV; ++i) {
      const bool own = o + i >= 0 && o + i < p.ow;
      if (own) grads[i] = grad[i];
      taps[i] = own ? tap[i] : -1;
    }
    return {V::load(grads), load_lanes<A>(taps)};
  }

  static void store(const V (&cells)[kStride], T* to, int64_t room) {
    if constexpr (kStride == 1) {
      store_within(cells[0], to, room);
    } else {
      const auto [low, high] = interleave(cells[0], cells[1]);
      store_within(low, to, room);
      store_within(high, to + kV, room - kV);
    }
  }

  const MaxPool2dBackwardParams& p;
  int64_t cells_;  // of a row
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
