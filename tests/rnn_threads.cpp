// What the threads of the CUDA kernels of recurrent layers compute, on the CPU.
#include "gemm/column_sums.h"
#include "rnn/rnn_resident_tensorop.h"
#include "rnn/rnn_wavefront.h"
#include "threads.h"

using namespace pyops;

namespace {

// shape: dtype, cell, reverse, T, B, I, H, R; gpu: processors, bytes of shared memory
RnnShape shape_of(const int64_t* shape, const int64_t* offsets, const int64_t* gpu) {
  return {static_cast<Dtype>(shape[0]),
          Precision::kHighest,
          static_cast<RnnCell>(shape[1]),
          shape[2] != 0,
          shape[3],
          shape[4],
          shape[5],
          shape[6],
          shape[7],
          offsets,
          {static_cast<int>(gpu[0]), static_cast<int>(gpu[1])}};
}

RnnParams forward_params(const int64_t* shape, const int64_t* offsets, const int64_t* gpu, int save,
                         void** t) {
  return {shape_of(shape, offsets, gpu),
          save != 0,
          t[0],
          t[1],
          t[2],
          t[3],
          t[4],
          t[5],
          t[6],
          t[7],
          t[8],
          t[9],
          t[10],
          t[11],
          t[12],
          t[13],
          nullptr};
}

RnnBackwardParams backward_params(const int64_t* shape, const int64_t* offsets, const int64_t* gpu,
                                  void** t) {
  return {shape_of(shape, offsets, gpu),
          t[0],
          t[1],
          t[2],
          t[3],
          t[4],
          t[5],
          t[6],
          t[7],
          t[8],
          t[9],
          t[10],
          t[11],
          t[12],
          t[13],
          t[14],
          t[15],
          t[16],
          t[17],
          t[18],
          t[19],
          t[20],
          t[21],
          t[22],
          t[23],
          nullptr,
          nullptr};
}

// f(product) for every step; f(first product) says how to begin.
template <class Sweep, class F>
void each_step(const typename Sweep::Params& p, const RnnSchedule& schedule, const F& f) {
  RnnSweep sweep = Sweep::start(p, schedule);
  for (int64_t s = 0; s < Sweep::steps(p); ++s) f(Sweep::next(p, sweep), s);
}

// A launch on ordinary units: each step a block after the other, a warp at a time.
template <class Sweep, int kWidth>
void run_warps(const typename Sweep::Params& p, const RnnSchedule& schedule) {
  using Resident = RnnResident<Sweep, kWidth>;
  const int64_t blocks = resident_blocks(p);
  const int64_t groups = (p.batch + Resident::kRows - 1) / Resident::kRows;
  std::vector<std::vector<typename Resident::T>> kept(static_cast<size_t>(blocks));
  each_step<Sweep>(p, schedule, [&](const typename Sweep::Product& product, int64_t s) {
    const int64_t line = product.depth * Resident::kColumnsUsed;
    for (int64_t block = 0; block < blocks; ++block) {
      auto& weights = kept[static_cast<size_t>(block)];
      const int64_t first = Resident::first_unit(p.hidden, block, blocks);
      const int64_t units = Resident::first_unit(p.hidden, block + 1, blocks) - first;
      if (s == 0) {
        for (int64_t e = 0; e < units * line; ++e) {
          weights.push_back(Resident::weight(product, first, e));
        }
      }
      for (int64_t task = 0; task < units * groups; ++task) {
        const int64_t unit = task / groups, row = task % groups * Resident::kRows;
        typename Resident::Sums all{};
        for (int lane = 0; lane < Resident::kLanes; ++lane) {
          const auto sums = Resident::accumulate(product, weights.data() + unit * line, row, lane);
          for (int r = 0; r < Resident::kRows; ++r) {
            for (int c = 0; c < Resident::kColumns; ++c) all.at[r][c] += sums.at[r][c];
          }
        }
        for (int lane = 0; lane < Resident::kLanes; ++lane) {
          if (!Resident::finishes(product, row, lane)) continue;
          Resident::finish(product, first + unit, row, lane, all,
                           product.given(row + lane, first + unit));
        }
      }
    }
  });
}

template <class Sweep>
void run_warps(const typename Sweep::Params& p, const RnnSchedule& schedule) {
  constexpr int kWidth = Pack<typename Sweep::Type>::kWidth;
  has_packs(p) ? run_warps<Sweep, kWidth>(p, schedule) : run_warps<Sweep, 1>(p, schedule);
}

// A launch on tensor cores, the same way: between two waits all blocks, one after the other.
template <class Sweep, RnnTiling kTiling>
struct TensorLaunch {
  using Steps = RnnTensorSteps<Sweep, kTiling>;
  struct Block {
    Steps steps;
    TensorLoopTeam<typename Steps::State> team;
    std::unique_ptr<typename Steps::Shared> shared = std::make_unique<typename Steps::Shared>();
    std::vector<typename Steps::Fragment> kept;
  };

