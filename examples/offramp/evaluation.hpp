/// @file evaluation.hpp
/// Runs a policy over a data set, in turn with the full network.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <numeric>
#include <span>
#include <thread>
#include <vector>

#include "data.hpp"
#include "energy.hpp"
#include "offramp/offramp.hpp"
#include "output.hpp"

namespace tool {

struct ExitResult {
  std::string name;
  Index samples = 0, right = 0;
};

struct Latency {
  double mean = 0, p50 = 0, p99 = 0;  ///< milliseconds a batch
};

inline Latency latency_of(std::vector<double> ms) {
  if (ms.empty()) return {};
  std::sort(ms.begin(), ms.end());
  return {std::accumulate(ms.begin(), ms.end(), 0.0) / static_cast<double>(ms.size()), ms[ms.size() / 2],
          ms[std::min(ms.size() - 1, ms.size() * 99 / 100)]};
}

struct Evaluation {
  Index samples = 0, right = 0, full_right = 0, agreeing = 0, not_finite = 0;
  offramp::Cost cost, full_cost;  ///< of all samples
  Latency latency, full_latency;
  Energy energy;  ///< of a batch
  std::vector<ExitResult> exits;
  std::vector<Index> exit_of, answer_of;  ///< for each sample

  double share(Index n) const { return static_cast<double>(n) / static_cast<double>(std::max<Index>(1, samples)); }
  double mean_flops() const {
    return static_cast<double>(cost.flops) / static_cast<double>(std::max<Index>(1, samples));
  }
  double flops_saving() const {
    return 1 - static_cast<double>(cost.flops) / static_cast<double>(std::max<Index>(1, full_cost.flops));
  }
  double latency_saving() const { return full_latency.mean > 0 ? 1 - latency.mean / full_latency.mean : 0; }
};

inline void check_data(const offramp::Model& model, const Data& data) {
  OFFRAMP_REQUIRE(data.sample_size == model.sample_size(),
                  "the network takes samples of " + std::to_string(model.sample_size()) + " numbers, the data have " +
                      std::to_string(data.sample_size));
  const Index largest = *std::max_element(data.labels.begin(), data.labels.end());
  OFFRAMP_REQUIRE(largest < model.class_count(), "the data have a label " + std::to_string(largest) + ", the network " +
                                                     std::to_string(model.class_count()) + " classes");
}

/// Samples that one network answers before it is another one's turn: few enough that a machine that gets slower does so
/// for all of them, enough that each finds its own weights in the caches, as it does in use.
inline constexpr Index turn_samples = 64;

/// Samples as they are where they have just been received or decoded: in cache. What a data set of megabytes costs to
/// fetch is not the network's.
class Arrival {
 public:
  std::span<const float> of(std::span<const float> samples) {
    buffer_.assign(samples.begin(), samples.end());
    return buffer_;
  }

