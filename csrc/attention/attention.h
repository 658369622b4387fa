// out = dropout(softmax(scale·q·kᵀ + mask))·v, and its gradients.
//
// B: batch   H: query heads   G: key/value heads, H a multiple of G   L: queries   S: keys
// D: query and key dimension   E: value dimension
#pragma once

#include <cstdint>

#include "core/cuda_types.h"
#include "core/dtype.h"
#include "core/host_device.h"
#include "core/precision.h"

namespace pyops {

// A (B, heads, rows, columns) tensor whose columns are contiguous; strides in elements, 0 allowed.
struct ConstRows {
  const void* data;
  int64_t b, h, row;
};
struct Rows {
  void* data;
  int64_t b, h, row;
};

// Row i of head h of batch b.
template <class T>
PYOPS_HOST_DEVICE inline const T* row_of(const ConstRows& t, int64_t b, int64_t h, int64_t i) {
  return static_cast<const T*>(t.data) + b * t.b + h * t.h + i * t.row;
}
template <class T>
PYOPS_HOST_DEVICE inline T* row_of(const Rows& t, int64_t b, int64_t h, int64_t i) {
  return static_cast<T*>(t.data) + b * t.b + h * t.h + i * t.row;
}

enum class MaskKind : uint8_t { kNone, kBool, kFloat };

// Broadcasts to (B, H, L, S): a stride is 0 where the mask has one element.
struct AttentionMask {
  MaskKind kind = MaskKind::kNone;
  Dtype dtype = Dtype::kFloat32;  // of a kFloat mask: the tensors' own or float32
  const void* data = nullptr;
  int64_t b = 0, h = 0, row = 0, key = 0;
};

struct AttentionShape {
  Dtype dtype;
  Precision precision;
  int64_t batch, heads, kv_heads, queries, keys, dim, value_dim;
  double scale;
  bool is_causal;  // query l sees keys 0 … l
  double dropout_p;
  uint64_t seed;            // on the CPU
  const int64_t* gpu_seed;  // on a GPU, whose kernels alone read it; null without dropout

  // Query heads that share the keys of one head, and which that is.
  PYOPS_HOST_DEVICE int64_t group() const { return heads / kv_heads; }
  PYOPS_HOST_DEVICE int64_t kv_head(int64_t h) const { return h / group(); }
};

// `row_max` and `row_scale` describe the softmax of each row: p = exp(x - row_max) * row_scale. The
// pair replaces the usual logsumexp, which cannot hold log(S) beside a row of finfo.min; row_scale
// is 0 in a row without any key, where the softmax is 0. Their type is acc_t of the dtype.
struct AttentionParams : AttentionShape {
  AttentionMask mask;
  ConstRows q;      // (B, H, L, D)
  ConstRows k;      // (B, G, S, D)
  ConstRows v;      // (B, G, S, E)
  Rows out;         // (B, H, L, E)
  void* row_max;    // (B, H, L), contiguous
  void* row_scale;  // (B, H, L), contiguous
};

// The gradient of a mask: its accumulator of type acc_t, zero on entry, strides as the mask's.
struct AttentionMaskGradient {
  void* data = nullptr;  // null when not wanted
  int64_t b = 0, h = 0, row = 0, key = 0;
};

struct AttentionBackwardParams : AttentionShape {
  AttentionMask mask;
  ConstRows q, k, v;
  ConstRows out, grad_out;          // (B, H, L, E)
  const void *row_max, *row_scale;  // as the forward left them
  Rows grad_q, grad_k, grad_v;      // as q, k, v; on a GPU null where not wanted
  AttentionMaskGradient grad_mask;
  void* row_sums;  // attention_row_sums() of type acc_t for a kernel's own use; null on the CPU
};

// Three a query, of L rounded up to whole tiles.
inline constexpr int64_t kRowSumsTile = 128;
constexpr int64_t attention_row_sums(int64_t batch, int64_t heads, int64_t queries) {
  return 3 * batch * heads * ((queries + kRowSumsTile - 1) / kRowSumsTile * kRowSumsTile);
}

void attention_forward_scalar(const AttentionParams& params);
void attention_forward_avx2(const AttentionParams& params);
void attention_forward_avx512(const AttentionParams& params);
void attention_forward_avx512_bf16(const AttentionParams& params);
void attention_forward_amx(const AttentionParams& params);
cudaError_t attention_forward_sm90(const AttentionParams& params, cudaStream_t stream);
cudaError_t attention_forward_tensorop_cuda(const AttentionParams& params, cudaStream_t stream);
cudaError_t attention_forward_tf32_cuda(const AttentionParams& params, cudaStream_t stream);
cudaError_t attention_forward_3xtf32_cuda(const AttentionParams& params, cudaStream_t stream);
cudaError_t attention_forward_cuda(const AttentionParams& params, cudaStream_t stream);

void attention_backward_scalar(const AttentionBackwardParams& params);
void attention_backward_avx2(const AttentionBackwardParams& params);
void attention_backward_avx512(const AttentionBackwardParams& params);
void attention_backward_avx512_bf16(const AttentionBackwardParams& params);
void attention_backward_amx(const AttentionBackwardParams& params);
cudaError_t attention_backward_sm90(const AttentionBackwardParams& params, cudaStream_t stream);
cudaError_t attention_backward_tensorop_cuda(const AttentionBackwardParams& params,
                                             cudaStream_t stream);
cudaError_t attention_backward_tf32_cuda(const AttentionBackwardParams& params,
                                         cudaStream_t stream);
cudaError_t attention_backward_3xtf32_cuda(const AttentionBackwardParams& params,
                                           cudaStream_t stream);
cudaError_t attention_backward_cuda(const AttentionBackwardParams& params, cudaStream_t stream);

// Which elements of (rows, keys) the dropout of both directions keeps.
void attention_dropout_scalar(uint64_t seed, double p, int64_t rows, int64_t keys, bool* kept);
cudaError_t attention_dropout_cuda(const int64_t* seed, double p, int64_t rows, int64_t keys,
                                   bool* kept, cudaStream_t stream);

}  // namespace pyops
