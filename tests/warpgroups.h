// Warpgroups of a GPU, each a thread of the CPU that runs its 128 in turn: rings of buffers with
// barriers that tell laps by one bit as mbarriers do, and products that run as late as they may.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "attention/attention_warpgroup.h"
#include "core/ring.h"

namespace pyops {

class Barrier {
 public:
  void init(int count) { count_ = missing_ = count; }
  void arrive() {
    const std::lock_guard lock(mutex_);
    if (--missing_ > 0) return;
    missing_ = count_;
    lap_ ^= 1;
    changed_.notify_all();
  }
  // Until the lap of this bit is over; the lap before the first one is.
  void wait(uint32_t lap) {
    std::unique_lock lock(mutex_);
    const auto over = [&] { return lap_ != lap; };
    if (!changed_.wait_for(lock, std::chrono::seconds(60), over)) std::abort();  // a deadlock
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0, missing_ = 0;
  uint32_t lap_ = 0;  // the bit of the lap that is under way
};

template <int kBuffers, class Buffer>
struct Ring {
  using Place = RingPlace<kBuffers>;
  Barrier full[kBuffers], empty[kBuffers];
  Buffer buffers[kBuffers];

  explicit Ring(int consumers) {
    for (int i = 0; i < kBuffers; ++i) full[i].init(1), empty[i].init(consumers);
  }
  template <class F>
  void load(Place& place, const F& fill) {
    empty[place.buffer].wait(place.lap_before());
    fill(buffers[place.buffer]);
    full[place.buffer].arrive();
    place.advance();
  }
  const Buffer& await(const Place& place) {
    full[place.buffer].wait(place.lap);
    return buffers[place.buffer];
  }
  void release(Place& place) {
    empty[place.buffer].arrive();
    place.advance();
  }
};

template <int kRows, int kColumns>
struct Tile {
  float at[kRows][kColumns];

  // As TMA does: zeros beyond the edges.
  template <class T>
  void load(const ConstRows& from, int64_t b, int64_t h, int64_t row, int64_t rows,
            int64_t columns) {
    const T* const head = static_cast<const T*>(from.data) + b * from.b + h * from.h;
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) {
        const bool exists = row + i < rows && j < columns;
        at[i][j] = exists ? static_cast<float>(head[(row + i) * from.row + j]) : 0;
      }
    }
  }
};

template <class Algorithm>
struct Team {
  using T = typename Algorithm::T;
  using State = typename Algorithm::State;
  std::vector<State> states{128};
  std::deque<std::function<void()>> products;  // under way, oldest first

  void wait(size_t pending) {
    for (; products.size() > pending; products.pop_front()) products.front()();
  }
  template <class F>
  void alone(const F& f) {
    for (int t = 0; t < 128; ++t) f(t, states[t]);
  }
  template <class F>
  void reduce(const F& join) {
    for (int t = 0; t < 128; t += 4) {
      for (int r = 0; r < 2; ++r) {
        float joined = states[t].rows[r];
        for (int i = 1; i < 4; ++i) joined = join(joined, states[t + i].rows[r]);
        for (int i = 0; i < 4; ++i) states[t + i].rows[r] = joined;
      }
    }
  }
  void trade() {
    for (int t = 0; t < 128; t += 4) {
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < i; ++j) std::swap(states[t + i].traded[j], states[t + j].traded[i]);
      }
    }
  }

  // c = a · bᵀ
  template <int kN, int kDepth>
  void begin_product(const Tile<64, kDepth>& a, const Tile<kN, kDepth>& b,
                     float (State::*c)[kN / 2]) {
    products.emplace_back([this, &a, &b, c] {
      each_number<kN>([&](State& state, int x, int row, int column) {
        float sum = 0;
        for (int d = 0; d < kDepth; ++d) sum += a.at[row][d] * b.at[column][d];
        (state.*c)[x] = sum;
      });
    });
  }
  // c += a · b
  template <int kN, int kDepth>
  void begin_sum(uint32_t (State::*a)[kDepth / 4], const Tile<kDepth, kN>& b,
                 float (State::*c)[kN / 2]) {
    products.emplace_back([this, &b, a, c] {
      const auto weights = std::make_unique<Tile<64, kDepth>>();
      each_number<kDepth>([&](State& state, int x, int row, int column) {
        T number;
        number.bits = static_cast<uint16_t>((state.*a)[x / 2] >> x % 2 * 16);
        weights->at[row][column] = static_cast<float>(number);
      });
      each_number<kN>([&](State& state, int x, int row, int column) {
        for (int d = 0; d < kDepth; ++d) {
          (state.*c)[x] += weights->at[row][d] * b.at[d][column];
        }
      });
    });
  }

 protected:
  // f(state of its thread, which of the thread's numbers it is, row, column)
  template <int kN, class F>
  void each_number(const F& f) {
    for (int t = 0; t < 128; ++t) {
      for (int x = 0; x < kN / 2; ++x) {
        f(states[t], x, row_of(t) + x / 2 % 2 * 8, x / 4 * 8 + column_of(t) + x % 2);
      }
    }
  }
};

}  // namespace pyops
