// Launches of many steps whose products run on tensor cores.
#pragma once

#include "gemm/tensor_team.cuh"
#include "rnn/rnn_resident.cuh"
#include "rnn/rnn_resident_tensorop.h"

namespace pyops {

// The team's each() waits for the block's cluster, of which it knows the blocks' shared_of(slice),
// and leave() for what they still do there.
template <class Sweep, RnnTiling kTiling, template <class State> class TeamOf>
__device__ void run_tensor_steps(const RnnPiece<typename Sweep::Params>& piece,
                                 const RnnSchedule& schedule) {
  using Steps = RnnTensorSteps<Sweep, kTiling>;
  using Team = TeamOf<typename Steps::State>;
  auto& shared = *dynamic_shared<typename Steps::Shared>();
  auto* kept = reinterpret_cast<typename Steps::Fragment*>(&shared + 1);
  const auto& p = piece.p;
  RnnSweep sweep = Sweep::start(piece, schedule);
  auto product = Sweep::next(p, sweep);
  const Steps steps(product, blockIdx.x);
  const RnnTeam blocks(p.arrivals, steps.team(),
                       static_cast<unsigned>(kTiling.members(product.columns)) * kTiling.slices);
  Team team;
  steps.keep_weights(product, kept, team);
  const auto last = static_cast<unsigned>(Sweep::steps(piece)) - 1;
  for (unsigned s = 0; s <= last; ++s) {
    steps.take_given(product, team);
    if (s > 0) blocks.wait(s);
    steps.multiply(product, kept, shared, team);
    const auto shared_of = [&](int slice) -> const auto& { return Team::shared_of(shared, slice); };
    steps.finish(product, shared_of, team);
    if (s == last) break;
    blocks.arrive();
    product = Sweep::next(p, sweep);
  }
  Team::leave();
}

// By the first of the tilings that fits.
template <template <class, RnnTiling> class Kernel, class Sweep, const auto& kTilings,
          int kFirst = 0>
cudaError_t launch_tensor_steps(const RnnFront<typename Sweep::Params>& front,
                                const RnnSchedule& schedule, cudaStream_t stream) {
  if constexpr (kFirst < std::size(kTilings)) {
    constexpr RnnTiling kTiling = kTilings[kFirst];
    const auto& p = front.layer[0].p;
    if (!fits_resident(kTiling, p)) {
      return launch_tensor_steps<Kernel, Sweep, kTilings, kFirst + 1>(front, schedule, stream);
    }
    return launch_resident(Kernel<Sweep, kTiling>::kFunction,
                           kTiling.blocks(p.batch, resident_columns(p)), kTiling.slices,
                           kTiling.kThreads, kTiling.shared_bytes(resident_depth(p)), front,
                           schedule, stream);
  } else {
    return cudaErrorInvalidConfiguration;
  }
}

}  // namespace pyops
