// Correlation by tiles of bfloat16: the weights are packed once per call and an image is written to
// a grid once, where a panel of 32 positions meets a tap at one offset.
//
// Among pixels of bfloat16 (pixel_image_bf16.h) such a panel is a tile of A as it lies, in planes
// of channel pairs (paired_image_bf16.h) one of B; of few channels without a matrix unit, rows of
// planes have pairs of taps (tap_image_bf16.h). In planes of parts (split_image_bf16.h), which
// any image has, it is packed by interleaving pairs of taps: two loads, two shuffles and two stores
// for 64 products' worth of operand.
//
// A task is a band of rows of one image, or a few small images: its parts, the panels of B for a
// block of the depth and the sums of a range of positions share a 2 MiB L2 with the weights. Where
// these are larger than the images, each thread has a range of the output channels instead, and all
// images: it reads the weights that it packed itself, and none from another core's cache.
#pragma once

#include "conv2d/paired_image_bf16.h"
#include "conv2d/pixel_image_bf16.h"
#include "conv2d/plane_image_bf16.h"
#include "conv2d/split_planes_bf16.h"
#include "conv2d/tap_image_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

// The driver: Planes say how images are written, their Products how they are multiplied.
template <class Planes, class T>
class GridCorrelation {
  using Engine = typename Planes::Engine;

 public:
  explicit GridCorrelation(const Correlation<T>& c)
      : c_(c),
        map_(grid_map(c)),
        row_panels_(ceil_div(c.channels, kPanel)),
        steps_(Planes::steps(c.images)),
        ranges_{c.channels, kPanel, count_ranges()},
        bands_(cut_rows(
            c.images.y.positions, c.batch, kPartsBytes,
            [this](int64_t rows) { return band_bytes(rows); }, threads_of_a_range())),
        tasks_(cut_units()),
        weight_(row_panels_ * panel_elements()) {}

  // False when bfloat16 parts cannot hold the weights: nothing is done then.
  bool pack_weight() {
    Scratch<bool> faithful(row_panels_);
    const typename Planes::Weight weight(c_);  // in order before the threads ask for it
    parallel_for(0, row_panels_, 4, [&](int64_t begin, int64_t end) {
      Engine engine;
      for (int64_t i = begin; i < end; ++i) {
        faithful[i] = weight.pack(engine, i * kPanel, weight_.get() + i * panel_elements());
      }
    });
    return std::all_of(faithful.get(), faithful.get() + row_panels_, [](bool f) { return f; });
  }

