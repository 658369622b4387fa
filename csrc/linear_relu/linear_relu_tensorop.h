// Which linear layers the tensor cores of a GPU take.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "core/pack.h"
#include "linear_relu/linear_relu.h"

namespace pyops {

// Tensor cores are fed sixteen bytes at a time, along K and along N, by 32-bit counts.
inline bool suits_tensorop(int64_t m, int64_t n, int64_t k,
                           std::initializer_list<const void*> matrices) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  return n % 8 == 0 && k % 8 == 0 && std::min({m, n, k}) > 0 && std::max({m, n, k}) <= kMost &&
         std::all_of(matrices.begin(), matrices.end(), is_pack_aligned);
}
inline bool suits_tensorop(const LinearParams& p) {
  return suits_tensorop(p.m, p.n, p.k, {p.x, p.w, p.bias});
}
inline bool suits_tensorop(const LinearBackwardParams& p) {
  return suits_tensorop(p.m, p.n, p.k, {p.x, p.w, p.grad_y, p.y});
}
inline constexpr const char* kSuitsTensorop = "K and N in multiples of 8, aligned to 16 bytes";

}  // namespace pyops
