// Tiles of 64 rows of a head, a warpgroup's each: which there are, what of them is hidden, and how
// the threads store one.
//
// An algorithm is written for a team (attention_block.h): `team.alone(f)` calls
// f(thread of the warpgroup, its state), and what begins with begin_ runs on until its end_.
#pragma once

#include "attention/attention_block.h"
#include "gemm/warpgroup_threads.h"

namespace pyops {

// Tiles of rows, of every head of every batch. Neighbours are of one head: they meet its other rows
// in the L2 cache. Under a causal mask those that have most to do come first.
struct WarpgroupTile {
  int64_t b, h, row;

  PYOPS_HOST_DEVICE static int64_t tiles(int64_t rows, int kRows) {
    return (rows + kRows - 1) / kRows;
  }
  PYOPS_HOST_DEVICE WarpgroupTile(int64_t block, int64_t heads, int64_t rows, int kRows,
                                  bool last_first) {
    const int64_t count = tiles(rows, kRows), i = block % count;
    row = (last_first ? count - 1 - i : i) * kRows;
    h = block / count % heads;
    b = block / count / heads;
  }
};

// Whether some of the queries from `l0` on may not see some of the kKeys keys from `s0` on.
template <int kKeys>
PYOPS_DEVICE bool hides_keys(const AttentionShape& p, int64_t l0, int64_t s0) {
  return s0 + kKeys > p.keys || (p.is_causal && s0 + kKeys - 1 > l0);
}

// Their scores become -inf.
template <int kKeys>
PYOPS_DEVICE void hide_keys(const AttentionShape& p, int64_t l0, int64_t s0, int thread,
                            float (&scores)[kKeys / 2]) {
  PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
    const int64_t l = l0 + row_of(thread) + 8 * r, exist = p.keys - s0;
    const int64_t seen = baseline::visible_keys(p.is_causal, l, s0, exist < kKeys ? exist : kKeys);
    const int end = static_cast<int>(seen) - column_of(thread);
    PYOPS_UNROLL for (int n = 0; n < kKeys / 8; ++n) {
      PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
        float& score = scores[4 * n + 2 * r + c];
        score = 8 * n + c < end ? score : -INFINITY;
      }
    }
  }
}

// The same under a causal mask, of keys from `s0` on as rows with queries from `l0` on.
template <int kQueries>
PYOPS_DEVICE void hide_queries(int64_t s0, int64_t l0, int thread, float (&scores)[kQueries / 2]) {
  PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
    const int begin = static_cast<int>(s0 - l0) + row_of(thread) + 8 * r - column_of(thread);
    PYOPS_UNROLL for (int n = 0; n < kQueries / 8; ++n) {
      PYOPS_UNROLL for (int c = 0; c < 2; ++c) {
        float& score = scores[4 * n + 2 * r + c];
        score = 8 * n + c >= begin ? score : -INFINITY;
      }
    }
  }
}

// As an operand of the next product; also as what store_rows() trades.
template <class T, int kNumbers>
PYOPS_DEVICE void pack_words(const float (&numbers)[kNumbers], uint32_t (&words)[kNumbers / 2]) {
  PYOPS_UNROLL for (int i = 0; i < kNumbers / 2; ++i) {
    words[i] = word_of<T>(numbers[2 * i], numbers[2 * i + 1]);
  }
}

// Writes a tile of kColumns, of which `columns` exist, to the rows of `to` from `row` on. Four
// threads that share rows trade words, so that each has sixteen bytes to store: with 4·g + i, its
// word of eight columns, goes what thread i of the four has of eight columns 4·g + j for thread j.
template <class T, int kColumns, class Team, class State>
PYOPS_DEVICE void store_rows(const Rows& to, int64_t b, int64_t h, int64_t row, int64_t rows,
                             int64_t columns, Team& team, float (State::*sums)[kColumns / 2]) {
  T* const head = static_cast<T*>(to.data) + b * to.b + h * to.h;
  PYOPS_UNROLL for (int r = 0; r < 2; ++r) {
    PYOPS_UNROLL for (int g = 0; g < kColumns / 32; ++g) {
      team.alone([&](int, State& state) {
        PYOPS_UNROLL for (int i = 0; i < 4; ++i) {
          const int at = 4 * (4 * g + i) + 2 * r;
          state.traded[i] = word_of<T>((state.*sums)[at], (state.*sums)[at + 1]);
        }
      });
      team.trade();
      team.alone([&](int thread, State& state) {
        const int64_t i = row + row_of(thread) + 8 * r, j = 32 * g + thread % 4 * 8;
        if (i >= rows || j >= columns) return;
        Pack<T> pack;
        memcpy(&pack, state.traded, sizeof pack);
        store_pack(head + i * to.row + j, pack);
      });
    }
  }
}

}  // namespace pyops
