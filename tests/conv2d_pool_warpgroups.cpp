// What the warpgroups of the Hopper kernel of pooled convolutions compute: a thread of the CPU for
// the producer and one for each consumer, whose products run when somebody waits for them.
#include <memory>
#include <thread>
#include <vector>

#include "conv2d/conv2d_pool_warpgroup.h"
#include "warpgroups.h"

using namespace pyops;

namespace {

template <class Algorithm>
struct Block {
  using T = typename Algorithm::T;
  using State = typename Algorithm::State;
  static constexpr int kDepth = Algorithm::kDepth, kColumns = Algorithm::kColumns;
  static constexpr int kConsumers = Algorithm::kConsumers;
  static constexpr int kImageBuffers = Algorithm::kImageBuffers;
  static constexpr int kWeightBuffers = Algorithm::kWeightBuffers;
  struct Image {
    float at[Algorithm::kMostRows * kPatchColumns][kDepth];
  };
  struct Weights {
    float at[kColumns][kDepth];
  };

  const Conv2dPatchParams& p;
  Ring<kImageBuffers, Image> images[kConsumers]{Ring<kImageBuffers, Image>(1),
                                                Ring<kImageBuffers, Image>(1)};
  Ring<kWeightBuffers, Weights> weights{kConsumers};
  Barrier turns[kConsumers];

  explicit Block(const Conv2dPatchParams& params) : p(params) {
    for (auto& turn : turns) turn.init(1);
    turns[0].arrive();
  }

  static float number(const void* data, int64_t i) {
    return static_cast<float>(static_cast<const T*>(data)[i]);
  }

  struct Loader {
    Block& all;
    RingPlace<kImageBuffers> place[kConsumers]{};
    RingPlace<kWeightBuffers> weight{};
    bool has_weights = false;

    void load_image(int i, int n, int y0, int x0, int c0) {
      const auto& p = all.p;
      all.images[i].load(place[i], [&](Image& to) {
        memset(&to, 0xff, sizeof to);  // NaN
        const int rows = kPatchRows + static_cast<int>((p.kh - 1) * p.dilation_h);
        for (int at = 0; at < rows * kPatchColumns; ++at) {
          const int y = y0 + at / kPatchColumns, x = x0 + at % kPatchColumns;
          const bool exists = 0 <= y && y < p.h && 0 <= x && x < p.w;
          for (int c = 0; c < kDepth; ++c) {
            const int64_t from = ((n * p.h + y) * p.w + x) * p.c + c0 + c;
            to.at[at][c] = exists && c0 + c < p.c ? number(p.x, from) : 0;
          }
        }
      });
    }
    void load_weights(int o0, int ky, int kx, int c0) {
      const auto& p = all.p;
      all.weights.load(weight, [&](Weights& to) {
        for (int o = 0; o < kColumns; ++o) {
          for (int c = 0; c < kDepth; ++c) {
            const int64_t from = (((o0 + o) * p.kh + ky) * p.kw + kx) * p.c + c0 + c;
            to.at[o][c] = o0 + o < p.o && c0 + c < p.c ? number(p.weight, from) : 0;
          }
        }
      });
    }
  };

  struct Consumer : Team<Algorithm> {
    using Base = Team<Algorithm>;
    Block& all;
    int index;
    RingPlace<kImageBuffers> next_image{}, old_image{};
    RingPlace<kWeightBuffers> next_weights{}, old_weights{};
    RingPlace<1> turn{};
    const Image* image = nullptr;
    const Weights* weights = nullptr;
    std::vector<T> shared = std::vector<T>(kPatch * Algorithm::kPitch);

    Consumer(Block& all_, int index_) : all(all_), index(index_) {}
    T* staged() { return shared.data(); }
    void sync() {}
    void take_turn() {
      all.turns[index].wait(turn.lap);
      turn.advance();
    }
    void pass_turn() { all.turns[(index + 1) % kConsumers].arrive(); }