  // other(n, row, rows) does the bands that bfloat16 parts cannot hold.
  template <class Other>
  void run(const Other& other) {
    parallel_for(0, ranges_.count * tasks_.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end;) {
        const int64_t range = task / tasks_.count, first = range * tasks_.count;
        Worker worker(*this, range);
        for (; task < std::min(end, first + tasks_.count); ++task) {
          worker.run(tasks_.begin(task - first), tasks_.end(task - first), other);
        }
      }
    });
  }

 private:
  static constexpr int64_t kPanel = 32;
  // Of 2 MiB: half for the parts of a task's images, the rest for sums, weights and a panel of B.
  static constexpr int64_t kPartsBytes = 512 << 10, kTaskPanels = 18;

  int64_t band_bytes(int64_t rows) const {
    return Planes::elements(band_grid(c_.images, rows), c_.images.channels) * 2;
  }

  int64_t panel_elements() const { return steps_ * Engine::kStepElements; }

  // Of output channels, equal ones or of many panels.
  int64_t count_ranges() const {
    constexpr int64_t kManyPanels = 8;
    const int64_t threads = num_threads(), images = c_.batch * band_bytes(c_.images.y.positions);
    const bool even = row_panels_ % threads == 0 || row_panels_ >= kManyPanels * threads;
    return even && row_panels_ * panel_elements() * 2 > images ? threads : 1;
  }
  int64_t threads_of_a_range() const { return ranges_.count > 1 ? 1 : num_threads(); }

  // As many for each thread, about, of units that fit.
  Cuts cut_units() const {
    const int64_t panels = band_grid(c_.images, bands_.rows).panels();
    const int64_t fitting =
        std::max<int64_t>(1, std::min(kTaskPanels / panels, kPartsBytes / band_bytes(bands_.rows)));
    const int64_t units = c_.batch * bands_.count;
    Cuts tasks{units, 1, ceil_div(units, fitting)};
    tasks.share_among(threads_of_a_range());
    return tasks;
  }

  // The results of a range of channels.
  Correlation<T> of_range(int64_t range) const {
    Correlation<T> some = c_;
    const int64_t first = ranges_.begin(range);
    some.channels = ranges_.end(range) - first;
    some.result += first * (c_.channels_last ? 1 : c_.channel_stride);
    if (some.epilogue.bias != nullptr) some.epilogue.bias += first;
    return some;
  }

  // What a thread needs for tasks of one range.
  class Worker {
   public:
    Worker(const GridCorrelation& job, int64_t range)
        : job_(job),
          range_(range),
          c_(job.of_range(range)),
          grid_(band_grid(c_.images, job.bands_.rows)),
          planes_(c_, grid_, job.tasks_.longest()),
          products_(c_, ceil_div(c_.channels, kPanel), job.steps_,
                    job.tasks_.longest() * grid_.panels()) {
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
      grid_ = band_grid(c_.images, rows);
      planes_.set_grid(grid_);
      products_.set_grid(grid_);
    }
    // Of row `row` of image n.
    T* result(int64_t n, int64_t row) const {
      return c_.result + n * job_.map_.image_stride + row * job_.map_.row_stride;
    }
    int64_t row_of(int64_t unit) const { return unit % job_.bands_.count * job_.bands_.rows; }
    int64_t rows_of(int64_t unit) const {
      return std::min(job_.bands_.rows, c_.images.y.positions - row_of(unit));
    }

    template <class Other>
    void run_equal(int64_t first, int64_t last, const Other& other) {
      if (rows_of(first) != grid_.y.axis.positions) set_rows(rows_of(first));
      bool regular = true;
      for (int64_t unit = first; unit < last; ++unit) {
        const Images<T> band = row_band(c_.images, row_of(unit), rows_of(unit));
        regular &= planes_.write(band, unit / job_.bands_.count, unit - first);
      }
      if (!regular && last - first > 1) {  // one image's numbers do not decide for the others
        for (int64_t unit = first; unit < last; ++unit) run_equal(unit, unit + 1, other);
        return;
      }
      if (!regular) {
        if (range_ > 0) return;  // the other kernel does all channels
        other(first / job_.bands_.count, row_of(first), rows_of(first));
        return configure_tiles();  // its engine released them
      }
      const int64_t panel = job_.ranges_.begin(range_) / kPanel;
      products_.run(planes_, job_.weight_.get() + panel * job_.panel_elements(), last - first,
                    [&](int64_t unit) {
                      const int64_t at = first + unit;
                      return result(at / job_.bands_.count, row_of(at));
                    });
    }

    const GridCorrelation& job_;
    const int64_t range_;
    const Correlation<T> c_;
    PaddedGrid grid_;
    Planes planes_;
    typename Planes::Products products_;
  };

  const Correlation<T>& c_;
  const PositionMap map_;
  const int64_t row_panels_, steps_;
  const Cuts ranges_;
  const RowBands bands_;
  const Cuts tasks_;
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
    if (suits_pixels(c)) {
      if (suits_bare_pixels<kMasked>(c)) return correlate_planes<BarePixels>(in_panels(c), other);
      if (c.channels_last) return correlate_planes<PixelPlanes<false, kMasked>>(c, other);
      return correlate_planes<PixelPlanes<true, kMasked>>(c, other);
    }
    if (c.channels_last) return false;
    if constexpr (!kMatrixUnit) {
      if (suits_bare_planes<kMasked>(c)) return correlate_planes<BarePlanes>(in_panels(c), other);
      if (suits_taps<kMasked>(c)) {
        return c.images.x.stride == 1 ? correlate_planes<TapPlanes<1>>(c, other)
                                      : correlate_planes<TapPlanes<2>>(c, other);
      }
    }
    if (suits_pairs(c)) return correlate_planes<PairedPlanes<kMasked>>(c, other);
  }
  return correlate_planes<SplitPlanes<kParts, kMasked, T>>(c, other);
}

}  // namespace pyops::PYOPS_ISA_NAMESPACE
