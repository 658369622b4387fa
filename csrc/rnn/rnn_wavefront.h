// Stacked layers at once: while one is at a piece of the sequences, the one above is at the piece
// before (a wavefront; Appleyard et al. 2016 for GPUs). Such a front of pieces is a launch in which
// each layer has its share of the GPU and begins with the states that it left in the front before.
#pragma once

#include "rnn/rnn_tiling.h"

namespace pyops {

// A layer's x is the y of the one before.
struct RnnStack {
  Dtype dtype;
  int64_t layers;
  const RnnParams* layer;
};

// Counted for 6 layers of 512 steps, H 256 and B 10 in float32 on an H100: a step takes 3 µs on a
// sixth of the GPU, a front's inputs, launches and weights 30 µs, so 16 pieces and 5 to fill the
// front take 2.7 ms; longer pieces fill it later, shorter ones launch more. Layer after layer takes
// 6 ms.
inline constexpr int64_t kPieceSteps = 32, kLeastPieces = 4, kMostLayers = 12;

// What a front's kernels get: as many as the first that are at work.
struct RnnFront {
  int64_t layers;
  RnnParams layer[kMostLayers];

  // The lengths of its sequences are enough for all.
  const RnnParams& longest() const {
    return *std::max_element(layer, layer + layers, [](const RnnParams& a, const RnnParams& b) {
      return a.steps < b.steps;
    });
  }
  bool has_packs() const {
    return std::all_of(layer, layer + layers,
                       [](const RnnParams& p) { return pyops::has_packs(p); });
  }
};

inline int64_t pieces_of(const RnnShape& s) { return s.steps / kPieceSteps; }

// The last piece takes what is left, so that each has several steps: the states that it begins with
// lie where it leaves its own, and are read before the first wait.
inline RnnParams piece_of(const RnnStack& stack, int64_t layer, int64_t piece) {
  RnnParams p = stack.layer[layer];
  const int64_t begin = piece * kPieceSteps, first = p.offsets[begin];
  p.steps = piece + 1 < pieces_of(p) ? kPieceSteps : p.steps - begin;
  p.gpu.processors /= static_cast<int>(stack.layers);
  p.arrivals = stack.layer[0].arrivals;
  const int64_t numbers =
      (p.cell == RnnCell::kLstm ? (p.save ? 5 : 4) : (p.save ? 4 : 3)) * p.hidden;
  dispatch_dtype(p.dtype, [&]<class T>(T) {
    p.x = static_cast<const T*>(p.x) + first * p.input;
    p.y = static_cast<T*>(p.y) + first * p.output;
    p.reserve = static_cast<acc_t<T>*>(p.reserve) + first * numbers;
  });
  if (piece > 0) {
    p.h0 = p.hn;
    p.c0 = p.cn;
  }
  return p;
}

inline int64_t fronts_of(const RnnStack& stack) {
  return pieces_of(stack.layer[0]) + stack.layers - 1;
}
inline RnnFront front_of(const RnnStack& stack, int64_t front) {
  RnnFront f{};
  for (int64_t layer = 0; layer < stack.layers; ++layer) {
    const int64_t piece = front - layer;
    if (piece >= 0 && piece < pieces_of(stack.layer[layer])) {
      f.layer[f.layers++] = piece_of(stack, layer, piece);
    }
  }
  return f;
}

// Of float32 alone: half precision would round c between pieces, and float64 lacks registers.
// Offsets of padded sequences are those of any piece.
inline bool suits_wavefront(const RnnStack& stack) {
  if (stack.layers < 2 || stack.layers > kMostLayers) return false;
  for (int64_t layer = 0; layer < stack.layers; ++layer) {
    const RnnParams& p = stack.layer[layer];
    if (p.reverse || p.rows() != p.steps * p.batch || pieces_of(p) < kLeastPieces) return false;
    if (p.hidden != stack.layer[0].hidden || !suits_resident(piece_of(stack, layer, 0)))
      return false;
  }
  return true;
}
inline constexpr const char* kSuitsWavefront =
    "2 to 12 layers of one direction over 128 padded steps or more, w_hh within the shared memory "
    "of a layer's share of the GPU";

cudaError_t rnn_forward_wavefront_cuda(const RnnStack& stack, cudaStream_t stream);

}  // namespace pyops
