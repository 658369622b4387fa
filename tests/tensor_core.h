// Sums of TF32 products as a tensor core makes them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/dtype.h"

namespace pyops {

// c + a · b: what is added is cut to 24 bits below the largest of it, and so is the sum (Fasi et
// al., "Numerical behavior of NVIDIA tensor cores", 2021). Later cores keep a bit or two more.
inline float add_on_tensor_core(float c, const float* a, const float* b, int count) {
  double terms[9] = {c}, plain = c;
  for (int q = 0; q < count; ++q) {
    const auto tf32 = [](float x) { return bits_float(float_bits(x) & 0xffffe000); };
    terms[q + 1] = double{tf32(a[q])} * tf32(b[q]);
    plain += terms[q + 1];
  }
  if (!std::isfinite(plain)) return static_cast<float>(plain);
  double largest = 0;
  for (int t = 0; t <= count; ++t) largest = std::max(largest, std::fabs(terms[t]));
  if (largest == 0) return c;
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 23), units = 1 / unit;
  int64_t sum = 0;
  for (int t = 0; t <= count; ++t) sum += static_cast<int64_t>(terms[t] * units);  // cut
  const double exact = static_cast<double>(sum) * unit;
  const auto rounded = static_cast<float>(exact);
  return std::fabs(rounded) > std::fabs(exact) ? std::nextafter(rounded, 0.0f) : rounded;
}

}  // namespace pyops
