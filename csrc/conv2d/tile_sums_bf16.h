// Where finished bfloat16 tiles of 32×32 sums go, some rows at a time: while the unit works on one
// tile, the vector units bring the one before it to its place, and ask for the lines of the result
// where the next will lie. Without that the unit waits behind stores that miss: a fifth more time
// for 3×3 32 → 64 of 48×48 (Sapphire Rapids, November 2026).
#pragma once

#include "conv2d/grid_sink_bf16.h"
#include "conv2d/tile_epilogue_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <bool kMasked>
__m512i load_words(const Images<BFloat16>& images, int64_t at, __mmask32 lanes) {
  return load_words<kMasked>(images.data, images.mask, at, lanes);
}

// Rows are positions, columns are channels of a pixel.
class PixelSums {
 public:
  static constexpr bool kByRows = true;

  PixelSums(const Correlation<BFloat16>& c, int64_t panels)
      : channels_(c.channels),
        epilogue_(c.epilogue, c.channels),
        offsets_((panels + 1) * kGridStep) {}

  // Position p lies at `offset` from the first one, negative where it is none of the result.
  void place(int64_t p, int64_t offset) { offsets_[p] = offset; }
  void placed(int64_t count) {
    const int64_t end = (ceil_div(count, kGridStep) + 1) * kGridStep;
    std::fill(&offsets_[count], &offsets_[end], -1);
  }

  // Sums now being made belong to `count` positions from p on and channels from `channel` on of
  // the grid whose first position lies at `out`.
  void expect(BFloat16* out, int64_t channel, int64_t p, int count) {
    coming_ = {out + channel, &offsets_[p], epilogue_.bias(channel), count,
               first_words(channels_ - channel)};
    row_ = 0;
  }
  void expect_none() { coming_.count = row_ = 0; }
  // They are made.
  void take(const float* sums) {
    sums_ = sums;
    now_ = coming_;
    expect_none();
  }

  // The next `rows` rows.
  void store(int rows) {
    const int last = row_ + rows, end = std::min(now_.count, last);
    if (row_ < end) {
      const auto low = Vec<float>::load(now_.bias), high = Vec<float>::load(now_.bias + 16);
      for (int r = row_; r < end; ++r) {
        const __m512i words = epilogue_.words(sums_ + r * 32, low, high);
        const int64_t offset = now_.offsets[r];
        if (offset >= 0) _mm512_mask_storeu_epi16(now_.out + offset, now_.lanes, words);
      }
    }
    ask(last);
  }

  // Asks for the lines of rows [row_, last) to come.
  void ask(int last) {
    for (int r = row_; r < std::min(coming_.count, last); ++r) {
      if (coming_.offsets[r] >= 0) prefetch_to_write(coming_.out + coming_.offsets[r]);
    }
    row_ = last;
  }
  // For those of the next panel.
  void ask_next() const {
    for (int r = kGridStep; r < 2 * kGridStep; ++r) {
      if (coming_.offsets[r] >= 0) prefetch_to_write(coming_.out + coming_.offsets[r]);
    }
  }
  // The rows expected, from `row` on.
  template <int kRows, int kVecs>
  [[gnu::always_inline]] void start(int, __m512 (&sums)[kRows][kVecs]) const {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) {
      const __m512 bias = _mm512_load_ps(coming_.bias + v * 16);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) sums[r][v] = bias;
    }
  }
  template <int kRows, int kVecs>
  [[gnu::always_inline]] void put(int row, const __m512 (&sums)[kRows][kVecs]) const {
    __m512i words[kRows];
    epilogue_.finish(sums, words);
    const Place place = coming_;
    for_rows<kRows>(place.count - row, [&](int r) __attribute__((always_inline)) {
      const int64_t offset = place.offsets[row + r];
      _mm512_mask_storeu_epi16(place.out + offset, place.lanes, words[r]);
    });
  }

 private:
  // Position r at out + offsets[r], or nowhere when that is negative.
  struct Place {
    BFloat16* out = nullptr;
    const int64_t* offsets = nullptr;
    const float* bias = nullptr;
    int count = 0;
    __mmask32 lanes = 0;
  };

  const int64_t channels_;
  const TileEpilogue epilogue_;
  Scratch<int64_t> offsets_;
  const float* sums_ = nullptr;
  Place now_, coming_;
  int row_ = 0;
};

