// Convolution, ReLU and max pooling in half precision on Hopper: conv2d_pool_warpgroup.h with boxes
// of 64 channels, or of 32 where there are no more, loaded by TMA and multiplied by WGMMA in tiles
// of 256 positions and 64 or 128 output channels, 128 or 64 sums a thread.
#include "conv2d/conv2d_pool_warpgroup.h"
#include "gemm/warpgroup_block.cuh"

namespace pyops {
namespace {

struct PoolArguments {
  Conv2dPatchParams params;
  CUtensorMap x, weight;
  int patch_bytes;
};

template <class Algorithm>
struct alignas(1024) PoolShared {
  using T = typename Algorithm::T;
  static constexpr int kConsumers = Algorithm::kConsumers, kDepth = Algorithm::kDepth;

  T images[kConsumers][Algorithm::kImageBuffers][Algorithm::kMostRows * kPatchColumns * kDepth];
  T weights[Algorithm::kWeightBuffers][Algorithm::kColumns * kDepth];
  T staged[kConsumers][kPatch * Algorithm::kPitch];
  Ring<Algorithm::kImageBuffers> image_rings[kConsumers];
  Ring<Algorithm::kWeightBuffers> weight_ring;

  __device__ void init_rings() {
    for (auto& ring : image_rings) ring.init(1);
    weight_ring.init(kConsumers);
  }
};

template <class Algorithm>
struct PoolLoader {
  using T = typename Algorithm::T;
  using Shared = PoolShared<Algorithm>;

  const PoolArguments& arguments;
  Shared& shared;
  typename Ring<Algorithm::kImageBuffers>::Place images[Algorithm::kConsumers]{};
  typename Ring<Algorithm::kWeightBuffers>::Place weights{};
  bool has_weights = false;

  __device__ PoolLoader(const PoolArguments& arguments_, Shared& shared_)
      : arguments(arguments_), shared(shared_) {
    for (const CUtensorMap* map : {&arguments.x, &arguments.weight}) {
      cute::prefetch_tma_descriptor(map);
    }
  }

  PYOPS_DEVICE void load_image(int i, int n, int y, int x, int c) {
    auto& to = images[i];
    const auto bytes = static_cast<uint32_t>(arguments.patch_bytes);
    uint64_t* const full = shared.image_rings[i].begin_load(to, bytes);
    load_box(arguments.x, shared.images[i][to.buffer], full, c, x, y, n);
    to.advance();
  }
  PYOPS_DEVICE void load_weights(int o, int ky, int kx, int c) {
    uint64_t* const full = shared.weight_ring.begin_load(weights, sizeof shared.weights[0]);
    load_box(arguments.weight, shared.weights[weights.buffer], full, c, kx, ky, o);
    weights.advance();
  }
};

template <class Algorithm>
struct PoolTeam {
  using T = typename Algorithm::T;
  using State = typename Algorithm::State;
  using Shared = PoolShared<Algorithm>;
  static constexpr int kTiles = Algorithm::kTiles, kColumns = Algorithm::kColumns;
  static constexpr int kDepth = Algorithm::kDepth;

  State state;
  Shared& shared;
  int consumer;
  Turns<Algorithm::kConsumers> turns;
  int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  // The next to come, what is multiplied, and the oldest that may still be read.
  typename Ring<Algorithm::kImageBuffers>::Place next_image{}, image{}, old_image{};
  typename Ring<Algorithm::kWeightBuffers>::Place next_weights{}, weights{}, old_weights{};

  __device__ PoolTeam(Shared& shared_, int consumer_)
      : shared(shared_), consumer(consumer_), turns(consumer_) {}
  PYOPS_DEVICE void leave() { turns.leave(); }
  PYOPS_DEVICE void take_turn() { turns.take(); }
  PYOPS_DEVICE void pass_turn() { turns.pass(); }

  template <class F>
  PYOPS_DEVICE void alone(const F& f) {
    f(thread, state);
  }
  PYOPS_DEVICE T* staged() { return shared.staged[consumer]; }
  PYOPS_DEVICE void sync() {
    constexpr int kTurns = Algorithm::kConsumers;  // barriers
    cutlass::arch::NamedBarrier::sync(kWarpgroup, static_cast<uint32_t>(kTurns + consumer));
  }

