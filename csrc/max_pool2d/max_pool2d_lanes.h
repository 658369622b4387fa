// Which calls the vector kernels take.
#pragma once

#include <algorithm>
#include <limits>

#include "max_pool2d/max_pool2d.h"

namespace pyops {

// The vector kernels count positions of a plane in lanes as wide as a float. Where neighbouring
// outputs' taps lie apart they load a lane at a time, which too few lanes do not pay for; numbers
// of 16 bits gain by being widened together (Zen 3, November 2026). Of a window they load every
// tap, also beyond the row.
template <class Params>
bool fills_lanes(const Params& p) {
  const bool apart = p.w.stride > 2 || (p.w.stride == 2 && (p.w.dilation > 1 || p.w.kernel == 1));
  const bool half = (dtype_bit(p.dtype) & kHalfTypes) != 0;
  return p.h.size * p.w.size <= std::numeric_limits<int32_t>::max() &&
         (p.channels_last || (p.w.kernel <= 2 * p.w.size &&
                              (!apart || (p.dtype != Dtype::kFloat64 && p.ow >= (half ? 4 : 6)))));
}
inline constexpr const char* kFillsLanes =
    "planes of fewer than 2^31 elements; in rows neighbouring taps, or enough outputs to a row, "
    "and windows no wider than two rows";

// Gathering asks every window that covers an element, in vectors; scattering takes each output
// once, as it comes. What the first gains by sums in registers it loses to many windows, and to
// few lanes (Zen 3, November 2026). It looks for windows among those that span the element.
template <int kLanes>
bool suits_gather(const MaxPool2dBackwardParams& p) {
  const bool small = std::max(p.h.kernel, p.w.kernel) <= 3 && std::max(p.h.stride, p.w.stride) <= 2;
  const bool near = std::max(p.h.max_covering(), p.w.max_covering()) <= 64;
  return small && near && fills_lanes(p) &&
         (p.channels_last ? p.dtype != Dtype::kFloat64 || kLanes == 16 : p.w.size >= 4);
}
inline constexpr const char* kSuitsGather =
    "windows of at most 3x3, strides of at most 2, at most 64 that span an element along an axis; "
    "in planes 4 columns or more, with channels last no float64 but in lanes of AVX-512";

}  // namespace pyops
