// What a warpgroup of Hopper does: products of tiles in shared memory, or of its registers with
// one, that run on behind its back (WGMMA), and rings of buffers between those who load and those
// who multiply. Results and register operands lie as CLayout_64xN says (warpgroup_tile.h).
#pragma once

#include <cutlass/arch/barrier.h>

#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>

#include "core/ring.h"
#include "gemm/warpgroup_threads.h"
#include "gemm/warpgroup_tile.h"

namespace pyops {

inline constexpr int kWarpsOfGroup = 4, kWarp = 32;

// One barrier a buffer for what TMA brings, one for the warps that read it.
template <int kBuffers>
struct Ring {
  using Place = RingPlace<kBuffers>;
  cutlass::arch::ClusterTransactionBarrier full[kBuffers];
  cutlass::arch::ClusterBarrier empty[kBuffers];

  __device__ void init(int consumers) {
    for (int i = 0; i < kBuffers; ++i) {
      full[i].init(1);
      empty[i].init(consumers * kWarpsOfGroup);
    }
  }
  // For the producer's one thread: an empty buffer, and the barrier at which `bytes` are to arrive.
  __device__ uint64_t* begin_load(const Place& place, uint32_t bytes) {
    empty[place.buffer].wait(place.lap_before());
    full[place.buffer].arrive_and_expect_tx(bytes);
    return reinterpret_cast<uint64_t*>(&full[place.buffer]);
  }
  __device__ void await(const Place& place) { full[place.buffer].wait(place.lap); }
  // All lanes of a warp have read the buffer at `place`.
  __device__ void release(Place& place) {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) empty[place.buffer].arrive();
    place.advance();
  }
};

// Neither compiler may move what it knows of these registers across.
template <class Register, int kCount>
PYOPS_DEVICE void fence_registers(Register (&registers)[kCount]) {
  PYOPS_UNROLL for (int i = 0; i < kCount; ++i) cute::warpgroup_fence_operand(registers[i]);
}

// The tile's numbers of one thread, as an accumulator of CuTe's.
template <class Mma, int kN>
PYOPS_DEVICE auto accumulator(const Mma& mma, float (&c)[kN / 2]) {
  const auto shape = cute::partition_shape_C(mma, cute::Shape<cute::_64, cute::Int<kN>>{});
  return cute::make_tensor(cute::make_rmem_ptr(&c[0]), cute::make_layout(shape));
}

// Begins c (64, kN) = a (64, kDepth) · b (kN, kDepth)ᵀ, both tiles by rows; with kAdds, c +=.
template <class T, int kN, int kDepth, bool kAdds = false>
PYOPS_DEVICE void begin_product(const T* a, const T* b, float (&c)[kN / 2]) {
  using Element = cutlass_t<T>;
  using Shape = cute::Shape<cute::_64, cute::Int<kN>, cute::Int<kDepth>>;
  auto mma = cute::make_tiled_mma(cute::GMMA::ss_op_selector<Element, Element, float, Shape>());
  const auto operand = [](const T* tile, auto layout) {
    return cute::make_tensor(cute::make_smem_ptr(reinterpret_cast<const Element*>(tile)), layout);
  };
  const auto slice = mma.get_slice(0);  // the whole group: descriptors are the same for all
  const auto tCrA = slice.partition_fragment_A(operand(a, TileByRows<T, 64, kDepth>{}));
  const auto tCrB = slice.partition_fragment_B(operand(b, TileByRows<T, kN, kDepth>{}));
  auto tCrC = accumulator<decltype(mma), kN>(mma, c);
  fence_registers(c);
  cute::warpgroup_arrive();
  mma.accumulate_ = kAdds ? cute::GMMA::ScaleOut::One : cute::GMMA::ScaleOut::Zero;
  CUTE_UNROLL
  for (int k = 0; k < cute::size<2>(tCrA); ++k) {
    cute::gemm(mma, tCrA(cute::_, cute::_, k), tCrB(cute::_, cute::_, k), tCrC);
    mma.accumulate_ = cute::GMMA::ScaleOut::One;
  }
  cute::warpgroup_commit_batch();
}

// Begins c (64, kN) += a (64, kDepth) · b (kDepth, kN), b a tile turned; a's words are the pairs of
// an accumulator's numbers (64, kDepth) in their order, which is how WGMMA takes an operand.
template <class T, int kN, int kDepth>
PYOPS_DEVICE void begin_sum(uint32_t (&a)[kDepth / 4], const T* b, float (&c)[kN / 2]) {
  using Element = cutlass_t<T>;
  using Shape = cute::Shape<cute::_64, cute::Int<kN>, cute::Int<kDepth>>;
  auto mma = cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<Element, Element, float, Shape, cute::GMMA::Major::K,
                                 cute::GMMA::Major::MN>());
  const auto tile = cute::make_tensor(cute::make_smem_ptr(reinterpret_cast<const Element*>(b)),
                                      TileByColumns<T, kDepth, kN>{});
  const auto tCrB = mma.get_slice(0).partition_fragment_B(tile);
  using Words = cute::Layout<cute::Shape<cute::_4, cute::_1, cute::Int<kDepth / 16>>>;
  const auto tCrA = cute::make_tensor(cute::make_rmem_ptr(&a[0]), Words{});
  auto tCrC = accumulator<decltype(mma), kN>(mma, c);
  fence_registers(a);
  fence_registers(c);
  cute::warpgroup_arrive();
  mma.accumulate_ = cute::GMMA::ScaleOut::One;
  CUTE_UNROLL
  for (int k = 0; k < cute::size<2>(tCrB); ++k) {
    cute::gemm(mma, tCrA(cute::_, cute::_, k), tCrB(cute::_, cute::_, k), tCrC);
  }
  cute::warpgroup_commit_batch();
}

}  // namespace pyops
