/// @file temperature.hpp
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "offramp/policy/policy.hpp"

namespace offramp {

/// Divides the logits by the exit's temperature before the softmax, then asks another policy (Guo et al., ICML 2017,
/// section 4.2).
template <ExitPolicy P>
struct Temperature {
  static constexpr bool looks_back = policy_looks_back<P>();
  std::vector<float> temperatures;  ///< one for all exits, or one for each, the last included
  P policy;

  Verdict operator()(ExitContext& c) const noexcept {
    const float t = temperatures[std::min(temperatures.size() - 1, static_cast<std::size_t>(c.exit))];
    float largest = -INFINITY, sum = 0;
    for (const float x : c.logits) largest = std::max(largest, x);
    for (std::size_t i = 0; i < c.logits.size(); ++i) sum += c.probabilities[i] = std::exp((c.logits[i] - largest) / t);
    for (float& p : c.probabilities) p /= sum;
    return policy(c);
  }
  bool wants(Index exit) const noexcept { return policy_wants(policy, exit); }
  void validate(Index exits, Index classes) const {
    OFFRAMP_REQUIRE(
        temperatures.size() == 1 || static_cast<Index>(temperatures.size()) == exits,
        "expected 1 or " + std::to_string(exits) + " temperatures, found " + std::to_string(temperatures.size()));
    for (const float t : temperatures) OFFRAMP_REQUIRE(t > 0, "a temperature must be positive");
    policy_validate(policy, exits, classes);
  }
};

template <class P>
Temperature(std::vector<float>, P) -> Temperature<P>;

}  // namespace offramp
