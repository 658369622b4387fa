// Correlation on AMX tiles: the weights are packed once per call, an image is split once
// (split_image_amx.h), and a panel of 32 positions is then packed by interleaving pairs of taps,
// which costs two loads, two shuffles and two stores for 64 products' worth of operand.
//
// A task is a band of rows of one image, or a few small images: its parts, the panels of B for a
// block of the depth and the sums of a range of positions share a 2 MiB L2 with the weights.
#pragma once

#include "conv2d/split_image_amx.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// Columns leave pack_pairs in the order of the 128-bit lanes' halves; this puts 32 back in order.
inline void order_columns(const float* from, __m512& low, __m512& high) {
  const __m512 even = _mm512_loadu_ps(from), odd = _mm512_loadu_ps(from + 16);
  low = _mm512_permutex2var_ps(
      even, _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23), odd);
  high = _mm512_permutex2var_ps(
      even, _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31), odd);
}

// The result's map with rows and columns told apart, where a dense one runs them together.
template <class T>
PositionMap grid_map(const Correlation<T>& c) {
  const Axis &y = c.images.y, &x = c.images.x;
  if (c.map.cols == x.positions && c.map.rows == y.positions) return c.map;
  const int64_t pixel = c.map.col_stride, image = y.positions * x.positions * pixel;
  return {x.positions, y.positions, c.channels_last ? image : c.map.image_stride,
          x.positions * pixel, pixel};
}

// Panels of flat positions from p on, of the rows from `row` on of image n.
struct GridStretch {
  int64_t n, row, p, panels;
};

// Writes finished tiles, channels × flat positions of a grid, where the result's positions lie.
template <class T>
class GridSink {
 public:
  GridSink(const Correlation<T>& c, int64_t panels)
      : c_(c),
        map_(grid_map(c)),
        line_stride_(panels * kGridStep + 16),  // no power of two: lines share no cache set
        lines_(16 * line_stride_) {}

  // `rows` channels from i on; the tiles of the stretch follow each other.
  void operator()(const SplitGrid& grid, const GridStretch& at, int64_t i, int rows,
                  const float* tiles) const {
    T* out = c_.result + at.n * map_.image_stride + at.row * map_.row_stride;
    for (int r = 0; r < rows; r += 16) {
      const int some = std::min(16, rows - r);
      for (int k = 0; k < some; ++k) read_line(i + r + k, at.panels, tiles + (r + k) * 32, k);
      if (c_.channels_last) {
        store_pixels(grid, at, some, out + i + r);
      } else {
        for (int k = 0; k < some; ++k) {
          store_plane(grid, at, &lines_[k * line_stride_], out + (i + r + k) * c_.channel_stride);
        }
      }
    }
  }

 private:
  using V = Vec<float>;

  void read_line(int64_t channel, int64_t panels, const float* tiles, int k) const {
    const T* bias = c_.epilogue.bias;
    const V b = V::set1(bias != nullptr ? static_cast<float>(bias[channel]) : 0.0f);
    float* line = &lines_[k * line_stride_];
    for (int64_t panel = 0; panel < panels; ++panel, tiles += 32 * 32, line += kGridStep) {
      __m512 low, high;
      order_columns(tiles, low, high);
      c_.epilogue(V{low} + b).store(line);
      c_.epilogue(V{high} + b).store(line + 16);
    }
  }

  // f(flat position within the stretch, count, offset of the first in the result) for each row.
  template <class F>
  void for_rows(const SplitGrid& grid, const GridStretch& at, const F& f) const {
    const int64_t pitch = grid.pitch(), end = std::min(at.p + at.panels * kGridStep, grid.span);
    if (pitch == map_.cols && map_.row_stride == pitch * map_.col_stride) {
      return f(0, end - at.p, at.p * map_.col_stride);
    }
    int64_t y = at.p / pitch, x = at.p % pitch;
    for (int64_t q = at.p; q < end; q += pitch - x, x = 0, ++y) {
      const int64_t run = std::min(map_.cols - x, end - q);
      if (run > 0) f(q - at.p, run, y * map_.row_stride + x * map_.col_stride);
    }
  }

