// Convolution, ReLU and max pooling by warpgroups of Hopper, a patch of positions and 64 or 128
// output channels each; windows lie within patches, and only what is pooled goes to memory. Eight
// positions of a row are an atom of WGMMA's operand: the taps of a kernel's column find theirs in
// one box of TMA, each from another row on, so that A comes kw times from L2 and not kh·kw times.
//
// 2·N·PH·PW·sh·sw·O·C·kh·kw FLOPs; bytes of x, of weight, and 3 for each pooled number: predictions
// in docs/performance.md.
#pragma once

#include "conv2d/conv2d_pool_channels.h"
#include "conv2d/conv2d_pool_sm90.h"
#include "gemm/warpgroup_threads.h"

namespace pyops {

// kDepth channels are a step of the sums. The team's members also await, release and rewind what
// was loaded, take and pass turns, and sync() the threads of a warpgroup, which share `staged()`.
template <class T_, int kColumns_, int kDepth_>
struct Conv2dPoolWarpgroup {
  using T = T_;
  using Params = Conv2dPatchParams;
  static constexpr int kColumns = kColumns_, kDepth = kDepth_, kConsumers = 2;
  static constexpr int kTiles = kPatch / kWarpgroupRows, kMostRows = kPatchRows + kMostReach;
  // What fits, of patches for each consumer and of taps. Nine taps of few channels stay for good.
  static constexpr int kImageBuffers = kColumns == 128 ? 2 : 192 / kDepth;
  static constexpr int kWeightBuffers = kColumns == 128 ? 7 : kMostKept;
  // Channels that are pooled at once, and the distance of positions there: eight of these, and the
  // words that four threads write to each, meet 32 banks.
  static constexpr int kStaged = 32, kPitch = kStaged + 8;

  struct State {
    float sums[kTiles][kColumns / 2];
  };

  const Params& p;
  int first;  // of its patches
  int o0;

  PYOPS_HOST_DEVICE static int column_tiles(const Conv2dShape& p) {
    return (static_cast<int>(p.o) + kColumns - 1) / kColumns;
  }
  PYOPS_HOST_DEVICE static int64_t blocks(const Params& p) {
    return (p.patches.count + kConsumers - 1) / kConsumers * column_tiles(p);
  }
  PYOPS_HOST_DEVICE Conv2dPoolWarpgroup(const Params& params, int64_t block)
      : p(params),
        first(static_cast<int>(block) / column_tiles(params) * kConsumers),
        o0(static_cast<int>(block) % column_tiles(params) * kColumns) {}

  // Of blocks that many at a time, each has one tile of columns.
  static bool keeps_weights(const Conv2dShape& s, int64_t at_a_time) {
    return weight_tiles(s, kDepth) <= kWeightBuffers && at_a_time % column_tiles(s) == 0;
  }

  // What the producer loads, in the order in which it is needed: where weights stay, consumers take
  // turns, so that one pools while the other multiplies; else they share each tap's.
  template <class Loader>
  PYOPS_DEVICE void load(Loader& loader) const {
    static_assert(kConsumers == 2);
    if (p.keeps_weights) {
      load<0, 1>(loader, !loader.has_weights);
      load<1, 2>(loader, false);
      loader.has_weights = true;
    } else {
      load<0, 2>(loader, true);
    }
  }

  template <class Team>
  PYOPS_DEVICE void run(int consumer, Team& team) const {
    team.alone([](int, State& state) {
      PYOPS_UNROLL for (int i = 0; i < kTiles; ++i) {
        PYOPS_UNROLL for (int x = 0; x < kColumns / 2; ++x) state.sums[i][x] = 0;
      }
    });
    if (p.keeps_weights) {
      team.rewind_weights();
      team.take_turn();
    }
    bool is_first = true;
    for (int c = 0; c < p.c; c += kDepth) {
      for (int kx = 0; kx < p.kw; ++kx) {
        team.await_image();
        for (int ky = 0; ky < p.kh; ++ky) {
          team.await_weights();
          team.begin_products(ky * static_cast<int>(p.dilation_h));
          team.template end_products</*kPending=*/1>();  // nobody reads any more for the tap before
          if (!is_first && ky == 0) team.release_image();
          if (!is_first && !p.keeps_weights) team.release_weights();
          is_first = false;
        }
      }
    }
    if (p.keeps_weights) team.pass_turn();
    team.template end_products</*kPending=*/0>();
    team.release_image();
    if (!p.keeps_weights) team.release_weights();
    finish(consumer, team);
  }

