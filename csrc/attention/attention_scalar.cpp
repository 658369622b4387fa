// Plain loops over queries and keys, nothing of size L×S: the oracle, and the fallback.
// All sums are in float64; only a score is rounded to the type that row_max is stored in.
#include <algorithm>

#include "attention/attention.h"
#include "attention/attention_softmax.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace pyops {
namespace {

using baseline::Dropout, baseline::lowest, baseline::OnlineSoftmax, baseline::visible_keys;

template <class T>
double dot(const T* x, const T* y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += to_double(x[i]) * to_double(y[i]);
  return sum;
}

// sum += weight * x.
template <class T>
void add_scaled(double weight, const T* x, int64_t n, double* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += weight * to_double(x[i]);
}

template <class T>
double mask_value(const AttentionMask& m, int64_t b, int64_t h, int64_t l, int64_t s) {
  const int64_t at = b * m.b + h * m.h + l * m.row + s * m.key;
  if (m.kind == MaskKind::kNone) return 0;
  if (m.kind == MaskKind::kBool) return static_cast<const bool*>(m.data)[at] ? 0.0 : -INFINITY;
  if (m.dtype == Dtype::kFloat32) return static_cast<const float*>(m.data)[at];
  return to_double(static_cast<const T*>(m.data)[at]);
}

// One query row: its scores and dropout factors, key after key.
template <class T>
struct QueryRow {
  using Acc = acc_t<T>;
  const AttentionShape& shape;
  const ConstRows &q, &k;
  const AttentionMask& mask;
  int64_t b, h, l;
  double factors[Dropout::kKeys];

  int64_t index() const { return (b * shape.heads + h) * shape.queries + l; }
  int64_t kv_head() const { return shape.kv_head(h); }
  int64_t visible() const { return visible_keys(shape.is_causal, l, 0, shape.keys); }

  double score(int64_t s) const {
    const double product = dot(row_of<T>(q, b, h, l), row_of<T>(k, b, kv_head(), s), shape.dim);
    return static_cast<Acc>(product * shape.scale + mask_value<T>(mask, b, h, l, s));
  }
  // To be asked for s = 0, 1, 2, ….
  double dropout_factor(int64_t s) {
    if (shape.dropout_p == 0) return 1;
    const int64_t lane = s % Dropout::kKeys;
    if (lane == 0) Dropout(shape.seed, shape.dropout_p).factors(index(), s, factors);
    return factors[lane];
  }
};

template <class T>
void forward_row(const AttentionParams& p, int64_t b, int64_t h, int64_t l, double* sum) {
  using Acc = acc_t<T>;
  QueryRow<T> row{p, p.q, p.k, p.mask, b, h, l, {}};
  OnlineSoftmax<double> softmax{.max = lowest<Acc>()};
  std::fill_n(sum, p.value_dim, 0.0);
  for (int64_t s = 0; s < row.visible(); ++s) {
    const double x = row.score(s), rescale = softmax.raise_max(x);
    const double weight = std::exp(x - softmax.max);
    softmax.sum += weight;
    if (rescale != 1) {
      for (int64_t e = 0; e < p.value_dim; ++e) sum[e] *= rescale;
    }
    add_scaled(weight * row.dropout_factor(s), row_of<T>(p.v, b, row.kv_head(), s), p.value_dim,
               sum);
  }
  T* out = row_of<T>(p.out, b, h, l);
  const double scale = softmax.row_scale();
  for (int64_t e = 0; e < p.value_dim; ++e)
    out[e] = static_cast<T>(static_cast<Acc>(sum[e] * scale));
  static_cast<Acc*>(p.row_max)[row.index()] = static_cast<Acc>(softmax.max);
  static_cast<Acc*>(p.row_scale)[row.index()] = static_cast<Acc>(scale);
}

template <class T>
void forward(const AttentionParams& p) {
  parallel_for(0, p.batch * p.heads * p.queries, 1, [&](int64_t begin, int64_t end) {
    Scratch<double> sum(p.value_dim);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t l = i % p.queries, bh = i / p.queries;
      forward_row<T>(p, bh / p.heads, bh % p.heads, l, sum.get());
    }
  });
}

// All gradients of one key/value head and the query heads that share it.
template <class T>
struct Backward {
  using Acc = acc_t<T>;
  const AttentionBackwardParams& p;
  int64_t b, kv_head;
  double *sum_q, *sum_k, *sum_v;  // (D), (S, D), (S, E)

