/// @file prices.hpp
/// What stages and heads cost, in what is to be saved.
#pragma once

#include <algorithm>
#include <chrono>
#include <span>
#include <vector>

#include "offramp/calibrate/records.hpp"
#include "offramp/flops/objective.hpp"
#include "offramp/graph/model.hpp"
#include "offramp/kernel/cost.hpp"

namespace offramp {

/// Milliseconds of each stage and head of a model for one sample, medians over some of `samples`: fifty, and as many
/// more as a fifth of a second has time for, since another program on the machine slows some of them.
inline ExitPrices measured_prices(const Model& model, std::span<const float> samples) {
  using clock = std::chrono::steady_clock;
  const auto exits = static_cast<std::size_t>(model.exit_count());
  std::vector<std::vector<double>> stages(exits), heads(exits);
  std::vector<double> nothing;
  auto state = model.make_state(1);
  const Index size = model.sample_size(), count = static_cast<Index>(samples.size()) / size;
  const auto time = [](auto&& f) {
    const auto start = clock::now();
    f();
    return std::chrono::duration<double, std::milli>(clock::now() - start).count();
  };
  constexpr Index warming = 10, least = 50, most = 2000;
  const auto end = clock::now() + std::chrono::milliseconds(200);
  for (Index run = 0; run < warming + least || (run < warming + most && clock::now() < end); ++run) {
    model.load(state, samples.data() + run % count * size, 1);
    nothing.push_back(time([] {}));
    for (std::size_t k = 0; k < exits; ++k) {
      const auto e = static_cast<Index>(k);
      const double stage = time([&] { model.run_stage(state, e); });
      const double head = k + 1 < exits ? time([&] { model.run_head(state, e); }) : 0;
      if (run < warming) continue;
      stages[k].push_back(stage);
      heads[k].push_back(head);
    }
  }
  const auto median = [](std::vector<double>& v) {
    std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
    return v[v.size() / 2];
  };
  // Of ten heads at a place nine have an empty stage: what it takes to look at the clock is not theirs.
  const double clock_ms = median(nothing);
  const auto medians = [&](std::vector<std::vector<double>>& all) {
    std::vector<double> m;
    for (auto& v : all) m.push_back(std::max(0.0, median(v) - clock_ms));
    return m;
  };
  return {medians(stages), medians(heads), 0};
}

/// Time as a sum: executed FLOPs, those that a core could do while the bytes of a layer move between caches and
/// registers, and those until it is in its stride. Weights come beside the work; where that is less than the FLOPs
/// which their bytes are worth, it is they that take the time. `bench/prices.cpp` compares it with the clock.
inline ExitPrices modelled_prices(const Model& model) {
  const auto exits = static_cast<std::size_t>(model.exit_count());
  ExitPrices p{std::vector<double>(exits, 0.0), std::vector<double>(exits, 0.0), 0};
  for (const LayerInfo& l : model.layers()) {
    if (l.exit < 0 || l.bytes == 0) continue;                 // no exit's, or nothing but another shape
    const bool winograd = l.cost.executed < 2 * l.cost.macs;  // nothing else does less than it says
    const double pace = l.cost.integer > 0 ? 1 / kernel::byte_speedup(model.isa())
                        : winograd         ? kernel::winograd_pace
                                           : 1,
                 work = static_cast<double>(l.cost.executed - l.transformed) * pace +
                        static_cast<double>(l.transformed) * kernel::transformation_pace,
                 rounding = l.cost.integer > 0
                                ? kernel::flops_per_rounded_byte * static_cast<double>(l.bytes - l.weight_bytes)
                                : 0,
                 weights = kernel::flops_per_weight_byte() * static_cast<double>(l.weight_bytes);
    (l.is_head ? p.heads : p.stages)[static_cast<std::size_t>(l.exit)] +=
        std::max(work, weights) + kernel::flops_per_byte * static_cast<double>(l.bytes) + rounding +
        kernel::flops_per_layer;
  }
  return p;
}

/// What prices are in where a mean price is given as a budget: nobody can state one in modelled time.
constexpr Objective objective_of_budget(Objective objective) noexcept {
  return objective == Objective::modelled ? Objective::flops : objective;
}

/// Prices for an objective; those that are measured are of some of `samples`. Modelled heads count a tenth more:
/// between two stages a head drives out of the caches what the next one reads, and one that only just pays may not pay.
inline ExitPrices prices_of(const Model& model, std::span<const float> samples, Objective objective) {
  constexpr double head_margin = 1.1;
  if (objective == Objective::latency) return measured_prices(model, samples);
  ExitPrices p;
  if (objective == Objective::modelled) p = modelled_prices(model);
  for (double& head : p.heads) head *= head_margin;
  return p;
}

}  // namespace offramp
