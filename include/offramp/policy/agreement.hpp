/// @file agreement.hpp
#pragma once

#include <algorithm>
#include <utility>

#include "offramp/policy/policy.hpp"
#include "offramp/policy/thresholds.hpp"

namespace offramp {

/// Leaves where this exit and its neighbour before name the same class and the less sure of the two reaches the
/// threshold. The first exit has no neighbour and is never left.
struct Agreement {
  static constexpr bool looks_back = true;
  Thresholds thresholds;

  Verdict operator()(ExitContext& c) const noexcept {
    Index before = c.exit - 1;
    while (before >= 0 && !c.has(before)) --before;
    if (before < 0) return {false, 0};
    const auto here = c.row(c.exit), there = c.row(before);
    const Index label = ExitContext::label_of(here);
    if (ExitContext::label_of(there) != label) return {false, 0};
    const auto u = static_cast<std::size_t>(label);
    const float p = std::min(here[u], there[u]);
    return {p >= thresholds.at(c.exit, label), p};
  }
  void validate(Index exits, Index classes) const { thresholds.validate(exits, classes); }
};

}  // namespace offramp
