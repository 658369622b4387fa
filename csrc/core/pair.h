// A window's parameter as schemas have it: one integer for both axes, or two.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace pyops {

struct Pair {
  int64_t h, w;

  Pair(const char* op, const char* name, at::IntArrayRef values)
      : h(values.empty() ? 0 : values[0]), w(values.empty() ? 0 : values.back()) {
    TORCH_CHECK(values.size() == 1 || values.size() == 2, op, ": ", name,
                " must be one integer or two, got ", values);
  }
  bool at_least(int64_t bound) const { return h >= bound && w >= bound; }
  bool at_most(int64_t bound) const { return h <= bound && w <= bound; }
};

}  // namespace pyops
