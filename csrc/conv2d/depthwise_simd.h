// Convolutions with one input and one output channel per group: no sum over channels, hence no
// GEMM. Gradients come without a mask, which every tap would apply anew.
#pragma once

#include "conv2d/depthwise_groups_simd.h"
#include "conv2d/depthwise_halved_simd.h"
#include "conv2d/depthwise_pixel_simd.h"
#include "conv2d/depthwise_pixel_weight_simd.h"
#include "conv2d/depthwise_planar_simd.h"
#include "conv2d/depthwise_run_simd.h"
#if defined(__AVX512BF16__)
#include "conv2d/depthwise_planar_bf16.h"
#endif

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class T>
void depthwise(const Correlation<T>& c) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    if (DepthwiseRuns::pays(c)) return DepthwiseRuns(c).run();
  }
#endif
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (DepthwiseWordRuns<3>::pays(c)) return DepthwiseWordRuns<3>(c).run();
    if (DepthwiseWordRuns<5>::pays(c)) return DepthwiseWordRuns<5>(c).run();
    if (DepthwiseWordPlanes<1>::pays(c)) return DepthwiseWordPlanes<1>(c).run();
    if (DepthwiseWordPlanes<2>::pays(c)) return DepthwiseWordPlanes<2>(c).run();
  }
#endif
  if (DepthwiseHalved<T>::pays(c)) return DepthwiseHalved<T>::run(c);
  if constexpr (std::is_same_v<acc_t<T>, float>) {
    if (DepthwiseGroups<T>::pays(c)) return DepthwiseGroups<T>(c).run();
  }
  if (c.channels_last) return depthwise_pixel(c);
  depthwise_planar(c);
}

template <class T>
void depthwise_weight(bool channels_last, const Images<T>& x, const Images<T>& gradient,
                      int64_t batch, T* grad_weight) {
  if (channels_last) return depthwise_weight_pixel(x, gradient, batch, grad_weight);
#if defined(__AVX512F__)
  if constexpr (requires(const T* p) { load_met(p, uint32_t{}); }) {
    if (DepthwiseRunWeights<T>::pays(x)) {
      return DepthwiseRunWeights<T>(x, gradient).run(batch, grad_weight);
    }
  }
#endif
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (DepthwiseWordWeights::pays(x)) {
      return DepthwiseWordWeights(x, gradient).run(batch, grad_weight);
    }
  }
#endif
  if (DepthwiseHalvedWeights<T>::pays(x)) {
    return DepthwiseHalvedWeights<T>::run(x, gradient, batch, grad_weight);
  }
  if constexpr (std::is_same_v<acc_t<T>, float>) {
    if (is_small_plane(x)) return depthwise_weight_groups(x, gradient, batch, grad_weight);
  }
  depthwise_weight_planar(x, gradient, batch, grad_weight);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
