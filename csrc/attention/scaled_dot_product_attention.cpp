// The user's operator: checks, brings every input to four dimensions without copying keys, values
// or mask, draws the dropout seed as a tensor (so that tracers see it) and calls attention_forward.
#include <limits>

#include "attention/attention_arguments.h"
#include "core/named.h"

namespace pyops {
namespace {

constexpr const char* kName = "scaled_dot_product_attention";

constexpr Devices kDevices = kBuiltWithCuda ? Devices::kCpuAndGpu : Devices::kCpu;

using c10::SymInt;
using Shape = c10::SymDimVector;

struct Inputs {
  Tensor q, k, v;
  OptionalTensor mask;
};

void check_tensors(const Inputs& x) {
  const auto& [q, k, v, mask] = x;
  TORCH_CHECK(q.dim() >= 2 && k.dim() >= 2 && v.dim() >= 2, kName,
              ": query, key and value must have at least 2 dimensions, got ", q.dim(), ", ",
              k.dim(), " and ", v.dim());
  TORCH_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(), kName,
              ": key and value must have the query's dtype ", q.scalar_type(), ", got ",
              k.scalar_type(), " and ", v.scalar_type());
  TORCH_CHECK(q.device() == k.device() && q.device() == v.device(), kName,
              ": key and value must be on the query's device ", q.device(), ", got ", k.device(),
              " and ", v.device());
  TORCH_CHECK(q.sym_size(-1) == k.sym_size(-1), kName,
              ": key must be (…, S, D) with the query's D=", q.sym_size(-1), ", got ",
              k.sym_sizes());
  TORCH_CHECK(k.sym_size(-2) == v.sym_size(-2), kName,
              ": value must be (…, S, E) with the key's S=", k.sym_size(-2), ", got ",
              v.sym_sizes());
  if (!mask) return;
  TORCH_CHECK(mask->device() == q.device(), kName, ": attn_mask must be on the query's device ",
              q.device(), ", got ", mask->device());
  const auto type = mask->scalar_type();
  TORCH_CHECK(type == at::kBool || type == at::kFloat || type == q.scalar_type(), kName,
              ": attn_mask must be bool, float or of the query's dtype ", q.scalar_type(), ", got ",
              type);
}

// Native's fused kernel knows no transforms and no forward mode; the composite behind it does.
Tensor native(const Inputs& x, double dropout_p, bool is_causal, std::optional<double> scale,
              bool enable_gqa) {
  const bool has_composite = x.q.device().is_cpu() && x.q.is_floating_point() &&
                             !x.q.key_set().has(c10::DispatchKey::Python);
  if (has_composite) check_tensors(x);  // it would promote dtypes
  return named(kName, {x.q, x.k, x.v, x.mask}, [&] {
    if (!has_composite) {
      return at::scaled_dot_product_attention(x.q, x.k, x.v, x.mask, dropout_p, is_causal, scale,
                                              enable_gqa);
    }
    return std::get<0>(at::_scaled_dot_product_attention_math(
        x.q, x.k, x.v, x.mask, dropout_p, is_causal, std::nullopt, scale, enable_gqa));
  });
}

// At least `rank` dimensions, missing ones in front.
Tensor with_rank(Tensor t, int64_t rank) {
  while (t.dim() < rank) t = t.unsqueeze(0);
  return t;
}

// Broadcasts `size` into `shape[dim]`.
void widen(Shape& shape, size_t dim, const SymInt& size, const Inputs& x) {
  if (shape[dim] == size || size == 1) return;
  TORCH_CHECK(shape[dim] == 1, kName, ": the batch dimensions of query, key and value must ",
              "broadcast, got ", x.q.sym_sizes(), ", ", x.k.sym_sizes(), " and ", x.v.sym_sizes());
  shape[dim] = size;
}

// The leading dimensions (…, H) that query, key and value broadcast to; with GQA the heads are the
// query's own.
Shape leading_shape(const Inputs& x, bool enable_gqa) {
  const auto heads = static_cast<size_t>(x.q.dim() - 3);
  Shape shape(heads + 1, SymInt(1));
  for (const Tensor& t : {x.q, x.k, x.v}) {
    for (size_t i = 0; i < heads; ++i) widen(shape, i, t.sym_size(static_cast<int64_t>(i)), x);
  }
  for (const Tensor& t : {x.q, x.k, x.v}) {
    const SymInt size = t.sym_size(-3);
    if (!enable_gqa || t.is_same(x.q)) {
      widen(shape, heads, size, x);
    } else {
      TORCH_CHECK(size != 0 && x.q.sym_size(-3) % size == 0, kName, ": with enable_gqa the heads ",
                  "of key and value must divide the query's H=", x.q.sym_size(-3), ", got ",
                  x.k.sym_size(-3), " and ", x.v.sym_size(-3));
    }
  }
  return shape;
}

// (…, heads, rows, columns) expanded to the batch and flattened to four dimensions.
Tensor to_four(const Tensor& t, const Shape& leading, const SymInt& heads) {
  Shape shape = leading;
  shape.back() = heads;
  shape.push_back(t.sym_size(-2));
  shape.push_back(t.sym_size(-1));
  const Tensor expanded = t.sym_sizes() == c10::SymIntArrayRef(shape) ? t : t.expand_symint(shape);
  return t.dim() == 4 ? expanded : expanded.flatten(0, -4);
}

// The mask's dimensions of size 1 stay so. Only a mask of five and more dimensions whose batch
// dimensions do not merge into one is copied.
Tensor mask_to_four(const Tensor& mask, const Shape& leading, const SymInt& l, const SymInt& s,
                    int64_t natural_rank) {
  Shape full = leading;
  full.push_back(l);
  full.push_back(s);
  const auto rank = static_cast<int64_t>(full.size());
  bool fits = mask.dim() <= natural_rank;
  for (int64_t i = 1; fits && i <= mask.dim(); ++i) {
    fits =
        mask.sym_size(-i) == 1 || mask.sym_size(-i) == full[full.size() - static_cast<size_t>(i)];
  }
  TORCH_CHECK(fits, kName, ": attn_mask must broadcast to (B, H, L, S)=", full,
              ", with no more dimensions than the inputs have, got ", mask.sym_sizes());
  const Tensor m = with_rank(mask, rank);
  if (rank == 4) return m;
  Shape shape(m.sym_sizes().begin(), m.sym_sizes().end());
  bool batched = false;
  for (size_t i = 0; i + 3 < shape.size(); ++i) batched = batched || shape[i] != 1;
  for (size_t i = 0; batched && i + 3 < shape.size(); ++i) shape[i] = leading[i];
  return m.expand_symint(shape).flatten(0, -4);
}

// A symbolic size stands for two or more.
bool is_empty(const Inputs& x) {
  for (const Tensor& t : {x.q, x.k, x.v}) {
    if (!t.unsafeGetTensorImpl()->has_symbolic_sizes_strides() && t.numel() == 0) return true;
  }
  return false;
}

// Whether native would take its fused kernel. That one gives the output the query's layout, where
// the composite's is contiguous, and takes a mask that is causal besides, which the composite
// refuses.
bool native_is_fused(const Inputs& x, double dropout_p, bool enable_gqa) {
  const auto& [q, k, v, mask] = x;
  if (!at::globalContext().userEnabledFlashSDP()) return false;
  if (dropout_p != 0 || q.dim() != 4 || k.dim() != 4 || v.dim() != 4) return false;
  if (mask && (mask->requires_grad() || (mask->dim() != 2 && mask->dim() != 4))) return false;
  if (q.sym_size(0) != k.sym_size(0) || q.sym_size(0) != v.sym_size(0)) return false;
  if (k.sym_size(1) != v.sym_size(1)) return false;
  if (!enable_gqa && q.sym_size(1) != k.sym_size(1)) return false;
  if (q.sym_size(3) != v.sym_size(3) || q.sym_numel() == 0 || k.sym_numel() == 0) return false;
  return q.sym_stride(3) == 1 && k.sym_stride(3) == 1 && v.sym_stride(3) == 1;
}

Tensor forward(const Inputs& x, double dropout_p, bool is_causal, std::optional<double> scale,
               bool query_layout) {
  using Forward = std::tuple<Tensor, Tensor, Tensor>;
  static const auto op =
      find_op<Forward(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                      const OptionalTensor&, double, bool, std::optional<double>, bool)>(
          "attention_forward");
  const OptionalTensor seed = dropout_p > 0
                                  ? OptionalTensor(at::randint(std::numeric_limits<int64_t>::max(),
                                                               {}, x.q.options().dtype(at::kLong)))
                                  : std::nullopt;
  return std::get<0>(
      op.call(x.q, x.k, x.v, x.mask, seed, dropout_p, is_causal, scale, query_layout));
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const OptionalTensor& attn_mask, double dropout_p, bool is_causal,
                 std::optional<double> scale, bool enable_gqa) {
  const Inputs given{query, key, value, attn_mask};
  const Tensor float_mask =
      attn_mask && attn_mask->is_floating_point() ? *attn_mask : Tensor();  // others have no say
  if (goes_native(kName, {query, key, value, float_mask}, kDevices)) {
    return native(given, dropout_p, is_causal, scale, enable_gqa);
  }
  const auto hand_over = [&](const char* why) {
    note_native(kName, {query, key, value}, why);
    return named(kName, {query, key, value, attn_mask}, [&] {
      return at::scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal,
                                              scale, enable_gqa);
    });
  };
  // Nothing is computed: for the strides native has there, and for how little it then checks.
  if (query.device().is_meta()) return hand_over("device");
  if (is_empty(given)) return hand_over("empty");
  check_tensors(given);
  check_dropout(kName, dropout_p);
  const bool fused = native_is_fused(given, dropout_p, enable_gqa);
  TORCH_CHECK(fused || !is_causal || !attn_mask, kName, ": attn_mask must be None with is_causal ",
              "where PyTorch has no fused kernel for the call, got one of ", attn_mask->sym_sizes(),
              ": Explicit attn_mask should not be set when is_causal=True");
  TORCH_CHECK_INDEX(!enable_gqa || std::min({query.dim(), key.dim(), value.dim()}) >= 3, kName,
                    ": enable_gqa needs a head dimension, (…, H, L, D), got ", query.sym_sizes());
  const int64_t natural_rank = std::max({query.dim(), key.dim(), value.dim()});
  const int64_t rank = std::max<int64_t>(natural_rank, 4);
  Inputs x{with_rank(query, rank), with_rank(key, rank), with_rank(value, rank), std::nullopt};
  const Shape leading = leading_shape(x, enable_gqa);
  const SymInt heads = x.k.sym_size(-3);
  const bool differ = heads != x.v.sym_size(-3);
  if (enable_gqa && differ) return hand_over("key and value heads differ");
  // One key head serves all queries by itself; only unequal ones are broadcast.
  const SymInt kv_heads = enable_gqa || (!differ && heads == 1) ? heads : leading.back();
  const SymInt l = x.q.sym_size(-2), s = x.k.sym_size(-2), e = x.v.sym_size(-1);
  x.q = to_four(x.q, leading, leading.back());
  x.k = to_four(x.k, leading, kv_heads);
  x.v = to_four(x.v, leading, kv_heads);
  if (attn_mask) {
    const bool widens =
        attn_mask->scalar_type() == at::kFloat && query.scalar_type() == at::kDouble;
    x.mask =
        mask_to_four(widens ? attn_mask->to(at::kDouble) : *attn_mask, leading, l, s, natural_rank);
  }
  const Tensor out = forward(x, dropout_p, is_causal, scale, /*query_layout=*/fused);
  if (natural_rank == 4) return out;
  Shape shape(leading.begin() + (rank - natural_rank), leading.end());
  shape.push_back(l);
  shape.push_back(e);
  // As native's no view, but on a GPU the backward keeps `out` itself and must notice writes.
  return out.is_cuda() ? out.view_symint(shape) : at::_unsafe_view_symint(out, shape);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def(
      "scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, "
      "Tensor? attn_mask=None, float dropout_p=0.0, bool is_causal=False, *, float? scale=None, "
      "bool enable_gqa=False) -> Tensor",
      attention);
}
// functorch asks each composite for a rule of its own.
TORCH_LIBRARY_IMPL(pyops, FuncTorchBatched, m) {
  m.impl("scaled_dot_product_attention", attention);
}
TORCH_LIBRARY_IMPL(pyops, PythonTLSSnapshot, m) {
  register_for_subclasses(m, {"scaled_dot_product_attention"});
}
TORCH_LIBRARY_IMPL(pyops, AutocastCPU, m) {
  register_autocast(m, {"scaled_dot_product_attention"});
}
TORCH_LIBRARY_IMPL(pyops, AutocastCUDA, m) {
  register_autocast(m, {"scaled_dot_product_attention"});
}

}  // namespace pyops
