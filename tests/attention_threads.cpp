// What the blocks of the general CUDA kernels of attention compute, thread by thread on the CPU.
#include <memory>
#include <vector>

#include "attention/attention_backward_block.h"
#include "attention/attention_forward_block.h"
#include "attention/attention_tensorop_block.h"
#include "threads.h"

using namespace pyops;

namespace {

template <class Algorithm>
struct WarpTeam : TensorLoopTeam<typename Algorithm::State> {
  using TensorLoopTeam<typename Algorithm::State>::states;

  WarpTeam() { states.resize(Algorithm::kThreads); }

  template <class F>
  void reduce(const F& join) {
    for (size_t quad = 0; quad < states.size(); quad += 4) {
      for (int r = 0; r < 2; ++r) {
        auto* s = &states[quad];
        const float joined =
            join(join(s[0].rows[r], s[1].rows[r]), join(s[2].rows[r], s[3].rows[r]));
        for (int i = 0; i < 4; ++i) s[i].rows[r] = joined;
      }
    }
  }
};

// Shared memory of a block starts as it was left.
template <class Algorithm, class Team = LoopTeam<typename Algorithm::State>, class Params>
void run(const Params& p) {
  const auto shared = std::make_unique<typename Algorithm::Shared>();
  memset(static_cast<void*>(shared.get()), 0xff, sizeof *shared);
  Team team;
  for (int64_t block = 0; block < Algorithm::blocks(p); ++block) {
    Algorithm(p, block).run(*shared, team);
  }
}

// A tensor: its address, its strides.
ConstRows rows(const int64_t* t) { return {reinterpret_cast<const void*>(t[0]), t[1], t[2], t[3]}; }
Rows mutable_rows(const int64_t* t) { return {reinterpret_cast<void*>(t[0]), t[1], t[2], t[3]}; }

AttentionMask mask_of(const int64_t* m) {
  return {static_cast<MaskKind>(m[0]),
          static_cast<Dtype>(m[1]),
          reinterpret_cast<const void*>(m[2]),
          m[3],
          m[4],
          m[5],
          m[6]};
}

// sizes: dtype, B, H, G, L, S, D, E, is_causal
AttentionShape shape_of(const int64_t* n, double scale, double dropout_p, const int64_t* seed) {
  return {static_cast<Dtype>(n[0]),
          n[1],
          n[2],
          n[3],
          n[4],
          n[5],
          n[6],
          n[7],
          scale,
          n[8] != 0,
          dropout_p,
          0,
          seed};
}

template <class T, int kD>
void forward_tensorop(const AttentionParams& p) {
  using Algorithm = AttentionTensorForward<T, kD>;
  run<Algorithm, WarpTeam<Algorithm>>(p);
}

template <class T, int kWide>
void backward(const AttentionBackwardParams& p) {
  run<AttentionRowSums<T>>(p);
  run<AttentionBackward<T, kWide, GradientOf::kQuery>>(p);
  run<AttentionBackward<T, kWide, GradientOf::kKey>>(p);
  run<AttentionBackward<T, kWide, GradientOf::kValue>>(p);
  if (p.grad_mask.data != nullptr) run<AttentionMaskBackward<T>>(p);
}

}  // namespace

extern "C" {

// wide: chunks of the output in widths of a tile; 0: on tensor cores
void forward(int wide, const int64_t* sizes, double scale, double dropout_p, const int64_t* seed,
             const int64_t* mask, const int64_t* q, const int64_t* k, const int64_t* v,
             const int64_t* out, void* row_max, void* row_scale) {
  const AttentionParams p{{shape_of(sizes, scale, dropout_p, seed)},
                          mask_of(mask),
                          rows(q),
                          rows(k),
                          rows(v),
                          mutable_rows(out),
                          row_max,
                          row_scale};
  if (wide == 0) {
    return dispatch_dtype<kHalfTypes>(p.dtype, [&]<class T>(T) {
      p.dim <= 64 && p.value_dim <= 64 ? forward_tensorop<T, 64>(p) : forward_tensorop<T, 128>(p);
    });
  }
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    wide == 1 ? run<AttentionForward<T, 1>>(p) : run<AttentionForward<T, 2>>(p);
  });
}

void backward(int wide, const int64_t* sizes, double scale, double dropout_p, const int64_t* seed,
              const int64_t* mask, const int64_t* q, const int64_t* k, const int64_t* v,
              const int64_t* out, const int64_t* grad_out, const void* row_max,
              const void* row_scale, const int64_t* grad_q, const int64_t* grad_k,
              const int64_t* grad_v, const int64_t* grad_mask, void* grad_dot_out) {
  const AttentionBackwardParams p{{shape_of(sizes, scale, dropout_p, seed)},
                                  mask_of(mask),
                                  rows(q),
                                  rows(k),
                                  rows(v),
                                  rows(out),
                                  rows(grad_out),
                                  row_max,
                                  row_scale,
                                  mutable_rows(grad_q),
                                  mutable_rows(grad_k),
                                  mutable_rows(grad_v),
                                  {reinterpret_cast<void*>(grad_mask[0]), grad_mask[1],
                                   grad_mask[2], grad_mask[3], grad_mask[4]},
                                  grad_dot_out};
  dispatch_dtype(p.dtype, [&]<class T>(T) { wide <= 1 ? backward<T, 1>(p) : backward<T, 2>(p); });
}
}
