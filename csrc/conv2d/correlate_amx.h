// Correlation on AMX tiles: the weights are packed once per call and an image is written to a grid
// once, where a panel of 32 positions meets a tap at one offset.
//
// In planes of channel pairs (paired_image_amx.h) such a panel is a tile as it lies. In planes of
// parts (split_image_amx.h), which any image has, it is packed by interleaving pairs of taps: two
// loads, two shuffles and two stores for 64 products' worth of operand.
//
// A task is a band of rows of one image, or a few small images: its parts, the panels of B for a
// block of the depth and the sums of a range of positions share a 2 MiB L2 with the weights.
#pragma once

#include "conv2d/grid_sink_amx.h"
#include "conv2d/paired_image_amx.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// The images of a thread's tasks as parts on a grid (split_image_amx.h), for any axes and channels.
template <int kParts, bool kMasked, class T>
class SplitPlanes {
 public:
  using Engine = AmxEngine<kParts>;
  static constexpr bool kPacks = true;  // a panel, which leaves its columns out of order
  // An eighth more than the engine's own, which a 3×3 kernel of 32 channels takes in one block.
  static constexpr int64_t kMaxSteps = Engine::kMaxDepth * 9 / 8 / Engine::kDepthStep;

  static int64_t elements(const SplitGrid& grid, int64_t channels) {
    return grid.part_elements(channels) * kParts;
  }

  // For bands on grids up to `grid`, `units` at a time, panels of up to `steps` steps.
  SplitPlanes(const Correlation<T>& c, const SplitGrid& grid, int64_t units, int64_t steps)
      : c_(c),
        taps_(c.images.taps()),
        offsets_(taps_),
        parts_(units * elements(grid, c.images.channels)),
        panel_(steps * Engine::kStepElements) {}

  static bool pack_weight(Engine& engine, const Correlation<T>& c, int64_t channel, uint16_t* out) {
    const int64_t taps = c.images.taps();
    const StridedOperand<T> weight{c.weight, c.channels, taps, 1};
    return engine.pack_a(weight, channel, 0, taps, out);
  }

  void set_grid(const SplitGrid& grid) {
    part_ = grid.part_elements(c_.images.channels);
    tap_offsets(c_.images, grid, c_.channels_last, offsets_.get());
  }

  // Image n of `band` as the unit-th one; whether the parts hold its numbers.
  bool write(const Images<T>& band, int64_t n, int64_t unit) {
    const Magnitude magnitude =
        split_image<kParts, kMasked>(band, c_.channels_last, n, parts(unit));
    return kUnsplit<kParts, T> || magnitude.regular();
  }

  // The panel of 32 positions from p on: pairs of taps, as the unit wants them.
  PackedTiles<kParts> tiles(int64_t unit, int64_t p, int64_t step, int64_t count) {
    alignas(64) static constexpr uint16_t kZeros[32] = {};
    const uint16_t* image = parts(unit) + p;
    for (int64_t t = step * 32; t < (step + count) * 32; t += 2) {
      const uint16_t* low = t < taps_ ? image + offsets_[t] : kZeros;
      const uint16_t* high = t + 1 < taps_ ? image + offsets_[t + 1] : kZeros;
      const int64_t low_part = t < taps_ ? part_ : 0;
      const int64_t high_part = t + 1 < taps_ ? part_ : 0;
      uint16_t* out = panel_.get() + (t / 32 - step) * Engine::kStepElements + t % 32 / 2 * 32;
      for (int part = 0; part < kParts; ++part, out += Engine::kPartElements) {
        const __m512i a = _mm512_loadu_si512(low + part * low_part);
        const __m512i b = _mm512_loadu_si512(high + part * high_part);
        _mm512_store_si512(out, _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(out + kTileElements, _mm512_unpackhi_epi16(a, b));
      }
    }
    return {panel_.get()};
  }

 private:
  uint16_t* parts(int64_t unit) const { return parts_.get() + unit * kParts * part_; }

  const Correlation<T>& c_;
  const int64_t taps_;
  int64_t part_ = 0;
  Scratch<int64_t> offsets_;
  Scratch<uint16_t> parts_, panel_;
};

// The products, whose right operand is Planes.
template <class Planes, class T>
class GridCorrelation {
  using Engine = typename Planes::Engine;

 public:
  explicit GridCorrelation(const Correlation<T>& c)
      : c_(c),
        row_panels_(ceil_div(c.channels, kPanel)),
        steps_(ceil_div(c.images.taps(), Engine::kDepthStep)),
        block_steps_(ceil_div(steps_, ceil_div(steps_, kMaxSteps))),
        bands_(cut_rows(c.images.y.positions, c.batch, kPartsBytes,
                        [this](int64_t rows) { return band_bytes(rows); })),
        units_(c.batch * bands_.count),
        units_per_task_(units_of_task()),
        weight_(row_panels_ * steps_ * Engine::kStepElements) {}

