/// @file route.hpp
/// Which samples of a cascade should go to the larger version at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "offramp/calibrate/calibrate.hpp"
#include "offramp/calibrate/records.hpp"
#include "offramp/policy/route.hpp"

namespace offramp {

/// A route and what it saves of the full price on the records that chose it, by the answers that they hold.
struct ChosenRoute {
  RouteRule rule;
  double saved = 0;
};

/// For given thresholds the route that saves most: at each exit that is in use, those samples go to the target at once
/// that are less sure than a bound. Who would have gone all the way to the target saves what lies between; who would
/// have left on the way pays for the way behind the target instead. `can_skip(from, to)` says where a network allows
/// it. An empty rule where nothing is saved.
inline ChosenRoute choose_route(const ExitRecords& r, std::span<const float> thresholds,
                                const std::function<bool(Index, Index)>& can_skip) {
  const double full = r.full_price();
  const std::vector<double> upto = detail::costs_upto(r, thresholds).price;
  ChosenRoute best;
  for (Index target = 2; target < r.exits; ++target) {
    ChosenRoute route{{target, {}}, 0};
    std::vector<std::uint8_t> skipped(static_cast<std::size_t>(r.samples), 0);
    const double past = upto[static_cast<std::size_t>(target - 1)];
    for (Index k = 0; k + 1 < target; ++k) {
      route.rule.below.push_back(-std::numeric_limits<float>::infinity());
      if (!detail::is_in_use(thresholds, r.groups, k) || !can_skip(k, target)) continue;
      std::vector<std::pair<float, double>> gains;  // confidence, and what skipping here saves
      for (Index i = 0; i < r.samples; ++i) {
        const Index e = exit_of(r, thresholds, i);
        if (e <= k || skipped[static_cast<std::size_t>(i)] || !std::isfinite(r.confidence_at(i, k))) continue;
        const Index f = exit_of(r, thresholds, i, target);
        const double stays = upto[static_cast<std::size_t>(e)] - upto[static_cast<std::size_t>(k)];
        gains.emplace_back(r.confidence_at(i, k), stays - (upto[static_cast<std::size_t>(f)] - past));
      }
      std::sort(gains.begin(), gains.end());
      double sum = 0, most = 0;
      float bound = -std::numeric_limits<float>::infinity();
      for (std::size_t i = 0; i + 1 < gains.size(); ++i) {
        sum += gains[i].second;
        if (gains[i].first < gains[i + 1].first && sum > most) most = sum, bound = gains[i + 1].first;
      }
      if (!(most > 0)) continue;
      route.rule.below.back() = bound;
      route.saved += most / full / static_cast<double>(std::max<Index>(1, r.samples));
      for (Index i = 0; i < r.samples; ++i) {
        if (exit_of(r, thresholds, i) > k && r.confidence_at(i, k) < bound) skipped[static_cast<std::size_t>(i)] = 1;
      }
    }
    if (route.saved > best.saved) best = std::move(route);
  }
  return best;
}

}  // namespace offramp
