// Runs an algorithm that is written for a team (attention_block.h) by blocks of threads.
#pragma once

#include "gemm/block_team.cuh"

namespace pyops {

template <class Algorithm, class Team = BlockTeam<typename Algorithm::State>, class Params>
__device__ void run_blocks(const Params& p) {
  __shared__ typename Algorithm::Shared shared;
  Team team;
  for (int64_t block = blockIdx.x; block < Algorithm::blocks(p); block += gridDim.x) {
    Algorithm(p, block).run(shared, team);
  }
}

}  // namespace pyops
