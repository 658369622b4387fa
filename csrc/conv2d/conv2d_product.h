// Convolutions as products of matrices that are never stored: the three products, element by
// element, a group at a time. Bias and ReLU belong to the store of the forward, the ReLU's mask to
// the load of the gradient.
//
// An operand has lines, which a thread of a block looks up once a tile, and depths, which it looks
// up once a panel; what both name is at(line, depth).
#pragma once

#include "conv2d/conv2d_element.h"
#include "gemm/block_product.h"

namespace pyops {

// Of an image: an element whose coordinates are in two parts, of a position and of a tap.
struct ImagePart {
  int64_t offset, y, x;
};

// x as the taps of positions see it. Taps are counted as the weight lies in memory.
template <class T>
struct TapsOfInput {
  const void* data;
  Conv2dShape s;
  ConvAxis h = axis_h(s), w = axis_w(s);
  ImageStrides strides = input_strides(s);
  int64_t first_channel;

  PYOPS_HOST_DEVICE TapsOfInput(const void* x, const Conv2dShape& shape, int64_t group)
      : data(x), s(shape), first_channel(group * shape.group_c()) {}

  PYOPS_HOST_DEVICE ImagePart position(int64_t i) const {
    const int64_t row = i / s.ow;
    return at_output(row / s.oh, row % s.oh, i % s.ow);
  }
  PYOPS_HOST_DEVICE ImagePart at_output(int64_t n, int64_t oy, int64_t ox) const {
    return {n * strides.n + first_channel * strides.c, h.start(oy), w.start(ox)};
  }
  PYOPS_HOST_DEVICE ImagePart tap(int64_t q) const {
    const int64_t taps = s.kh * s.kw;
    const int64_t c = s.channels_last ? q % s.group_c() : q / taps;
    const int64_t k = s.channels_last ? q / s.group_c() : q % taps;
    return {c * strides.c, k / s.kw * s.dilation_h, k % s.kw * s.dilation_w};
  }
  PYOPS_HOST_DEVICE acc_t<T> operator()(const ImagePart& position, const ImagePart& tap) const {
    const int64_t y = position.y + tap.y, x = position.x + tap.x;
    if (y < 0 || y >= s.h || x < 0 || x >= s.w) return 0;
    return value_at<T>(data, position.offset + tap.offset + y * strides.y + x * strides.x);
  }
};

// Rows of the forward: positions.
template <class T, bool kLast>
struct ForwardInput {
  using Line = ImagePart;
  using Depth = ImagePart;
  static constexpr bool along_q = kLast;

  TapsOfInput<T> x;

  PYOPS_HOST_DEVICE Line line(int64_t i) const { return x.position(i); }
  PYOPS_HOST_DEVICE Depth depth(int64_t q) const { return x.tap(q); }
  PYOPS_HOST_DEVICE acc_t<T> at(const Line& line, const Depth& depth) const {
    return x(line, depth);
  }
};

// A group's output channels, each a line of its weight.
template <class T>
struct ForwardWeight {
  using Line = int64_t;
  using Depth = int64_t;
  static constexpr bool along_q = true;

  const void* weight;
  int64_t first, length;  // output channel, and elements of each

  PYOPS_HOST_DEVICE Line line(int64_t j) const { return (first + j) * length; }
  PYOPS_HOST_DEVICE Depth depth(int64_t q) const { return q; }
  PYOPS_HOST_DEVICE acc_t<T> at(Line line, Depth depth) const {
    return value_at<T>(weight, line + depth);
  }
};

template <class T, bool kLast>
struct ForwardProduct {
  using Acc = acc_t<T>;

  const Conv2dParams& p;
  int64_t group;
  int64_t rows = p.n * p.oh * p.ow, columns = p.group_o(), depth = p.group_c() * p.kh * p.kw;
  ForwardInput<T, kLast> a{{p.x, p, group}};
  ForwardWeight<T> b{p.weight, group * p.group_o(), depth};

  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const {
    const int64_t area = p.oh * p.ow, o = group * p.group_o() + j;
    const int64_t at = kLast ? i * p.o + o : (i / area * p.o + o) * area + i % area;
    static_cast<T*>(p.y)[at] = finished<T>(p, o, sum);
  }
};

// The inputs of one phase on both axes, and the taps of the weight that reach them.
struct GradientPhases {
  ConvPhase y, x;

