// What the threads of the general CUDA kernels of convolutions compute, phase by phase on the CPU.
#include <memory>
#include <vector>

#include "conv2d/conv2d_pool_channels.h"
#include "conv2d/conv2d_sm90.h"
#include "conv2d/conv2d_workspace.h"

using namespace pyops;

namespace {

template <class Problem, class Store>
void multiply(const Problem& problem, Store&& store) {
  using Block = BlockProduct<decltype(problem.product(0))>;
  const auto panels = std::make_unique<typename Block::Panels>();
  const int64_t most = Block::tiles(problem.product(0));
  for (int64_t i = 0; i < problem.products() * most; ++i) {
    const auto product = problem.product(i / most);
    const int64_t tile = i % most;
    if (tile >= Block::tiles(product)) continue;
    using A = std::remove_cvref_t<decltype(product.a_operand())>;
    using B = std::remove_cvref_t<decltype(product.b_operand())>;
    std::vector<typename Block::Piece> sums(Block::kThreads);
    std::vector<PanelFeed<A, Block>> a;
    std::vector<PanelFeed<B, Block>> b;
    for (int t = 0; t < Block::kThreads; ++t) {
      a.emplace_back(product.a_operand(), Block::row_of(product, tile), product.rows, t);
      b.emplace_back(product.b_operand(), Block::column_of(product, tile), product.columns, t);
    }
    for (int64_t q = 0; q < product.depth; q += Block::kDepth) {
      for (int t = 0; t < Block::kThreads; ++t) {
        a[t].load(product.a_operand(), q, product.depth, panels->a);
        b[t].load(product.b_operand(), q, product.depth, panels->b);
      }
      for (int t = 0; t < Block::kThreads; ++t) Block::accumulate(*panels, t, sums[t]);
    }
    for (int t = 0; t < Block::kThreads; ++t) store(product, tile, t, sums[t]);
  }
}

template <class Problem>
void multiply(const Problem& problem) {
  using Block = BlockProduct<decltype(problem.product(0))>;
  multiply(problem, [](const auto&... arguments) { Block::store(arguments...); });
}

Conv2dShape shape_of(const int64_t* s) {
  return {s[0], s[1],  s[2],  s[3],  s[4],  s[5],  s[6],  s[7],      s[8],
          s[9], s[10], s[11], s[12], s[13], s[14], s[15], s[16] != 0};
}

// f.operator()<T, channels last>()
template <class Params, class F>
void with_layout(const Params& p, F&& f) {
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    p.channels_last ? f.template operator()<T, true>() : f.template operator()<T, false>();
  });
}

Conv2dPoolParams pool_params(int dtype, const int64_t* shape, const int64_t* pool, const void* x,
                             const void* w, const void* bias, void* y, void* offsets,
                             void* workspace) {
  const Conv2dShape s = shape_of(shape);
  return {{s, static_cast<Dtype>(dtype), Precision::kHighest, true, x, w, bias, y},
          {s.oh, pool[0], pool[2], pool[4], pool[6]},
          {s.ow, pool[1], pool[3], pool[5], pool[7]},
          pool[8],
          pool[9],
          pool[0] * pool[1] > 255,
          offsets,
          workspace};
}

void sum_all(const Conv2dBackwardParams& p, bool weight, bool bias) {
  const PositionSums sums = position_sums(p, weight, bias);
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    for (int64_t e = 0; e < sums.threads(); ++e) sum_positions<T>(p, sums, e);
    for (int64_t e = 0; e < sums.count(); ++e) finish_positions<T>(p, sums, e);
  });
}

}  // namespace

