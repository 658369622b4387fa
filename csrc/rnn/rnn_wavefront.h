// Layers side by side in the same launches, each with its share of the GPU. Stacked ones make a
// wavefront (Appleyard et al. 2016): while one is at a piece of the sequences, the one above is at
// the piece before. Such a front of pieces is a launch, in which each layer goes on from where it
// was in the front before; going back they come in the opposite order. The two directions of a
// layer are a single front, and so is a layer alone.
#pragma once

#include <type_traits>

#include "rnn/rnn_tiling.h"

namespace pyops {

template <class Params>
struct RnnStack {
  Dtype dtype;
  bool stacked;  // each layer's x is the y of the one before; else all have the same
  int64_t layers;
  const Params* layer;        // the first's counts of arrivals have room for all
  void* workspace = nullptr;  // of a backward, for the weights of one layer after the other
};
using RnnForwardStack = RnnStack<RnnParams>;
using RnnBackwardStack = RnnStack<RnnBackwardParams>;

inline RnnForwardStack alone(const RnnParams& p) { return {p.dtype, false, 1, &p}; }
inline RnnBackwardStack alone(const RnnBackwardParams& p) {
  return {p.dtype, false, 1, &p, p.workspace};
}

// Counted for 6 layers of 512 steps, H 256 and B 10 in float32 on an H100: a step takes 3 µs on a
// sixth of the GPU, a front's inputs, launches and weights 30 µs, so 16 pieces and 5 to fill the
// front take 2.7 ms; longer pieces fill it later, shorter ones launch more. Layer after layer takes
// 6 ms.
inline constexpr int64_t kPieceSteps = 32, kLeastPieces = 4, kMostLayers = 12;

// What the kernels of a launch get: the layers that are at work.
template <class Params>
struct RnnFront {
  int64_t layers;
  RnnPiece<Params> layer[kMostLayers];
};
using RnnForwardFront = RnnFront<RnnParams>;
using RnnBackwardFront = RnnFront<RnnBackwardParams>;

template <class Params>
int64_t pieces_of(const RnnStack<Params>& stack) {
  return stack.stacked ? stack.layer[0].steps / kPieceSteps : 1;
}
template <class Params>
int64_t fronts_of(const RnnStack<Params>& stack) {
  return pieces_of(stack) + (stack.stacked ? stack.layers - 1 : 0);
}

template <class Params>
Params share_of(const RnnStack<Params>& stack, int64_t layer) {
  Params p = stack.layer[layer];
  p.gpu.processors /= static_cast<int>(stack.layers);
  return p;
}

// The k-th to run. The last piece of a layer takes what is left of its steps.
template <class Params>
RnnFront<Params> front_of(const RnnStack<Params>& stack, int64_t k) {
  constexpr bool kBack = std::is_same_v<Params, RnnBackwardParams>;
  const int64_t front = kBack ? fronts_of(stack) - 1 - k : k, pieces = pieces_of(stack);
  RnnFront<Params> f{};
  for (int64_t layer = 0; layer < stack.layers; ++layer) {
    const int64_t piece = stack.stacked ? front - layer : front;
    if (piece < 0 || piece >= pieces) continue;
    Params p = share_of(stack, layer);
    p.arrivals = static_cast<uint32_t*>(stack.layer[0].arrivals) + f.layers * kRnnArrivals;
    const int64_t begin = piece * kPieceSteps;
    f.layer[f.layers++] = piece_of(p, begin, piece + 1 < pieces ? begin + kPieceSteps : p.steps);
  }
  return f;
}

// `suits`: whether one launch takes a layer on its share.
template <class Params, class Suits>
bool suits_wavefront(const RnnStack<Params>& stack, const Suits& suits) {
  if (stack.layers < 2 || stack.layers > kMostLayers) return false;
  if (stack.stacked && pieces_of(stack) < kLeastPieces) return false;
  for (int64_t layer = 0; layer < stack.layers; ++layer) {
    const Params p = share_of(stack, layer);
    if (p.hidden != stack.layer[0].hidden || !suits(p)) return false;
  }
  return true;
}
template <class Params>
bool suits_wavefront(const RnnStack<Params>& stack) {
  return suits_wavefront(stack, [](const Params& p) { return suits_resident(p); });
}
template <class Params>
bool suits_wavefront_tensorop(const RnnStack<Params>& stack) {
  return suits_wavefront(stack, [](const Params& p) { return suits_resident_tensorop(p); });
}
inline bool suits_wavefront_clusters(const RnnBackwardStack& stack) {
  return suits_wavefront(stack, suits_clusters);
}
// Bytes of the workspace, from those of a layer.
template <int64_t (*kOfLayer)(const RnnBackwardParams&)>
int64_t most_of_layers(const RnnBackwardStack& stack) {
  int64_t most = 0;
  for (int64_t l = 0; l < stack.layers; ++l) most = std::max(most, kOfLayer(stack.layer[l]));
  return most;
}
inline constexpr const char* kSuitsWavefront =
    "both directions of a layer, or 2 to 12 layers over 128 steps or more, of which one launch "
    "takes each on its share of the GPU";

cudaError_t rnn_forward_wavefront_tensorop_cuda(const RnnForwardStack& s, cudaStream_t stream);
cudaError_t rnn_forward_wavefront_cuda(const RnnForwardStack& stack, cudaStream_t stream);
cudaError_t rnn_backward_wavefront_sm90(const RnnBackwardStack& stack, cudaStream_t stream);
cudaError_t rnn_backward_wavefront_tensorop_cuda(const RnnBackwardStack& s, cudaStream_t stream);
cudaError_t rnn_backward_wavefront_cuda(const RnnBackwardStack& stack, cudaStream_t stream);

// The products of a front's rows with W_ih: before the steps of the forward, behind those of the
// backward.
cudaError_t rnn_forward_inputs_cuda(const RnnForwardFront& front, cudaStream_t stream);
cudaError_t rnn_backward_inputs_cuda(const RnnBackwardFront& front, cudaStream_t stream);

}  // namespace pyops
