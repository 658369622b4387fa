// Kernels on tensor cores come for two widths, of q, k and v alike.
#pragma once

#include "attention/attention.h"

namespace pyops {

// f.operator()<kD>() of the narrowest that holds the call's columns.
template <class F>
auto with_width(const AttentionShape& p, const F& f) {
  return p.dim <= 64 && p.value_dim <= 64 ? f.template operator()<64>()
                                          : f.template operator()<128>();
}

}  // namespace pyops
