// Products whose depth is a batch, as those of weight gradients.
#pragma once

#include "gemm/gemm_simd.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Sums in blocks of 64. Where every number carries rounding errors of its own, the errors of a
// longer chain of additions are too much beside them.
template <class T>
struct ShallowEngine : VectorEngine<T, 64> {
  static constexpr int64_t kDepthStep = 64;
};

template <class A, class B, class Sink>
void gemm_in_short_sums(int64_t m, int64_t n, int64_t k, const A& a, const B& b, const Sink& sink,
                        [[maybe_unused]] Precision precision) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<typename A::Acc, float>) {
    if (tiles_pay(m, n, k, bf16_parts<A, B>(precision)))
      return gemm(m, n, k, a, b, sink, precision);
  }
#endif
  if (m == 0 || n == 0) return;
  Gemm<ShallowEngine<typename A::Acc>, A, B, Sink>(m, n, k, a, b, sink).run();
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
