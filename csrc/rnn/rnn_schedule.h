// The steps of a layer as a kernel for all of them finds them, one after the other: how long each
// sequence is says it all, and travels as an argument of the launch.
#pragma once

#include "rnn/rnn.h"

namespace pyops {

struct RnnSchedule {
  static constexpr int kMostSequences = 128;
  static constexpr int64_t kMostSteps = int64_t{1} << 24;  // 32 bits count all arrivals of blocks

  int64_t rows;
  int32_t batch;
  bool reverse;
  int32_t length[kMostSequences];  // longest first

  explicit RnnSchedule(const RnnShape& s)
      : rows(s.rows()), batch(static_cast<int32_t>(s.batch)), reverse(s.reverse), length{} {
    for (int32_t i = batch - 1, t = 0; i >= 0; --i) {
      while (t < s.steps && s.size(t) > i) ++t;
      length[i] = t;
    }
  }
};

// A walk over so many steps in the order of computation, or back.
class RnnSweep {
 public:
  PYOPS_HOST_DEVICE static RnnSweep before_first(const RnnSchedule& s, int64_t steps) {
    RnnSweep sweep(s, steps, s.reverse);
    sweep.after_ = sweep.moved(sweep.now_, !s.reverse);
    return sweep;
  }
  PYOPS_HOST_DEVICE static RnnSweep behind_last(const RnnSchedule& s, int64_t steps) {
    RnnSweep sweep(s, steps, !s.reverse);
    sweep.before_ = sweep.moved(sweep.now_, s.reverse);
    return sweep;
  }

  PYOPS_HOST_DEVICE void advance() {
    before_ = now_;
    now_ = after_;
    after_ = moved(after_, !schedule_.reverse);
  }
  PYOPS_HOST_DEVICE void retreat() {
    after_ = now_;
    now_ = before_;
    before_ = moved(before_, schedule_.reverse);
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

  // Beyond the end of time, or before its beginning.
  PYOPS_HOST_DEVICE RnnSweep(const RnnSchedule& s, int64_t steps, bool at_end)
      : schedule_(s), steps_(static_cast<int32_t>(steps)) {
    now_ = at_end ? Place{s.rows, steps_, 0} : Place{0, -1, 0};
    before_ = after_ = now_;
  }

  // One step later in time, or earlier; beyond either end no rows are left.
  PYOPS_HOST_DEVICE Place moved(Place p, bool later) const {
    const RnnSchedule& s = schedule_;
    if (later) p.first += p.rows;
    p.t += later ? 1 : -1;
    if (p.t < 0 || p.t >= steps_) {
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
  int32_t steps_;
  Place before_, now_, after_;
};

}  // namespace pyops
