// How launches for all steps of a layer share it out among the blocks of threads of a GPU with
// tensor cores, and which layers fit there.
#pragma once

#include "rnn/rnn_resident.h"

namespace pyops {

// A cluster of `slices` blocks has rows of weights for good, 16 to a tile, of whose depth each
// block has a part, and serves sequences, eight to an octet. Other octets are other teams' affair,
// which have the same weights and wait for nobody else: the fewer sequences a block serves, the
// less of the states it reads.
struct RnnTiling {
  int tiles, octets, slices;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps, kStrip = 32;

  constexpr int rows() const { return 16 * tiles; }
  constexpr int sequences() const { return 8 * octets; }
  // Strips of the depth whose weights a warp has in its registers, at most 96 of them, and whose
  // operands are on their way at once.
  constexpr int held() const { return 12 / (tiles > octets ? tiles : octets); }

  // Strips of a warp, which the last may not have.
  PYOPS_HOST_DEVICE constexpr int64_t strips(int64_t depth) const {
    const int64_t together = int64_t{kStrip} * kWarps * slices;
    return (depth + together - 1) / together;
  }
  PYOPS_HOST_DEVICE constexpr int64_t members(int64_t columns) const {
    return (columns + rows() - 1) / rows();
  }
  constexpr int64_t teams(int64_t batch) const { return (batch + sequences() - 1) / sequences(); }
  constexpr int64_t blocks(int64_t batch, int64_t columns) const {
    return teams(batch) * members(columns) * slices;
  }

  // Sums of each warp, four numbers more than rows so that stores spread over the banks; then the
  // weights that are not in registers.
  constexpr int64_t sums_bytes() const { return int64_t{4} * kWarps * sequences() * (rows() + 4); }
  constexpr int64_t shared_bytes(int64_t depth) const {
    const int64_t strips_kept = strips(depth) > held() ? strips(depth) - held() : 0;
    return sums_bytes() + strips_kept * tiles * 2 * kThreads * 16;
  }

  // Clusters want neighbours: those of four leave two processors of ten, the fewest on a GPU of
  // Hopper's that lie together.
  constexpr bool fits(const RnnShape& s, int64_t columns, int64_t depth) const {
    const int64_t processors = slices > 1 ? s.gpu.processors * 4 / 5 : s.gpu.processors;
    return teams(s.batch) <= kRnnTeams && blocks(s.batch, columns) <= processors &&
           shared_bytes(depth) <= s.gpu.shared_bytes;
  }
};

// Best first: the fewest sequences to a block. Going back the operands are those of all gates,
// which only clusters share out.
inline constexpr RnnTiling kForwardTilings[] = {{4, 1, 1}, {4, 2, 1}, {6, 2, 1}};
inline constexpr RnnTiling kBackwardTilings[] = {{1, 1, 1}, {2, 2, 1}};
inline constexpr RnnTiling kClusterTilings[] = {{4, 1, 4}, {4, 2, 4}};

// Of the product of a step.
inline int64_t resident_columns(const RnnParams& p) { return 4 * p.hidden; }
inline int64_t resident_columns(const RnnBackwardParams& p) { return p.hidden; }
inline int64_t resident_depth(const RnnParams& p) { return p.output; }
inline int64_t resident_depth(const RnnBackwardParams& p) { return p.gates() * p.hidden; }

template <class Params>
bool fits_resident(const RnnTiling& tiling, const Params& p) {
  return tiling.fits(p, resident_columns(p), resident_depth(p));
}
template <class Params, int kTilings>
bool suits_tilings(const Params& p, const RnnTiling (&tilings)[kTilings]) {
  return suits_launch_for_all_steps(p) && has_packs(p) &&
         std::any_of(tilings, tilings + kTilings,
                     [&](const RnnTiling& t) { return fits_resident(t, p); });
}

inline bool suits_resident_tensorop(const RnnParams& p) {
  return suits_tilings(p, kForwardTilings);
}
inline bool suits_resident_tensorop(const RnnBackwardParams& p) {
  return suits_tilings(p, kBackwardTilings);
}
inline bool suits_clusters(const RnnBackwardParams& p) { return suits_tilings(p, kClusterTilings); }
inline constexpr const char* kSuitsResidentTensorop =
    "several steps of 1 to 128 sequences, no projection, hidden features in multiples of 8, w_hh "
    "once for every 8 or 16 sequences within the GPU's registers and shared memory";

}  // namespace pyops
