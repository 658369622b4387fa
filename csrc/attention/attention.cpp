#include "attention/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/attention_arguments.h"
#include "attention/attention_sm90.h"
#include "attention/attention_tensorop.h"
#include "core/autograd.h"
#include "core/named.h"

namespace pyops {
namespace {

// Native computes other dimensions of values than of keys in float32; in narrow ones the weights'
// rounding to bfloat16 shows beside that.
bool rounds_as_native(const AttentionShape& shape) {
  return shape.dim == shape.value_dim || std::min(shape.dim, shape.value_dim) >= 16;
}
// Less would leave most of a panel empty; break-even against AVX-512 on Emerald Rapids, November
// 2026.
bool suits_tiles(const AttentionParams& p) { return p.queries >= 8 && rounds_as_native(p); }
constexpr const char* kSuitsTiles = "8 queries or more, D = E or both 16 or more";
bool suits_tiles(const AttentionBackwardParams& p) {
  // Weights are within 2^-13: enough for a gradient that is rounded to bfloat16.
  const bool rounds_mask = p.grad_mask.data == nullptr || p.mask.dtype == Dtype::kBFloat16;
  return p.queries >= 8 && p.queries * p.keys >= 4096 && rounds_mask && rounds_as_native(p);
}
constexpr const char* kSuitsTilesBackward =
    "8 queries and 4096 scores a head or more, D = E or both 16 or more, no gradient of a mask of "
    "float32";

constexpr Candidate<AttentionParams> kForward[] = {
#ifdef PYOPS_CUDA
    {"attention_forward_sm90", Arch::kSm90, kHalfTypes, attention_forward_sm90,
     suits_attention_sm90, kSuitsAttentionSm90},
    {"attention_forward_tensorop_cuda", Arch::kSm80, kHalfTypes, attention_forward_tensorop_cuda,
     suits_attention_tensorop, kSuitsAttentionTensorop},
    {"attention_forward_tf32_cuda", Arch::kSm80, kFloat32, attention_forward_tf32_cuda,
     suits_attention_tf32, kSuitsAttentionTf32},
    {"attention_forward_3xtf32_cuda", Arch::kSm80, kFloat32, attention_forward_3xtf32_cuda,
     suits_attention_3xtf32, kSuitsAttention3xTf32},
    {"attention_forward_cuda", Arch::kSm80, kAnyFloat, attention_forward_cuda},
#endif
    {"attention_forward_amx", Isa::kAmx, kBFloat16, attention_forward_amx, suits_tiles,
     kSuitsTiles},
    {"attention_forward_avx512_bf16", Isa::kAvx512Bf16, kBFloat16, attention_forward_avx512_bf16,
     suits_tiles, kSuitsTiles},
    {"attention_forward_avx512", Isa::kAvx512, kAnyFloat, attention_forward_avx512},
    {"attention_forward_avx2", Isa::kAvx2, kAnyFloat, attention_forward_avx2},
    {"attention_forward_scalar", Isa::kScalar, kAnyFloat, attention_forward_scalar},
};
constexpr Candidate<AttentionBackwardParams> kBackward[] = {
#ifdef PYOPS_CUDA
    {"attention_backward_sm90", Arch::kSm90, kHalfTypes, attention_backward_sm90,
     suits_attention_sm90, kSuitsAttentionBackwardSm90},
    {"attention_backward_tensorop_cuda", Arch::kSm80, kHalfTypes, attention_backward_tensorop_cuda,
     suits_attention_tensorop, kSuitsAttentionBackwardTensorop},
    {"attention_backward_tf32_cuda", Arch::kSm80, kFloat32, attention_backward_tf32_cuda,
     suits_attention_tf32, kSuitsAttentionTf32},
    {"attention_backward_3xtf32_cuda", Arch::kSm80, kFloat32, attention_backward_3xtf32_cuda,
     suits_attention_3xtf32, kSuitsAttention3xTf32},
    {"attention_backward_cuda", Arch::kSm80, kAnyFloat, attention_backward_cuda},
#endif
    {"attention_backward_amx", Isa::kAmx, kBFloat16, attention_backward_amx, suits_tiles,
     kSuitsTilesBackward},
    {"attention_backward_avx512_bf16", Isa::kAvx512Bf16, kBFloat16, attention_backward_avx512_bf16,
     suits_tiles, kSuitsTilesBackward},
    {"attention_backward_avx512", Isa::kAvx512, kAnyFloat, attention_backward_avx512},
    {"attention_backward_avx2", Isa::kAvx2, kAnyFloat, attention_backward_avx2},
    {"attention_backward_scalar", Isa::kScalar, kAnyFloat, attention_backward_scalar},
};
[[maybe_unused]] const bool listed =
    list_table("attention_forward", kForward) && list_table("attention_backward", kBackward);
constexpr Devices kDevices = devices_of(kForward);

using Forward = std::tuple<Tensor, Tensor, Tensor>;            // out, row_max, row_scale
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // of q, k, v, mask

double scale_or_default(std::optional<double> scale, int64_t dim) {
  // Without a dimension the scores are zero whatever the scale; it must only be finite.
  return dim == 0 ? 1 : scale.value_or(1 / std::sqrt(static_cast<double>(dim)));
}

// A mask of truth values has no derivative and no dtype that could keep the call from us.
Tensor float_mask(const OptionalTensor& mask) {
  return mask && mask->is_floating_point() ? *mask : Tensor();
}

Tensor contiguous_rows(const Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous();
}

// The layout of x where that leaves rows contiguous.
Tensor empty_like_rows(const Tensor& x) {
  Tensor t = at::empty_like(x);
  return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : at::empty(x.sizes(), x.options());
}

ConstRows rows_of(const Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}
Rows mutable_rows_of(const Tensor& t) {
  if (!t.defined()) return {};
  return {t.mutable_data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

int64_t broadcast_stride(const Tensor& t, int64_t dim) {
  return t.size(dim) == 1 ? 0 : t.stride(dim);
}

AttentionMask mask_of(const OptionalTensor& mask) {
  if (!mask) return {};
  const bool is_bool = mask->scalar_type() == at::kBool;
  return {.kind = is_bool ? MaskKind::kBool : MaskKind::kFloat,
          .dtype = is_bool ? Dtype::kFloat32 : dtype_of(*mask),
          .data = mask->const_data_ptr(),
          .b = broadcast_stride(*mask, 0),
          .h = broadcast_stride(*mask, 1),
          .row = broadcast_stride(*mask, 2),
          .key = broadcast_stride(*mask, 3)};
}

AttentionShape shape_of(const Tensor& q, const Tensor& k, const Tensor& v,
                        const OptionalTensor& seed, double dropout_p, bool is_causal,
                        std::optional<double> scale) {
  const bool on_gpu = q.is_cuda();
  return {.dtype = dtype_of(q),
          .precision = float32_precision(at::Float32Op::MATMUL, q),
          .batch = q.size(0),
          .heads = q.size(1),
          .kv_heads = k.size(1),
          .queries = q.size(2),
          .keys = k.size(2),
          .dim = q.size(3),
          .value_dim = v.size(3),
          .scale = scale_or_default(scale, q.size(3)),
          .is_causal = is_causal,
          .dropout_p = dropout_p,
          .seed = seed && !on_gpu ? static_cast<uint64_t>(seed->item<int64_t>()) : 0,
          .gpu_seed = seed && on_gpu ? seed->const_data_ptr<int64_t>() : nullptr};
}

Forward forward(const Tensor& query, const Tensor& key, const Tensor& value,
                const OptionalTensor& mask, const OptionalTensor& seed, double dropout_p,
                bool is_causal, std::optional<double> scale, bool query_layout) {
  check_attention("attention_forward", query, key, value, mask, dropout_p);
  const Tensor q = contiguous_rows(query), k = contiguous_rows(key), v = contiguous_rows(value);
  Tensor out = query_layout ? empty_like_rows(q)
                            : at::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.options());
  const auto rows = q.sizes().slice(0, 3);
  Tensor row_max = at::empty(rows, accumulator_options(q)), row_scale = at::empty_like(row_max);
  if (row_max.numel() == 0 || k.size(2) == 0) {
    return {out.zero_(), row_max.zero_(), row_scale.zero_()};
  }
  const AttentionParams params{{shape_of(q, k, v, seed, dropout_p, is_causal, scale)},
                               mask_of(mask),
                               rows_of(q),
                               rows_of(k),
                               rows_of(v),
                               mutable_rows_of(out),
                               row_max.mutable_data_ptr(),
                               row_scale.mutable_data_ptr()};
  serve("scaled_dot_product_attention", kForward, params, {query, key, value, mask});
  return {out, row_max, row_scale};
}

// A mask's gradient is summed in the accumulator type, in the mask's own shape.
AttentionMaskGradient gradient_of(const Tensor& sum) {
  if (!sum.defined()) return {};
  return {sum.mutable_data_ptr(), broadcast_stride(sum, 0), broadcast_stride(sum, 1),
          broadcast_stride(sum, 2), broadcast_stride(sum, 3)};
}

Gradients backward(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                   const Tensor& value, const OptionalTensor& mask, const OptionalTensor& seed,
                   const Tensor& out, const Tensor& row_max, const Tensor& row_scale,
                   double dropout_p, bool is_causal, std::optional<double> scale,
                   std::array<bool, 4> wanted) {
  const char* op = "attention_backward";
  check_attention(op, query, key, value, mask, dropout_p);
  check_attention_backward(op, query, value, grad_out, out, row_max, row_scale);
  TORCH_CHECK(mask || !wanted[3], op, ": a gradient of the mask is wanted, but there is none");
  const Tensor q = contiguous_rows(query), k = contiguous_rows(key), v = contiguous_rows(value);
  const Tensor g = contiguous_rows(grad_out), o = contiguous_rows(out);
  const Tensor max = row_max.contiguous(), inverse = row_scale.contiguous();
  // A CPU's kernels write all three, whatever is wanted.
  const auto make = [&](size_t i, const Tensor& like) {
    return wanted[i] || !q.is_cuda() ? empty_like_rows(like) : Tensor();
  };
  Tensor grad_q = make(0, q), grad_k = make(1, k), grad_v = make(2, v);
  const Tensor row_sums =
      q.is_cuda() ? at::empty(attention_row_sums(q.size(0), q.size(1), q.size(2)), max.options())
                  : Tensor();
  const Tensor sum_mask = wanted[3] ? at::zeros(mask->sizes(), accumulator_options(q)) : Tensor();
  if (row_max.numel() == 0 || k.size(2) == 0) {
    for (const Tensor& t : {grad_q, grad_k, grad_v}) {
      if (t.defined()) t.zero_();
    }
  } else {
    const AttentionBackwardParams params{{shape_of(q, k, v, seed, dropout_p, is_causal, scale)},
                                         mask_of(mask),
                                         rows_of(q),
                                         rows_of(k),
                                         rows_of(v),
                                         rows_of(o),
                                         rows_of(g),
                                         max.const_data_ptr(),
                                         inverse.const_data_ptr(),
                                         mutable_rows_of(grad_q),
                                         mutable_rows_of(grad_k),
                                         mutable_rows_of(grad_v),
                                         gradient_of(sum_mask),
                                         q.is_cuda() ? row_sums.mutable_data_ptr() : nullptr};
    serve("scaled_dot_product_attention_backward", kBackward, params, {q, k, v});
  }
  return {wanted[0] ? grad_q : Tensor(), wanted[1] ? grad_k : Tensor(),
          wanted[2] ? grad_v : Tensor(), wanted[3] ? sum_mask.to(mask->scalar_type()) : Tensor()};
}

Tensor dropout(const Tensor& seed, double p, at::IntArrayRef size) {
  check_dropout("attention_dropout", p);
  TORCH_CHECK(!size.empty(), "attention_dropout: size must end in the number of keys, got none");
  Tensor kept = at::empty(size, seed.options().dtype(at::kBool));
  if (kept.numel() == 0) return kept;
  const int64_t keys = size.back(), rows = kept.numel() / keys;
  bool* const to = kept.mutable_data_ptr<bool>();
  if constexpr (kBuiltWithCuda) {
    if (seed.is_cuda()) {
      launch_on_gpu("attention_dropout", "attention_dropout_cuda", kept, [&](cudaStream_t stream) {
        return attention_dropout_cuda(seed.const_data_ptr<int64_t>(), p, rows, keys, to, stream);
      });
      return kept;
    }
  }
  attention_dropout_scalar(static_cast<uint64_t>(seed.item<int64_t>()), p, rows, keys, to);
  return kept;
}

Tensor dropout_factors(const Tensor& seed, double p, const Tensor& like) {
  static const auto op =
      find_op<Tensor(const Tensor&, double, c10::SymIntArrayRef)>("attention_dropout");
  const Tensor kept = op.call(seed, p, like.sym_sizes());
  return kept.to(like.scalar_type()) * (p < 1 ? 1 / (1 - p) : 0);
}

Gradients call_backward(const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
                        const OptionalTensor& mask, const OptionalTensor& seed, const Tensor& out,
                        const Tensor& row_max, const Tensor& row_scale, double dropout_p,
                        bool is_causal, std::optional<double> scale, std::array<bool, 4> wanted) {
  static const auto op = find_op<decltype(backward)>("attention_backward");
  return op.call(grad_out, q, k, v, mask, seed, out, row_max, row_scale, dropout_p, is_causal,
                 scale, wanted);
}

// The same gradients as differentiable operations, from the inputs alone; only this path, the
// second order, holds matrices of size L×S. Heads that share a key head get a dimension of their
// own: (B, G, H/G, L, D).
Gradients differentiable_backward(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                                  const Tensor& value, const OptionalTensor& mask,
                                  const OptionalTensor& seed, double dropout_p, bool is_causal,
                                  std::optional<double> scale, std::array<bool, 4> wanted) {
  const auto compute = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const c10::SymInt groups = key.sym_size(1);
  const c10::SymInt shared = groups == 0 ? c10::SymInt(1) : query.sym_size(1) / groups;
  const auto grouped = [&](const Tensor& t) {
    return t.to(compute).unflatten_symint(1, {groups, shared});
  };
  const Tensor q = grouped(query), g = grouped(grad_out);
  const Tensor k = key.to(compute).unsqueeze(2), v = value.to(compute).unsqueeze(2);
  const double factor = scale_or_default(scale, query.size(3));

  Tensor scores = (q.matmul(k.mT()) * factor).flatten(1, 2);
  if (mask && mask->scalar_type() == at::kBool) {
    scores = scores.masked_fill(mask->logical_not(), -std::numeric_limits<double>::infinity());
  } else if (mask) {
    scores = scores + mask->to(compute);
  }
  if (is_causal) {
    const Tensor seen =
        at::ones_symint({query.sym_size(2), key.sym_size(2)}, query.options().dtype(at::kBool))
            .tril();
    scores = scores.masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity());
  }
  const Tensor p = at::_safe_softmax(scores, -1);
  const bool drops = seed.has_value();
  const Tensor kept = drops ? dropout_factors(*seed, dropout_p, p) : Tensor();
  const Tensor dropped = grouped(drops ? p * kept : p);
  const Tensor grad_dropped = g.matmul(v.mT()).flatten(1, 2);
  const Tensor grad_p = drops ? grad_dropped * kept : grad_dropped;
  const Tensor grad_scores = p * (grad_p - (p * grad_p).sum(-1, /*keepdim=*/true));
  const Tensor grouped_scores = grouped(grad_scores);
  const auto dtype = query.scalar_type();
  return {
      wanted[0] ? (grouped_scores.matmul(k) * factor).flatten(1, 2).to(dtype) : Tensor(),
      wanted[1] ? (grouped_scores.mT().matmul(q) * factor).sum(2).to(dtype) : Tensor(),
      wanted[2] ? dropped.mT().matmul(g).sum(2).to(dtype) : Tensor(),
      wanted[3] ? at::sum_to(grad_scores, mask->sym_sizes()).to(mask->scalar_type()) : Tensor()};
}

Gradients backward_autograd(const Tensor& grad_out, const Tensor& q, const Tensor& k,
                            const Tensor& v, const OptionalTensor& mask, const OptionalTensor& seed,
                            const Tensor& out, const Tensor& row_max, const Tensor& row_scale,
                            double dropout_p, bool is_causal, std::optional<double> scale,
                            std::array<bool, 4> wanted) {
  const Tensor m = float_mask(mask);
  if (native_reason({grad_out, q, k, v, m}, kDevices) != nullptr ||
      needs_grad({grad_out, q, k, v, m})) {
    return differentiable_backward(grad_out, q, k, v, mask, seed, dropout_p, is_causal, scale,
                                   wanted);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(grad_out, q, k, v, mask, seed, out, row_max, row_scale, dropout_p, is_causal,
                       scale, wanted);
}

Forward call_forward(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
                     const OptionalTensor& seed, double dropout_p, bool is_causal,
                     std::optional<double> scale, bool query_layout) {
  static const auto op = find_op<decltype(forward)>("attention_forward");
  return op.call(q, k, v, mask, seed, dropout_p, is_causal, scale, query_layout);
}

variable_list input_gradients(const RecordedCall& call) {
  const auto& saved = call.saved;
  const auto& values = call.values;
  auto [grad_q, grad_k, grad_v, grad_mask] =
      call_backward(call.grads[0], saved[0], saved[1], saved[2], value_if_defined(saved[3]),
                    value_if_defined(saved[4]), saved[5], saved[6], saved[7], values[0].toDouble(),
                    values[1].toBool(), values[2].toOptional<double>(),
                    {call.wanted[0], call.wanted[1], call.wanted[2], call.wanted[3]});
  return {grad_q, grad_k, grad_v, grad_mask};
}
constexpr Gradient kGradient{"AttentionBackward", input_gradients};

Forward forward_autograd(const Tensor& q, const Tensor& k, const Tensor& v,
                         const OptionalTensor& mask, const OptionalTensor& seed, double dropout_p,
                         bool is_causal, std::optional<double> scale, bool query_layout) {
  const Forward results = [&] {
    const Unrecorded scope;
    return call_forward(q, k, v, mask, seed, dropout_p, is_causal, scale, query_layout);
  }();
  if (needs_grad({q, k, v, float_mask(mask)})) {
    const auto& [out, row_max, row_scale] = results;
    // The result of native's composite may be written to, as may ours: a copy stays inside.
    const Tensor kept = query_layout || out.is_cuda() ? out : out.clone();
    record(kGradient, {q, k, v, mask}, {out}, {q, k, v, mask, seed, kept, row_max, row_scale},
           {dropout_p, is_causal, scale});
  }
  return results;
}

// On every device that the tables serve.
void implement(torch::Library& m) {
  register_kernel<"attention_forward", forward, "scaled_dot_product_attention">(m);
  register_kernel<"attention_backward", backward, "scaled_dot_product_attention_backward">(m);
  register_kernel<"attention_dropout", dropout>(m);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def(
      "attention_forward(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? seed, "
      "float dropout_p, bool is_causal, float? scale, bool query_layout) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? mask, "
      "Tensor? seed, Tensor out, Tensor row_max, Tensor row_scale, float dropout_p, "
      "bool is_causal, float? scale, bool[4] wanted) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("attention_dropout(Tensor seed, float p, SymInt[] size) -> Tensor");
}
TORCH_LIBRARY_IMPL(pyops, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(pyops, CUDA, m) {
  if (kDevices == Devices::kCpuAndGpu) implement(m);
}
TORCH_LIBRARY_IMPL(pyops, Autograd, m) {
  m.impl("attention_forward", forward_autograd);
  m.impl("attention_backward", backward_autograd);
}

}  // namespace pyops
