// The forward in half precision on Hopper: attention_forward_warpgroup.h with tiles of 128 or 192
// queries and 64 or 128 keys, loaded by TMA and multiplied by WGMMA. Warpgroups begin their
// products by turns (the ping-pong of FlashAttention-3, Shah et al. 2024): one's softmax fills the
// time of another's products.
#include "attention/attention_forward_warpgroup.h"
#include "attention/attention_half.cuh"
#include "attention/attention_sm90.cuh"

namespace pyops {
namespace {

struct ForwardArguments {
  AttentionParams params;
  CUtensorMap q, k, v;
};

template <class Algorithm>
struct alignas(1024) ForwardShared {
  using T = typename Algorithm::T;
  static constexpr int kTile = Algorithm::kKeys * Algorithm::kD, kBuffers = Algorithm::kBuffers;

  T q[Algorithm::kConsumers][kWarpgroupRows * Algorithm::kD];
  T k[kBuffers][kTile], v[kBuffers][kTile];
  Ring<1> queries;
  Ring<kBuffers> keys, values;

  __device__ void init_rings() {
    queries.init(Algorithm::kConsumers);
    keys.init(Algorithm::kConsumers);
    values.init(Algorithm::kConsumers);
  }
};

template <class Algorithm>
struct ForwardLoader {
  using T = typename Algorithm::T;
  using Shared = ForwardShared<Algorithm>;
  static constexpr int kKeys = Algorithm::kKeys, kD = Algorithm::kD;

  const ForwardArguments& arguments;
  Shared& shared;
  Ring<1>::Place query{};
  typename Ring<Algorithm::kBuffers>::Place key{}, value{};

  __device__ ForwardLoader(const ForwardArguments& arguments_, Shared& shared_)
      : arguments(arguments_), shared(shared_) {
    for (const CUtensorMap* map : {&arguments.q, &arguments.k, &arguments.v}) {
      cute::prefetch_tma_descriptor(map);
    }
  }

  PYOPS_DEVICE void load_queries(int64_t b, int64_t h, int64_t row) {
    uint64_t* const full = shared.queries.begin_load(query, sizeof shared.q);
    PYOPS_UNROLL for (int i = 0; i < Algorithm::kConsumers; ++i) {
      load_boxes<T, kWarpgroupRows, kD, kWarpgroupRows>(arguments.q, b, h, row + i * kWarpgroupRows,
                                                        shared.q[i], full);
    }
    query.advance();
  }
  PYOPS_DEVICE void load_keys(int64_t b, int64_t h, int64_t row) {
    uint64_t* const full = shared.keys.begin_load(key, sizeof shared.k[0]);
    load_boxes<T, kKeys, kD, kKeys>(arguments.k, b, h, row, shared.k[key.buffer], full);
    key.advance();
  }
  PYOPS_DEVICE void load_values(int64_t b, int64_t h, int64_t row) {
    uint64_t* const full = shared.values.begin_load(value, sizeof shared.v[0]);
    load_boxes<T, kKeys, kD, kKeys>(arguments.v, b, h, row, shared.v[value.buffer], full);
    value.advance();
  }
};

template <class Algorithm>
struct ForwardTeam : WarpgroupTeam<Algorithm> {
  using T = typename Algorithm::T;
  using Shared = ForwardShared<Algorithm>;
  using WarpgroupTeam<Algorithm>::state;
  static constexpr int kKeys = Algorithm::kKeys, kD = Algorithm::kD;

  Shared& shared;
  int consumer;
  Turns<Algorithm::kConsumers> turns;
  Ring<1>::Place query{};
  typename Ring<Algorithm::kBuffers>::Place key{}, value{};

  __device__ ForwardTeam(Shared& shared_, int consumer_)
      : shared(shared_), consumer(consumer_), turns(consumer_) {}
  PYOPS_DEVICE void leave() { turns.leave(); }
  PYOPS_DEVICE void take_turn() { turns.take(); }
  PYOPS_DEVICE void pass_turn() { turns.pass(); }

  PYOPS_DEVICE void await_queries() { shared.queries.await(query); }
  PYOPS_DEVICE void release_queries() { shared.queries.release(query); }
  PYOPS_DEVICE void begin_scores() {
    shared.keys.await(key);
    begin_product<T, kKeys, kD>(shared.q[consumer], shared.k[key.buffer], state.scores);
  }
  template <int kPending>
  PYOPS_DEVICE void end_scores() {
    cute::warpgroup_wait<kPending>();
    fence_registers(state.scores);
    shared.keys.release(key);
  }
  PYOPS_DEVICE void begin_sum() {
    shared.values.await(value);
    pyops::begin_sum<T, kD, kKeys>(state.weights, shared.v[value.buffer], state.out);
  }
  PYOPS_DEVICE void end_sum() {
    cute::warpgroup_wait<0>();
    fence_registers(state.out);
    shared.values.release(value);
  }
};

template <class Algorithm>
__global__ void __launch_bounds__((1 + Algorithm::kConsumers) * kWarpgroup, 1)
    attention_forward_sm90_kernel(const __grid_constant__ ForwardArguments arguments) {
  extern __shared__ __align__(1024) char storage[];
  run_warpgroups<Algorithm, ForwardLoader<Algorithm>, ForwardTeam<Algorithm>>(
      arguments, *reinterpret_cast<ForwardShared<Algorithm>*>(storage));
}

template <class Algorithm>
cudaError_t run(const AttentionParams& p, cudaStream_t stream) {
  ForwardArguments arguments{p, {}, {}, {}};
  cudaError_t status = map_rows(p, p.q, p.heads, p.queries, p.dim, kWarpgroupRows, &arguments.q);
  if (status != cudaSuccess) return status;
  status = map_rows(p, p.k, p.kv_heads, p.keys, p.dim, Algorithm::kKeys, &arguments.k);
  if (status != cudaSuccess) return status;
  status = map_rows(p, p.v, p.kv_heads, p.keys, p.value_dim, Algorithm::kKeys, &arguments.v);
  if (status != cudaSuccess) return status;
  return launch_attention<Algorithm, ForwardShared<Algorithm>>(
      attention_forward_sm90_kernel<Algorithm>, arguments, stream);
}

}  // namespace

cudaError_t attention_forward_sm90(const AttentionParams& p, cudaStream_t stream) {
  return with_half_width(p, [&]<class T, int kD>() {
    return is_masked(p, p.mask) ? run<AttentionWarpgroupForward<T, kD, true>>(p, stream)
                                : run<AttentionWarpgroupForward<T, kD, false>>(p, stream);
  });
}

}  // namespace pyops
