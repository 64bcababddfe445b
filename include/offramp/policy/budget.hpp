/// @file budget.hpp
#pragma once

#include "offramp/policy/policy.hpp"

namespace offramp {

/// Leaves where the way to the next exit would take a sample above a number of nominal FLOPs.
struct FlopBudget {
  std::int64_t flops = 0;

  Verdict operator()(ExitContext& c) const noexcept {
    return {c.spent.flops + c.next.flops > flops, c.probabilities[static_cast<std::size_t>(c.label())]};
  }
  void validate(Index, Index) const { OFFRAMP_REQUIRE(flops > 0, "a FLOP budget must be positive"); }
};

}  // namespace offramp