  void operator()() const {
    std::fill_n(sum_k, p.keys * p.dim, 0.0);
    std::fill_n(sum_v, p.keys * p.value_dim, 0.0);
    const int64_t group = p.group();
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      for (int64_t l = 0; l < p.queries; ++l) query(h, l);
    }
    for (int64_t s = 0; s < p.keys; ++s) {
      write(sum_k + s * p.dim, p.dim, row_of<T>(p.grad_k, b, kv_head, s));
      write(sum_v + s * p.value_dim, p.value_dim, row_of<T>(p.grad_v, b, kv_head, s));
    }
  }

 private:
  static void write(const double* sum, int64_t n, T* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = from_double<T>(sum[i]);
  }

  // rowsum(dout∘out); from the keys again where out was rounded to fewer digits than sums have.
  double grad_dot_out(QueryRow<T>& row, double max, double row_scale, const T* grad_out) const {
    if (sizeof(T) >= sizeof(float)) {
      return dot(grad_out, row_of<T>(p.out, b, row.h, row.l), p.value_dim);
    }
    double sum = 0;
    for (int64_t s = 0; s < row.visible(); ++s) {
      const double weight = std::exp(row.score(s) - max) * row_scale * row.dropout_factor(s);
      sum += weight * dot(grad_out, row_of<T>(p.v, b, kv_head, s), p.value_dim);
    }
    return sum;
  }

  void query(int64_t h, int64_t l) const {
    QueryRow<T> row{p, p.q, p.k, p.mask, b, h, l, {}};
    const double max = static_cast<const Acc*>(p.row_max)[row.index()];
    const double row_scale = static_cast<const Acc*>(p.row_scale)[row.index()];
    const T *q = row_of<T>(p.q, b, h, l), *grad_out = row_of<T>(p.grad_out, b, h, l);
    const double delta = grad_dot_out(row, max, row_scale, grad_out);
    std::fill_n(sum_q, p.dim, 0.0);
    for (int64_t s = 0; s < row.visible(); ++s) {
      const double probability = std::exp(row.score(s) - max) * row_scale;
      const double kept = row.dropout_factor(s);
      add_scaled(probability * kept, grad_out, p.value_dim, sum_v + s * p.value_dim);
      const double grad_p = dot(grad_out, row_of<T>(p.v, b, kv_head, s), p.value_dim) * kept;
      const double grad_x = probability * (grad_p - delta);
      add_scaled(grad_x * p.scale, q, p.dim, sum_k + s * p.dim);
      add_scaled(grad_x * p.scale, row_of<T>(p.k, b, kv_head, s), p.dim, sum_q);
      if (const auto& m = p.grad_mask; m.data != nullptr) {
        static_cast<Acc*>(m.data)[b * m.b + h * m.h + l * m.row + s * m.key] +=
            static_cast<Acc>(grad_x);
      }
    }
    write(sum_q, p.dim, row_of<T>(p.grad_q, b, h, l));
  }
};

template <class T>
void backward(const AttentionBackwardParams& p) {
  const int64_t pairs = p.batch * p.kv_heads;
  // A mask's gradient sums over whatever it is broadcast along: one thread, one order.
  const int64_t grain = p.grad_mask.data != nullptr ? pairs : 1;
  parallel_for(0, pairs, grain, [&](int64_t begin, int64_t end) {
    Scratch<double> sum_q(p.dim), sum_k(p.keys * p.dim), sum_v(p.keys * p.value_dim);
    for (int64_t i = begin; i < end; ++i) {
      Backward<T>{p, i / p.kv_heads, i % p.kv_heads, sum_q.get(), sum_k.get(), sum_v.get()}();
    }
  });
}

}  // namespace

void attention_forward_scalar(const AttentionParams& params) {
  dispatch_dtype(params.dtype, [&](auto t) { forward<decltype(t)>(params); });
}

void attention_backward_scalar(const AttentionBackwardParams& params) {
  dispatch_dtype(params.dtype, [&](auto t) { backward<decltype(t)>(params); });
}

void attention_dropout_scalar(uint64_t seed, double p, int64_t rows, int64_t keys, bool* kept) {
  const Dropout dropout(seed, p);
  parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
    float factors[Dropout::kKeys];
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t s = 0; s < keys; ++s) {
        if (s % Dropout::kKeys == 0) dropout.factors(row, s, factors);
        kept[row * keys + s] = factors[s % Dropout::kKeys] != 0;
      }
    }
  });
}

}  // namespace pyops
