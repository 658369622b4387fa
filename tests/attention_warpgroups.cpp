// What the warpgroups of the Hopper kernels of attention compute: a thread of the CPU for the
// producer and one for each consumer, whose products run when somebody waits for them, and no
// sooner: nothing that they read may have changed.
#include <memory>
#include <thread>
#include <vector>

#include "attention/attention_backward_warpgroup.h"
#include "attention/attention_forward_warpgroup.h"
#include "attention/attention_sm90.h"
#include "attention_call.h"
#include "warpgroups.h"

using namespace pyops;

namespace {

template <class Algorithm>
struct Forward {
  using T = typename Algorithm::T;
  static constexpr int kD = Algorithm::kD, kKeys = Algorithm::kKeys;
  static constexpr int kConsumers = Algorithm::kConsumers, kBuffers = Algorithm::kBuffers;
  struct Queries {
    Tile<64, kD> of[kConsumers];
  };
  using Keys = Ring<kBuffers, Tile<kKeys, kD>>;

  const AttentionParams& p;
  Ring<1, Queries> queries{kConsumers};
  Keys keys{kConsumers}, values{kConsumers};

  explicit Forward(const AttentionParams& params) : p(params) {}

  struct Loader {
    Forward& all;
    RingPlace<1> query{};
    RingPlace<kBuffers> key{}, value{};

    void load_queries(int64_t b, int64_t h, int64_t row) {
      const auto& p = all.p;
      all.queries.load(query, [&](Queries& to) {
        for (int i = 0; i < kConsumers; ++i) {
          to.of[i].template load<T>(p.q, b, h, row + i * 64, p.queries, p.dim);
        }
      });
    }
    void load_keys(int64_t b, int64_t h, int64_t row) {
      const auto& p = all.p;
      all.keys.load(key, [&](auto& to) { to.template load<T>(p.k, b, h, row, p.keys, p.dim); });
    }
    void load_values(int64_t b, int64_t h, int64_t row) {
      const auto& p = all.p;
      all.values.load(value,
                      [&](auto& to) { to.template load<T>(p.v, b, h, row, p.keys, p.value_dim); });
    }
  };

  struct Consumer : Team<Algorithm> {
    using State = typename Algorithm::State;
    using Base = Team<Algorithm>;
    Forward& all;
    int index;
    RingPlace<1> query{};
    RingPlace<kBuffers> key{}, value{};

    Consumer(Forward& all_, int index_) : all(all_), index(index_) {}
    void take_turn() {}
    void pass_turn() {}
    void await_queries() { all.queries.await(query); }
    void release_queries() { all.queries.release(query); }
    void begin_scores() {
      Base::template begin_product<kKeys, kD>(all.queries.await(query).of[index],
                                              all.keys.await(key), &State::scores);
    }
    template <int kPending>
    void end_scores() {
      this->wait(kPending);
      all.keys.release(key);
    }
    void begin_sum() {
      Base::template begin_sum<kD, kKeys>(&State::weights, all.values.await(value), &State::out);
    }
    void end_sum() {
      this->wait(0);
      all.values.release(value);
    }
  };
};

template <class Algorithm>
struct Backward {
  using T = typename Algorithm::T;
  static constexpr int kD = Algorithm::kD, kOthers = Algorithm::kOthers;
  static constexpr int kConsumers = Algorithm::kConsumers, kBuffers = Algorithm::kBuffers;
  static constexpr bool kKeysOwn = Algorithm::kKeysOwn;
  struct Owners {
    Tile<64, kD> first[kConsumers], second[kConsumers];
  };
  struct Others {
    Tile<kOthers, kD> first, second;
    float exponents[kOthers], dots[kOthers], maxima[kOthers];
  };

  const AttentionBackwardParams& p;
  Ring<1, Owners> owners{kConsumers};
  Ring<kBuffers, Others> others{kConsumers};

  explicit Backward(const AttentionBackwardParams& params) : p(params) {}

  struct Loader {
    Backward& all;
    RingPlace<1> owner{};
    RingPlace<kBuffers> other{};

    template <class To>
    void load(bool keys, int64_t b, int64_t h, int64_t row, To& first, To& second) {
      const auto& p = all.p;
      const int64_t rows = keys ? p.keys : p.queries;
      first.template load<T>(keys ? p.k : p.q, b, h, row, rows, p.dim);
      second.template load<T>(keys ? p.v : p.grad_out, b, h, row, rows, p.value_dim);
    }
    void load_owners(int64_t b, int64_t h, int64_t row) {
      all.owners.load(owner, [&](Owners& to) {
        for (int i = 0; i < kConsumers; ++i) {
          load(kKeysOwn, b, h, row + i * 64, to.first[i], to.second[i]);
        }
      });
    }
    void load_others(int64_t b, int64_t h, int64_t row) {
      all.others.load(other, [&](Others& to) {
        load(!kKeysOwn, b, h, row, to.first, to.second);
        if (!kKeysOwn) return;
        const AttentionRowStatistics<T> from(all.p);
        const int64_t at = from.row(b, h, row);
        memcpy(to.exponents, from.exponents + at, sizeof to.exponents);
        memcpy(to.dots, from.dots + at, sizeof to.dots);
        memcpy(to.maxima, from.maxima + at, sizeof to.maxima);
      });
    }
  };

  struct Consumer : Team<Algorithm> {
    using State = typename Algorithm::State;
    using Base = Team<Algorithm>;
    Backward& all;
    int index;
    RingPlace<1> owner{};
    RingPlace<kBuffers> other{};
    uint32_t words[128];

