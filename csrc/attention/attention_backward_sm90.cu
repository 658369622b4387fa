// The gradients in half precision on Hopper: attention_backward_warpgroup.h with tiles of 128
// owners and 32 to 128 others, loaded by TMA and multiplied by WGMMA. A warpgroup's
// products overlap its weights, and both the other's.
#include "attention/attention_backward_warpgroup.h"
#include "attention/attention_half.cuh"
#include "attention/attention_sm90.cuh"

namespace pyops {
namespace {

struct BackwardArguments {
  AttentionBackwardParams params;
  CUtensorMap q, k, v, grad_out;
};

template <class Algorithm>
struct alignas(1024) BackwardShared {
  using T = typename Algorithm::T;
  static constexpr int kD = Algorithm::kD, kBuffers = Algorithm::kBuffers;

  struct Owners {
    T first[Algorithm::kConsumers][kWarpgroupRows * kD];   // k or q
    T second[Algorithm::kConsumers][kWarpgroupRows * kD];  // v or grad_out
  } owners;
  struct Others {
    T first[Algorithm::kOthers * kD];   // q or k
    T second[Algorithm::kOthers * kD];  // grad_out or v
  } others[kBuffers];
  // Of queries: exponents, dots and, where scores are masked, maxima.
  struct Statistics {
    float of[Algorithm::kMasked ? 3 : 2][Algorithm::kOthers];
  } statistics[kBuffers];
  Ring<1> owner_ring;
  Ring<kBuffers> other_ring;
  uint32_t words[Algorithm::kConsumers][2][kWarpgroup];  // that a warpgroup's threads share

  __device__ void init_rings() {
    owner_ring.init(Algorithm::kConsumers);
    other_ring.init(Algorithm::kConsumers);
  }
};

template <class Algorithm>
struct BackwardLoader {
  using T = typename Algorithm::T;
  using Shared = BackwardShared<Algorithm>;
  static constexpr bool kKeysOwn = Algorithm::kKeysOwn;
  static constexpr int kD = Algorithm::kD, kOthers = Algorithm::kOthers;

  const BackwardArguments& arguments;
  Shared& shared;
  Ring<1>::Place owner{};
  typename Ring<Algorithm::kBuffers>::Place other{};

  __device__ BackwardLoader(const BackwardArguments& arguments_, Shared& shared_)
      : arguments(arguments_), shared(shared_) {
    for (const CUtensorMap* map : {&arguments.q, &arguments.k, &arguments.v, &arguments.grad_out}) {
      cute::prefetch_tma_descriptor(map);
    }
  }

  PYOPS_DEVICE void load_owners(int64_t b, int64_t h, int64_t row) {
    auto& to = shared.owners;
    uint64_t* const full = shared.owner_ring.begin_load(owner, sizeof to);
    PYOPS_UNROLL for (int i = 0; i < Algorithm::kConsumers; ++i) {
      load<kWarpgroupRows>(kKeysOwn ? arguments.k : arguments.q,
                           kKeysOwn ? arguments.v : arguments.grad_out, b, h,
                           row + i * kWarpgroupRows, to.first[i], to.second[i], full);
    }
    owner.advance();
  }
  PYOPS_DEVICE void load_others(int64_t b, int64_t h, int64_t row) {
    auto& to = shared.others[other.buffer];
    auto& statistics = shared.statistics[other.buffer];
    uint64_t* const full =
        shared.other_ring.begin_load(other, sizeof to + (kKeysOwn ? sizeof statistics : 0));
    load<kOthers>(kKeysOwn ? arguments.q : arguments.k, kKeysOwn ? arguments.grad_out : arguments.v,
                  b, h, row, to.first, to.second, full);
    if constexpr (kKeysOwn) {
      const AttentionRowStatistics<T> from(arguments.params);
      const float* const all[] = {from.exponents, from.dots, from.maxima};
      PYOPS_UNROLL for (int i = 0; i < (Algorithm::kMasked ? 3 : 2); ++i) {
        cute::SM90_BULK_COPY_G2S::copy(all[i] + from.row(b, h, row), full, statistics.of[i],
                                       sizeof statistics.of[i]);
      }
    }
    other.advance();
  }

 private:
  template <int kRows>
  PYOPS_DEVICE static void load(const CUtensorMap& first, const CUtensorMap& second, int64_t b,
                                int64_t h, int64_t row, T* to_first, T* to_second, uint64_t* full) {
    load_boxes<T, kRows, kD, Algorithm::kBoxRows>(first, b, h, row, to_first, full);
    load_boxes<T, kRows, kD, Algorithm::kBoxRows>(second, b, h, row, to_second, full);
  }
};

template <class Algorithm>
struct BackwardTeam : WarpgroupTeam<Algorithm> {
  using T = typename Algorithm::T;
  using Shared = BackwardShared<Algorithm>;
  using WarpgroupTeam<Algorithm>::state, WarpgroupTeam<Algorithm>::thread;
  static constexpr int kD = Algorithm::kD, kOthers = Algorithm::kOthers;

  Shared& shared;
  int consumer, side = 0;
  Ring<1>::Place owner{};
  typename Ring<Algorithm::kBuffers>::Place other{};

  __device__ BackwardTeam(Shared& shared_, int consumer_) : shared(shared_), consumer(consumer_) {}
  PYOPS_DEVICE void leave() {}

  PYOPS_DEVICE const float* exponents() const { return shared.statistics[other.buffer].of[0]; }
  PYOPS_DEVICE const float* dots() const { return shared.statistics[other.buffer].of[1]; }
  PYOPS_DEVICE const float* maxima() const { return shared.statistics[other.buffer].of[2]; }

