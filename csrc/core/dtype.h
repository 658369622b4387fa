// Element types of the kernels: storage types, the type they compute in, and sets of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/host_device.h"

namespace pyops {

enum class Dtype : uint8_t { kFloat64, kFloat32, kBFloat16, kFloat16 };

inline constexpr const char* kDtypeNames[] = {"float64", "float32", "bfloat16", "float16"};

using DtypeSet = unsigned;
constexpr DtypeSet dtype_bit(Dtype t) { return 1u << static_cast<unsigned>(t); }
inline constexpr DtypeSet kFloat64 = dtype_bit(Dtype::kFloat64);
inline constexpr DtypeSet kFloat32 = dtype_bit(Dtype::kFloat32);
inline constexpr DtypeSet kBFloat16 = dtype_bit(Dtype::kBFloat16);
inline constexpr DtypeSet kFloat16 = dtype_bit(Dtype::kFloat16);
inline constexpr DtypeSet kHalfTypes = kBFloat16 | kFloat16;
inline constexpr DtypeSet kAnyFloat = kFloat64 | kFloat32 | kHalfTypes;
inline constexpr DtypeSet kTileTypes = kFloat32 | kHalfTypes;  // what AMX computes

PYOPS_HOST_DEVICE inline uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

PYOPS_HOST_DEVICE inline float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  // Round to nearest even; a NaN stays a (quiet) NaN.
  PYOPS_HOST_DEVICE explicit BFloat16(float x) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    const uint32_t u = float_bits(x);
    bits = x != x ? uint16_t{0x7fc0} : static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
#endif
  }
  PYOPS_HOST_DEVICE explicit operator float() const { return bits_float(uint32_t{bits} << 16); }
};

struct Float16 {
  uint16_t bits;

  Float16() = default;
  PYOPS_HOST_DEVICE explicit Float16(float x) : bits(round_from(x)) {}

  PYOPS_HOST_DEVICE explicit operator float() const {
#ifdef __CUDA_ARCH__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    const uint32_t sign = uint32_t{bits & 0x8000u} << 16, magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00) return bits_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    if (magnitude >= 0x400) return bits_float(sign | ((magnitude << 13) + 0x38000000));
    const float subnormal = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -subnormal : subnormal;
#endif
  }

 private:
  PYOPS_HOST_DEVICE static uint16_t round_from(float x) {
#ifdef __CUDA_ARCH__
    uint16_t rounded;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
    return rounded;
#else
    const uint32_t u = float_bits(x), magnitude = u & 0x7fffffff;
    const auto sign = static_cast<uint16_t>(u >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds past 65504
    if (magnitude >= 0x38800000) {
      const uint32_t rebased = magnitude - 0x38000000;
      return static_cast<uint16_t>(sign | ((rebased + 0xfff + (rebased >> 13 & 1)) >> 13));
    }
    // Adding 0.5 aligns the subnormal's last bit with the float's: the hardware rounds for us.
    const float aligned = bits_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_bits(aligned) - 0x3f000000));
#endif
  }
};

// Two numbers of 16 bits as one word, the first in its low half.
template <class T>
PYOPS_HOST_DEVICE inline uint32_t word_of(T low, T high) {
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
}
template <class T>
PYOPS_HOST_DEVICE inline uint32_t word_of(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t word;
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
#else
  return word_of(T(low), T(high));
#endif
}

// The type arithmetic is done in.
template <class T>
struct AccumulateType {
  using type = T;
};
template <>
struct AccumulateType<BFloat16> {
  using type = float;
};
template <>
struct AccumulateType<Float16> {
  using type = float;
};
template <class T>
using acc_t = typename AccumulateType<T>::type;

// What the scalar kernels compute in; half types convert through float.
template <class T>
double to_double(T x) {
  return static_cast<acc_t<T>>(x);
}
template <class T>
T from_double(double x) {
  return static_cast<T>(static_cast<acc_t<T>>(x));
}

// Calls f(T{}) with the C++ type of `dtype`, one of `kTypes`.
template <DtypeSet kTypes = kAnyFloat, class F>
void dispatch_dtype(Dtype dtype, F&& f) {
  const auto call = [&]<class T, DtypeSet kBit>() {
    if constexpr ((kTypes & kBit) != 0) f(T{});
  };
  switch (dtype) {
    case Dtype::kFloat64:
      return call.template operator()<double, kFloat64>();
    case Dtype::kFloat32:
      return call.template operator()<float, kFloat32>();
    case Dtype::kBFloat16:
      return call.template operator()<BFloat16, kBFloat16>();
    case Dtype::kFloat16:
      return call.template operator()<Float16, kFloat16>();
  }
}

}  // namespace pyops