extern "C" {

void phase(const int64_t* a, int64_t number, int64_t* to) {
  const ConvPhase p({a[0], a[1], a[2], a[3], a[4], a[5]}, number);
  const int64_t values[] = {p.first, p.inputs, p.tap, p.step, p.taps, p.origin, p.hop};
  std::copy(std::begin(values), std::end(values), to);
}

int64_t phases(const int64_t* a) { return ConvAxis{a[0], a[1], a[2], a[3], a[4], a[5]}.phases(); }

int64_t output_at(const int64_t* a, int64_t i, int64_t k) {
  return ConvAxis{a[0], a[1], a[2], a[3], a[4], a[5]}.output(i, k);
}

int64_t padding_after_axis(const int64_t* a) {
  return padding_after({a[0], a[1], a[2], a[3], a[4], a[5]});
}

int gathered_by_tma(const int64_t* a) {
  return is_gathered_by_tma({a[0], a[1], a[2], a[3], a[4], a[5]});
}

int takes_tensorop(int dtype, const int64_t* shape) {
  return suits_tensorop(shape_of(shape), static_cast<Dtype>(dtype), {});
}

int takes_depthwise(const int64_t* shape) { return has_single_channels(shape_of(shape)); }

// In parts of so many images, forward, grad_x and grad_weight: a workspace of what those ask for
// who add in float32.
void forward_of_images(int64_t most, int dtype, const int64_t* shape, const void* x, const void* w,
                       void* y) {
  const Conv2dParams whole{
      shape_of(shape), static_cast<Dtype>(dtype), Precision::kHighest, false, x, w, nullptr, y};
  for_images(whole, most, [](const Conv2dParams& p) {
    with_layout(p, [&]<class T, bool kLast>() { multiply(ForwardProblem<T, kLast>{p}); });
    return cudaError_t{};
  });
}

void backward_of_images(int64_t most, int dtype, const int64_t* shape, const void* grad_y,
                        const void* x, const void* w, void* grad_x, void* grad_weight) {
  Conv2dBackwardParams whole{shape_of(shape),
                             static_cast<Dtype>(dtype),
                             Precision::kHighest,
                             grad_y,
                             nullptr,
                             x,
                             w,
                             grad_x,
                             grad_weight,
                             nullptr};
  const int64_t count = whole.weights();
  std::vector<float> workspace((1 + weight_splits(whole)) * count, __builtin_nanf(""));
  whole.workspace = workspace.data();
  for_images(whole, most, [](const Conv2dBackwardParams& p) {
    with_layout(p, [&]<class T, bool kLast>() { multiply(BackwardXProblem<T, kLast>{p}); });
    return cudaError_t{};
  });
  const auto multiply_part = [](Conv2dBackwardParams p, float* to, int64_t* splits) {
    p.workspace = to;
    *splits = weight_splits(p);
    with_layout(
        p, [&]<class T, bool kLast>() { multiply(BackwardWeightProblem<T, kLast>{p, *splits}); });
    return cudaError_t{};
  };
  sum_images(whole, most, multiply_part, [&](Dtype to_dtype, void* to, int64_t parts) {
    dispatch_dtype(to_dtype, [&]<class T>(T) {
      for (int64_t e = 0; e < count; ++e) {
        static_cast<T*>(to)[e] =
            static_cast<T>(sum_of_parts<float>(workspace.data(), parts, count, e));
      }
    });
    return cudaError_t{};
  });
}

// The same of pooling, forward of a convolution without a kernel to speak of, and back.
void pool_of_images(int64_t most, int dtype, const int64_t* shape, const int64_t* pool,
                    const void* x, const void* w, void* pooled, void* offsets,
                    const void* grad_pooled, void* grad_y) {
  Conv2dPoolParams whole = pool_params(dtype, shape, pool, x, w, nullptr, pooled, offsets, nullptr);
  std::vector<double> workspace(std::min(most, whole.n) * whole.o * whole.oh * whole.ow,
                                __builtin_nan(""));
  whole.workspace = workspace.data();
  for_images(whole, most, [](const Conv2dPoolParams& p) {
    with_layout(p, [&]<class T, bool kLast>() {
      Conv2dParams convolution = p;
      convolution.y = p.workspace;
      multiply(ForwardProblem<T, kLast>{convolution});
      for (int64_t e = 0; e < p.n * p.o * p.pooled_h * p.pooled_w; ++e) pool_element<T>(p, e);
    });
    return cudaError_t{};
  });
  const Conv2dPoolBackwardParams back{
      shape_of(shape), whole.dtype,        whole.pool_h, whole.pool_w, whole.pooled_h,
      whole.pooled_w,  whole.wide_offsets, grad_pooled,  offsets,      grad_y};
  for_images(back, most, [](const Conv2dPoolBackwardParams& p) {
    dispatch_dtype(p.dtype, [&]<class T>(T) {
      for (int64_t e = 0; e < p.n * p.o * p.oh * p.ow; ++e) unpool_element<T>(p, e);
    });
    return cudaError_t{};
  });
}

int64_t images_at_once(int dtype, const int64_t* shape) {
  return images_of_launch(shape_of(shape), static_cast<Dtype>(dtype));
}

void forward(int depthwise, int dtype, const int64_t* shape, int relu, const void* x, const void* w,
             const void* bias, void* y) {
  const Conv2dParams p{
      shape_of(shape), static_cast<Dtype>(dtype), Precision::kHighest, relu != 0, x, w, bias, y};
  with_layout(p, [&]<class T, bool kLast>() {
    if (depthwise == 0) return multiply(ForwardProblem<T, kLast>{p});
    for (int64_t e = 0; e < p.n * p.o * p.oh * p.ow; ++e) depthwise_element<T>(p, e);
  });
}

void backward(int depthwise, int dtype, const int64_t* shape, const void* grad_y, const void* y,
              const void* x, const void* w, void* grad_x, void* grad_weight, void* grad_bias) {
  Conv2dBackwardParams p{shape_of(shape),
                         static_cast<Dtype>(dtype),
                         Precision::kHighest,
                         grad_y,
                         y,
                         x,
                         w,
                         grad_x,
                         grad_weight,
                         grad_bias};
  const int64_t bytes =
      depthwise != 0 ? conv2d_backward_workspace_depthwise(p) : conv2d_backward_workspace(p);
  std::vector<double> workspace(bytes / 8 + 1, __builtin_nan(""));
  p.workspace = workspace.data();
  with_layout(p, [&]<class T, bool kLast>() {
    if (depthwise != 0) {
      for (int64_t e = 0; grad_x != nullptr && e < p.n * p.c * p.h * p.w; ++e) {
        depthwise_gradient_element<T>(p, e);
      }
      return sum_all(p, grad_weight != nullptr, grad_bias != nullptr);
    }
    if (grad_x != nullptr) multiply(BackwardXProblem<T, kLast>{p});
    if (grad_weight != nullptr) {
      const BackwardWeightProblem<T, kLast> weight{p, weight_splits(p)};
      multiply(weight);
      const int64_t count = p.weights();
      for (int64_t e = 0; e < count; ++e) {
        static_cast<T*>(grad_weight)[e] =
            static_cast<T>(sum_of_parts<acc_t<T>>(p.workspace, weight.splits, count, e));
      }
    }
    if (grad_bias != nullptr) sum_all(p, false, true);
  });
}

int pools_by_fours(const int64_t* shape, const int64_t* pool) {
  return is_pooled_by_fours(
      pool_params(0, shape, pool, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr));
}

void pool_forward(int fused, int by_packs, int dtype, const int64_t* shape, const int64_t* pool,
                  const void* x, const void* w, const void* bias, void* y, void* offsets) {
  Conv2dPoolParams p = pool_params(dtype, shape, pool, x, w, bias, y, offsets, nullptr);
  std::vector<double> workspace(p.n * p.o * p.oh * p.ow, __builtin_nan(""));
  p.workspace = workspace.data();
  with_layout(p, [&]<class T, bool kLast>() {
    if (fused != 0) {
      const PoolProblem<T, kLast> problem{p};
      using Block = BlockProduct<decltype(problem.product(0))>;
      return multiply(problem,
                      [](const auto&... arguments) { store_windows<Block>(arguments...); });
    }
    Conv2dParams convolution = p;
    convolution.y = p.workspace;
    multiply(ForwardProblem<T, kLast>{convolution});
    const int64_t count = p.n * p.o * p.pooled_h * p.pooled_w;
    for (int64_t e = 0; by_packs == 0 && e < count; ++e) pool_element<T>(p, e);
    for (uint32_t i = 0; by_packs != 0 && i < count / Pack<T>::kWidth; ++i) pool_pack<T>(p, i);
  });
}

int pools_by_packs(int dtype, const int64_t* shape, const int64_t* pool) {
  return is_pooled_by_packs(
      pool_params(dtype, shape, pool, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr));
}

void pool_backward(int by_packs, int dtype, const int64_t* shape, const int64_t* pool,
                   const void* grad_pooled, const void* offsets, void* grad_y) {
  const Conv2dPoolParams p =
      pool_params(dtype, shape, pool, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr);
  const Conv2dPoolBackwardParams b{shape_of(shape), p.dtype,    p.pool_h,       p.pool_w,
                                   p.pooled_h,      p.pooled_w, p.wide_offsets, grad_pooled,
                                   offsets,         grad_y};
  dispatch_dtype(b.dtype, [&]<class T>(T) {
    const int64_t count = b.n * b.o * b.oh * b.ow;
    for (int64_t e = 0; by_packs == 0 && e < count; ++e) unpool_element<T>(b, e);
    for (uint32_t i = 0; by_packs != 0 && i < count / Pack<T>::kWidth; ++i) unpool_pack<T>(b, i);
  });
}
}
