// The rules of one softmax row, shared by every kernel: running maximum and sum, which keys a query
// sees, and the random bits of dropout.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "core/host_device.h"

// A copy for each instruction set, as all inline code of vector files.
#if defined(__AVX2__)
#include "core/simd.h"
#else
#define PYOPS_ISA_NAMESPACE baseline
#endif

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class Acc>
PYOPS_HOST_DEVICE constexpr Acc lowest() {
  return sizeof(Acc) == sizeof(double) ? static_cast<Acc>(-DBL_MAX) : static_cast<Acc>(-FLT_MAX);
}

// Softmax over keys that come in blocks (Milakov & Gimelshein 2018). The maximum starts at the
// lowest finite number: x - max is then -inf for a masked key, whatever the row, and a row without
// any key ends with the sum 0. NaN and +inf reach the sum by themselves.
template <class Acc>
struct OnlineSoftmax {
  Acc max = lowest<Acc>();
  Acc sum = 0;

  // Takes in a block's maximum; what was summed so far is to be multiplied with the result.
  PYOPS_HOST_DEVICE Acc raise_max(Acc block_max) {
    if (block_max <= max) return 1;
    const Acc factor = std::exp(max - block_max);
    max = block_max;
    sum *= factor;
    return factor;
  }
  PYOPS_HOST_DEVICE Acc row_scale() const { return sum == 0 ? Acc{0} : 1 / sum; }
};

PYOPS_HOST_DEVICE inline float power_of_two(float x) {
#ifdef __CUDA_ARCH__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return std::exp2(x);
#endif
}

inline constexpr double kLog2OfE = 1.4426950408889634;

// The same softmax by powers of two, for scores that are products times a positive scale:
// exp(scale·product - max) = 2^(product·factor - offset), one multiply-add and one instruction.
// Forward and backward find the offset from the same maximum: its rounding cancels.
struct ScaledExponents {
  float scale, factor;

  PYOPS_HOST_DEVICE explicit ScaledExponents(double scale_)
      : scale(static_cast<float>(scale_)), factor(static_cast<float>(scale_ * kLog2OfE)) {}

  // Finite for the lowest maximum: what is masked stays -inf.
  PYOPS_HOST_DEVICE static float offset(float max) {
    const float wanted = max * static_cast<float>(kLog2OfE);
    return wanted < lowest<float>() ? lowest<float>() : wanted;
  }
  PYOPS_HOST_DEVICE float weight(float product, float offset) const {
    return power_of_two(std::fma(product, factor, -offset));
  }
  // OnlineSoftmax::raise_max, given the largest product.
  PYOPS_HOST_DEVICE float raise_max(OnlineSoftmax<float>& softmax, float product) const {
    const float before = offset(softmax.max), most = product * scale;
    softmax.max = most > softmax.max ? most : softmax.max;
    const float shrink = power_of_two(before - offset(softmax.max));
    softmax.sum *= shrink;
    return shrink;
  }
};

// The same for scores that a mask was added to. It may bring a whole row to finfo.min, whose power
// of two overflows: the maximum is subtracted first.
struct MaskedExponents {
  PYOPS_HOST_DEVICE explicit MaskedExponents(double) {}

  PYOPS_HOST_DEVICE static float offset(float max) { return max; }
  // exp(score - offset)·2^-exponent
  PYOPS_HOST_DEVICE static float weight(float score, float offset, float exponent = 0) {
    return power_of_two(std::fma(score - offset, static_cast<float>(kLog2OfE), -exponent));
  }
  // OnlineSoftmax::raise_max without a branch: threads of a warp stay together.
  PYOPS_HOST_DEVICE static float raise_max(OnlineSoftmax<float>& softmax, float most) {
    const float before = softmax.max;
    softmax.max = most > before ? most : before;
    const float shrink = weight(before, softmax.max);
    softmax.sum *= shrink;
    return shrink;
  }
};

// How many of the keys s0, s0 + 1, …, s0 + keys - 1 query `l` may see (top-left alignment).
PYOPS_HOST_DEVICE inline int64_t visible_keys(bool is_causal, int64_t l, int64_t s0, int64_t keys) {
  if (!is_causal) return keys;
  const int64_t visible = l + 1 - s0;
  return visible < 0 ? 0 : visible < keys ? visible : keys;
}