  // False when bfloat16 parts cannot hold the weights: nothing is done then.
  bool pack_weight() {
    bool faithful[kMaxThreads] = {};
    const int64_t length = ceil_div(row_panels_, std::min<int64_t>(kMaxThreads, num_threads()));
    const int64_t slices = ceil_div(row_panels_, length);
    parallel_for(0, slices, 4, [&](int64_t begin, int64_t end) {
      Engine engine;
      for (int64_t slice = begin; slice < end; ++slice) {
        bool all = true;
        const int64_t last = std::min(row_panels_, (slice + 1) * length);
        for (int64_t i = slice * length; i < last; ++i) {
          all &= Planes::pack_weight(engine, c_, i * kPanel, weight_panel(i, 0));
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
  static constexpr int64_t kMaxSteps = Planes::kMaxSteps;
  static constexpr int64_t kPanel = 32, kTileSums = kPanel * kPanel, kMaxThreads = 64;
  // Of 2 MiB: half for the parts of a task's images, the rest for sums, weights and a panel of B.
  static constexpr int64_t kPartsBytes = 512 << 10, kSumsBytes = 384 << 10, kTaskPanels = 18;

  int64_t band_bytes(int64_t rows) const {
    return Planes::elements(band_grid(c_.images, rows), c_.images.channels) * 2;
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
    explicit Worker(const GridCorrelation& job)
        : job_(job),
          grid_(band_grid(job.c_.images, job.bands_.rows)),
          max_panels_(job.units_per_task_ * grid_.panels()),
          range_panels_(std::clamp<int64_t>(
              kSumsBytes / (std::min(job.row_panels_, Engine::kMaxRowPanels) * 4 * kTileSums), 1,
              max_panels_)),
          planes_(job.c_, grid_, job.units_per_task_, job.block_steps_),
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
      planes_.set_grid(grid_);
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
        regular &= planes_.write(band, unit / job_.bands_.count, unit - first);
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
        const auto product = [&](int64_t i, int64_t j, const auto& b) {
          engine_.multiply(
              job_.rows_of_panel(i), kPanel, count * Engine::kDepthStep, job_.weight_panel(i, step),
              b, sums_.get() + ((i - i0) * range_panels_ + j - j0) * kTileSums, kPanel, step > 0);
        };
        const auto tiles = [&](int64_t j) {
          return planes_.tiles(j / grid_.panels(), j % grid_.panels() * kGridStep, step, count);
        };
        if (Planes::kPacks) {
          for (int64_t j = j0; j < j1; ++j) {
            const auto b = tiles(j);
            for (int64_t i = i0; i < i1; ++i) product(i, j, b);
          }
        } else {
          for (int64_t i = i0; i < i1; ++i) {
            for (int64_t j = j0; j < j1; ++j) product(i, j, tiles(j));
          }
        }
      }
      // In stretches of one unit, so that a channel's positions are written in one go.
      for (int64_t j = j0; j < j1;) {
        const int64_t unit = first + j / grid_.panels(), p = j % grid_.panels();
        const int64_t panels = std::min(j1 - j, grid_.panels() - p);
        const GridStretch at{unit / job_.bands_.count, row_of(unit), p * kGridStep,
                             panels * kGridStep};
        for (int64_t i = i0; i < i1; ++i) {
          sink_(grid_, at, i * kPanel, job_.rows_of_panel(i),
                sums_.get() + ((i - i0) * range_panels_ + j - j0) * kTileSums);
        }
        j += panels;
      }
    }

    const GridCorrelation& job_;
    Engine engine_;
    SplitGrid grid_;
    int64_t max_panels_, range_panels_;
    Planes planes_;
    Scratch<float> sums_;
    const TileSink<!Planes::kPacks, T> sink_;
  };

  const Correlation<T>& c_;
  const int64_t row_panels_, steps_, block_steps_;
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

// Whether it was done; other(n, row, rows) does the bands that bfloat16 parts cannot hold.
template <class Planes, class T, class Other>
bool correlate_planes(const Correlation<T>& c, const Other& other) {
  GridCorrelation<Planes, T> job(c);
  if (!job.pack_weight()) return false;
  job.run(other);
  return true;
}

template <int kParts, bool kMasked, class T, class Other>
bool correlate_split(const Correlation<T>& c, const Other& other) {
  if constexpr (kUnsplit<kParts, T>) {
    if (suits_pairs(c)) return correlate_planes<PairedPlanes<kMasked>>(c, other);
  }
  return correlate_planes<SplitPlanes<kParts, kMasked, T>>(c, other);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
