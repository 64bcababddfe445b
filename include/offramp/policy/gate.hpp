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

/// A learned gate: at each exit a logistic regression on what the exits so far say estimates the chance that the answer
/// is the full network's; leaves where the estimate reaches the threshold. `calibrate/confidence.hpp` learns one.
///
/// The row of an exit holds a weight for each feature; then, if it goes on, an offset for each class that the exit may
/// see; then, if it still goes on, the mean log-probabilities of each class, [class][class], that the distance is
/// measured to.
struct Gate {
  /// Features: 1; log-odds of the largest probability; log-ratio of the two largest; entropy / log(classes); share of
  /// earlier exits that agree; their mean log-probability of this answer; distance to the mean of the class.
  static constexpr std::size_t feature_count = 7;
  static constexpr bool looks_back = true;
  std::vector<std::vector<float>> weights;  ///< one row for each early exit
  Thresholds thresholds;

  /// All features but the distance, which is zero.
  static std::array<float, feature_count> features(const ExitContext& c) noexcept {
    constexpr float least = 1e-7f;
    float first = -1, second = -1, entropy = 0, rest = 0;
    const Index label = c.label();
    for (std::size_t i = 0; i < c.probabilities.size(); ++i) {
      const float p = c.probabilities[i];
      if (static_cast<Index>(i) == label) {
        first = p;
      } else {
        second = std::max(second, p);
        rest += p;
      }
      entropy -= p > 0 ? p * std::log(p) : 0;
    }
    float agreeing = 0, said = 0, earlier = 0;
    for (Index e = 0; e < c.exit; ++e) {
      if (!c.has(e)) continue;
      const auto row = c.row(e);
      agreeing += ExitContext::label_of(row) == label ? 1.0f : 0.0f;
      said += std::log(std::max(row[static_cast<std::size_t>(label)], 1e-4f));
      ++earlier;
    }
    return {1.0f,
            std::log(std::max(first, least)) - std::log(std::max(rest, least)),
            std::log(std::max(first, least)) - std::log(std::max(second, least)),
            entropy / std::log(static_cast<float>(std::max<Index>(2, c.class_count()))),
            earlier > 0 ? agreeing / earlier : 0.5f,
            earlier > 0 ? said / earlier : 0.0f,
            0.0f};
  }

  /// Root mean square distance of log-probabilities to those in `mean`.
  static float distance(std::span<const float> probabilities, std::span<const float> mean) noexcept {
    float sum = 0;
    for (std::size_t i = 0; i < probabilities.size(); ++i) {
      const float d = std::log(std::max(probabilities[i], 1e-4f)) - mean[i];
      sum += d * d;
    }
    return std::sqrt(sum / static_cast<float>(probabilities.size()));
  }

  Verdict operator()(ExitContext& c) const noexcept {
    if (static_cast<std::size_t>(c.exit) >= weights.size()) return {true, 1};  // the last exit has no gate
    const std::vector<float>& w = weights[static_cast<std::size_t>(c.exit)];
    const std::size_t classes = c.probabilities.size(), label = static_cast<std::size_t>(c.label());
    auto x = features(c);
    if (const std::size_t means = feature_count + classes; w.size() > means)
      x.back() = distance(c.probabilities, std::span(w).subspan(means + label * classes, classes));
    float z = w.size() > feature_count ? w[feature_count + label] : 0.0f;
    for (std::size_t i = 0; i < feature_count; ++i) z += w[i] * x[i];
    const float p = 1 / (1 + std::exp(-z));
    return {p >= thresholds.at(c.exit, static_cast<Index>(label)), p};
  }
  bool wants(Index exit) const noexcept {
    return thresholds.any(exit, [](float t) { return !std::isinf(t); });  // later exits look back at it
  }
  void validate(Index exits, Index classes) const {
    OFFRAMP_REQUIRE(static_cast<Index>(weights.size()) == exits - 1,
                    "the gate has weights for " + std::to_string(weights.size()) + " exits, the network has " +
                        std::to_string(exits - 1) + " early exits");
    const auto f = feature_count, c = static_cast<std::size_t>(classes);
    for (const auto& row : weights) {
      OFFRAMP_REQUIRE(row.size() == f || row.size() == f + c || row.size() == f + c + c * c,
                      "a gate's row has " + std::to_string(row.size()) + " numbers, " + std::to_string(classes) +
                          " classes take " + std::to_string(f) + ", " + std::to_string(f + c) + " or " +
                          std::to_string(f + c + c * c));
    }
    thresholds.validate(exits, classes);
  }
};

}  // namespace offramp