// Philox4x32-10 (Salmon et al. 2011) on kLanes counters at once: counter[word][lane] becomes the
// random words.
template <int kLanes>
PYOPS_HOST_DEVICE inline void philox(uint64_t seed, uint32_t (&counter)[4][kLanes]) {
  auto key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  PYOPS_UNROLL for (int round = 0; round < 10; ++round) {
    PYOPS_UNROLL for (int i = 0; i < kLanes; ++i) {
      const uint64_t a = uint64_t{0xD2511F53u} * counter[0][i];
      const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2][i];
      counter[0][i] = static_cast<uint32_t>(b >> 32) ^ counter[1][i] ^ key0;
      counter[1][i] = static_cast<uint32_t>(b);
      counter[2][i] = static_cast<uint32_t>(a >> 32) ^ counter[3][i] ^ key1;
      counter[3][i] = static_cast<uint32_t>(a);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// Dropout as a pure function of (seed, row, key), so that the backward draws it again instead of
// storing an L×S matrix. 64 keys share 16 counters, and a counter's words lie 16 keys apart: a
// vector of counters fills vectors of keys.
struct Dropout {
  static constexpr int64_t kKeys = 64;
  static constexpr int kLanes = 16;
  uint64_t seed;
  uint32_t drop_below;
  double keep_factor;

  PYOPS_HOST_DEVICE Dropout(uint64_t seed_, double p)
      : seed(seed_),
        drop_below(p < 1 ? static_cast<uint32_t>(p * 4294967295.0) : 0xffffffffu),
        keep_factor(p < 1 ? 1 / (1 - p) : 0) {}

  // What the softmax is multiplied with, 0 or 1/(1 - p), for keys [key0, key0 + 64) of
  // row (b·H + h)·L + l; key0 is a multiple of 64.
  template <class Acc>
  PYOPS_HOST_DEVICE void factors(int64_t row, int64_t key0, Acc* out) const {
    const auto keep = static_cast<Acc>(keep_factor);
    uint32_t counter[4][kLanes];
    for (int i = 0; i < kLanes; ++i) {
      counter[0][i] = static_cast<uint32_t>(key0 / kKeys * kLanes + i);
      counter[1][i] = 0;
      counter[2][i] = static_cast<uint32_t>(row);
      counter[3][i] = static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32);
    }
    philox(seed, counter);
    for (int word = 0; word < 4; ++word) {
      for (int i = 0; i < kLanes; ++i) {
        out[word * kLanes + i] = counter[word][i] < drop_below ? Acc{0} : keep;
      }
    }
  }

  // The same for the kCount keys key, key + 16, … of one row, which share a counter: key % 64 plus
  // 16·kCount is at most 80.
  template <class Acc, int kCount>
  PYOPS_HOST_DEVICE void factors_apart(int64_t row, int64_t key, Acc (&out)[kCount]) const {
    static_assert(kCount <= 4);
    uint32_t counter[4][1] = {{static_cast<uint32_t>(key / kKeys * kLanes + key % kLanes)},
                              {0},
                              {static_cast<uint32_t>(row)},
                              {static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32)}};
    philox(seed, counter);
    const int64_t first = kCount == 4 ? 0 : key % kKeys / kLanes;
    PYOPS_UNROLL for (int i = 0; i < kCount; ++i) {
      const int64_t word = first + i;  // no index: an array that has one leaves the registers
      const uint32_t bits = word == 0   ? counter[0][0]
                            : word == 1 ? counter[1][0]
                            : word == 2 ? counter[2][0]
                                        : counter[3][0];
      out[i] = bits < drop_below ? Acc(0) : static_cast<Acc>(keep_factor);
    }
  }

  // Which of the keys key, key + 16, key + 32 and key + 48, of one counter, each row keeps: bits 0,
  // 8, 16 and 24.
  template <int kRows>
  PYOPS_HOST_DEVICE void keep(const int64_t (&rows)[kRows], int64_t key,
                              uint32_t (&kept)[kRows]) const {
    uint32_t counter[4][kRows];
    PYOPS_UNROLL for (int i = 0; i < kRows; ++i) {
      counter[0][i] = static_cast<uint32_t>(key / kKeys * kLanes + key % kLanes);
      counter[1][i] = 0;
      counter[2][i] = static_cast<uint32_t>(rows[i]);
      counter[3][i] = static_cast<uint32_t>(static_cast<uint64_t>(rows[i]) >> 32);
    }
    philox(seed, counter);
    PYOPS_UNROLL for (int i = 0; i < kRows; ++i) {
      kept[i] = 0;
      PYOPS_UNROLL for (int word = 0; word < 4; ++word) {
        kept[i] |= uint32_t{counter[word][i] >= drop_below} << 8 * word;
      }
    }
  }
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
