// The steps of a layer as a kernel for many of them finds them, one after the other: how long each
// sequence is says it all, and travels as an argument of the launch.
#pragma once

#include "rnn/rnn.h"

namespace pyops {

struct RnnSchedule {
  static constexpr int kMostSequences = 128;
  static constexpr int64_t kMostSteps = int64_t{1} << 24;  // 32 bits count all arrivals of blocks

  int32_t steps, batch;
  int32_t length[kMostSequences];  // longest first

  explicit RnnSchedule(const RnnShape& s)
      : steps(static_cast<int32_t>(s.steps)), batch(static_cast<int32_t>(s.batch)), length{} {
    for (int32_t i = batch - 1, t = 0; i >= 0; --i) {
      while (t < steps && s.size(t) > i) ++t;
      length[i] = t;
    }
  }
};

// Steps `begin` to `end` of a layer in the order of computation, and their rows.
template <class Params>
struct RnnPiece {
  Params p;
  int32_t begin, end;
  int64_t first, rows;
};

template <class Params>
RnnPiece<Params> piece_of(const Params& p, int64_t begin, int64_t end) {
  const int64_t earliest = p.reverse ? p.steps - end : begin;
  const int64_t first = p.offsets[earliest];
  return {p, static_cast<int32_t>(begin), static_cast<int32_t>(end), first,
          p.offsets[earliest + end - begin] - first};
}

// A walk over the steps in the order of computation, or back, that stands at the s-th; beyond
// either end no rows are left.
class RnnSweep {
 public:
  PYOPS_HOST_DEVICE RnnSweep(const RnnSchedule& schedule, bool reverse, int64_t s)
      : schedule_(schedule), reverse_(reverse) {
    now_ = place(static_cast<int32_t>(reverse ? schedule.steps - 1 - s : s));
    before_ = moved(now_, reverse);
    after_ = moved(now_, !reverse);
  }

  PYOPS_HOST_DEVICE void advance() {
    before_ = now_;
    now_ = after_;
    after_ = moved(after_, !reverse_);
  }
  PYOPS_HOST_DEVICE void retreat() {
    after_ = now_;
    now_ = before_;
    before_ = moved(before_, reverse_);
  }

  PYOPS_HOST_DEVICE RnnStep step() const {
    const int32_t rows = now_.rows;
    return {now_.first,    rows,
            before_.first, before_.rows < rows ? before_.rows : rows,
            after_.first,  after_.rows < rows ? after_.rows : rows};
  }
  PYOPS_HOST_DEVICE int64_t rows_after() const { return after_.rows; }

 private:
  struct Place {
    int64_t first;
    int32_t t, rows;
  };

  PYOPS_HOST_DEVICE Place place(int32_t t) const {
    Place p{0, t, 0};
    for (int32_t i = 0; i < schedule_.batch; ++i) {
      const int32_t length = schedule_.length[i];
      p.first += t < 0 ? 0 : length < t ? length : t;
      p.rows += t >= 0 && length > t ? 1 : 0;
    }
    return p;
  }

  // One step later in time, or earlier.
  PYOPS_HOST_DEVICE Place moved(Place p, bool later) const {
    const RnnSchedule& s = schedule_;
    if (later) p.first += p.rows;
    p.t += later ? 1 : -1;
    if (p.t < 0 || p.t >= s.steps) {
      p.rows = 0;
    } else if (later) {
      if (p.t == 0) p.rows = s.batch;
      while (p.rows > 0 && s.length[p.rows - 1] <= p.t) --p.rows;
    } else {
      while (p.rows < s.batch && s.length[p.rows] > p.t) ++p.rows;
      p.first -= p.rows;
    }
    return p;
  }

  const RnnSchedule& schedule_;
  bool reverse_;
  Place before_, now_, after_;
};

}  // namespace pyops
