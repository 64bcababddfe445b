/// @file deadline.hpp
#pragma once

#include <chrono>

#include "offramp/policy/policy.hpp"

namespace offramp {

/// Leaves at the first exit that is reached after this long.
struct Deadline {
  std::chrono::nanoseconds limit{};

  Verdict operator()(ExitContext& c) const noexcept {
    return {std::chrono::steady_clock::now() - c.start >= limit, c.probabilities[static_cast<std::size_t>(c.label())]};
  }
  void validate(Index, Index) const { OFFRAMP_REQUIRE(limit.count() >= 0, "a deadline must not be negative"); }
};

}  // namespace offramp
