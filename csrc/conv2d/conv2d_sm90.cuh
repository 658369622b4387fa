// CUTLASS's implicit products of convolutions on Hopper for its persistent kernel, which knows only
// products of matrices: the depth is counted in steps, grad_weight is a batch of products, one a
// tap, and what a TMA load gathers stays with the mainloop.
#pragma once

#include "gemm/encoded_maps.cuh"

// Behind it all of CUTLASS's.
#include <cute/tensor.hpp>
#include <cutlass/kernel_hardware_info.hpp>

// What comes before, this wants and does not include.
#include <cutlass/conv/collective/collective_builder.hpp>
#include <cutlass/conv/convnd_problem_shape.hpp>

#include "conv2d/conv2d_sm90.h"
#include "gemm/collective_sm90.cuh"

namespace pyops::sm90 {

using cutlass::conv::Operator;

template <Operator kOp>
using Problem = cutlass::conv::ConvProblemShape<kOp, 2>;

template <Operator kOp>
Problem<kOp> problem_of(const Conv2dShape& s) {
  const auto number = [](int64_t value) { return static_cast<int>(value); };
  using Extent = typename Problem<kOp>::TensorExtent;
  using Pair = typename Problem<kOp>::SpatialExtent;
  const Extent x{number(s.n), number(s.h), number(s.w), number(s.c)};
  const Extent weight{number(s.o), number(s.kh), number(s.kw), number(s.c)};
  const Pair before{number(s.padding_h), number(s.padding_w)};
  const Pair after{number(padding_after(axis_h(s))), number(padding_after(axis_w(s)))};
  const Pair stride{number(s.stride_h), number(s.stride_w)};
  const Pair dilation{number(s.dilation_h), number(s.dilation_w)};
  return {cutlass::conv::Mode::kCrossCorrelation, x, weight, before, after, stride, dilation, 1};
}

// The shared memory that the epilogue leaves.
template <class Epilogue>
using ConvStages = cutlass::conv::collective::StageCountAutoCarveout<static_cast<int>(
    sizeof(typename Epilogue::SharedStorage))>;

template <Operator kOp, class T, class Tile, class Cluster, class Stages>
struct ConvBuilder {
  static constexpr int kM = cute::size<0>(Tile{}), kN = cute::size<1>(Tile{});
  static constexpr int kK = cute::size<2>(Tile{});
  // Axes that a tile takes a part of, the innermost of several.
  using ConvTile =
      Shape<Int<kM>, std::conditional_t<kOp == Operator::kWgrad, Shape<Int<kN>>, Int<kN>>,
            Shape<Int<kK>>>;
  using Builder = cutlass::conv::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, kOp, T, cutlass::layout::TensorNHWC, 8,
      T, cutlass::layout::TensorNHWC, 8, float, ConvTile, Cluster, Stages,
      cutlass::conv::KernelImplicitTmaWarpSpecializedSm90Cooperative>;
  template <class Copy, class Layout>
  using Traits = cutlass::conv::collective::detail::Sm90ImplicitGemmTileTraits<Copy, Layout>;
  using Mainloop = cutlass::conv::collective::CollectiveConv<
      cutlass::conv::MainloopSm90TmaGmmaWarpSpecializedImplicitGemm<
          kOp, Builder::PipelineStages, 2, Cluster,
          cutlass::gemm::KernelTmaWarpSpecializedCooperative>,
      ConvTile, T, T, typename Builder::TiledMma,
      Traits<typename Builder::GmemTiledCopyA, typename Builder::SmemLayoutA>,
      Traits<typename Builder::GmemTiledCopyB, typename Builder::SmemLayoutB>>;
};

template <Operator kOp, class T, class Tile, class Cluster, class Stages>
class ConvMainloop : public ConvBuilder<kOp, T, Tile, Cluster, Stages>::Mainloop {
 public:
  using Base = typename ConvBuilder<kOp, T, Tile, Cluster, Stages>::Mainloop;
  // As the kernel of products knows them.
  using TileShape = Tile;
  using StrideA = cute::Stride<int64_t, Int<1>, int64_t>;
  using StrideB = StrideA;
  static constexpr uint32_t NumProducerThreadEvents = 1;

