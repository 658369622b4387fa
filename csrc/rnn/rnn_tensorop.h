// Which layers the tensor cores of a GPU take for the products over all rows.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "core/pack.h"
#include "rnn/rnn.h"

namespace pyops {

// Tensor cores are fed sixteen bytes at a time, by 32-bit counts.
inline bool suits_tensorop(const RnnShape& s, std::initializer_list<const void*> matrices) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int64_t rows = s.rows(), gates = 4 * s.hidden;
  return s.input % 8 == 0 && s.hidden % 8 == 0 && s.output % 8 == 0 &&
         std::min({rows, s.input, s.hidden, s.output}) > 0 &&
         std::max({rows, s.input, gates, s.output}) <= kMost &&
         std::all_of(matrices.begin(), matrices.end(), is_pack_aligned);
}
inline bool suits_tensorop(const RnnParams& p) { return suits_tensorop(p, {p.x, p.w_ih}); }
inline bool suits_tensorop(const RnnBackwardParams& p) { return suits_tensorop(p, {p.x, p.w_ih}); }
inline constexpr const char* kSuitsTensorop =
    "input, hidden and output features in multiples of 8, aligned to 16 bytes";

}  // namespace pyops