  void store_plane(const SplitGrid& grid, const GridStretch& at, const float* line, T* out) const {
    for_rows(grid, at, [&](int64_t q, int64_t run, int64_t offset) {
      T* to = out + offset;
      if (map_.col_stride != 1) {
        for (int64_t v = 0; v < run; ++v) to[v * map_.col_stride] = static_cast<T>(line[q + v]);
        return;
      }
      int64_t v = 0;
      for (; v + V::kWidth <= run; v += V::kWidth) V::load(line + q + v).store(to + v);
      if (v < run) {
        const int n = static_cast<int>(run - v);
        V::load(line + q + v, n).store(to + v, n);
      }
    });
  }

  void store_pixels(const SplitGrid& grid, const GridStretch& at, int channels, T* out) const {
    for_rows(grid, at, [&](int64_t q, int64_t run, int64_t offset) {
      for (int64_t v = 0; v < run; v += V::kWidth) {
        V block[V::kWidth];
        for (int k = 0; k < V::kWidth; ++k) block[k] = V::load(&lines_[k * line_stride_ + q + v]);
        transpose(block);
        T* to = out + offset + v * map_.col_stride;
        const int n = static_cast<int>(std::min<int64_t>(V::kWidth, run - v));
        for (int k = 0; k < n; ++k, to += map_.col_stride) {
          channels == V::kWidth ? block[k].store(to) : block[k].store(to, channels);
        }
      }
    });
  }

  const Correlation<T>& c_;
  const PositionMap map_;
  const int64_t line_stride_;
  Scratch<float> lines_;  // 16 channels of a stretch
};

template <int kParts, bool kMasked, class T>
class SplitCorrelation {
  using Engine = AmxEngine<kParts>;

 public:
  explicit SplitCorrelation(const Correlation<T>& c)
      : c_(c),
        taps_(c.images.taps()),
        row_panels_(ceil_div(c.channels, kPanel)),
        steps_(ceil_div(taps_, Engine::kDepthStep)),
        block_steps_(ceil_div(steps_, ceil_div(steps_, kMaxSteps))),
        bands_(cut_rows(c.images.y.positions, c.batch, kPartsBytes,
                        [this](int64_t rows) { return band_bytes(rows); })),
        units_(c.batch * bands_.count),
        units_per_task_(units_of_task()),
        weight_(row_panels_ * steps_ * Engine::kStepElements) {}

  // False when bfloat16 parts cannot hold the weights: nothing is done then.
  bool pack_weight() {
    const StridedOperand<T> weight{c_.weight, c_.channels, taps_, 1};
    bool faithful[kMaxThreads] = {};
    const int64_t length = ceil_div(row_panels_, std::min<int64_t>(kMaxThreads, num_threads()));
    const int64_t slices = ceil_div(row_panels_, length);
    parallel_for(0, slices, 4, [&](int64_t begin, int64_t end) {
      Engine engine;
      for (int64_t slice = begin; slice < end; ++slice) {
        bool all = true;
        const int64_t last = std::min(row_panels_, (slice + 1) * length);
        for (int64_t i = slice * length; i < last; ++i) {
          all &= engine.pack_a(weight, i * kPanel, 0, taps_, weight_panel(i, 0));
        }
        faithful[slice] = all;
      }
    });
    return std::all_of(faithful, faithful + slices, [](bool f) { return f; });
  }

