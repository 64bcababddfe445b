/// @file constant.hpp
#pragma once

#include "offramp/policy/policy.hpp"

namespace offramp {

/// Leaves at exit `exit` and nowhere before: `Always{}` at the first. Heads before it are not run.
struct Always {
  Index exit = 0;

  Verdict operator()(ExitContext& c) const noexcept {
    return {c.exit >= exit, c.probabilities[static_cast<std::size_t>(c.label())]};
  }
  bool wants(Index e) const noexcept { return e >= exit; }
  void validate(Index exits, Index) const {
    OFFRAMP_REQUIRE(exit >= 0 && exit < exits, "the network has no such exit");
  }
};

/// Never leaves early: the whole network, without its heads.
struct Never {
  Verdict operator()(ExitContext& c) const noexcept {
    return {false, c.probabilities[static_cast<std::size_t>(c.label())]};
  }
  bool wants(Index) const noexcept { return false; }
};

}  // namespace offramp
