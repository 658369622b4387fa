// The arguments of attention_forward and attention_backward, checked: kernels trust them. The
// user's operator brings them about; who calls these by torch.ops may not.
#pragma once

#include <array>

#include "core/torch.h"

namespace pyops {

inline void check_dropout(const char* op, double p) {
  TORCH_CHECK(p >= 0 && p <= 1, op, ": dropout_p must lie in [0, 1], got ", p);
}

inline void check_attention(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                            const OptionalTensor& mask, double dropout_p) {
  bool fits = q.dim() == 4 && k.dim() == 4 && v.dim() == 4;
  fits = fits && k.size(0) == q.size(0) && k.size(3) == q.size(3);
  fits = fits && v.sizes().slice(0, 3) == k.sizes().slice(0, 3);
  fits = fits && (k.size(1) == 0 ? q.size(1) == 0 : q.size(1) % k.size(1) == 0);
  TORCH_CHECK(fits, op, ": query, key and value must be (B, H, L, D), (B, G, S, D) and ",
              "(B, G, S, E) with G a divisor of H, got ", q.sizes(), ", ", k.sizes(), " and ",
              v.sizes());
  const at::ScalarType type = q.scalar_type();
  TORCH_CHECK(k.scalar_type() == type && v.scalar_type() == type, op,
              ": key and value must have the query's dtype ", type, ", got ", k.scalar_type(),
              " and ", v.scalar_type());
  check_dropout(op, dropout_p);
  if (!mask) return;
  const std::array<int64_t, 4> full{q.size(0), q.size(1), q.size(2), k.size(2)};
  bool broadcasts = mask->dim() == 4;
  for (int64_t i = 0; broadcasts && i < 4; ++i) {
    broadcasts = mask->size(i) == 1 || mask->size(i) == full[static_cast<size_t>(i)];
  }
  TORCH_CHECK(broadcasts, op, ": mask must be of 4 dimensions and broadcast to (B, H, L, S)=",
              at::IntArrayRef(full), ", got ", mask->sizes());
  const at::ScalarType of_mask = mask->scalar_type();
  TORCH_CHECK(of_mask == at::kBool || of_mask == at::kFloat || of_mask == type, op,
              ": mask must be bool, float or of the query's dtype ", type, ", got ", of_mask);
}

// Besides: the gradient that came, and what the forward left.
inline void check_attention_backward(const char* op, const Tensor& q, const Tensor& v,
                                     const Tensor& grad, const Tensor& out, const Tensor& row_max,
                                     const Tensor& row_scale) {
  const std::array<int64_t, 4> sizes{q.size(0), q.size(1), q.size(2), v.size(3)};
  const auto check = [&](const char* name, const Tensor& t, size_t dims, at::ScalarType type) {
    const auto expected = at::IntArrayRef(sizes).slice(0, dims);
    TORCH_CHECK(t.sizes() == expected && t.scalar_type() == type, op, ": ", name, " must be ",
                expected, " ", type, ", got ", t.sizes(), " ", t.scalar_type());
  };
  const at::ScalarType type = q.scalar_type();
  const at::ScalarType accumulated = type == at::kDouble ? at::kDouble : at::kFloat;
  check("grad", grad, 4, type);
  check("out", out, 4, type);
  check("row_max", row_max, 3, accumulated);
  check("row_scale", row_scale, 3, accumulated);
}

}  // namespace pyops
