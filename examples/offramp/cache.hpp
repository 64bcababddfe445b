/// @file cache.hpp
/// Puts exits on a network and says what came of it.
#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "evaluation.hpp"
#include "memory.hpp"
#include "offramp/cache/cache_layers.hpp"
#include "offramp/offramp.hpp"
#include "output.hpp"

namespace tool {

/// `flops`, `modelled` or `latency`, as the options check.
inline offramp::Objective objective_called(const std::string& name) {
  using offramp::Objective;
  for (const Objective o : {Objective::latency, Objective::modelled}) {
    if (name == name_of(o)) return o;
  }
  return Objective::flops;
}

/// Shows one bar after the other on the terminal.
inline offramp::CacheProgress cache_progress() {
  auto bar = std::make_shared<std::unique_ptr<Progress>>();
  auto now = std::make_shared<std::string>();
  return [bar, now](const std::string& what, Index done, Index total) {
    if (*now != what) {
      *bar = nullptr;
      *bar = std::make_unique<Progress>(what, total);
      *now = what;
    }
    (*bar)->at(done);
  };
}

inline json threshold_json(const std::vector<float>& t) {
  const auto one = [](float x) { return std::isinf(x) || x > 1e30f ? json(nullptr) : json(x); };
  if (t.size() == 1) return one(t[0]);
  json all = json::array();
  for (const float x : t) all.push_back(one(x));
  return all;
}

inline json certificate_json(const offramp::Certificate& c) {
  return {{"risk", c.risk == offramp::Risk::disagreement ? "disagreement" : "accuracy drop"},
          {"epsilon", c.epsilon},
          {"delta", c.delta},
          {"n", c.n},
          {"lost", c.lost},
          {"won", c.won},
          {"observed", c.observed()},
          {"bound", c.bound},
          {"p_value", c.p_value}};
}

inline json to_json(const offramp::CacheResult& r) {
  json j = {{"has_exits", r.has_exits},
            {"reason", r.reason},
            {"policy", r.policy},
            {"seconds", r.seconds},
            {"peak_memory_bytes", peak_memory()},
            {"samples", {{"fitted", r.fitted}, {"selected", r.selected}, {"calibrated", r.calibrated}}},
            {"calibration", certificate_json(r.calibration.certificate)},
            {"exits", json::array()},
            {"tried", json::array()},
            {"policies", json::object()}};
  for (const auto& e : r.exits) {
    j["exits"].push_back({{"name", e.name},
                          {"layer", e.place},
                          {"head", e.head},
                          {"threshold", threshold_json(e.thresholds)},
                          {"share", e.share},
                          {"agreement", e.accuracy},
                          {"cost", cost_json(e.head_cost)},
                          {"stage", cost_json(e.stage)}});
  }
  for (const auto& t : r.tried)
    j["tried"].push_back({{"layer", t.place},
                          {"head", t.head},
                          {"depth", t.place_share},
                          {"cost", t.head_share},
                          {"agreement", t.agreement},
                          {"chosen", t.chosen}});
  for (const auto& [name, value] : r.calibration.selection.tried) j["policies"][name] = value;
  return j;
}

inline void print(const offramp::CacheResult& r) {
  std::printf("%-40s %-22s %8s %8s %10s\n", "place", "head", "depth", "cost", "agreement");
  for (const auto& t : r.tried)
    std::printf("%-40s %-22s %8s %8s %10s%s\n", t.place.c_str(), t.head.c_str(), percent(t.place_share, 1).c_str(),
                percent(t.head_share, 1).c_str(), percent(t.agreement, 2).c_str(), t.chosen ? "  *" : "");
  for (const auto& [name, value] : r.calibration.selection.tried)
    std::printf("confidence %-28s held-out price with fine %.4f\n", name.c_str(), value);
  if (!r.has_exits) {
    std::printf("\nno exits: %s\n", r.reason.c_str());
    return;
  }
  std::printf("\n%-10s %-40s %-22s %9s %10s\n", "exit", "behind", "head", "share", "right");
  for (const auto& e : r.exits)
    std::printf("%-10s %-40s %-22s %9s %10s%s\n", e.name.c_str(), e.place.c_str(), e.head.c_str(),
                percent(e.share, 1).c_str(), percent(e.accuracy, 2).c_str(),
                e.head_cost.integer > 0 ? "  in bytes" : "");
  std::printf("\ncertificate: %s\n%ld samples trained the heads, %ld chose, %ld certified; %.1f s\n",
              text_of(r.calibration.certificate).c_str(), static_cast<long>(r.fitted), static_cast<long>(r.selected),
              static_cast<long>(r.calibrated), r.seconds);
}

}  // namespace tool