  PYOPS_HOST_DEVICE GradientPhases(const Conv2dShape& s, int64_t phase)
      : y(axis_h(s), phase / axis_w(s).phases()), x(axis_w(s), phase % axis_w(s).phases()) {}
  PYOPS_HOST_DEVICE int64_t inputs() const { return y.inputs * x.inputs; }
  PYOPS_HOST_DEVICE int64_t taps() const { return y.taps * x.taps; }
};

// A depth of grad_x: an output channel of the group and a tap of the phase, neighbours as grad_y
// has them.
struct ChannelAndTap {
  int64_t o, y, x;

  PYOPS_HOST_DEVICE ChannelAndTap(const Conv2dShape& s, const GradientPhases& phases, int64_t q) {
    const int64_t outputs = s.group_o(), taps = phases.taps();
    const int64_t k = s.channels_last ? q / outputs : q % taps;
    o = s.channels_last ? q % outputs : q / taps;
    y = k / phases.x.taps;
    x = k % phases.x.taps;
  }
};

template <class T, bool kLast>
struct GradientOfOutput {
  using Line = ImagePart;
  using Depth = ImagePart;
  static constexpr bool along_q = kLast;

  const Conv2dBackwardParams& p;
  GradientPhases phases;
  int64_t first_channel;
  ImageStrides strides = output_strides(p);

  PYOPS_HOST_DEVICE Line line(int64_t i) const {
    const int64_t row = i / phases.x.inputs;
    return {row / phases.y.inputs * strides.n + first_channel * strides.c,
            phases.y.origin + row % phases.y.inputs, phases.x.origin + i % phases.x.inputs};
  }
  PYOPS_HOST_DEVICE Depth depth(int64_t q) const {
    const ChannelAndTap d(p, phases, q);
    return {d.o * strides.c, d.y * phases.y.hop, d.x * phases.x.hop};
  }
  PYOPS_HOST_DEVICE acc_t<T> at(const Line& line, const Depth& depth) const {
    const int64_t y = line.y - depth.y, x = line.x - depth.x;
    if (y < 0 || y >= p.oh || x < 0 || x >= p.ow) return 0;
    return masked_grad<T>(p, line.offset + depth.offset + y * strides.y + x * strides.x);
  }
};

template <class T, bool kLast>
struct WeightOfInput {
  using Line = int64_t;
  using Depth = int64_t;
  static constexpr bool along_q = !kLast;

  const Conv2dBackwardParams& p;
  GradientPhases phases;
  int64_t first_channel;  // of the output
  ImageStrides strides = weight_strides(p);

  PYOPS_HOST_DEVICE Line line(int64_t c) const { return c * strides.c; }
  PYOPS_HOST_DEVICE Depth depth(int64_t q) const {
    const ChannelAndTap d(p, phases, q);
    return (first_channel + d.o) * strides.n + (phases.y.tap + d.y * phases.y.step) * strides.y +
           (phases.x.tap + d.x * phases.x.step) * strides.x;
  }
  PYOPS_HOST_DEVICE acc_t<T> at(Line line, Depth depth) const {
    return value_at<T>(p.weight, line + depth);
  }
};

// The gradient of a group's input channels, at the inputs of one phase.
template <class T, bool kLast>
struct BackwardXProduct {
  using Acc = acc_t<T>;

  const Conv2dBackwardParams& p;
  int64_t group;
  GradientPhases phases;
  int64_t rows = p.n * phases.inputs(), columns = p.group_c();
  int64_t depth = p.group_o() * phases.taps();
  GradientOfOutput<T, kLast> a{p, phases, group * p.group_o()};
  WeightOfInput<T, kLast> b{p, phases, group * p.group_o()};

  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const {
    const ImageStrides to = input_strides(p);
    const int64_t row = i / phases.x.inputs, n = row / phases.y.inputs;
    const int64_t y = phases.y.first + row % phases.y.inputs * p.stride_h;
    const int64_t x = phases.x.first + i % phases.x.inputs * p.stride_w;
    const int64_t at = n * to.n + (group * p.group_c() + j) * to.c + y * to.y + x * to.x;
    static_cast<T*>(p.grad_x)[at] = static_cast<T>(sum);
  }
};

// Positions from `first` on, of a group's output channels.
template <class T, bool kLast>
struct PositionsOfGradient {
  using Line = int64_t;
  using Depth = int64_t;
  static constexpr bool along_q = !kLast;

  const Conv2dBackwardParams& p;
  int64_t first_channel, first;

  PYOPS_HOST_DEVICE Line line(int64_t o) const {
    return (first_channel + o) * (kLast ? 1 : p.oh * p.ow);
  }
  PYOPS_HOST_DEVICE Depth depth(int64_t q) const {
    const int64_t i = first + q, area = p.oh * p.ow;
    return kLast ? i * p.o : i / area * p.o * area + i % area;
  }
  PYOPS_HOST_DEVICE acc_t<T> at(Line line, Depth depth) const {
    return masked_grad<T>(p, line + depth);
  }
};

template <class T, bool kLast>
struct PositionsOfInput {
  using Line = ImagePart;
  using Depth = ImagePart;
  static constexpr bool along_q = !kLast;

