/// @file bench.hpp
/// How long a network takes, whole and layer by layer, against what the machine can do.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "evaluation.hpp"
#include "memory.hpp"
#include "offramp/calibrate/prices.hpp"
#include "offramp/graph/repeated_run.hpp"
#include "offramp/offramp.hpp"
#include "output.hpp"

namespace tool {

struct LayerTime {
  std::size_t layer = 0;
  double ms = 0;
};

struct BenchResult {
  Index batch = 1;
  int threads = 1;
  std::size_t runs = 0;
  Latency latency;
  double best_ms = 0, peak_gflops = 0;  ///< the peak is of all threads together
  std::optional<double> joules;         ///< of a batch, where the machine has a counter
  offramp::Cost cost;                   ///< of the batch
  Index memory_bytes = 0;
  std::vector<LayerTime> layers;
  offramp::ExitPrices exits;  ///< milliseconds of one sample, where there are early exits

  double gflops(std::int64_t flops) const { return static_cast<double>(flops) / latency.p50 / 1e6; }
};

/// Multiply-add throughput of one core, the best of several tries.
inline double peak_gflops(offramp::Isa isa) {
  using clock = std::chrono::steady_clock;
  const auto& kernels = offramp::kernel::kernels_for(isa);
  volatile float sink = 0;
  double best = 0;
  for (int i = 0; i < 20; ++i) {
    constexpr Index rounds = 500'000;
    const auto start = clock::now();
    sink = sink + kernels.multiply_adds(rounds, 0.5f);
    const double s = std::chrono::duration<double>(clock::now() - start).count();
    best = std::max(best, static_cast<double>(rounds * kernels.lanes * 24) / s / 1e9);
  }
  return best;
}

/// Times the backbone, without early exits and their heads: medians over `seconds`, after a warm-up. `per_layer`: also
/// its layers, then those of heads, and stages and heads of a network with early exits.
inline BenchResult measure(const offramp::Model& m, Index batch, int threads, double seconds, bool per_layer) {
  using clock = std::chrono::steady_clock;
  const auto ms_since = [](clock::time_point t) {
    return std::chrono::duration<double, std::milli>(clock::now() - t).count();
  };
  BenchResult r;
  r.batch = m.runs_single_samples() ? 1 : batch;
  r.threads = threads;
  r.memory_bytes = m.memory_bytes(r.batch);
  offramp::RepeatedRun run(m, r.batch);
  const auto layers = m.layers();
  for (const auto& l : layers) {
    if (!l.is_head) r.cost += l.cost * r.batch;
  }
  const auto until = [](double s) {
    return clock::now() + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(s));
  };
  for (const auto end = until(std::min(0.5, seconds / 4)); clock::now() < end;) run.run();
  std::vector<double> ms;
  for (const auto end = until(seconds); clock::now() < end || ms.size() < 5;) {
    const auto start = clock::now();
    run.run();
    ms.push_back(ms_since(start));
  }
  r.runs = ms.size();
  r.best_ms = *std::min_element(ms.begin(), ms.end());
  r.latency = latency_of(ms);
  r.joules = joules_of([&] { run.run(); });
  if (per_layer) {
    std::vector<std::vector<double>> all(layers.size());
    const auto end = until(seconds);
    do {
      const auto one = run.layer_ms();
      for (std::size_t i = 0; i < one.size(); ++i) all[i].push_back(one[i]);
    } while (clock::now() < end || all[0].size() < 5);
    for (std::size_t i = 0; i < layers.size(); ++i) r.layers.push_back({i, latency_of(all[i]).p50});
    std::stable_partition(r.layers.begin(), r.layers.end(), [&](const auto& t) { return !layers[t.layer].is_head; });
    if (m.exit_count() > 1) r.exits = offramp::measured_prices(m, run.samples());
  }
  r.peak_gflops = peak_gflops(m.isa()) * threads;
  return r;
}

