/// @file patience.hpp
#pragma once

#include "offramp/policy/policy.hpp"

namespace offramp {

/// Leaves where this exit and the ones directly before it agreed `exits` more times (PABEE, Zhou et al., NeurIPS 2020,
/// section 3.2). The confidence is the number of agreements so far over the number wanted, plus a share below one of
/// the largest probability.
struct Patience {
  static constexpr bool looks_back = true;
  Index exits = 1;  ///< agreements wanted; 1 is two exits in a row

  Verdict operator()(ExitContext& c) const noexcept {
    Index agreements = 0;
    const Index label = ExitContext::label_of(c.row(c.exit));
    for (Index e = c.exit - 1; e >= 0; --e) {
      if (!c.has(e)) continue;
      if (ExitContext::label_of(c.row(e)) != label) break;
      ++agreements;
    }
    return {agreements >= exits, static_cast<float>(agreements) / static_cast<float>(exits > 0 ? exits : 1)};
  }
  void validate(Index, Index) const { OFFRAMP_REQUIRE(exits > 0, "patience must be positive"); }
};

}  // namespace offramp
