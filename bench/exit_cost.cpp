// What an exit costs, and what deciding costs: exit_cost MODEL.onnx [ROUNDS]
//
// For each exit k, in turn in one process: a session whose policy always leaves at k, and the stages up to k with k's
// head, called directly; and the share of the full network's latency that is saved, over the share of its FLOPs, and
// over that of the FLOPs that kernels execute (Winograd's convolutions are a fraction of the nominal ones, and not the
// same fraction everywhere). Then a session that asks every exit and never leaves, against all stages and heads called
// directly: the difference is what policies, counter and bookkeeping take. Last, batches of 32 of which nine, five or
// one in ten leave at an exit and the rest goes on, compacted: the same two quotients. Batches with and without leaving
// run in turn in one session, as two sessions would drive each other's values from the cache, and what counts is the
// mean of the middle half of their ratios, as a core's clock changes more than one in ten saves.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "offramp/onnx/onnx.hpp"
#include "offramp/policy/constant.hpp"
#include "offramp/policy/max_probability.hpp"
#include "offramp/session/session.hpp"

namespace {

using namespace offramp;

template <class F>
double microseconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

// The policy that asks everywhere and leaves nowhere.
struct AskOnly {
  MaxProbability policy{0.9f};
  Verdict operator()(ExitContext& c) const noexcept { return {false, policy(c).confidence}; }
};

// Of ten samples that reach one exit, `leaving` answer there; the rest goes to the end.
struct Mix {
  Index exit = 0, leaving = 0;
  Index* asked = nullptr;

  Verdict operator()(ExitContext& c) const noexcept { return {c.exit == exit && (*asked)++ * 7 % 10 < leaving, 0}; }
  bool wants(Index e) const noexcept { return e == exit; }
};

// Medians of both, run alternately.
template <class A, class B>
std::pair<double, double> in_turn(long rounds, A&& a, B&& b) {
  std::vector<double> x, y;
  for (long i = 0; i < rounds; ++i) {
    if (i % 2 == 0) {
      x.push_back(microseconds(a));
      y.push_back(microseconds(b));
    } else {
      y.push_back(microseconds(b));
      x.push_back(microseconds(a));
    }
  }
  return {median(x), median(y)};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const long rounds = argc > 2 ? std::strtol(argv[2], nullptr, 10) : 2000;
  const Model model = load_onnx(argv[1]);
  const Index exits = model.exit_count();
  const std::vector<float> x(static_cast<std::size_t>(model.sample_size()), 0.5f);
  auto state = model.make_state(1);
  const auto stages = [&](Index last, bool every_head) {
    model.load(state, x.data(), 1);
    for (Index k = 0; k <= last; ++k) {
      model.run_stage(state, k);
      if (every_head || k == last) model.run_head(state, k);
    }
  };
  std::printf("%-12s %14s %14s %8s %14s %14s %10s %10s\n", "exit", "session, us", "stages, us", "ratio", "FLOPs saved",
              "latency saved", "quotient", "executed");
  for (Index k = 0; k < exits; ++k) {
    Session session(model, Always{k});
    const auto [a, b] = in_turn(
        rounds, [&] { session.predict(x); }, [&] { stages(k, false); });
    const auto [early, whole] = in_turn(
        rounds, [&] { session.predict(x); }, [&] { session.predict_full(x); });
    const auto& e = model.exits()[static_cast<std::size_t>(k)];
    const Cost& all = model.exits().back().upto;
    const double flops = 1 - static_cast<double>(e.upto.flops) / static_cast<double>(all.flops),
                 executed = 1 - static_cast<double>(e.upto.executed) / static_cast<double>(all.executed);
    const double latency = 1 - early / whole;
    std::printf("%-12s %14.2f %14.2f %8.4f %12.1f %% %12.1f %% ", e.name.c_str(), a, b, a / b, 100 * flops,
                100 * latency);
    if (k + 1 < exits)
      std::printf("%10.3f %10.3f\n", latency / flops, latency / executed);
    else
      std::printf("%10s %10s\n", "-", "-");
  }
  Session asking(model, AskOnly{});
  Session full(model, Never{});
  const auto [a, b] = in_turn(
      rounds, [&] { asking.predict(x); }, [&] { stages(exits - 1, true); });
  const auto [f, unused] = in_turn(
      rounds, [&] { full.predict_full(x); }, [] {});
  static_cast<void>(unused);
  std::printf(
      "\nall exits asked %.2f us, stages and heads alone %.2f us: deciding takes %.2f us, %.2f %% of the full "
      "network's %.2f us\n",
      a, b, a - b, 100 * (a - b) / f, f);

  constexpr Index batch = 32;
  ModelOptions options;
  options.batch = batch;
  const Model wide = load_onnx(argv[1], options);
  const std::vector<float> many(static_cast<std::size_t>(batch * wide.sample_size()), 0.5f);
  std::printf("\nbatch %ld, nine, five and one in ten leaving\n%-12s %33s %33s %33s\n", static_cast<long>(batch),
              "exit", "90 %: FLOPs, latency, q, executed", "50 %", "10 %");
  const Cost& all = wide.exits().back().upto;
  for (Index k = 0; k + 1 < exits; ++k) {
    std::printf("%-12s", wide.exits()[static_cast<std::size_t>(k)].name.c_str());
    for (const Index leaving : {Index{9}, Index{5}, Index{1}}) {
      Index asked = 0;
      Session mixed(wide, Mix{k, leaving, &asked}, batch);
      for (int i = 0; i < 10; ++i) mixed.predict(many);  // every mix once
      const auto saved = [&](std::int64_t Cost::*which) {
        return 1 -
               static_cast<double>(mixed.counted().*which) / static_cast<double>(mixed.counted_samples() * all.*which);
      };
      const double flops = saved(&Cost::flops), executed = saved(&Cost::executed);
      std::vector<double> ratios;
      for (long i = 0; i < std::max(40L, rounds / 20); ++i) {
        const double before = microseconds([&] { mixed.predict_full(many); }),
                     early = microseconds([&] { mixed.predict(many); }),
                     after = microseconds([&] { mixed.predict_full(many); });
        ratios.push_back(2 * early / (before + after));
      }
      std::sort(ratios.begin(), ratios.end());
      const std::size_t quarter = ratios.size() / 4;
      const double latency = 1 - std::accumulate(ratios.begin() + static_cast<std::ptrdiff_t>(quarter),
                                                 ratios.end() - static_cast<std::ptrdiff_t>(quarter), 0.0) /
                                     static_cast<double>(ratios.size() - 2 * quarter);
      std::printf("   %6.1f %% %6.1f %% %6.3f %6.3f", 100 * flops, 100 * latency, latency / flops, latency / executed);
    }
    std::printf("\n");
  }
}