    Consumer(Backward& all_, int index_) : all(all_), index(index_) {}
    const float* exponents() { return all.others.await(other).exponents; }
    const float* dots() { return all.others.await(other).dots; }
    const float* maxima() { return all.others.await(other).maxima; }
    template <class F>
    void share(const F& word) {
      for (int t = 0; t < 128; ++t) words[t] = word(this->states[t]);
    }
    uint32_t shared_by(int thread) const { return words[thread]; }
    void await_owners() { all.owners.await(owner); }
    void release_owners() { all.owners.release(owner); }
    void begin_scores() {
      Base::template begin_product<kOthers, kD>(all.owners.await(owner).first[index],
                                                all.others.await(other).first, &State::scores);
    }
    void begin_grads() {
      Base::template begin_product<kOthers, kD>(all.owners.await(owner).second[index],
                                                all.others.await(other).second, &State::grads);
    }
    void end_scores() { this->wait(1); }
    void end_grads() { this->wait(kKeysOwn ? 1 : 0); }
    void begin_value_sums() {
      if constexpr (kKeysOwn) {
        Base::template begin_sum<kD, kOthers>(&State::weights, all.others.await(other).second,
                                              &State::value_sums);
      }
    }
    void begin_sums() {
      Base::template begin_sum<kD, kOthers>(&State::grad_scores, all.others.await(other).first,
                                            &State::sums);
    }
    void end_sums() {
      this->wait(0);
      all.others.release(other);
    }
  };
};

// One block of warpgroups, which walks over all tiles.
template <class Algorithm, template <class> class Block, class Params>
void run(const Params& p) {
  using Whole = Block<Algorithm>;
  const auto block = std::make_unique<Whole>(p);
  const auto each = [&](const auto& f) {
    for (int64_t i = 0; i < Algorithm::blocks(p); ++i) f(Algorithm(p, i));
  };
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    typename Whole::Loader loader{*block};
    each([&](const Algorithm& algorithm) { algorithm.load(loader); });
  });
  for (int i = 0; i < Algorithm::kConsumers; ++i) {
    threads.emplace_back([&, i] {
      typename Whole::Consumer team(*block, i);
      each([&](const Algorithm& algorithm) { algorithm.run(i, team); });
    });
  }
  for (auto& thread : threads) thread.join();
}

template <class T, int kD, bool kMasked>
void run_forward(const AttentionParams& p) {
  run<AttentionWarpgroupForward<T, kD, kMasked>, Forward>(p);
}

template <class T, int kD, bool kMasked>
void run_backward(const AttentionBackwardParams& p) {
  const AttentionRowStatistics<T> statistics(p);
  for (int64_t row = 0; row < statistics.rows(); ++row) {
    float sum = 0;
    for (int lane = 0; lane < statistics.kThreads; ++lane) sum += statistics.dot(row, lane);
    statistics.store(row, sum);
  }
  run<AttentionWarpgroupBackward<T, kD, /*kKeysOwn=*/false, kMasked>, Backward>(p);
  run<AttentionWarpgroupBackward<T, kD, /*kKeysOwn=*/true, kMasked>, Backward>(p);
}

// f.operator()<T, kD, kMasked>() of the instance that launchers choose.
template <class Params, class F>
void with_instance(const Params& p, const F& f) {
  const bool masked = is_masked(p, p.mask);
  dispatch_dtype<kHalfTypes>(p.dtype, [&]<class T>(T) {
    if (p.dim <= 64 && p.value_dim <= 64) {
      masked ? f.template operator()<T, 64, true>() : f.template operator()<T, 64, false>();
    } else {
      masked ? f.template operator()<T, 128, true>() : f.template operator()<T, 128, false>();
    }
  });
}

}  // namespace

extern "C" {

// Whether the kernels take these arguments; computes if they do.
int forward(const int64_t* sizes, double scale, double dropout_p, const int64_t* seed,
            const int64_t* mask, const int64_t* q, const int64_t* k, const int64_t* v,
            const int64_t* out, void* row_max, void* row_scale) {
  const AttentionParams p =
      forward_params(sizes, scale, dropout_p, seed, mask, q, k, v, out, row_max, row_scale);
  if (!suits_attention_sm90(p)) return false;
  with_instance(p, [&]<class T, int kD, bool kMasked>() { run_forward<T, kD, kMasked>(p); });
  return true;
}

int64_t row_sums(int64_t batch, int64_t heads, int64_t queries) {
  return attention_row_sums(batch, heads, queries);
}

int backward(const int64_t* sizes, double scale, double dropout_p, const int64_t* seed,
             const int64_t* mask, const int64_t* q, const int64_t* k, const int64_t* v,
             const int64_t* out, const int64_t* grad_out, const void* row_max,
             const void* row_scale, const int64_t* grad_q, const int64_t* grad_k,
             const int64_t* grad_v, const int64_t* grad_mask, void* sums) {
  const AttentionBackwardParams p =
      backward_params(sizes, scale, dropout_p, seed, mask, q, k, v, out, grad_out, row_max,
                      row_scale, grad_q, grad_k, grad_v, grad_mask, sums);
  if (!suits_attention_sm90(p)) return false;
  with_instance(p, [&]<class T, int kD, bool kMasked>() { run_backward<T, kD, kMasked>(p); });
  return true;
}
}
