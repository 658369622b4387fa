// CuTe's atoms of sm_80 that a team's warps multiply and load by, as PTX describes them.
#pragma once

#include <cuda_runtime.h>

#include "core/dtype.h"

namespace cute {

using uint128_t = unsigned __int128;

struct Operands {
  uint32_t a[4], b[2];
};

// The lane's four of c (16, 8) += a (16, kDepth) · b (kDepth, 8). Of four lanes in a row each has
// the same kEach neighbours of the depth in both halves of it, as a word.
template <class Words>
struct Multiply16x8 {
  static void fma(float& d0, float& d1, float& d2, float& d3, const uint32_t& a0,
                  const uint32_t& a1, const uint32_t& a2, const uint32_t& a3, const uint32_t& b0,
                  const uint32_t& b1, const float& c0, const float& c1, const float& c2,
                  const float& c3) {
    constexpr int kHalf = 4 * Words::kEach;
    const Operands mine{{a0, a1, a2, a3}, {b0, b1}};
    const emulated::Slot* of = emulated::exchange(~0u, &mine, sizeof mine);
    const int lane = emulated::lane(), row = lane / 4, column = lane % 4 * 2;
    float a[2][2 * kHalf], b[2][2 * kHalf];  // the lane's rows and columns
    for (int k = 0; k < 2 * kHalf; ++k) {
      const int from = k % kHalf / Words::kEach, right = k / kHalf, at = k % Words::kEach;
      const auto of_row = of[row * 4 + from].as<Operands>();
      for (int i = 0; i < 2; ++i) {
        const auto of_column = of[(column + i) * 4 + from].as<Operands>();
        a[i][k] = Words::number(of_row.a[i + 2 * right], at);
        b[i][k] = Words::number(of_column.b[right], at);
      }
    }
    float sums[4] = {c0, c1, c2, c3};
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 2 * kHalf; ++k) sums[i] += a[i / 2][k] * b[i % 2][k];
    }
    d0 = sums[0], d1 = sums[1], d2 = sums[2], d3 = sums[3];
  }
};
template <class T>
struct Halves {
  static constexpr int kEach = 2;

  static float number(uint32_t pair, int i) {
    T x;
    x.bits = static_cast<uint16_t>(pair >> 16 * i);
    return static_cast<float>(x);
  }
};
// Of float32 the bits that TF32 has not are ignored.
struct Tf32 {
  static constexpr int kEach = 1;

  static float number(uint32_t word, int) { return pyops::bits_float(word & 0xffffe000); }
};
using SM80_16x8x16_F32BF16BF16F32_TN = Multiply16x8<Halves<pyops::BFloat16>>;
using SM80_16x8x16_F32F16F16F32_TN = Multiply16x8<Halves<pyops::Float16>>;
using SM80_16x8x8_F32TF32TF32F32_TN = Multiply16x8<Tf32>;

// ldmatrix of matrices (8, 8) of 16 bits, to whose rows that many lanes point.
template <int kMatrices, bool kTransposed>
void load_matrices(const uint128_t& row, uint32_t (&to)[kMatrices]) {
  const auto* mine = reinterpret_cast<const uint16_t*>(&row);
  const int lane = emulated::lane(), group = lane / 4, pair = lane % 4 * 2;
  const bool points = lane < 8 * kMatrices;
  if (points && reinterpret_cast<uintptr_t>(mine) % 16 != 0)
    emulated::fail("a misaligned ldmatrix");
  const emulated::Slot* rows = emulated::exchange(~0u, &mine, sizeof mine);
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    const auto at = [&](int i, int j) { return rows[matrix * 8 + i].as<const uint16_t*>()[j]; };
    const uint32_t low = kTransposed ? at(pair, group) : at(group, pair);
    const uint32_t high = kTransposed ? at(pair + 1, group) : at(group, pair + 1);
    to[matrix] = low | high << 16;
  }
  __syncwarp();  // as instructions of a warp: nobody writes there before all have read
}
struct SM75_U16x4_LDSM_T {
  static void copy(const uint128_t& row, uint32_t& d0, uint32_t& d1) {
    uint32_t to[2];
    load_matrices<2, true>(row, to);
    d0 = to[0], d1 = to[1];
  }
};
template <bool kTransposed>
struct LoadFour {
  static void copy(const uint128_t& row, uint32_t& d0, uint32_t& d1, uint32_t& d2, uint32_t& d3) {
    uint32_t to[4];
    load_matrices<4, kTransposed>(row, to);
    d0 = to[0], d1 = to[1], d2 = to[2], d3 = to[3];
  }
};
using SM75_U16x8_LDSM_T = LoadFour<true>;
using SM75_U32x4_LDSM_N = LoadFour<false>;

// cp.async, of which nobody may see anything before a wait: here it has happened at once.
template <class From, class To = From>
struct CopyOrZero {
  static void copy(const From& from, To& to, bool exists) {
    const auto misses = [](const void* p) {
      return reinterpret_cast<uintptr_t>(p) % sizeof(To) != 0;
    };
    if (misses(&to) || (exists && misses(&from))) emulated::fail("a misaligned cp.async");
    exists ? std::memcpy(&to, &from, sizeof to) : std::memset(&to, 0, sizeof to);
  }
};
template <class From, class To = From>
using SM80_CP_ASYNC_CACHEGLOBAL_ZFILL = CopyOrZero<From, To>;
template <class From, class To = From>
using SM80_CP_ASYNC_CACHEALWAYS_ZFILL = CopyOrZero<From, To>;
inline void cp_async_fence() {}
template <int>
void cp_async_wait() {}

}  // namespace cute