  static void run(const typename Sweep::Params& p) {
    std::vector<Block> blocks;
    each_step<Sweep>(p, RnnSchedule(p), [&](const typename Sweep::Product& product, int64_t s) {
      if (s == 0) begin(p, product, blocks);
      for (Block& b : blocks) {
        b.steps.take_given(product, b.team);
        b.steps.multiply(product, b.kept.data(), *b.shared, b.team);
      }
      for (size_t n = 0; n < blocks.size(); ++n) {
        const size_t cluster = n / kTiling.slices * kTiling.slices;
        const auto shared_of = [&](int slice) -> const auto& {
          return *blocks[cluster + static_cast<size_t>(slice)].shared;
        };
        blocks[n].steps.finish(product, shared_of, blocks[n].team);
      }
    });
  }

  static void begin(const typename Sweep::Params& p, const typename Sweep::Product& product,
                    std::vector<Block>& blocks) {
    const int64_t bytes = kTiling.shared_bytes(product.depth) - kTiling.sums_bytes();
    for (int64_t n = 0; n < kTiling.blocks(p.batch, product.columns); ++n) {
      Block& b = blocks.emplace_back(Block{Steps(product, n), {}, {}, {}});
      b.shared = std::make_unique<typename Steps::Shared>();
      b.kept.resize(static_cast<size_t>(bytes) / sizeof(typename Steps::Fragment));
      b.steps.keep_weights(product, b.kept.data(), b.team);
    }
  }
};

// By the given one of the tilings, if it fits: else it leaves what the test finds unwritten.
template <class Sweep, const auto& kTilings, int kFirst = 0>
void run_tiling(const typename Sweep::Params& p, int which) {
  if constexpr (kFirst < std::size(kTilings)) {
    if (which != kFirst) return run_tiling<Sweep, kTilings, kFirst + 1>(p, which);
    if (fits_resident(kTilings[kFirst], p)) TensorLaunch<Sweep, kTilings[kFirst]>::run(p);
  }
}

bool same_rows(int64_t first, int64_t rows, int64_t other, int64_t other_rows) {
  return rows == other_rows && (rows == 0 || first == other);
}
bool same_step(const RnnSweep& sweep, const RnnShape& s, int64_t k) {
  const RnnStep mine = sweep.step(), right = s.step_at(k);
  return same_rows(mine.first, mine.rows, right.first, right.rows) &&
         same_rows(mine.before, mine.known, right.before, right.known) &&
         same_rows(mine.after, mine.onward, right.after, right.onward) &&
         sweep.rows_after() == s.step_at(k + 1).rows;
}

}  // namespace

extern "C" {

// Tensors come in the order of the members that point to them.
void forward(const int64_t* shape, const int64_t* offsets, int save, void** tensors) {
  constexpr int64_t kNone[2]{};
  const RnnParams p = forward_params(shape, offsets, kNone, save, tensors);
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) {
    rnn_forward_products<Cell, T>(p, [](const auto& product) { multiply(product); });
  });
}

void backward(const int64_t* shape, const int64_t* offsets, void** tensors) {
  constexpr int64_t kNone[2]{};
  const RnnBackwardParams p = backward_params(shape, offsets, kNone, tensors);
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) {
    rnn_backward_products<Cell, T>(p, [](const auto& product) { multiply(product); });
  });
}

// One launch for all steps, as on the given GPU.
void forward_resident(const int64_t* shape, const int64_t* offsets, const int64_t* gpu, int save,
                      void** tensors) {
  const RnnParams p = forward_params(shape, offsets, gpu, save, tensors);
  if (!suits_resident(p)) return;
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) {
    multiply(RnnInputProduct<Cell, T>{p, p.rows()});
    run_warps<RnnForwardSweep<Cell, T>>(p, RnnSchedule(p));
  });
}

// So many layers of one shape, whose tensors come one after the other, front by front.
void forward_wavefront(const int64_t* shape, const int64_t* offsets, const int64_t* gpu, int save,
                       int layers, void** tensors) {
  std::vector<RnnParams> all;
  for (int l = 0; l < layers; ++l) {
    all.push_back(forward_params(shape, offsets, gpu, save, tensors + 14 * l));
  }
  const RnnStack stack{all[0].dtype, layers, all.data()};
  if (!suits_wavefront(stack)) return;
  for (int64_t k = 0; k < fronts_of(stack); ++k) {
    const RnnFront front = front_of(stack, k);
    const RnnSchedule schedule(front.longest());
    dispatch_cell(all[0], [&]<class Cell, class T>(Cell, T) {
      for (int64_t l = 0; l < front.layers; ++l) {
        multiply(RnnInputProduct<Cell, T>{front.layer[l], front.layer[l].rows()});
      }
      for (int64_t l = 0; l < front.layers; ++l) {
        run_warps<RnnForwardSweep<Cell, T>>(front.layer[l], schedule);
      }
    });
  }
}

