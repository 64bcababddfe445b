/// @file max_probability.hpp
#pragma once

#include <utility>

#include "offramp/policy/policy.hpp"
#include "offramp/policy/thresholds.hpp"

namespace offramp {

/// Leaves where the largest probability reaches the threshold (Shallow-Deep Networks, Kaya et al., ICML 2019, section
/// 4).
struct MaxProbability {
  Thresholds thresholds;

  Verdict operator()(ExitContext& c) const noexcept {
    const Index label = c.label();
    const float p = c.probabilities[static_cast<std::size_t>(label)];
    return {p >= thresholds.at(c.exit, label), p};
  }
  bool wants(Index exit) const noexcept {
    return thresholds.any(exit, [](float t) { return t <= 1; });
  }
  void validate(Index exits, Index classes) const { thresholds.validate(exits, classes); }
};

}  // namespace offramp
