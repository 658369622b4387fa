// What the blocks of the general CUDA kernels of attention compute, thread by thread on the CPU.
#include <algorithm>
#include <bit>
#include <memory>
#include <numeric>
#include <vector>

#include "attention/attention_backward_block.h"
#include "attention/attention_backward_tensorop_block.h"
#include "attention/attention_forward_block.h"
#include "attention/attention_mask_tensorop_block.h"
#include "attention/attention_tensorop_block.h"
#include "attention/attention_width.h"
#include "attention_call.h"
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
      for (size_t r = 0; r < std::size(states[quad].rows); ++r) {
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

template <class Step>
void forward_tensorop(const AttentionParams& p) {
  using Narrow = AttentionTensorForward<Step, 64>;
  using Wide = AttentionTensorForward<Step, 128>;
  p.dim <= 64 && p.value_dim <= 64 ? run<Narrow, WarpTeam<Narrow>>(p)
                                   : run<Wide, WarpTeam<Wide>>(p);
}

int64_t conflicts = 0;  // of banks of shared memory

template <class Algorithm>
struct TileTeam : TileLoopTeam<typename Algorithm::State> {
  TileTeam() : TileLoopTeam<typename Algorithm::State>(Algorithm::kThreads) {}
  ~TileTeam() { conflicts += this->bank_conflicts; }
};

template <class Step, int kD>
void backward_tensorop(const AttentionBackwardParams& p) {
  using Queries = AttentionTensorBackward<Step, kD, /*kKeysOwn=*/false>;
  using Keys = AttentionTensorBackward<Step, kD, /*kKeysOwn=*/true>;
  run<AttentionRowSums<typename Step::Element>>(p);
  run<Queries, TileTeam<Queries>>(p);
  run<Keys, TileTeam<Keys>>(p);
  if (p.grad_mask.data == nullptr) return;
  using Mask = AttentionTensorMaskBackward<Step, kD>;
  run<Mask, TileTeam<Mask>>(p);
}

template <class T, int kWide>
void backward(const AttentionBackwardParams& p) {
  run<AttentionExactRowSums<T>>(p);
  run<AttentionBackward<T, kWide, GradientOf::kQuery>>(p);
  run<AttentionBackward<T, kWide, GradientOf::kKey>>(p);
  run<AttentionBackward<T, kWide, GradientOf::kValue>>(p);
  if (p.grad_mask.data != nullptr) run<AttentionMaskBackward<T>>(p);
}

}  // namespace

extern "C" {

// Of ldmatrix, so far.
int64_t conflicts_met() { return conflicts; }

// The fewest banks that a warp meets when every lane loads a word of operand b from rows of floats.
int banks_met(int stride, int by_columns) {
  std::vector<float> places(static_cast<size_t>(stride) * 8);
  std::iota(places.begin(), places.end(), 0.0f);
  unsigned met[2] = {0, 0};
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t words[2];
    by_columns != 0
        ? load_columns<SplitStep, void>(places.data(), stride, lane, words)
        : load_row<SplitStep>(&places[static_cast<size_t>(lane / 4 * stride)], lane, words);
    for (int half = 0; half < 2; ++half) {
      met[half] |= 1u << static_cast<int>(bits_float(words[half])) % 32;
    }
  }
  return std::min(std::popcount(met[0]), std::popcount(met[1]));
}

// wide: chunks of the output in widths of a tile; 0: on tensor cores, -1: there by TF32
void forward(int wide, const int64_t* sizes, double scale, double dropout_p, const int64_t* seed,
             const int64_t* mask, const int64_t* q, const int64_t* k, const int64_t* v,
             const int64_t* out, void* row_max, void* row_scale) {
  const AttentionParams p =
      forward_params(sizes, scale, dropout_p, seed, mask, q, k, v, out, row_max, row_scale);
  if (wide < 0) return forward_tensorop<Tf32Step>(p);
  if (wide == 0) {
    return dispatch_dtype<kFloat32 | kHalfTypes>(p.dtype, [&]<class T>(T) {
      forward_tensorop<std::conditional_t<sizeof(T) == 4, SplitStep, HalfStep<T>>>(p);
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
              const int64_t* grad_v, const int64_t* grad_mask, void* row_sums) {
  const AttentionBackwardParams p =
      backward_params(sizes, scale, dropout_p, seed, mask, q, k, v, out, grad_out, row_max,
                      row_scale, grad_q, grad_k, grad_v, grad_mask, row_sums);
  if (wide < 0) {
    return with_width(p, [&]<int kD>() { backward_tensorop<Tf32Step, kD>(p); });
  }
  if (wide == 0 && p.dtype != Dtype::kFloat64) {
    return dispatch_dtype<kFloat32 | kHalfTypes>(p.dtype, [&]<class T>(T) {
      using Step = std::conditional_t<sizeof(T) == 4, SplitStep, HalfStep<T>>;
      with_width(p, [&]<int kD>() { backward_tensorop<Step, kD>(p); });
    });
  }
  dispatch_dtype(p.dtype, [&]<class T>(T) { wide == 1 ? backward<T, 1>(p) : backward<T, 2>(p); });
}
}
