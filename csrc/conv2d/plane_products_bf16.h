// Products of packed weights with images in planes: the rows of a tile are output channels, its
// columns positions of a grid (split_image_bf16.h).
#pragma once

#include "conv2d/grid_sink_bf16.h"

namespace pyops::PYOPS_ISA_NAMESPACE {

template <class Planes, class T>
class PlaneProducts {
  using Engine = typename Planes::Engine;

 public:
  // For up to `panels` panels of positions, weights of `row_panels` panels of `steps` steps.
  PlaneProducts(const Correlation<T>& c, int64_t row_panels, int64_t steps, int64_t panels)
      : c_(c),
        row_panels_(row_panels),
        steps_(steps),
        block_steps_(ceil_div(steps, ceil_div(steps, Planes::kMaxSteps))),
        range_panels_(std::clamp<int64_t>(
            kSumsBytes / (std::min(row_panels, kMaxRowPanels) * 4 * kTileSums), 1, panels)),
        grid_(c.images.y, c.images.x),
        panel_(block_steps_ * Engine::kStepElements),
        sums_(std::min(row_panels, kMaxRowPanels) * range_panels_ * kTileSums),
        sink_(c, range_panels_) {}

  void set_grid(const PaddedGrid& grid) { grid_ = grid; }

  // Images [0, units) of `planes`; unit u's first position lies at result(u).
  template <class Result>
  void run(const Planes& planes, const uint16_t* weight, int64_t units, const Result& result) {
    const int64_t panels = units * grid_.panels();
    for (int64_t i = 0; i < row_panels_; i += kMaxRowPanels) {
      const int64_t end = std::min(row_panels_, i + kMaxRowPanels);
      for (int64_t j = 0; j < panels; j += range_panels_) {
        const Range range{i, end, j, std::min(panels, j + range_panels_)};
        for (int64_t step = 0; step < steps_; step += block_steps_) {
          multiply(planes, weight, range, step);
        }
        store(range, result);
      }
    }
  }

 private:
  static constexpr int64_t kPanel = 32, kTileSums = kPanel * kPanel;
  // Panels of weights that share L2 with the sums of their products.
  static constexpr int64_t kMaxRowPanels = 8, kSumsBytes = 384 << 10;

  // Panels [i0, i1) of the weights and [j0, j1) of the positions.
  struct Range {
    int64_t i0, i1, j0, j1;
  };

  int rows_of_panel(int64_t panel) const {
    return static_cast<int>(std::min(kPanel, c_.channels - panel * kPanel));
  }
  float* sums(const Range& range, int64_t i, int64_t j) const {
    return sums_.get() + ((i - range.i0) * range_panels_ + j - range.j0) * kTileSums;
  }

  // A block of the depth from `step` on.
  void multiply(const Planes& planes, const uint16_t* weight, const Range& range, int64_t step) {
    const int64_t count = std::min(block_steps_, steps_ - step);
    for (int64_t j = range.j0; j < range.j1; ++j) {
      const auto b = planes.tiles(j / grid_.panels(), j % grid_.panels() * kGridStep, step, count,
                                  panel_.get());
      for (int64_t i = range.i0; i < range.i1; ++i) {
        engine_.multiply(rows_of_panel(i), kPanel, count * Engine::kDepthStep,
                         weight + (i * steps_ + step) * Engine::kStepElements, b.data,
                         sums(range, i, j), kPanel, step > 0);
      }
    }
  }

  // In stretches of one unit, so that a channel's positions are written in one go.
  template <class Result>
  void store(const Range& range, const Result& result) const {
    for (int64_t j = range.j0; j < range.j1;) {
      const int64_t p = j % grid_.panels(), panels = std::min(range.j1 - j, grid_.panels() - p);
      const GridStretch at(grid_.flat(), p * kGridStep, panels * kGridStep);
      for (int64_t i = range.i0; i < range.i1; ++i) {
        sink_(grid_.flat(), at, i * kPanel, rows_of_panel(i), sums(range, i, j),
              result(j / grid_.panels()));
      }
      j += panels;
    }
  }

  const Correlation<T>& c_;
  const int64_t row_panels_, steps_, block_steps_, range_panels_;
  Engine engine_;
  PaddedGrid grid_;
  Scratch<uint16_t> panel_;
  Scratch<float> sums_;
  const TileSink<T> sink_;
};

}  // namespace pyops::PYOPS_ISA_NAMESPACE