void backward_resident(const int64_t* shape, const int64_t* offsets, const int64_t* gpu,
                       void** tensors) {
  const RnnBackwardParams p = backward_params(shape, offsets, gpu, tensors);
  if (!suits_resident(p)) return;
  dispatch_cell(p, [&]<class Cell, class T>(Cell, T) {
    run_warps<RnnBackwardSweep<Cell, T>>(p, RnnSchedule(p));
    rnn_backward_sums<Cell, T>(p, [](const auto& product) { multiply(product); });
  });
}

void forward_tensorop(const int64_t* shape, const int64_t* offsets, const int64_t* gpu, int save,
                      int tiling, void** tensors) {
  const RnnParams p = forward_params(shape, offsets, gpu, save, tensors);
  if (!suits_resident_tensorop(p)) return;
  dispatch_cell<kHalfTypes>(p, [&]<class Cell, class T>(Cell, T) {
    multiply(RnnInputProduct<Cell, T>{p, p.rows()});
    run_tiling<RnnForwardSweep<Cell, T>, kForwardTilings>(p, tiling);
  });
}

// Those of clusters come behind the others.
void backward_tensorop(const int64_t* shape, const int64_t* offsets, const int64_t* gpu, int tiling,
                       void** tensors) {
  constexpr int kAlone = std::size(kBackwardTilings);
  const RnnBackwardParams p = backward_params(shape, offsets, gpu, tensors);
  if (!(tiling < kAlone ? suits_resident_tensorop(p) : suits_clusters(p))) return;
  dispatch_cell<kHalfTypes>(p, [&]<class Cell, class T>(Cell, T) {
    if (tiling < kAlone) {
      run_tiling<RnnBackwardSweep<Cell, T>, kBackwardTilings>(p, tiling);
    } else {
      run_tiling<RnnBackwardSweep<Cell, T>, kClusterTilings>(p, tiling - kAlone);
    }
    rnn_backward_sums<Cell, T>(p, [](const auto& product) { multiply(product); });
  });
}

void column_sums(int dtype, int64_t rows, int64_t columns, const void* matrix, void* to) {
  dispatch_dtype(static_cast<Dtype>(dtype), [&]<class T>(T) {
    const ColumnSums<T> sums{static_cast<const T*>(matrix), static_cast<T*>(to), rows, columns};
    typename ColumnSums<T>::Shared shared;
    for (int64_t block = 0; block < sums.blocks(); ++block) {
      for (int t = 0; t < ColumnSums<T>::kThreads; ++t) sums.accumulate(block, t, shared);
      for (int t = 0; t < ColumnSums<T>::kThreads; ++t) sums.finish(block, t, shared);
    }
  });
}

// Steps of a sweep there and back that are not those of the host; shape as above.
int64_t wrong_steps(const int64_t* shape, const int64_t* offsets) {
  constexpr int64_t kNone[2]{};
  const RnnShape s = shape_of(shape, offsets, kNone);
  const RnnSchedule schedule(s);
  RnnSweep there = RnnSweep::before_first(schedule, s.steps);
  RnnSweep back = RnnSweep::behind_last(schedule, s.steps);
  int64_t wrong = 0;
  for (int64_t k = 0; k < s.steps; ++k) {
    there.advance();
    wrong += same_step(there, s, k) ? 0 : 1;
  }
  for (int64_t k = s.steps - 1; k >= -1; --k) {
    back.retreat();
    wrong += same_step(back, s, k) ? 0 : 1;
  }
  return wrong;
}

// What a layer takes of a GPU: bytes of shared memory on ordinary units; for each tiling blocks,
// bytes, and whether it fits.
int64_t tilings(const int64_t* shape, const int64_t* offsets, const int64_t* gpu, int backward,
                int64_t* out) {
  RnnParams forward{};
  RnnBackwardParams back{};
  static_cast<RnnShape&>(forward) = static_cast<RnnShape&>(back) = shape_of(shape, offsets, gpu);
  int64_t count = 0;
  const auto list = [&](const auto& all, const auto& p) {
    for (const RnnTiling& t : all) {
      *out++ = t.blocks(p.batch, resident_columns(p));
      *out++ = t.shared_bytes(resident_depth(p));
      *out++ = fits_resident(t, p);
      ++count;
    }
  };
  if (backward) {
    list(kBackwardTilings, back);
    list(kClusterTilings, back);
  } else {
    list(kForwardTilings, forward);
  }
  return count;
}
}