  struct Arguments : Base::Arguments {
    Problem<kOp> problem;
  };
  struct Params : Base::Params {
    decltype(Base::get_problem_shape_MNKL(Problem<kOp>{})) shape;
  };

  template <class Shape>
  static Params to_underlying_arguments(const Shape&, const Arguments& arguments, void* workspace) {
    return {Base::to_underlying_arguments(arguments.problem, arguments, workspace),
            Base::get_problem_shape_MNKL(arguments.problem)};
  }
  template <class Shape>
  static bool can_implement(const Shape&, const Arguments& arguments) {
    return Base::can_implement(arguments.problem, arguments);
  }

  // The kernel counts rows and steps by A and by a tensor that has only B's other numbers of tiles:
  // columns of a tap, and taps. B itself comes third.
  template <class Shape>
  __device__ auto load_init(const Shape&, const Params& params) {
    auto [gA, gB] = Base::load_init(params.shape, params);  // (BLK_M,BLK_K,m,k) (BLK_N,BLK_K,n,k)
    using One = Int<1>;
    if constexpr (kOp == Operator::kWgrad) {
      const int columns = cute::size<2, 0>(gB), taps = cute::size<2, 1>(gB) * cute::size<2, 2>(gB);
      const auto counts = cute::make_shape(One{}, One{}, columns, One{}, taps);
      return cute::make_tuple(gA, cute::make_identity_tensor(counts), gB);
    } else {
      const auto counts = cute::make_shape(One{}, One{}, cute::size<2>(gB), One{}, One{});
      return cute::make_tuple(gA, cute::make_identity_tensor(counts), gB);
    }
  }

  template <class Inputs, class Block, class Steps>
  __device__ void load(const Params& params, typename Base::MainloopPipeline pipeline,
                       typename Base::PipelineState state, const Inputs& inputs, const Block& block,
                       Steps steps, int count, int thread, uint32_t rank,
                       typename Base::TensorStorage& storage) {
    const auto [gA, counts, gB] = inputs;
    const auto [row, column, _, tap] = block;
    const auto at = cute::make_coord(row, column_of(column, tap, params.shape), cute::_, Int<0>{});
    Base::load(params, pipeline, state, cute::make_tuple(gA, gB), at, steps, count, thread, rank,
               storage);
  }

 private:
  template <class Column, class Tap, class Shape>
  __device__ static auto column_of(Column column, Tap tap, const Shape& shape) {
    if constexpr (kOp == Operator::kWgrad) {
      const int s = cute::get<1, 1>(shape);
      return cute::make_coord(column, tap % s, tap / s);
    } else {
      return column;
    }
  }
};

// Layers have many pixels and few channels, and grad_weight few tiles of deep sums.
template <Operator kOp, class T>
struct ConvCollective {
  static constexpr bool kDeep = kOp == Operator::kWgrad;
  using Tile = std::conditional_t<kDeep, sm90::Tile<128, 128, 64>, sm90::Tile<256, 128, 64>>;
  using Cluster = Shape<Int<kDeep ? 1 : 2>, Int<1>, Int<1>>;
  static constexpr Finish kFinish =
      kOp == Operator::kFprop ? Finish::kBiasAndBound : Finish::kPlain;
  using Epilogue = sm90::Epilogue<T, Tile, Cluster, kFinish>;
  using Mainloop = ConvMainloop<kOp, T, Tile, Cluster, ConvStages<Epilogue>>;
  using Scheduler = std::conditional_t<kDeep, cutlass::gemm::StreamKScheduler,
                                       cutlass::gemm::PersistentScheduler>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue,
                                                      Scheduler>;
};

}  // namespace pyops::sm90
