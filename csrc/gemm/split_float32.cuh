// Float32 products by three of TF32 for CUTLASS's kernels of sm_80: name MultiplySplitFloat32 as
// the operator of one, with instructions of 16x8x8.
#pragma once

#include <cutlass/gemm/warp/default_mma_tensor_op_sm80.h>

#include "gemm/split_float32.h"

namespace pyops {

struct MultiplySplitFloat32 {};

// A warp's step of the depth. Operands are split when they are used: parts kept for the next step,
// as CUTLASS's own operator does, would take the registers that a larger tile needs. Where a warp
// meets a number that does not split, the step is done without tensor cores.
template <class Whole>
class SplitProducts : public Whole {
 public:
  using MathOperator = MultiplySplitFloat32;
  using FragmentA = typename Whole::FragmentA;
  using FragmentB = typename Whole::FragmentB;
  using FragmentC = typename Whole::FragmentC;
  using TransformedFragmentA = FragmentA;
  using TransformedFragmentB = FragmentB;

  __device__ void transform(FragmentA& to_a, FragmentB& to_b, const FragmentA& a,
                            const FragmentB& b) const {
    to_a = a;
    to_b = b;
  }

  __device__ void operator()(FragmentC& d, const FragmentA& a, const FragmentB& b,
                             const FragmentC& c) const {
    d = c;
    const bool fits = splits(largest(a)) && splits(largest(b));
    if (__builtin_expect(__all_sync(kWarp, fits), 1)) {
      add_split(d, a, b);
    } else {
      add_unsplit(d, a, b);
    }
  }

 private:
  using Instruction = typename Whole::ArchMmaOperator;
  static constexpr unsigned kWarp = ~0u;
  static constexpr int kRows = Whole::MmaIterations::kRow, kColumns = Whole::MmaIterations::kColumn;
  static constexpr int kOfA = 4, kOfB = 2, kOfC = 4;  // registers of an instruction
  static_assert(FragmentA::kElements == kRows * kOfA && FragmentB::kElements == kColumns * kOfB);

  template <class Fragment>
  __device__ static float largest(const Fragment& fragment) {
    float most = 0;
    PYOPS_UNROLL for (int i = 0; i < Fragment::kElements; ++i) {
      most = fmaxf(most, fabsf(fragment[i]));
    }
    return most;
  }

  template <class Part>
  __device__ static void split(const float* from, Part& big, Part& small) {
    PYOPS_UNROLL for (int i = 0; i < Part::kElements; ++i) {
      const SplitFloat32 parts(from[i]);
      big[i] = cutlass::tfloat32_t::bitcast(float_bits(parts.big));
      small[i] = cutlass::tfloat32_t::bitcast(float_bits(parts.small));
    }
  }

  // The smallest products first; a row of instructions at a time, so that none waits for the last.
  __device__ void add_split(FragmentC& d, const FragmentA& a, const FragmentB& b) const {
    typename Instruction::FragmentB b_big[kColumns], b_small[kColumns];
    PYOPS_UNROLL for (int n = 0; n < kColumns; ++n) split(&b[n * kOfB], b_big[n], b_small[n]);
    PYOPS_UNROLL for (int m = 0; m < kRows; ++m) {
      typename Instruction::FragmentA a_big, a_small;
      split(&a[m * kOfA], a_big, a_small);
      typename Instruction::FragmentC sums[kColumns];
      PYOPS_UNROLL for (int n = 0; n < kColumns; ++n) sums[n].clear();
      PYOPS_UNROLL for (int n = 0; n < kColumns;
                        ++n) this->mma(sums[n], a_small, b_big[n], sums[n]);
      PYOPS_UNROLL for (int n = 0; n < kColumns;
                        ++n) this->mma(sums[n], a_big, b_small[n], sums[n]);
      PYOPS_UNROLL for (int n = 0; n < kColumns; ++n) this->mma(sums[n], a_big, b_big[n], sums[n]);
      PYOPS_UNROLL for (int n = 0; n < kColumns; ++n) {
        PYOPS_UNROLL for (int i = 0; i < kOfC; ++i) d[(n * kRows + m) * kOfC + i] += sums[n][i];
      }
    }
  }

  __device__ static void add_unsplit(FragmentC& d, const FragmentA& a, const FragmentB& b) {
    const auto lane = static_cast<int>(threadIdx.x % 32);
    PYOPS_UNROLL for (int m = 0; m < kRows; ++m) {
      PYOPS_UNROLL for (int n = 0; n < kColumns; ++n) {
        const auto of_a = [&](int r, int from) {
          return __shfl_sync(kWarp, a[m * kOfA + r], from);
        };
        const auto of_b = [&](int r, int from) {
          return __shfl_sync(kWarp, b[n * kOfB + r], from);
        };
        float sums[kOfC];
        PYOPS_UNROLL for (int i = 0; i < kOfC; ++i) sums[i] = d[(n * kRows + m) * kOfC + i];
        add_unsplit_product(lane, of_a, of_b, sums);
        PYOPS_UNROLL for (int i = 0; i < kOfC; ++i) d[(n * kRows + m) * kOfC + i] = sums[i];
      }
    }
  }
};

}  // namespace pyops

template <class Shape, class Instruction, class LayoutA, class LayoutB, class LayoutC,
          int kPartitions, bool kRowMajor>
struct cutlass::gemm::warp::DefaultMmaTensorOp<Shape, Instruction, float, LayoutA, float, LayoutB,
                                               float, LayoutC, pyops::MultiplySplitFloat32,
                                               kPartitions, kRowMajor> {
  static_assert(!kRowMajor);
  using Whole = typename DefaultMmaTensorOp<Shape, Instruction, float, LayoutA, float, LayoutB,
                                            float, LayoutC, cutlass::arch::OpMultiplyAddFastF32,
                                            kPartitions, kRowMajor>::Type;
  using Policy = typename Whole::Policy;
  using Type = pyops::SplitProducts<Whole>;
};