 private:
  std::vector<float> buffer_;
};

/// Each of `threads` threads has its own session. Early and full runs take turns, and which of them goes first
/// alternates. Both are that session's, as in use: where two sessions' memory lies makes up to a per cent of
/// difference.
inline Evaluation evaluate(const offramp::Model& model, const offramp::AnyPolicy& policy, const Data& data, Index batch,
                           int threads) {
  using clock = std::chrono::steady_clock;
  check_data(model, data);
  Evaluation e;
  e.samples = data.count();
  for (const offramp::ExitInfo& x : model.exits()) e.exits.push_back({x.name});
  e.exit_of.assign(static_cast<std::size_t>(e.samples), 0);
  e.answer_of.assign(static_cast<std::size_t>(e.samples), 0);
  const Index batches = (e.samples + batch - 1) / batch;
  std::vector<Index> full_answer_of(static_cast<std::size_t>(e.samples));
  std::atomic<Index> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  std::vector<double> early_ms, full_ms;
  Progress progress("evaluating", batches);
  const auto work = [&] {
    try {
      offramp::Session session(model, policy, batch);
      std::vector<double> own_early, own_full;
      Arrival arrival;
      Evaluation own;
      // Warm-up: caches, branch predictors, and the clock of the core.
      const auto first =
          std::span(data.samples).first(static_cast<std::size_t>(std::min(batch, e.samples) * data.sample_size));
      for (const auto end = clock::now() + std::chrono::milliseconds(200); clock::now() < end;) {
        session.predict(first);
        session.predict_full(first);
      }
      const Index turn = std::max<Index>(1, turn_samples / batch);  // in batches
      for (Index begin = next.fetch_add(turn); begin < batches; begin = next.fetch_add(turn)) {
        const Index end = std::min(batches, begin + turn);
        const bool early_first = begin / turn % 2 == 0;
        for (const bool is_early : {early_first, !early_first}) {
          for (Index b = begin; b < end; ++b) {
            const Index at = b * batch, n = std::min(batch, e.samples - at);
            const auto samples = arrival.of(std::span(data.samples)
                                                .subspan(static_cast<std::size_t>(at * data.sample_size),
                                                         static_cast<std::size_t>(n * data.sample_size)));
            const auto start = clock::now();
            const auto answers = is_early ? session.predict(samples) : session.predict_full(samples);
            const double ms = std::chrono::duration<double, std::milli>(clock::now() - start).count();
            if (n == batch || batches == 1) (is_early ? own_early : own_full).push_back(ms);
            for (Index i = 0; i < n; ++i) {
              const offramp::Prediction& p = answers[static_cast<std::size_t>(i)];
              (is_early ? e.answer_of : full_answer_of)[static_cast<std::size_t>(at + i)] = p.label;
              if (!is_early) continue;
              e.exit_of[static_cast<std::size_t>(at + i)] = p.exit;
              own.not_finite += !p.finite;
              own.cost += p.cost;
              own.full_cost += p.full_cost;
            }
          }
        }
        const std::lock_guard lock(mutex);
        progress.at(end);
      }
      const std::lock_guard lock(mutex);
      e.not_finite += own.not_finite;
      e.cost += own.cost;
      e.full_cost += own.full_cost;
      early_ms.insert(early_ms.end(), own_early.begin(), own_early.end());
      full_ms.insert(full_ms.end(), own_full.begin(), own_full.end());
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
  for (std::size_t i = 0; i < full_answer_of.size(); ++i) {
    const bool right = e.answer_of[i] == data.labels[i];
    e.right += right;
    e.full_right += full_answer_of[i] == data.labels[i];
    e.agreeing += e.answer_of[i] == full_answer_of[i];
    ExitResult& exit = e.exits[static_cast<std::size_t>(e.exit_of[i])];
    ++exit.samples;
    exit.right += right;
  }
  e.latency = latency_of(early_ms);
  e.full_latency = latency_of(full_ms);
  {
    offramp::Session session(model, policy, batch);
    Index at = 0;
    const Index n = std::min(batch, e.samples);
    const auto next_batch = [&] {
      at = at + n > e.samples ? 0 : at;
      const auto samples =
          std::span(data.samples)
              .subspan(static_cast<std::size_t>(at * data.sample_size), static_cast<std::size_t>(n * data.sample_size));
      at += n;
      return samples;
    };
    e.energy.early = joules_of([&] { session.predict(next_batch()); });
    e.energy.full = joules_of([&] { session.predict_full(next_batch()); });
  }
  return e;
}

inline json to_json(const Evaluation& e) {
  json exits = json::array();
  for (const ExitResult& x : e.exits) {
    exits.push_back({{"name", x.name},
                     {"samples", x.samples},
                     {"share", e.share(x.samples)},
                     {"accuracy", x.samples > 0 ? json(static_cast<double>(x.right) / static_cast<double>(x.samples))
                                                : json(nullptr)}});
  }
  const auto n = static_cast<double>(std::max<Index>(1, e.samples));
  return {
      {"samples", e.samples},
      {"accuracy", e.share(e.right)},
      {"full", {{"accuracy", e.share(e.full_right)}}},
      {"agreement", e.share(e.agreeing)},
      {"not_finite", e.not_finite},
      {"flops",
       {{"mean", e.mean_flops()},
        {"full", static_cast<double>(e.full_cost.flops) / n},
        {"saving", e.flops_saving()},
        {"executed_mean", static_cast<double>(e.cost.executed) / n},
        {"executed_full", static_cast<double>(e.full_cost.executed) / n}}},
      {"macs", {{"mean", static_cast<double>(e.cost.macs) / n}, {"full", static_cast<double>(e.full_cost.macs) / n}}},
      {"latency",
       {{"mean_ms", e.latency.mean},
        {"p50_ms", e.latency.p50},
        {"p99_ms", e.latency.p99},
        {"full_mean_ms", e.full_latency.mean},
        {"full_p50_ms", e.full_latency.p50},
        {"full_p99_ms", e.full_latency.p99},
        {"saving", e.latency_saving()}}},
      {"energy", e.energy.to_json()},
      {"exits", exits}};
}

inline void print(const Evaluation& e, const offramp::Model& model) {
  std::printf("%-14s %9s %9s %10s %12s %9s\n", "exit", "samples", "share", "accuracy", "FLOPs", "of full");
  const auto full = static_cast<double>(e.full_cost.flops) / static_cast<double>(std::max<Index>(1, e.samples));
  for (std::size_t k = 0; k < e.exits.size(); ++k) {
    const ExitResult& x = e.exits[k];
    const auto flops = static_cast<double>(model.exits()[k].upto.flops);
    std::printf("%-14s %9ld %9s %10s %12s %9s\n", x.name.c_str(), static_cast<long>(x.samples),
                percent(e.share(x.samples)).c_str(),
                x.samples > 0 ? percent(static_cast<double>(x.right) / static_cast<double>(x.samples)).c_str() : "-",
                engineering(flops).c_str(), percent(flops / full, 1).c_str());
  }
  std::printf("\n%-14s %12s %12s %10s\n", "", "early exits", "full", "saved");
  std::printf("%-14s %12s %12s %10s\n", "accuracy", percent(e.share(e.right)).c_str(),
              percent(e.share(e.full_right)).c_str(), "");
  std::printf("%-14s %12s\n", "agreement", percent(e.share(e.agreeing)).c_str());
  std::printf("%-14s %12s %12s %10s\n", "mean FLOPs", engineering(e.mean_flops()).c_str(), engineering(full).c_str(),
              percent(e.flops_saving(), 1).c_str());
  std::printf("%-14s %12s %12s %10s\n", "mean ms", fixed(e.latency.mean, 4).c_str(),
              fixed(e.full_latency.mean, 4).c_str(), percent(e.latency_saving(), 1).c_str());
  std::printf("%-14s %12s %12s\n", "p50 ms", fixed(e.latency.p50, 4).c_str(), fixed(e.full_latency.p50, 4).c_str());
  std::printf("%-14s %12s %12s\n", "p99 ms", fixed(e.latency.p99, 4).c_str(), fixed(e.full_latency.p99, 4).c_str());
  if (e.energy.early && e.energy.full) {
    std::printf("%-14s %12s %12s %10s\n", "joules", fixed(*e.energy.early, 6).c_str(), fixed(*e.energy.full, 6).c_str(),
                percent(1 - *e.energy.early / *e.energy.full, 1).c_str());
  } else {
    std::printf("%-14s %s\n", "joules", EnergyCounter::none);
  }
  if (e.not_finite > 0)
    std::printf("\n%ld samples had logits that were not finite and left no exit early\n",
                static_cast<long>(e.not_finite));
}

}  // namespace tool