  PYOPS_DEVICE void await_image() { image = next(shared.image_rings[consumer], next_image); }
  PYOPS_DEVICE void await_weights() { weights = next(shared.weight_ring, next_weights); }
  PYOPS_DEVICE void rewind_weights() { next_weights = {}; }
  PYOPS_DEVICE void release_image() { shared.image_rings[consumer].release(old_image); }
  PYOPS_DEVICE void release_weights() { shared.weight_ring.release(old_weights); }

  // With the positions from `row` on of the patch.
  PYOPS_DEVICE void begin_products(int row) {
    const T* const patch = shared.images[consumer][image.buffer];
    PYOPS_UNROLL for (int i = 0; i < kTiles; ++i) {
      const T* const positions = patch + row * kRow + i * kWarpgroupRows * kDepth;
      begin_product<T, kColumns, kDepth, /*kAdds=*/true>(positions, shared.weights[weights.buffer],
                                                         state.sums[i]);
    }
  }
  template <int kPending>
  PYOPS_DEVICE void end_products() {
    cute::warpgroup_wait<kPending * kTiles>();
    if constexpr (kPending == 0) {
      PYOPS_UNROLL for (int i = 0; i < kTiles; ++i) fence_registers(state.sums[i]);
    }
  }

 private:
  static constexpr int kRow = kPatchColumns * kDepth;

  template <class Ring, class Place>
  PYOPS_DEVICE static Place next(Ring& ring, Place& place) {
    ring.await(place);
    const Place found = place;
    place.advance();
    return found;
  }
};

template <class Algorithm>
__global__ void __launch_bounds__((1 + Algorithm::kConsumers) * kWarpgroup, 1)
    conv2d_pool_forward_sm90_kernel(const __grid_constant__ PoolArguments arguments) {
  extern __shared__ __align__(1024) char storage[];
  run_warpgroups<Algorithm, PoolLoader<Algorithm>, PoolTeam<Algorithm>>(
      arguments, *reinterpret_cast<PoolShared<Algorithm>*>(storage));
}

template <class T, int kColumns, int kDepth>
cudaError_t run(const Conv2dPoolParams& p, cudaStream_t stream) {
  using Algorithm = Conv2dPoolWarpgroup<T, kColumns, kDepth>;
  const int rows = kPatchRows + static_cast<int>((p.kh - 1) * p.dilation_h);
  int processors = 0;
  cudaError_t status = count_processors(&processors);
  if (status != cudaSuccess) return status;
  const int tiles = Algorithm::column_tiles(p);
  const int most = tiles < processors ? processors / tiles * tiles : processors;
  PoolArguments arguments{{p, Algorithm::keeps_weights(p, most)},
                          {},
                          {},
                          rows * kPatchColumns * kDepth * static_cast<int>(sizeof(T))};
  const MappedTensor x{p.dtype, p.x, {p.c, p.w, p.h, p.n}, {p.c, p.w * p.c, p.h * p.w * p.c}};
  status = encode_tensor_map(x, {kDepth, kPatchColumns, rows, 1}, &arguments.x);
  if (status != cudaSuccess) return status;
  const MappedTensor weight{
      p.dtype, p.weight, {p.c, p.kw, p.kh, p.o}, {p.c, p.kw * p.c, p.kh * p.kw * p.c}};
  status = encode_tensor_map(weight, {kDepth, 1, 1, kColumns}, &arguments.weight);
  if (status != cudaSuccess) return status;
  return launch_warpgroups<Algorithm, PoolShared<Algorithm>>(
      conv2d_pool_forward_sm90_kernel<Algorithm>, arguments, most, stream);
}

}  // namespace

cudaError_t conv2d_pool_forward_fused_sm90(const Conv2dPoolParams& p, cudaStream_t stream) {
  cudaError_t status = cudaErrorInvalidValue;
  dispatch_dtype<kHalfTypes>(p.dtype, [&]<class T>(T) {
    status = with_pool_tile(
        p, [&]<int kColumns, int kDepth>() { return run<T, kColumns, kDepth>(p, stream); });
  });
  return status;
}

}  // namespace pyops
