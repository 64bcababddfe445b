/// @file ensemble.hpp
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "offramp/policy/geometric_mean.hpp"
#include "offramp/policy/policy.hpp"

namespace offramp {

/// Replaces the probabilities by the weighted geometric mean of all exits so far, then asks another policy (Zero Time
/// Waste, Wołczyk et al., NeurIPS 2021, section 3.2, without its learned class weights). At the last exit the network's
/// own answer stands, so that a sample that goes all the way is answered as without exits.
template <ExitPolicy P>
struct Ensemble {
  static constexpr bool looks_back = true;
  P policy;
  std::vector<float> weights{};  ///< one for each exit, the last included; empty: all equal

  Verdict operator()(ExitContext& c) const noexcept {
    if (c.exit > 0 && c.exit + 1 < c.exit_count) detail::take_geometric_mean(c, weights);
    return policy(c);
  }
  bool wants(Index exit) const noexcept { return weight(exit) > 0 || policy_wants(policy, exit); }
  void validate(Index exits, Index classes) const {
    OFFRAMP_REQUIRE(weights.empty() || static_cast<Index>(weights.size()) == exits,
                    "the ensemble has " + std::to_string(weights.size()) + " weights, the network has " +
                        std::to_string(exits) + " exits");
    for (const float w : weights) OFFRAMP_REQUIRE(w >= 0, "an ensemble's weights must not be negative");
    policy_validate(policy, exits, classes);
  }

 private:
  float weight(Index e) const noexcept { return weights.empty() ? 1.0f : weights[static_cast<std::size_t>(e)]; }
};

template <class P>
Ensemble(P) -> Ensemble<P>;
template <class P>
Ensemble(P, std::vector<float>) -> Ensemble<P>;

}  // namespace offramp
