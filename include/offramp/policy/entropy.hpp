/// @file entropy.hpp
#pragma once

#include <cmath>
#include <utility>

#include "offramp/policy/policy.hpp"
#include "offramp/policy/thresholds.hpp"

namespace offramp {

/// Leaves where the entropy of the probabilities, in nats, is at most the threshold (BranchyNet, Teerapittayanon et
/// al., ICPR 2016, section III). The confidence is the negative entropy.
struct Entropy {
  Thresholds thresholds;

  Verdict operator()(ExitContext& c) const noexcept {
    float entropy = 0;
    for (const float p : c.probabilities) entropy -= p > 0 ? p * std::log(p) : 0;
    return {entropy <= thresholds.at(c.exit, thresholds.classes() ? c.label() : 0), -entropy};
  }
  bool wants(Index exit) const noexcept {
    return thresholds.any(exit, [](float t) { return t >= 0; });
  }
  void validate(Index exits, Index classes) const { thresholds.validate(exits, classes); }
};

}  // namespace offramp