inline json to_json(const BenchResult& r, const offramp::Model& m) {
  json j = {
      {"latency_ms", {{"median", r.latency.p50}, {"min", r.best_ms}, {"mean", r.latency.mean}, {"p99", r.latency.p99}}},
      {"gflops",
       {{"nominal", r.gflops(r.cost.flops)}, {"executed", r.gflops(r.cost.executed)}, {"peak", r.peak_gflops}}},
      {"peak_fraction", r.gflops(r.cost.executed) / r.peak_gflops},
      {"batch", r.batch},
      {"threads", r.threads},
      {"runs", r.runs},
      {"memory_bytes", r.memory_bytes},
      {"peak_memory_bytes", peak_memory()},
      {"memory_at_start_bytes", memory_at_start},
      {"energy", r.joules ? json{{"joules", *r.joules}} : json{{"joules", nullptr}, {"reason", EnergyCounter::none}}},
      {"isa", offramp::name_of(m.isa())},
      {"cost", cost_json(r.cost)}};
  for (const LayerTime& t : r.layers) {
    const auto& l = m.layers()[t.layer];
    const auto per_ms = [&](std::int64_t flops) {
      return t.ms > 0 ? static_cast<double>(flops * r.batch) / t.ms / 1e6 : 0.0;
    };
    j["layers"].push_back({{"name", l.name},
                           {"op", l.op},
                           {"algorithm", l.algorithm},
                           {"head_of", l.is_head ? json(m.exits()[static_cast<std::size_t>(l.exit)].name) : json()},
                           {"ms", t.ms},
                           {"share", t.ms / r.latency.p50},
                           {"gflops", {{"nominal", per_ms(l.cost.flops)}, {"executed", per_ms(l.cost.executed)}}}});
  }
  for (std::size_t k = 0; k < r.exits.stages.size(); ++k)
    j["exits"].push_back({{"name", m.exits()[k].name}, {"stage_ms", r.exits.stages[k]}, {"head_ms", r.exits.heads[k]}});
  return j;
}

inline void print(const BenchResult& r, const offramp::Model& m) {
  if (!r.layers.empty())
    std::printf("%-26s %-30s %-16s %9s %7s %9s %9s  %s\n", "operator", "name", "output", "ms", "share", "GFLOP/s",
                "executed", "algorithm");
  for (const LayerTime& t : r.layers) {
    const auto& l = m.layers()[t.layer];
    const auto rate = [&](std::int64_t flops) {
      return t.ms > 0 ? fixed(static_cast<double>(flops * r.batch) / t.ms / 1e6, 1) : std::string("-");
    };
    std::printf("%-26s %-30s %-16s %9.4f %7s %9s %9s  %s\n", l.op.c_str(), l.name.substr(0, 30).c_str(),
                l.output.text().c_str(), t.ms, percent(t.ms / r.latency.p50, 1).c_str(), rate(l.cost.flops).c_str(),
                rate(l.cost.executed).c_str(), l.algorithm.c_str());
  }
  if (!r.exits.stages.empty())
    std::printf("\n%-16s %9s %12s %9s %12s\n", "exit, one sample", "stage ms", "FLOPs", "head ms", "FLOPs");
  for (std::size_t k = 0; k < r.exits.stages.size(); ++k) {
    const auto& e = m.exits()[k];
    std::printf("%-16s %9.4f %12s %9.4f %12s\n", e.name.c_str(), r.exits.stages[k],
                engineering(static_cast<double>(e.stage.flops)).c_str(), r.exits.heads[k],
                engineering(static_cast<double>(e.head.flops)).c_str());
  }
  if (!r.exits.stages.empty()) std::printf("\n");
  std::printf(
      "batch %ld, %d thread%s, %s, %zu runs\nlatency   median %.4f ms, best %.4f ms, p99 %.4f ms\nGFLOP/s   nominal "
      "%.1f, executed %.1f of %.1f at peak (%s)\nmemory    %s bytes of work\nenergy    %s\n",
      static_cast<long>(r.batch), r.threads, r.threads == 1 ? "" : "s", std::string(name_of(m.isa())).c_str(), r.runs,
      r.latency.p50, r.best_ms, r.latency.p99, r.gflops(r.cost.flops), r.gflops(r.cost.executed), r.peak_gflops,
      percent(r.gflops(r.cost.executed) / r.peak_gflops, 1).c_str(),
      engineering(static_cast<double>(r.memory_bytes)).c_str(),
      r.joules ? (fixed(*r.joules, 6) + " J").c_str() : EnergyCounter::none);
}

}  // namespace tool
