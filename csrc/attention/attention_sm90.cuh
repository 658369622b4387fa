// What the warpgroups of attention share on Hopper: their threads, and loading rows of a head.
#pragma once

#include "attention/attention_warpgroup.h"
#include "gemm/warpgroup_block.cuh"

namespace pyops {

// What a thread of a consumer keeps, and how it meets the others of its warpgroup.
template <class Algorithm>
struct WarpgroupTeam {
  using State = typename Algorithm::State;
  State state;
  int thread = static_cast<int>(threadIdx.x) % kWarpgroup;

  template <class F>
  PYOPS_DEVICE void alone(const F& f) {
    f(thread, state);
  }
  template <class F>
  PYOPS_DEVICE void reduce(const F& join) {
    PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
      float& x = state.rows[r];
      PYOPS_UNROLL for (int apart = 1; apart < 4; apart *= 2) {
        x = join(x, __shfl_xor_sync(0xffffffffu, x, apart));
      }
    }
  }
  // A transposition of four by four: of each pair of words that lie `apart`, a thread keeps the one
  // on its own side.
  PYOPS_DEVICE void trade() {
    PYOPS_UNROLL for (int apart = 1; apart < 4; apart *= 2) {
      const bool is_high = (thread & apart) != 0;
      PYOPS_UNROLL for (int i = 0; i < 4; ++i) {
        if ((i & apart) != 0) continue;
        uint32_t &low = state.traded[i], &high = state.traded[i + apart];
        const uint32_t got = __shfl_xor_sync(0xffffffffu, is_high ? low : high, apart);
        low = is_high ? got : low;
        high = is_high ? high : got;
      }
    }
  }
};

inline cudaError_t map_rows(const AttentionShape& p, const ConstRows& t, int64_t heads,
                            int64_t rows, int64_t columns, int box_rows, CUtensorMap* map) {
  const MappedTensor tensor{p.dtype, t.data, {columns, rows, heads, p.batch}, {t.row, t.h, t.b}};
  return encode_tensor_map(tensor, {kBoxColumns, box_rows, 1, 1}, map);
}

// One block an SM; but where they are of unequal work, under a causal mask, the hardware deals
// them, as SMs get free.
template <class Algorithm, class Shared, class Arguments>
cudaError_t launch_attention(void (*kernel)(Arguments), const Arguments& arguments,
                             cudaStream_t stream) {
  int most = INT32_MAX;
  const cudaError_t status = arguments.params.is_causal ? cudaSuccess : count_processors(&most);
  if (status != cudaSuccess) return status;
  return launch_warpgroups<Algorithm, Shared>(kernel, arguments, most, stream);
}

// Loads a tile of kRows rows and kD columns in boxes of kBoxRows.
template <class T, int kRows, int kD, int kBoxRows>
PYOPS_DEVICE void load_boxes(const CUtensorMap& map, int64_t b, int64_t h, int64_t row, T* tile,
                             uint64_t* full) {
  PYOPS_UNROLL for (int j = 0; j < kD; j += kBoxColumns) {
    PYOPS_UNROLL for (int i = 0; i < kRows; i += kBoxRows) {
      load_box(map, tile + box_offset<kRows>(i, j), full, j, static_cast<int>(row + i),
               static_cast<int>(h), static_cast<int>(b));
    }
  }
}

}  // namespace pyops
