// Steps of the depth of what a warp multiplies on tensor cores: c (16, 8) += a (16, kDepth) ·
// b (kDepth, 8). Operands are words of 32 bits, which lie with the lanes as PTX says of
// mma.m16n8k16 and mma.m16n8k8: a's are of rows lane/4 and lane/4 + 8, b's of column lane/4, and
// c's numbers of a's rows and columns lane%4·2 and the next. More words of a, and numbers of c, are
// of rows 16 below.
//
// Any order of the depth will do that both operands have. Where a was a sum before, b comes by
// load_columns() in its order: no lane needs what another has.
#pragma once

#include <cmath>

#include "core/dtype.h"
#include "gemm/split_float32.h"

namespace pyops {

// To the nearest of 11 bits.
PYOPS_HOST_DEVICE inline float round_to_tf32(float x) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits_float(bits);
#else
  const uint32_t bits = float_bits(x);
  const bool is_finite = (bits & 0x7f800000) != 0x7f800000;
  return is_finite ? bits_float((bits + 0x1000) & 0xffffe000) : x;
#endif
}

template <class T>
struct HalfStep {
  using Element = T;
  static constexpr int kDepth = 16, kInWord = 2;
  static constexpr bool kSplits = false;

  // Of the depth: where word `half` of b begins, and words 2·half and 2·half + 1 of a.
  PYOPS_HOST_DEVICE static constexpr int depth_of(int lane, int half) {
    return half * 8 + lane % 4 * 2;
  }
  // Word x of a that was two tiles of sums.
  template <int kNumbers>
  PYOPS_HOST_DEVICE static uint32_t word_of_sums(const float (*tiles)[kNumbers], int x) {
    const float* const pair = &tiles[x % 4 / 2][x / 4 * 4 + x % 2 * 2];
    return word_of<T>(pair[0], pair[1]);
  }
  // What memory keeps of a number.
  PYOPS_HOST_DEVICE static T rounded(T x) { return x; }
};

// Float32 by products of TF32: one, for which numbers are rounded, or three of their parts, with
// float32's accuracy, where numbers split.
template <bool kSplit>
struct FloatStep {
  using Element = float;
  static constexpr int kDepth = 8, kInWord = 1;
  static constexpr bool kSplits = kSplit;

  PYOPS_HOST_DEVICE static constexpr int depth_of(int lane, int half) {
    return half * 4 + lane % 4;
  }
  template <int kNumbers>
  PYOPS_HOST_DEVICE static uint32_t word_of_sums(const float (*tile)[kNumbers], int x) {
    return float_bits(rounded(tile[0][x / 4 * 4 + x % 2 * 2 + x % 4 / 2]));
  }
  PYOPS_HOST_DEVICE static float rounded(float x) {
    if constexpr (kSplit) return x;
    return round_to_tf32(x);
  }
};
using Tf32Step = FloatStep<false>;
using SplitStep = FloatStep<true>;

// The same for all numbers, without tensor cores.
struct UnsplitStep : SplitStep {};

// The largest magnitude of what a thread loads, where the step asks for it.
template <class Step>
struct Largest {
  float magnitude = 0;

  template <class T>
  PYOPS_HOST_DEVICE T with(T x) {
    if constexpr (Step::kSplits) magnitude = std::fmax(magnitude, std::fabs(x));
    return x;
  }
  PYOPS_HOST_DEVICE bool fits() const { return splits(magnitude); }
};

// Whether f, which loads, finds numbers that the step takes in all threads, after a barrier.
template <class Step, class Team, class F>
PYOPS_HOST_DEVICE inline bool all_fit(Team& team, const F& f) {
  if constexpr (Step::kSplits) return team.all(f);
  team.each(f);
  return true;
}

// f of the step, or of that for all numbers.
template <class Step, class F>
PYOPS_HOST_DEVICE inline void by_step(bool fit, const F& f) {
  if constexpr (Step::kSplits) {
    if (!fit) return f(UnsplitStep{});
  }
  f(Step{});
}

// Two words of b (depth, n) = row n, column depth of a matrix in shared memory: `row` is that of
// the lane's n, from the step's first column on.
template <class Step>
PYOPS_HOST_DEVICE inline void load_row(const typename Step::Element* row, int lane,
                                       uint32_t (&to)[2]) {
  PYOPS_UNROLL for (int half = 0; half < 2; ++half) {
    memcpy(&to[half], row + Step::depth_of(lane, half), sizeof to[half]);
  }
}

// Two words of b (depth, n) = row depth, column n of a matrix in shared memory, whose rows lie
// `stride` apart, in the order of sums.
template <class Step, class Team>
PYOPS_HOST_DEVICE inline void load_columns(const typename Step::Element* from, int stride, int lane,
                                           uint32_t (&to)[2]) {
  if constexpr (Step::kInWord == 2) {
    Team::load_transposed(from, stride, lane, to);
  } else {
    PYOPS_UNROLL for (int half = 0; half < 2; ++half) {
      to[half] = float_bits(from[(lane % 4 * 2 + half) * stride + lane / 4]);
    }
  }
}

}  // namespace pyops