    void await_image() {
      image = &all.images[index].await(next_image);
      next_image.advance();
    }
    void await_weights() {
      weights = &all.weights.await(next_weights);
      next_weights.advance();
    }
    void rewind_weights() { next_weights = {}; }
    void release_image() { all.images[index].release(old_image); }
    void release_weights() { all.weights.release(old_weights); }

    void begin_products(int row) {
      for (int i = 0; i < Algorithm::kTiles; ++i) {
        const auto* positions = image->at + row * kPatchColumns + i * kWarpgroupRows;
        this->products.emplace_back([this, i, positions, w = weights] {
          Base::template each_number<kColumns>([&](State& state, int x, int position, int o) {
            float sum = 0;
            for (int c = 0; c < kDepth; ++c) sum += positions[position][c] * w->at[o][c];
            state.sums[i][x] += sum;
          });
        });
      }
    }
    template <int kPending>
    void end_products() {
      this->wait(kPending * Algorithm::kTiles);
    }
  };
};

// Blocks of warpgroups, one after the other, which walk over all tiles.
template <class T, int kColumns, int kDepth>
void run(const Conv2dPoolParams& params) {
  using Algorithm = Conv2dPoolWarpgroup<T, kColumns, kDepth>;
  const int64_t at_a_time = 2 * Algorithm::column_tiles(params);
  const Conv2dPatchParams p(params, Algorithm::keeps_weights(params, at_a_time));
  for (int64_t first = 0; first < at_a_time; ++first) {
    const auto block = std::make_unique<Block<Algorithm>>(p);
    const auto each = [&](const auto& f) {
      for (int64_t i = first; i < Algorithm::blocks(p); i += at_a_time) f(Algorithm(p, i));
    };
    std::vector<std::thread> threads;
    threads.emplace_back([&] {
      typename Block<Algorithm>::Loader loader{*block};
      each([&](const Algorithm& algorithm) { algorithm.load(loader); });
    });
    for (int i = 0; i < Algorithm::kConsumers; ++i) {
      threads.emplace_back([&, i] {
        typename Block<Algorithm>::Consumer team(*block, i);
        each([&](const Algorithm& algorithm) { algorithm.run(i, team); });
      });
    }
    for (auto& thread : threads) thread.join();
  }
}

Conv2dPoolParams params_of(int dtype, const int64_t* s, const int64_t* pool) {
  const Conv2dShape shape{s[0], s[1],  s[2],  s[3],  s[4],  s[5],  s[6],  s[7],      s[8],
                          s[9], s[10], s[11], s[12], s[13], s[14], s[15], s[16] != 0};
  return {{shape, static_cast<Dtype>(dtype), Precision::kHighest, true, nullptr, nullptr, nullptr,
           nullptr},
          {shape.oh, pool[0], pool[2], pool[4], pool[6]},
          {shape.ow, pool[1], pool[3], pool[5], pool[7]},
          pool[8],
          pool[9],
          pool[0] * pool[1] > 255,
          nullptr};
}

}  // namespace

extern "C" {

// Whether the kernel takes tensors of these sizes.
int takes(int dtype, const int64_t* shape, const int64_t* pool) {
  return suits_pool_sm90(params_of(dtype, shape, pool));
}

// Whether it takes these tensors; computes if it does.
int forward(int dtype, const int64_t* shape, const int64_t* pool, const void* x, const void* w,
            const void* bias, void* y, void* offsets) {
  Conv2dPoolParams p = params_of(dtype, shape, pool);
  p.x = x, p.weight = w, p.bias = bias, p.y = y, p.offsets = offsets;
  if (!suits_pool_sm90(p)) return false;
  dispatch_dtype<kHalfTypes>(p.dtype, [&]<class T>(T) {
    with_pool_tile(p, [&]<int kColumns, int kDepth>() { run<T, kColumns, kDepth>(p); });
  });
  return true;
}
}
