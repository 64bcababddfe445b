/// @file gate.hpp
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "offramp/policy/policy.hpp"
#include "offramp/policy/thresholds.hpp"

namespace offramp {

/// A learned gate: at each exit a logistic regression on what the exit says estimates the chance that its answer is
/// that of the full network; leaves where the estimate reaches the threshold.
struct Gate {
  /// Features: 1, largest probability, margin of the two best, entropy / log(classes), agreement with the exit before.
  static constexpr std::size_t feature_count = 5;
  std::vector<std::array<float, feature_count>> weights;  ///< one row for each early exit
  Thresholds thresholds;

  static std::array<float, feature_count> features(const ExitContext& c) noexcept {
    float first = -1, second = -1, entropy = 0;
    for (const float p : c.probabilities) {
      if (p > first) {
        second = first;
        first = p;
      } else if (p > second) {
        second = p;
      }
      entropy -= p > 0 ? p * std::log(p) : 0;
    }
    Index before = c.exit - 1;
    while (before >= 0 && !c.has(before)) --before;
    const bool agrees = before >= 0 && ExitContext::label_of(c.row(before)) == c.label();
    return {1.0f, first, first - second, entropy / std::log(static_cast<float>(std::max<Index>(2, c.class_count()))),
            agrees ? 1.0f : 0.0f};
  }

  Verdict operator()(ExitContext& c) const noexcept {
    if (static_cast<std::size_t>(c.exit) >= weights.size()) return {true, 1};  // the last exit has no gate
    const auto x = features(c);
    const auto& w = weights[static_cast<std::size_t>(c.exit)];
    float z = 0;
    for (std::size_t i = 0; i < feature_count; ++i) z += w[i] * x[i];
    const float p = 1 / (1 + std::exp(-z));
    return {p >= thresholds.at(c.exit, thresholds.classes() ? c.label() : 0), p};
  }
  bool wants(Index exit) const noexcept {
    return thresholds.any(exit, [](float t) { return t <= 1; });
  }
  void validate(Index exits, Index classes) const {
    OFFRAMP_REQUIRE(static_cast<Index>(weights.size()) == exits - 1,
                    "the gate has weights for " + std::to_string(weights.size()) + " exits, the network has " +
                        std::to_string(exits - 1) + " early exits");
    thresholds.validate(exits, classes);
  }
};

}  // namespace offramp
