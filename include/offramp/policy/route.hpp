/// @file route.hpp
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "offramp/policy/policy.hpp"

namespace offramp {

/// What sends samples past a part of a network: those that exit k is less sure of than `below[k]` go on behind exit
/// `target` - 1. Nothing is skipped where `target` is 0.
struct RouteRule {
  Index target = 0;          ///< the exit that comes next for them
  std::vector<float> below;  ///< of the first exits; -infinity: nobody skips there

  bool may_skip(Index exit) const noexcept {
    return exit < static_cast<Index>(below.size()) &&
           below[static_cast<std::size_t>(exit)] > -std::numeric_limits<float>::infinity();
  }
};

/// A router in a cascade: where an early exit of a small version is so unsure that the version would hardly answer
/// itself, the sample goes to a larger version at once and the rest of the small one is not run. The exits between are
/// taken to have said what that exit said, for policies that look back. Everything else is `policy`'s.
template <ExitPolicy P>
struct Route {
  static constexpr bool looks_back = policy_looks_back<P>();
  RouteRule rule;
  P policy;

  Verdict operator()(ExitContext& c) const noexcept {
    Verdict v = policy(c);
    v.skip = !v.leave && rule.may_skip(c.exit) && v.confidence < rule.below[static_cast<std::size_t>(c.exit)];
    return v;
  }
  bool wants(Index exit) const noexcept { return rule.may_skip(exit) || policy_wants(policy, exit); }
  Index skip_target() const noexcept { return rule.target; }
  bool may_skip(Index exit) const noexcept { return rule.may_skip(exit); }
  void validate(Index exits, Index classes) const {
    OFFRAMP_REQUIRE(rule.target > 0 && rule.target < exits && static_cast<Index>(rule.below.size()) < rule.target,
                    "a route past exits 0 to " + std::to_string(rule.below.size()) + " to exit " +
                        std::to_string(rule.target) + " does not fit a network of " + std::to_string(exits) + " exits");
    OFFRAMP_REQUIRE(std::none_of(rule.below.begin(), rule.below.end(), [](float b) { return std::isnan(b); }),
                    "a route's bounds must be numbers");
    policy_validate(policy, exits, classes);
  }
};

template <class P>
Route(RouteRule, P) -> Route<P>;

}  // namespace offramp
