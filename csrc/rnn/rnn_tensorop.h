// Which layers the tensor cores of a GPU take for the products over all rows.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "core/pack.h"
#include "gemm/gradient_matrix.h"
#include "rnn/rnn.h"

namespace pyops {

// Whether a product's tiles occupy half of a large GPU. Float32 has three products of TF32 to do
// for one: with fewer tiles the ordinary units, whose own are a quarter as large, are as fast.
inline bool pays_tensorop(Dtype dtype, int64_t rows, int64_t columns) {
  constexpr int64_t kTile = 128, kLeastTiles = 64;
  const bool half = (dtype_bit(dtype) & kHalfTypes) != 0;
  return half || (rows / kTile) * (columns / kTile) >= kLeastTiles;
}

// Tensor cores are fed sixteen bytes at a time, by 32-bit counts up to whole tiles.
inline bool suits_tensorop(const RnnShape& s, std::initializer_list<const void*> matrices) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 1024;
  const int64_t rows = s.rows(), gates = 4 * s.hidden;
  return (dtype_bit(s.dtype) & kTileTypes) != 0 && s.input % 8 == 0 && s.hidden % 8 == 0 &&
         s.output % 8 == 0 && std::min({rows, s.input, s.hidden, s.output}) > 0 &&
         std::max({rows, s.input, gates, s.output}) <= kMost &&
         std::all_of(matrices.begin(), matrices.end(), is_pack_aligned);
}
inline bool suits_tensorop(const RnnParams& p) {
  return suits_tensorop(p, {p.x, p.w_ih}) && pays_tensorop(p.dtype, p.rows(), p.gates() * p.hidden);
}
inline bool suits_tensorop(const RnnBackwardParams& p) {
  return suits_tensorop(p, {p.x, p.w_ih}) &&
         pays_tensorop(p.dtype, p.gates() * p.hidden, std::min(p.input, p.output));
}
inline constexpr const char* kSuitsTensorop =
    "input, hidden and output features in multiples of 8, aligned to 16 bytes; float32 with "
    "products of 64 tiles of 128x128";

// The gates' gradients, whose columns sum up to those of a bias.
inline GradientMatrix gradient_of(const RnnBackwardParams& p) {
  return {p.dtype, p.rows(), p.gates() * p.hidden};
}
// Bytes that these sums keep, beside products on tensor cores.
inline int64_t rnn_backward_workspace(const RnnBackwardParams& p) {
  const bool summed = p.grad_b_ih != nullptr || p.grad_b_hh != nullptr;
  return summed && suits_tensorop(p) ? gradient_of(p).parts_bytes() : 0;
}

}  // namespace pyops