  // Two sides: whoever writes to one has met the others since they read it.
  template <class F>
  PYOPS_DEVICE void share(const F& word) {
    side ^= 1;
    shared.words[consumer][side][thread] = word(state);
    cutlass::arch::NamedBarrier::sync(kWarpgroup, static_cast<uint32_t>(consumer));
  }
  PYOPS_DEVICE uint32_t shared_by(int other_thread) const {
    return shared.words[consumer][side][other_thread];
  }

  PYOPS_DEVICE void await_owners() { shared.owner_ring.await(owner); }
  PYOPS_DEVICE void release_owners() { shared.owner_ring.release(owner); }
  PYOPS_DEVICE void begin_scores() {
    shared.other_ring.await(other);
    begin_product<T, kOthers, kD>(shared.owners.first[consumer], shared.others[other.buffer].first,
                                  state.scores);
  }
  PYOPS_DEVICE void begin_grads() {
    begin_product<T, kOthers, kD>(shared.owners.second[consumer],
                                  shared.others[other.buffer].second, state.grads);
  }
  PYOPS_DEVICE void end_scores() {
    cute::warpgroup_wait<1>();
    fence_registers(state.scores);
  }
  PYOPS_DEVICE void end_grads() {
    cute::warpgroup_wait<Algorithm::kKeysOwn ? 1 : 0>();
    fence_registers(state.grads);
  }
  PYOPS_DEVICE void begin_value_sums() {
    begin_sum<T, kD, kOthers>(state.weights, shared.others[other.buffer].second, state.value_sums);
  }
  PYOPS_DEVICE void begin_sums() {
    begin_sum<T, kD, kOthers>(state.grad_scores, shared.others[other.buffer].first, state.sums);
  }
  PYOPS_DEVICE void end_sums() {
    cute::warpgroup_wait<0>();
    fence_registers(state.sums);
    fence_registers(state.value_sums);
    shared.other_ring.release(other);
  }
};

template <class T>
__global__ void __launch_bounds__(kBlock)
    attention_backward_rows_kernel(AttentionBackwardParams params) {
  const AttentionRowStatistics<T> statistics(params);
  constexpr int kThreads = AttentionRowStatistics<T>::kThreads;
  // All threads of a warp stay for the sum: rows() is a multiple of the rows of a block.
  for (int64_t i = thread_of_grid(); i < statistics.rows() * kThreads; i += stride_of_grid()) {
    const int64_t row = i / kThreads;
    const int lane = static_cast<int>(i % kThreads);
    float sum = statistics.dot(row, lane);
    PYOPS_UNROLL for (int apart = 1; apart < kThreads; apart *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    }
    if (lane == 0) statistics.store(row, sum);
  }
}

template <class Algorithm>
__global__ void __launch_bounds__((1 + Algorithm::kConsumers) * kWarpgroup, 1)
    attention_backward_sm90_kernel(const __grid_constant__ BackwardArguments arguments) {
  extern __shared__ __align__(1024) char storage[];
  run_warpgroups<Algorithm, BackwardLoader<Algorithm>, BackwardTeam<Algorithm>>(
      arguments, *reinterpret_cast<BackwardShared<Algorithm>*>(storage));
}

template <class Algorithm>
cudaError_t run(const BackwardArguments& arguments, cudaStream_t stream) {
  return launch_attention<Algorithm, BackwardShared<Algorithm>>(
      attention_backward_sm90_kernel<Algorithm>, arguments, stream);
}

cudaError_t map_tensors(const AttentionBackwardParams& p, int box_rows,
                        BackwardArguments* arguments) {
  struct {
    const ConstRows& t;
    int64_t heads, rows, columns;
    CUtensorMap* map;
  } const all[] = {{p.q, p.heads, p.queries, p.dim, &arguments->q},
                   {p.k, p.kv_heads, p.keys, p.dim, &arguments->k},
                   {p.v, p.kv_heads, p.keys, p.value_dim, &arguments->v},
                   {p.grad_out, p.heads, p.queries, p.value_dim, &arguments->grad_out}};
  for (const auto& x : all) {
    const cudaError_t status = map_rows(p, x.t, x.heads, x.rows, x.columns, box_rows, x.map);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

template <class T, int kD, bool kMasked>
cudaError_t run(const AttentionBackwardParams& p, cudaStream_t stream) {
  using OfQueries = AttentionWarpgroupBackward<T, kD, /*kKeysOwn=*/false, kMasked>;
  using OfKeys = AttentionWarpgroupBackward<T, kD, /*kKeysOwn=*/true, kMasked>;
  BackwardArguments arguments{p, {}, {}, {}, {}};
  cudaError_t status = map_tensors(p, OfQueries::kBoxRows, &arguments);
  if (status != cudaSuccess) return status;
  const AttentionRowStatistics<T> statistics(p);
  status =
      launch(attention_backward_rows_kernel<T>, statistics.rows() * statistics.kThreads, stream, p);
  if (status != cudaSuccess) return status;
  if (p.grad_q.data != nullptr) status = run<OfQueries>(arguments, stream);
  if (status != cudaSuccess) return status;
  if (p.grad_k.data == nullptr && p.grad_v.data == nullptr) return cudaSuccess;
  if constexpr (OfKeys::kBoxRows != OfQueries::kBoxRows) {
    status = map_tensors(p, OfKeys::kBoxRows, &arguments);
    if (status != cudaSuccess) return status;
  }
  return run<OfKeys>(arguments, stream);
}

}  // namespace

cudaError_t attention_backward_sm90(const AttentionBackwardParams& p, cudaStream_t stream) {
  return with_half_width(p, [&]<class T, int kD>() {
    return is_masked(p, p.mask) ? run<T, kD, true>(p, stream) : run<T, kD, false>(p, stream);
  });
}

}  // namespace pyops