 private:
  // The last one has company even where their number is odd.
  PYOPS_HOST_DEVICE PoolPatch patch_of(int consumer) const {
    const int last = static_cast<int>(p.patches.count) - 1;
    return p.patches[first + consumer < last ? first + consumer : last];
  }

  // For the consumers [kBegin, kEnd).
  template <int kBegin, int kEnd, class Loader>
  PYOPS_DEVICE void load(Loader& loader, bool wants_weights) const {
    struct {
      int n, y, x;
    } corners[kEnd - kBegin];
    PYOPS_UNROLL for (int i = kBegin; i < kEnd; ++i) {
      const PoolPatch patch = patch_of(i);
      corners[i - kBegin] = {
          patch.n, shortened(p.pool_h).start(patch.row) - static_cast<int>(p.padding_h),
          shortened(p.pool_w).start(patch.column) - static_cast<int>(p.padding_w)};
    }
    for (int c = 0; c < p.c; c += kDepth) {
      for (int kx = 0; kx < p.kw; ++kx) {
        PYOPS_UNROLL for (int i = kBegin; i < kEnd; ++i) {
          const auto& corner = corners[i - kBegin];
          const int x = corner.x + kx * static_cast<int>(p.dilation_w);
          loader.load_image(i, corner.n, corner.y, x, c);
        }
        for (int ky = 0; wants_weights && ky < p.kh; ++ky) loader.load_weights(o0, ky, kx, c);
      }
    }
  }

  template <class Team>
  PYOPS_DEVICE void finish(int consumer, Team& team) const {
    const PoolPatch patch = patch_of(consumer);
    constexpr int kPacks = kStaged / Pack<T>::kWidth;
    const bool is_last_again = first + consumer >= p.patches.count;
    const int packs = is_last_again ? 0 : p.patches.high * p.patches.wide * kPacks;
    PYOPS_UNROLL for (int j = 0; j < kColumns; j += kStaged) {
      team.alone([&](int thread, State& state) { stage(j, thread, state, team.staged()); });
      team.sync();
      team.alone([&](int thread, State&) {
        for (int i = thread; i < packs; i += kWarpgroup) {
          const int channel = i % kPacks * Pack<T>::kWidth;
          pool(patch, i / kPacks, o0 + j + channel, team.staged() + channel);
        }
      });
      team.sync();
    }
  }

  // A thread's numbers of the channels from `j` on.
  PYOPS_DEVICE void stage(int j, int thread, const State& state, T* staged) const {
    PYOPS_UNROLL for (int n = 0; n < kStaged / 8; ++n) {
      const int channel = 8 * n + column_of(thread), o = o0 + j + channel;
      const bool biased = p.bias != nullptr && o < p.o;  // as is its neighbour
      const float bias0 = biased ? value_at<T>(p.bias, o) : 0;
      const float bias1 = biased ? value_at<T>(p.bias, o + 1) : 0;
      PYOPS_UNROLL for (int i = 0; i < kTiles; ++i) {
        PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
          const float* const sums = &state.sums[i][4 * (j / 8 + n) + 2 * r];
          const int position = kWarpgroupRows * i + row_of(thread) + 8 * r;
          *reinterpret_cast<uint32_t*>(staged + position * kPitch + channel) =
              word_of<T>(rectified(sums[0] + bias0), rectified(sums[1] + bias1));
        }
      }
    }
  }

  // The channels from `o` on of a patch's window.
  PYOPS_DEVICE void pool(const PoolPatch& patch, int window, int o, const T* staged) const {
    const int py = patch.row + window / p.patches.wide, px = patch.column + window % p.patches.wide;
    if (py >= p.pooled_h || px >= p.pooled_w || o >= p.o) return;
    const int y0 = shortened(p.pool_h).start(patch.row),
              x0 = shortened(p.pool_w).start(patch.column);
    WindowMaximum<T> best[Pack<T>::kWidth];
    take_window<T>(p, py, px, best, [&](int y, int x) {
      const int position = (y - y0) * kPatchColumns + x - x0;
      return *reinterpret_cast<const Pack<T>*>(staged + position * kPitch);
    });
    store_pooled<T>(p, ((patch.n * p.pooled_h + py) * p.pooled_w + px) * p.o + o, best);
  }
};

}  // namespace pyops