  TapsOfInput<T> x;
  int64_t first;

  PYOPS_HOST_DEVICE Line line(int64_t j) const { return x.tap(j); }
  PYOPS_HOST_DEVICE Depth depth(int64_t q) const { return x.position(first + q); }
  PYOPS_HOST_DEVICE acc_t<T> at(const Line& line, const Depth& depth) const {
    return x(depth, line);
  }
};

// A part of the gradient of a group's weight: the sum over a stretch of the positions.
template <class T, bool kLast>
struct BackwardWeightProduct {
  using Acc = acc_t<T>;

  const Conv2dBackwardParams& p;
  int64_t group, split, splits;
  int64_t rows = p.group_o(), columns = p.group_c() * p.kh * p.kw;
  int64_t positions = p.n * p.oh * p.ow, stretch = (positions + splits - 1) / splits;
  int64_t first = split * stretch;
  int64_t depth = first + stretch < positions ? stretch : positions - first;
  PositionsOfGradient<T, kLast> a{p, group * p.group_o(), first};
  PositionsOfInput<T, kLast> b{{p.x, p, group}, first};

  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const {
    const int64_t o = group * rows + i;
    static_cast<Acc*>(p.workspace)[(split * p.o + o) * columns + j] = sum;
  }
};

// The product with its operands exchanged: neighbouring threads store neighbouring rows.
template <class Product>
struct Transposed {
  using Acc = typename Product::Acc;

  Product product;
  int64_t rows = product.columns, columns = product.rows, depth = product.depth;

  PYOPS_HOST_DEVICE const auto& a_operand() const { return product.b; }
  PYOPS_HOST_DEVICE const auto& b_operand() const { return product.a; }
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const { product.store(j, i, sum); }
};
template <class Product>
struct Upright {
  using Acc = typename Product::Acc;

  Product product;
  int64_t rows = product.rows, columns = product.columns, depth = product.depth;

  PYOPS_HOST_DEVICE const auto& a_operand() const { return product.a; }
  PYOPS_HOST_DEVICE const auto& b_operand() const { return product.b; }
  PYOPS_HOST_DEVICE void store(int64_t i, int64_t j, Acc sum) const { product.store(i, j, sum); }
};

// One thread's share of an operand's panels: lines that it keeps, depths that go with the panel.
template <class Operand, class Block>
class PanelFeed {
  static constexpr int kEach = Block::kTile * Block::kDepth / Block::kThreads;
  static constexpr int kLines = Operand::along_q ? kEach : 1;
  static constexpr int kSpan = Operand::along_q ? Block::kDepth : Block::kTile;

 public:
  PYOPS_HOST_DEVICE PanelFeed(const Operand& operand, int64_t first, int64_t lines, int thread)
      : fast_(thread % kSpan), slow_(thread / kSpan) {
    PYOPS_UNROLL for (int s = 0; s < kLines; ++s) {
      const int64_t i = first + line_of(s);
      inside_[s] = i < lines;
      lines_[s] = operand.line(inside_[s] ? i : 0);
    }
  }

  // Beyond the edges lie zeros.
  template <class Acc>
  PYOPS_HOST_DEVICE void load(const Operand& operand, int64_t q, int64_t depth,
                              Acc (&panel)[Block::kDepth][Block::kTile + 4]) const {
    if constexpr (Operand::along_q) {
      const bool within = q + fast_ < depth;
      const auto here = operand.depth(within ? q + fast_ : 0);
      PYOPS_UNROLL for (int s = 0; s < kEach; ++s) {
        panel[fast_][line_of(s)] = within && inside_[s] ? operand.at(lines_[s], here) : Acc(0);
      }
    } else {
      PYOPS_UNROLL for (int s = 0; s < kEach; ++s) {
        const int d = slow_ + s * (Block::kThreads / kSpan);
        const bool inside = inside_[0] && q + d < depth;
        panel[d][fast_] = inside ? operand.at(lines_[0], operand.depth(q + d)) : Acc(0);
      }
    }
  }

 private:
  PYOPS_HOST_DEVICE int line_of(int s) const {
    return Operand::along_q ? slow_ + s * (Block::kThreads / kSpan) : fast_;
  }

  int fast_, slow_;
  bool inside_[kLines];
  typename Operand::Line lines_[kLines];
};

}  // namespace pyops