// Where a panel's positions lie in planes, and the tiles on their way there.
class PlanePlaces {
 public:
  PlanePlaces(const Correlation<BFloat16>& c, int64_t panels)
      : epilogue_(c.epilogue, c.channels),
        channels_(c.channels),
        channel_stride_(c.channel_stride),
        step_(c.map.col_stride == 2 ? 2 : 1),
        runs_(panels * kGridStep),
        first_run_(panels + 1) {}

  // Position p lies at `offset` from the first one, negative where it is none of the result; then
  // how many they are. Those that follow each other in the result, or every second word of it, are
  // one run, stored at once.
  void place(int64_t p, int64_t offset) {
    const int64_t panel = p / kGridStep, lane = p % kGridStep, first = offset - lane * step_;
    if (p == 0) run_count_ = 0;
    if (lane == 0) first_run_[panel] = run_count_;
    if (offset < 0) return;
    const bool follows = run_count_ > first_run_[panel] && runs_[run_count_ - 1].offset == first;
    if (!follows) runs_[run_count_++] = {first, 0, {0, 0}};
    Run& run = runs_[run_count_ - 1];
    run.lanes |= __mmask32{1} << lane;
    run.apart[lane / 16] |= __mmask32{1} << lane % 16 * 2;
  }
  void placed(int64_t count) { first_run_[ceil_div(count, kGridStep)] = run_count_; }

  void expect(BFloat16* out, int64_t channel, int64_t p, int count) {
    const int64_t panel = p / kGridStep;
    coming_ = {out + channel * channel_stride_,
               &runs_[first_run_[panel]],
               first_run_[panel + 1] - first_run_[panel],
               epilogue_.bias(channel),
               count > 0 ? static_cast<int>(std::min<int64_t>(32, channels_ - channel)) : 0,
               first_words(count)};
    row_ = 0;
  }
  void expect_none() { coming_.channels = row_ = 0; }
  void take(const float* sums) {
    sums_ = sums;
    now_ = coming_;
    expect_none();
  }

  // Asks for the lines of channels [row_, last) to come.
  void ask(int last) {
    for (int r = row_; r < std::min(coming_.channels, last) && coming_.count > 0; ++r) {
      prefetch_to_write(at(coming_, r, coming_.runs[coming_.count - 1].offset + 31 * step_));
    }
    row_ = last;
  }
  // For those of the next 32 positions, which mostly follow in each plane.
  void ask_next() const {
    if (coming_.count == 0) return;
    const int64_t next = coming_.runs[coming_.count - 1].offset + (31 + kGridStep) * step_;
    for (int r = 0; r < coming_.channels; ++r) prefetch_to_write(at(coming_, r, next));
  }

 protected:
  // The positions `lanes` lie from out + offset on, were the others there too; or as dwords' first
  // words, 16 and 16.
  struct Run {
    int64_t offset;
    __mmask32 lanes, apart[2];
  };
  struct Place {
    BFloat16* out = nullptr;
    const Run* runs = nullptr;
    int64_t count = 0;
    const float* bias = nullptr;
    int channels = 0;
    __mmask32 lanes = 0;
  };

  // A panel's positions of one channel.
  void store_channel(const Place& place, int channel, __m512i words) const {
    for (int64_t i = 0; i < place.count; ++i) {
      const Run run = place.runs[i];
      char* const to = at(place, channel, run.offset);
      is_apart() ? store_apart(to, run, words) : store(to, run.lanes & place.lanes, words);
    }
  }
  static void store(char* to, __mmask32 lanes, __m512i words) {
    _mm512_mask_storeu_epi16(to, lanes, words);
  }
  bool is_apart() const { return step_ == 2; }
  static void store_apart(char* to, const Run& run, __m512i words) {
    store(to, run.apart[0], _mm512_cvtepu16_epi32(_mm512_castsi512_si256(words)));
    store(to + 64, run.apart[1], _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(words, 1)));
  }
  // An address that may lie before the result, where no lane is stored.
  char* at(const Place& place, int64_t row, int64_t offset) const {
    constexpr int64_t kBytes = sizeof(BFloat16);
    return reinterpret_cast<char*>(place.out) + row * channel_bytes() + offset * kBytes;
  }
  int64_t channel_bytes() const { return channel_stride_ * int64_t{sizeof(BFloat16)}; }

  const TileEpilogue epilogue_;
  const float* sums_ = nullptr;
  Place now_, coming_;
  int row_ = 0;

 private:
  const int64_t channels_, channel_stride_;
  const int64_t step_;  // from a position to the next
  Scratch<Run> runs_;
  Scratch<int64_t> first_run_;
  int64_t run_count_ = 0;
};

