#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "offramp/policy/policy.hpp"

namespace offramp::detail {

/// Puts the weighted geometric mean of what the exits so far said in place of the probabilities. `weights` is empty
/// (all equal) or has one for each exit; exits that were not evaluated have no say.
inline void take_geometric_mean(ExitContext& c, std::span<const float> weights) noexcept {
  const auto weight = [&](Index e) {
    if (!c.has(e)) return 0.0f;
    return weights.empty() ? 1.0f : weights[static_cast<std::size_t>(e)];
  };
  float total = 0;
  for (Index e = 0; e <= c.exit; ++e) total += weight(e);
  if (!(total > 0)) return;
  float largest = -INFINITY, sum = 0;
  for (std::size_t k = 0; k < c.probabilities.size(); ++k) {
    float log_mean = 0;
    for (Index e = 0; e <= c.exit; ++e) {
      if (weight(e) > 0) log_mean += weight(e) * std::log(std::max(c.row(e)[k], 1e-30f));
    }
    c.probabilities[k] = log_mean / total;
    largest = std::max(largest, log_mean / total);
  }
  for (float& p : c.probabilities) sum += p = std::exp(p - largest);
  for (float& p : c.probabilities) p /= sum;
}

}  // namespace offramp::detail
