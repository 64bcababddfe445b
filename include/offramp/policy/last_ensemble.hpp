#pragma once

#include <utility>

#include "offramp/policy/geometric_mean.hpp"
#include "offramp/policy/policy.hpp"

namespace offramp {

/// A policy whose last answer is that of all: where a sample has gone all the way, the geometric mean of what the exits
/// said is its answer, in place of the last exit's alone. Versions of a network that were trained apart err apart, so
/// that a cascade of them answers better than its best version; exits of one network seldom do.
template <ExitPolicy P>
struct LastEnsemble {
  static constexpr bool looks_back = true;
  P policy;

  Verdict operator()(ExitContext& c) const noexcept {
    if (c.exit + 1 == c.exit_count) detail::take_geometric_mean(c, {});
    return policy(c);
  }
  bool wants(Index exit) const noexcept { return policy_wants(policy, exit); }
  void validate(Index exits, Index classes) const { policy_validate(policy, exits, classes); }
};

template <class P>
LastEnsemble(P) -> LastEnsemble<P>;

}  // namespace offramp
