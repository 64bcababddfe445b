/// @file margin.hpp
#pragma once

#include <utility>

#include "offramp/policy/policy.hpp"
#include "offramp/policy/thresholds.hpp"

namespace offramp {

/// Leaves where the most probable class is ahead of the second by at least the threshold.
struct Margin {
  Thresholds thresholds;

  Verdict operator()(ExitContext& c) const noexcept {
    float first = -1, second = -1;
    Index label = 0;
    for (std::size_t i = 0; i < c.probabilities.size(); ++i) {
      const float p = c.probabilities[i];
      if (p > first) {
        second = first;
        first = p;
        label = static_cast<Index>(i);
      } else if (p > second) {
        second = p;
      }
    }
    return {first - second >= thresholds.at(c.exit, label), first - second};
  }
  bool wants(Index exit) const noexcept {
    return thresholds.any(exit, [](float t) { return t <= 1; });
  }
  void validate(Index exits, Index classes) const { thresholds.validate(exits, classes); }
};

}  // namespace offramp
