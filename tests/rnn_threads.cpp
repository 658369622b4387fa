// What the threads of the CUDA kernels of recurrent layers compute, on the CPU.
#include "gemm/column_sums.h"
#include "rnn/rnn_resident_tensorop.h"
#include "rnn/rnn_tensorop.h"
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
void each_step(const RnnPiece<typename Sweep::Params>& piece, const F& f) {
  const RnnSchedule schedule(piece.p);
  RnnSweep sweep = Sweep::start(piece, schedule);
  for (int64_t s = 0; s < Sweep::steps(piece); ++s) f(Sweep::next(piece.p, sweep), s);
}

// A launch on ordinary units: each step a block after the other, a warp at a time.
template <class Sweep, int kWidth>
void run_warps(const RnnPiece<typename Sweep::Params>& piece) {
  using Resident = RnnResident<Sweep, kWidth>;
  const auto& p = piece.p;
  const int64_t blocks = resident_blocks(p);
  const int64_t groups = (p.batch + Resident::kRows - 1) / Resident::kRows;
  std::vector<std::vector<typename Resident::T>> kept(static_cast<size_t>(blocks));
  each_step<Sweep>(piece, [&](const typename Sweep::Product& product, int64_t s) {
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
void run_warps(const RnnPiece<typename Sweep::Params>& piece) {
  constexpr int kWidth = Pack<typename Sweep::Type>::kWidth;
  has_packs(piece.p) ? run_warps<Sweep, kWidth>(piece) : run_warps<Sweep, 1>(piece);
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

  static void run(const RnnPiece<typename Sweep::Params>& piece) {
    std::vector<Block> blocks;
    each_step<Sweep>(piece, [&](const typename Sweep::Product& product, int64_t s) {
      if (s == 0) begin(piece.p, product, blocks);
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
void run_tiling(const RnnPiece<typename Sweep::Params>& piece, int which) {
  if constexpr (kFirst < std::size(kTilings)) {
    if (which != kFirst) return run_tiling<Sweep, kTilings, kFirst + 1>(piece, which);
    if (fits_resident(kTilings[kFirst], piece.p)) TensorLaunch<Sweep, kTilings[kFirst]>::run(piece);
  }
}

// How the kernels of all steps run: on ordinary units, or by the given one of the tilings, where
// those of clusters come behind the others.
constexpr int kOrdinary = -1, kAlone = std::size(kBackwardTilings);

bool suits(const RnnForwardStack& stack, int tiling) {
  if (stack.layers > 1) {
    return tiling == kOrdinary ? suits_wavefront(stack) : suits_wavefront_tensorop(stack);
  }
  const RnnParams& p = stack.layer[0];
  return tiling == kOrdinary ? suits_resident(p) : suits_resident_tensorop(p);
}
bool suits(const RnnBackwardStack& stack, int tiling) {
  const RnnBackwardParams& p = stack.layer[0];
  const bool many = stack.layers > 1;
  if (tiling == kOrdinary) return many ? suits_wavefront(stack) : suits_resident(p);
  if (tiling < kAlone) return many ? suits_wavefront_tensorop(stack) : suits_resident_tensorop(p);
  return many ? suits_wavefront_clusters(stack) : suits_clusters(p);
}

template <class Cell, class T>
void run_piece(const RnnPiece<RnnParams>& piece, int tiling) {
  using Sweep = RnnForwardSweep<Cell, T>;
  if constexpr (sizeof(T) == 2) {
    if (tiling != kOrdinary) return run_tiling<Sweep, kForwardTilings>(piece, tiling);
  }
  run_warps<Sweep>(piece);
}
template <class Cell, class T>
void run_piece(const RnnPiece<RnnBackwardParams>& piece, int tiling) {
  using Sweep = RnnBackwardSweep<Cell, T>;
  if constexpr (sizeof(T) == 2) {
    if (tiling >= kAlone) return run_tiling<Sweep, kClusterTilings>(piece, tiling - kAlone);
    if (tiling != kOrdinary) return run_tiling<Sweep, kBackwardTilings>(piece, tiling);
  }
  run_warps<Sweep>(piece);
}

// Launch after launch, the layers of each one after the other.
void run_forward(const RnnForwardStack& stack, int tiling) {
  if (!suits(stack, tiling)) return;
  dispatch_cell(stack.layer[0], [&]<class Cell, class T>(Cell, T) {
    for (int64_t k = 0; k < fronts_of(stack); ++k) {
      const RnnForwardFront front = front_of(stack, k);
      for (int64_t l = 0; l < front.layers; ++l) {
        multiply(RnnInputProduct<Cell, T>::of(front.layer[l]));
      }
      for (int64_t l = 0; l < front.layers; ++l) run_piece<Cell, T>(front.layer[l], tiling);
    }
  });
}
void run_backward(const RnnBackwardStack& stack, int tiling) {
  if (!suits(stack, tiling)) return;
  dispatch_cell(stack.layer[0], [&]<class Cell, class T>(Cell, T) {
    for (int64_t k = 0; k < fronts_of(stack); ++k) {
      const RnnBackwardFront front = front_of(stack, k);
      for (int64_t l = 0; l < front.layers; ++l) run_piece<Cell, T>(front.layer[l], tiling);
      for (int64_t l = 0; l < front.layers; ++l) {
        multiply(RnnInputGradient<Cell, T>::of(front.layer[l]));
      }
    }
    for (int64_t l = 0; l < stack.layers; ++l) {
      rnn_backward_weights<Cell, T>(stack.layer[l], [](const auto& of) { multiply(of); });
    }
  });
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

// Layers as the launches for many of their steps run them on the given GPU; the tensors of each
// come one after the other.
void forward_resident(const int64_t* shapes, const int64_t* offsets, const int64_t* gpu, int tiling,
                      int layers, int stacked, int save, void** tensors) {
  std::vector<RnnParams> all;
  for (int l = 0; l < layers; ++l) {
    all.push_back(forward_params(shapes + 8 * l, offsets, gpu, save, tensors + 14 * l));
  }
  run_forward({all[0].dtype, stacked != 0, layers, all.data()}, tiling);
}
void backward_resident(const int64_t* shapes, const int64_t* offsets, const int64_t* gpu,
                       int tiling, int layers, int stacked, void** tensors) {
  std::vector<RnnBackwardParams> all;
  for (int l = 0; l < layers; ++l) {
    all.push_back(backward_params(shapes + 8 * l, offsets, gpu, tensors + 24 * l));
  }
  run_backward({all[0].dtype, stacked != 0, layers, all.data()}, tiling);
}

// The pieces of a stack's fronts in the order of the launches, each as front, layer, begin, end,
// first row and rows; returns how many.
int64_t fronts(const int64_t* shape, const int64_t* offsets, int layers, int stacked, int back,
               int64_t* out) {
  constexpr int64_t kNone[2]{};
  int64_t count = 0;
  const auto list = [&]<class Params>(Params p) {
    static_cast<RnnShape&>(p) = shape_of(shape, offsets, kNone);
    std::vector<Params> all(static_cast<size_t>(layers), p);
    for (int l = 0; l < layers; ++l) all[static_cast<size_t>(l)].input = l;
    const RnnStack<Params> stack{p.dtype, stacked != 0, layers, all.data()};
    for (int64_t k = 0; k < fronts_of(stack); ++k) {
      const RnnFront<Params> front = front_of(stack, k);
      for (int64_t l = 0; l < front.layers; ++l, ++count) {
        const auto& [of, begin, end, first, rows] = front.layer[l];
        for (const int64_t number : {k, of.input, int64_t{begin}, int64_t{end}, first, rows}) {
          *out++ = number;
        }
      }
    }
  };
  back ? list(RnnBackwardParams{}) : list(RnnParams{});
  return count;
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

// Steps of sweeps there and back, from wherever they begin, that are not those of the host; shape
// as above.
int64_t wrong_steps(const int64_t* shape, const int64_t* offsets) {
  constexpr int64_t kNone[2]{};
  const RnnShape s = shape_of(shape, offsets, kNone);
  const RnnSchedule schedule(s);
  int64_t wrong = 0;
  for (int64_t from = -1; from <= s.steps; ++from) {
    RnnSweep there(schedule, s.reverse, from), back(schedule, s.reverse, from);
    for (int64_t k = from + 1; k < s.steps; ++k) {
      there.advance();
      wrong += same_step(there, s, k) ? 0 : 1;
    }
    for (int64_t k = from - 1; k >= -1; --k) {
      back.retreat();
      wrong += same_step(back, s, k) ? 0 : 1;
    }
  }
  return wrong;
}

// Bits: whether tensor cores take the products over all rows of the forward, and of the backward.
int takes_tensorop(const int64_t* shape, const int64_t* offsets) {
  const int64_t gpu[] = {132, 232448};
  RnnParams forward{};
  RnnBackwardParams back{};
  static_cast<RnnShape&>(forward) = static_cast<RnnShape&>(back) = shape_of(shape, offsets, gpu);
  return (suits_tensorop(forward) ? 1 : 0) + (suits_tensorop(back) ? 2 : 0);
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
