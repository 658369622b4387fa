// Which linear layers the tensor cores of a GPU take, and what their kernels keep.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "core/pack.h"
#include "gemm/gradient_matrix.h"
#include "linear_relu/linear_relu.h"

namespace pyops {

// Tensor cores are fed sixteen bytes at a time, along K and along N, which a grid's short second
// axis counts by tiles, and M by 32-bit counts up to whole tiles.
template <class Params>
bool suits_tensorop(const Params& p, std::initializer_list<const void*> matrices) {
  constexpr int64_t kMostRows = (int64_t{1} << 31) - 1024, kMostColumns = 1 << 25;
  const int64_t width = pack_width(p.dtype);
  return p.n % width == 0 && p.k % width == 0 && std::min({p.m, p.n, p.k}) > 0 &&
         p.m <= kMostRows && std::max(p.n, p.k) <= kMostColumns &&
         std::all_of(matrices.begin(), matrices.end(), is_pack_aligned);
}
inline bool suits_tensorop(const LinearParams& p) { return suits_tensorop(p, {p.x, p.w, p.bias}); }
inline bool suits_tensorop(const LinearBackwardParams& p) {
  return suits_tensorop(p, {p.x, p.w, p.grad_y, p.y});
}
inline constexpr const char* kSuitsTensorop =
    "K and N in multiples of 16 bytes, aligned to them, fewer than 2^31 rows";

template <class Params>
bool suits_tf32(const Params& p) {
  return p.precision != Precision::kHighest && suits_tensorop(p);
}
inline constexpr const char* kSuitsTf32 =
    "TF32 allowed, K and N in multiples of 16 bytes, aligned to them, fewer than 2^31 rows";

inline GradientMatrix gradient_of(const LinearBackwardParams& p) { return {p.dtype, p.m, p.n}; }
inline int64_t linear_backward_workspace(const LinearBackwardParams& p) {
  return backward_workspace(p, 0);
}

}  // namespace pyops