  // other(n, row, rows) does the bands that bfloat16 parts cannot hold.
  template <class Other>
  void run(const Other& other) {
    const int64_t tasks = ceil_div(units_, units_per_task_);
    parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      Worker worker(*this);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task * units_per_task_;
        const int64_t last = std::min(units_, first + units_per_task_);
        worker.run(first, last, other);
      }
    });
  }

 private:
  // An eighth more than the engine's own, which a 3×3 kernel of 32 channels takes in one block.
  static constexpr int64_t kMaxSteps = Engine::kMaxDepth * 9 / 8 / Engine::kDepthStep;
  static constexpr int64_t kPanel = 32, kTileSums = kPanel * kPanel, kMaxThreads = 64;
  // Of 2 MiB: half for the parts of a task's images, the rest for sums, weights and a panel of B.
  static constexpr int64_t kPartsBytes = 512 << 10, kSumsBytes = 384 << 10, kTaskPanels = 18;

  int64_t band_bytes(int64_t rows) const {
    return band_grid(c_.images, rows).part_elements(c_.images.channels) * kParts * 2;
  }

  int64_t units_of_task() const {
    const int64_t panels = band_grid(c_.images, bands_.rows).panels();
    const int64_t fitting =
        std::max<int64_t>(1, std::min(kTaskPanels / panels, kPartsBytes / band_bytes(bands_.rows)));
    return std::min(fitting, ceil_div(units_, int64_t{num_threads()}));
  }

  int rows_of_panel(int64_t panel) const {
    return static_cast<int>(std::min(kPanel, c_.channels - panel * kPanel));
  }
  uint16_t* weight_panel(int64_t panel, int64_t step) const {
    return weight_.get() + (panel * steps_ + step) * Engine::kStepElements;
  }

  // What a thread needs for its tasks.
  class Worker {
   public:
    explicit Worker(const SplitCorrelation& job)
        : job_(job),
          grid_(band_grid(job.c_.images, job.bands_.rows)),
          part_(grid_.part_elements(job.c_.images.channels)),
          max_panels_(job.units_per_task_ * grid_.panels()),
          range_panels_(std::clamp<int64_t>(
              kSumsBytes / (std::min(job.row_panels_, Engine::kMaxRowPanels) * 4 * kTileSums), 1,
              max_panels_)),
          offsets_(job.taps_),
          parts_(job.units_per_task_ * kParts * part_),
          b_panel_(job.block_steps_ * Engine::kStepElements),
          sums_(std::min(job.row_panels_, Engine::kMaxRowPanels) * range_panels_ * kTileSums),
          sink_(job.c_, range_panels_) {
      set_rows(job.bands_.rows);
    }

    template <class Other>
    void run(int64_t first, int64_t last, const Other& other) {
      // Bands of unequal height have grids of their own.
      for (int64_t unit = first; unit < last;) {
        int64_t end = unit + 1;
        while (end < last && rows_of(end) == rows_of(unit)) ++end;
        run_equal(unit, end, other);
        unit = end;
      }
    }

   private:
    void set_rows(int64_t rows) {
      grid_ = band_grid(job_.c_.images, rows);
      part_ = grid_.part_elements(job_.c_.images.channels);
      tap_offsets(job_.c_.images, grid_, job_.c_.channels_last, offsets_.get());
    }
    int64_t row_of(int64_t unit) const { return unit % job_.bands_.count * job_.bands_.rows; }
    int64_t rows_of(int64_t unit) const {
      return std::min(job_.bands_.rows, job_.c_.images.y.positions - row_of(unit));
    }

    template <class Other>
    void run_equal(int64_t first, int64_t last, const Other& other) {
      if (rows_of(first) != grid_.y.axis.positions) set_rows(rows_of(first));
      bool regular = true;
      for (int64_t unit = first; unit < last; ++unit) {
        const Images<T> band = row_band(job_.c_.images, row_of(unit), rows_of(unit));
        const Magnitude magnitude =
            split_image<kParts, kMasked>(band, job_.c_.channels_last, unit / job_.bands_.count,
                                         parts_.get() + (unit - first) * kParts * part_);
        regular &= kUnsplit<kParts, T> || magnitude.regular();
      }
      if (!regular && last - first > 1) {  // one image's numbers do not decide for the others
        for (int64_t unit = first; unit < last; ++unit) run_equal(unit, unit + 1, other);
        return;
      }
      if (!regular) {
        other(first / job_.bands_.count, row_of(first), rows_of(first));
        return Engine::configure();
      }
      const int64_t panels = (last - first) * grid_.panels();
      for (int64_t i = 0; i < job_.row_panels_; i += Engine::kMaxRowPanels) {
        for (int64_t j = 0; j < panels; j += range_panels_) {
          multiply(first, i, std::min(job_.row_panels_, i + Engine::kMaxRowPanels), j,
                   std::min(panels, j + range_panels_));
        }
      }
    }

    // Row panels [i0, i1) times position panels [j0, j1), over the whole depth.
    void multiply(int64_t first, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
      for (int64_t step = 0; step < job_.steps_; step += job_.block_steps_) {
        const int64_t count = std::min(job_.block_steps_, job_.steps_ - step);
        for (int64_t j = j0; j < j1; ++j) {
          const int64_t unit = j / grid_.panels(), p = j % grid_.panels() * kGridStep;
          pack_pairs(parts_.get() + unit * kParts * part_ + p, step, count);
          for (int64_t i = i0; i < i1; ++i) {
            engine_.multiply(job_.rows_of_panel(i), kPanel, count * Engine::kDepthStep,
                             job_.weight_panel(i, step), b_panel_.get(),
                             sums_.get() + ((i - i0) * range_panels_ + j - j0) * kTileSums, kPanel,
                             step > 0);
          }
        }
      }
      // In stretches of one unit, so that a channel's positions are written in one go.
      for (int64_t j = j0; j < j1;) {
        const int64_t unit = first + j / grid_.panels(), p = j % grid_.panels();
        const int64_t panels = std::min(j1 - j, grid_.panels() - p);
        const GridStretch at{unit / job_.bands_.count, row_of(unit), p * kGridStep, panels};
        for (int64_t i = i0; i < i1; ++i) {
          sink_(grid_, at, i * kPanel, job_.rows_of_panel(i),
                sums_.get() + ((i - i0) * range_panels_ + j - j0) * kTileSums);
        }
        j += panels;
      }
    }

    // Pairs of taps of 32 positions from `image` on, as the unit wants them.
    void pack_pairs(const uint16_t* image, int64_t step, int64_t count) {
      alignas(64) static constexpr uint16_t kZeros[32] = {};
      uint16_t* panel = b_panel_.get();
      for (int64_t t = step * 32; t < (step + count) * 32; t += 2) {
        const uint16_t* low = t < job_.taps_ ? image + offsets_[t] : kZeros;
        const uint16_t* high = t + 1 < job_.taps_ ? image + offsets_[t + 1] : kZeros;
        const int64_t low_part = t < job_.taps_ ? part_ : 0;
        const int64_t high_part = t + 1 < job_.taps_ ? part_ : 0;
        uint16_t* out = panel + (t / 32 - step) * Engine::kStepElements + t % 32 / 2 * 32;
        for (int part = 0; part < kParts; ++part, out += Engine::kPartElements) {
          const __m512i a = _mm512_loadu_si512(low + part * low_part);
          const __m512i b = _mm512_loadu_si512(high + part * high_part);
          _mm512_store_si512(out, _mm512_unpacklo_epi16(a, b));
          _mm512_store_si512(out + kTileElements, _mm512_unpackhi_epi16(a, b));
        }
      }
    }

    const SplitCorrelation& job_;
    Engine engine_;
    SplitGrid grid_;
    int64_t part_, max_panels_, range_panels_;
    Scratch<int64_t> offsets_;
    Scratch<uint16_t> parts_, b_panel_;
    Scratch<float> sums_;
    const GridSink<T> sink_;
  };

  const Correlation<T>& c_;
  const int64_t taps_, row_panels_, steps_, block_steps_;
  const RowBands bands_;
  const int64_t units_, units_per_task_;
  const Scratch<uint16_t> weight_;
};

// Break-even against the panels of correlate_patches on Sapphire Rapids, November 2026: a pair of
// taps packed for few channels has few products; float32 must be split anyway, and gains where many
// taps meet an element, unless a grid of small images is mostly padding.
template <class T>
bool split_pays(const Correlation<T>& c, int parts) {
  if (c.images.taps() < 16) return false;
  if (c.channels < (parts == 1 || c.channels_last ? 2 : 8)) return false;
  return parts == 1 || splitting_pays(c.images);
}

// Whether it was done; `other` as in SplitCorrelation::run.
template <int kParts, bool kMasked, class T, class Other>
bool correlate_split(const Correlation<T>& c, const Other& other) {
  SplitCorrelation<kParts, kMasked, T> job(c);
  if (!job.pack_weight()) return false;
  job.run(other);
  return true;
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
