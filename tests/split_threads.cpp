// What float32 products by TF32 tensor cores compute, by a model of their sums on the CPU.
#include <algorithm>
#include <utility>

#include "gemm/split_float32.h"
#include "tensor_core.h"

using namespace pyops;

namespace {

struct Parts {
  float big[8], small[8];

  explicit Parts(const float* x) {
    for (int q = 0; q < 8; ++q) {
      const SplitFloat32 parts(x[q]);
      big[q] = parts.big;
      small[q] = parts.small;
    }
  }
};

}  // namespace

extern "C" {

int fits(float largest) { return splits(largest); }

void split(float x, float* parts) {
  const SplitFloat32 split(x);
  parts[0] = split.big;
  parts[1] = split.small;
}

// out (m, n) = a (m, k) · b (n, k)ᵀ in steps of eight, of which a core adds `width` at a time. With
// `staying` the sum does not leave the tensor core. Long sums are sums of parts.
void multiply(int64_t m, int64_t n, int64_t k, int width, int staying, const float* a,
              const float* b, float* out) {
  for (int64_t i = 0; i < m * n; ++i) {
    float before = 0, sum = 0;
    for (int64_t q = 0; q < k; q += 8) {
      if (staying == 0 && q % kDeepestSplitSum == 0) before += std::exchange(sum, 0.0f);
      const Parts x(a + i / n * k + q), y(b + i % n * k + q);
      float step = staying != 0 ? sum : 0;
      const float* const products[3][2] = {{x.small, y.big}, {x.big, y.small}, {x.big, y.big}};
      for (const auto& [left, right] : products) {
        for (int at = 0; at < 8; at += width) {
          step = add_on_tensor_core(step, left + at, right + at, width);
        }
      }
      sum = staying != 0 ? step : sum + step;
    }
    out[i] = before + sum;
  }
}

// The same by a chain of float32's, each product added by one rounding: native's way on a GPU.
void multiply_in_a_chain(int64_t m, int64_t n, int64_t k, const float* a, const float* b,
                         float* out) {
  for (int64_t i = 0; i < m * n; ++i) {
    float sum = 0;
    for (int64_t q = 0; q < k; ++q) {
      sum = static_cast<float>(sum + double{a[i / n * k + q]} * b[i % n * k + q]);
    }
    out[i] = sum;
  }
}

// c (16, 8) += a (16, 8) · b (8, 8) by the lanes of a warp, in the layout of mma.m16n8k8.
void multiply_unsplit(const float* a, const float* b, float* c) {
  const auto of_a = [&](int r, int lane) {
    return a[(lane / 4 + r % 2 * 8) * 8 + lane % 4 + r / 2 * 4];
  };
  const auto of_b = [&](int r, int lane) { return b[(lane % 4 + r * 4) * 8 + lane / 4]; };
  for (int lane = 0; lane < 32; ++lane) {
    float* const at = c + lane / 4 * 8 + lane % 4 * 2;
    float sums[4] = {at[0], at[1], at[64], at[65]};
    add_unsplit_product(lane, of_a, of_b, sums);
    std::copy(sums, sums + 2, at);
    std::copy(sums + 2, sums + 4, at + 64);
  }
}
}