// Which columns of a tile of sums are a row's 32 positions: those in order, those by turns of the
// first and the second half, or as unpacked words have them.
enum class ColumnOrder { kKept, kEvenAndOdd, kUnpacked };

// Rows are channels, each of a plane of its own, columns are positions.
template <ColumnOrder kOrder>
class PlaneSums : public PlanePlaces {
 public:
  static constexpr bool kByRows = true;

  using PlanePlaces::PlanePlaces;

  void store(int rows) {
    const int last = row_ + rows;
    for (int r = row_; r < std::min(now_.channels, last); ++r) {
      const auto bias = Vec<float>::set1(now_.bias[r]);
      store_channel(now_, r, ordered(epilogue_.words(sums_ + r * 32, bias, bias)));
    }
    ask(last);
  }

  // The rows expected, from `row` on.
  template <int kRows, int kVecs>
  [[gnu::always_inline]] void start(int row, __m512 (&sums)[kRows][kVecs]) const {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512 bias = _mm512_set1_ps(coming_.bias[row + r]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) sums[r][v] = bias;
    }
  }
  template <int kRows, int kVecs>
  [[gnu::always_inline]] void put(int row, const __m512 (&sums)[kRows][kVecs]) const {
    __m512i words[kRows];
    epilogue_.finish(sums, words);
#pragma GCC unroll 16
    for (__m512i& some : words) some = ordered(some);
    const Place place = coming_;
    const int64_t distance = channel_bytes();  // in a register, whatever the stores write
    for (int64_t i = 0; i < place.count; ++i) {
      const Run run = place.runs[i];
      const __mmask32 lanes = run.lanes & place.lanes;
      char* to = PlanePlaces::at(place, row, run.offset);
      const auto put_all = [&](const auto& put_one) __attribute__((always_inline)) {
        for_rows<kRows>(place.channels - row, [&](int r) __attribute__((always_inline)) {
          put_one(words[r]);
          to += distance;
        });
      };
      if (is_apart()) {
        put_all([&](__m512i some) __attribute__((always_inline)) { store_apart(to, run, some); });
      } else {
        put_all([&](__m512i some)
                    __attribute__((always_inline)) { PlanePlaces::store(to, lanes, some); });
      }
    }
  }

 private:
  static __m512i ordered(__m512i words) {
    if (kOrder == ColumnOrder::kKept) return words;
    if (kOrder == ColumnOrder::kEvenAndOdd) return interleave_halves(words);
    // As order_columns does it.
    const __m512i order =
        _mm512_set_epi16(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8, 23, 22, 21,
                         20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    return _mm512_permutexvar_epi16(order, words);
  }
};

// Rows are positions, columns are channels, each of a plane of its own: sixteen channels at a time
// are transposed as pairs of positions.
class TransposedSums : public PlanePlaces {
 public:
  static constexpr bool kByRows = false;

  using PlanePlaces::PlanePlaces;

  void store(int rows) {
    const int last = row_ + rows;
    for (int half = 0; half < now_.channels; half += 16) {
      if (half >= row_ && half < last) store_half(half);
    }
    ask(last);
  }

 private:
  void store_half(int channel) const {
    const auto bias = Vec<float>::load(now_.bias + channel);
    Vec<float> block[16];  // dwords of two positions
    for (int pair = 0; pair < 16; ++pair) {
      const float* sums = sums_ + 2 * pair * 32 + channel;
      block[pair].v = _mm512_castsi512_ps(epilogue_.pairs(sums, sums + 32, bias));
    }
    transpose(block);
    for (int r = 0; r < std::min(16, now_.channels - channel); ++r) {
      store_channel(now_, channel + r, _mm512_castps_si512(block[r].v));
    }
  }
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
