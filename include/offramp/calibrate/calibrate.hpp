/// @file calibrate.hpp
/// Thresholds from data: the cheapest that keep the accuracy, or the most accurate within a budget.
///
/// A threshold for each exit is searched jointly, for the samples that really reach it, because an exit changes which
/// samples the later ones see. An exit whose head does not pay for itself gets the threshold infinity: its head is not
/// run. The search is a coordinate descent on mean price plus a fine for each lost answer, for a range of fines; along
/// one coordinate all thresholds that the data can tell apart are tried in one pass, so each step is exact. What comes
/// out is a path of settings from strict to lax. The numbers are those of the given data; certificate.hpp says what
/// they are worth for other data.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/calibrate/records.hpp"

namespace offramp {

/// What a set of thresholds does to recorded data.
struct Outcome {
  double accuracy = 0;                     ///< share of right answers
  double mean_flops = 0;                   ///< heads of the exits in use included
  double mean_price = 0;                   ///< the same in what is to be saved
  double skipping = 0;                     ///< share of the samples that skip exits
  std::vector<double> shares, accuracies;  ///< of each exit; accuracy 0 where nothing left
};

/// What the full network alone does.
inline Outcome full_outcome(const ExitRecords& r) {
  Outcome o;
  Index right = 0;
  for (Index i = 0; i < r.samples; ++i) right += r.full_right(i);
  o.accuracy = static_cast<double>(right) / static_cast<double>(std::max<Index>(1, r.samples));
  o.mean_flops = r.full_flops();
  o.mean_price = r.full_price();
  for (Index k = 0; k < r.exits; ++k) {
    o.shares.push_back(k + 1 == r.exits ? 1 : 0);
    o.accuracies.push_back(k + 1 == r.exits ? o.accuracy : 0);
  }
  return o;
}

namespace detail {

/// Whether anybody may leave at exit k, of thresholds [exit][group] of the early exits: its head is run.
inline bool is_in_use(std::span<const float> thresholds, Index groups, Index k) noexcept {
  const auto first = static_cast<std::size_t>(k * groups);
  if (first >= thresholds.size()) return false;  // the last exit has none
  const auto own = thresholds.subspan(first, static_cast<std::size_t>(groups));
  return std::any_of(own.begin(), own.end(), [](float t) { return t < std::numeric_limits<float>::infinity(); });
}

/// What all stages and heads up to each exit take, its own included: nominal FLOPs, and what is to be saved.
struct CostsUpto {
  std::vector<double> flops, price;
};
inline CostsUpto costs_upto(const ExitRecords& r, std::span<const float> thresholds) {
  CostsUpto all;
  double flops = 0, price = 0;
  for (Index k = 0; k < r.exits; ++k) {
    const auto u = static_cast<std::size_t>(k);
    flops += static_cast<double>(r.stages[u].flops);
    price += r.stage_price(k);
    if ((!r.may_skip.empty() && r.may_skip[u] != 0) || is_in_use(thresholds, r.groups, k)) {
      flops += static_cast<double>(r.heads[u].flops);
      price += r.head_price(k);
    }
    all.flops.push_back(flops);
    all.price.push_back(price);
  }
  return all;
}

}  // namespace detail

/// Leaves at the first exit whose confidence reaches its threshold ([exit], or [exit][group]); an exit with nothing but
/// infinite thresholds is off and its head is not run; the largest finite float is reached by nobody either, but the
/// head runs, for policies that look back at it.
inline Outcome apply_thresholds(const ExitRecords& r, std::span<const float> thresholds) {
  if (!r.has_reference &&
      std::all_of(thresholds.begin(), thresholds.end(), [](float t) { return std::isinf(t) && t > 0; }))
    return full_outcome(r);
  Outcome o;
  const auto exits = static_cast<std::size_t>(r.exits);
  std::vector<Index> left(exits, 0), right(exits, 0);
  const auto [flops, price] = detail::costs_upto(r, thresholds);
  const auto n = static_cast<double>(std::max<Index>(1, r.samples));
  for (Index i = 0; i < r.samples; ++i) {
    const Index k = exit_of(r, thresholds, i);
    ++left[static_cast<std::size_t>(k)];
    right[static_cast<std::size_t>(k)] += r.right_at(i, k);
    const Index skipped_at = r.skips.empty() ? -1 : r.skips[static_cast<std::size_t>(i)];
    if (skipped_at < 0 || k < r.skip_target) continue;
    const auto from = static_cast<std::size_t>(skipped_at), to = static_cast<std::size_t>(r.skip_target - 1);
    o.skipping += 1 / n;
    o.mean_flops -= (flops[to] - flops[from]) / n;
    o.mean_price -= (price[to] - price[from]) / n;
  }
  Index all_right = 0;
  for (std::size_t k = 0; k < exits; ++k) {
    o.mean_flops += static_cast<double>(left[k]) * flops[k] / n;
    o.mean_price += static_cast<double>(left[k]) * price[k] / n;
    all_right += right[k];
    o.shares.push_back(static_cast<double>(left[k]) / n);
    o.accuracies.push_back(left[k] > 0 ? static_cast<double>(right[k]) / static_cast<double>(left[k]) : 0);
  }
  o.accuracy = static_cast<double>(all_right) / n;
  return o;
}

/// What calibration looks for: exactly one of the two.
struct CalibrationTarget {
  std::optional<double> max_accuracy_drop;  ///< as a share: 0.005 is half a point
  std::optional<double> budget;             ///< mean price of a sample: nominal FLOPs unless the records say otherwise
};

struct Calibration {
  std::vector<float> thresholds;  ///< one for each early exit, or [exit][group]; infinity: off
  Outcome outcome, full;
};

/// One setting of all thresholds and what it does to the data that it was found on.
struct ThresholdSetting {
  std::vector<float> thresholds;  ///< one for each early exit, or [exit][group]; infinity: off
  Outcome outcome;
};

/// Whether anybody can leave early.
inline bool has_early_exits(std::span<const float> thresholds) noexcept {
  return std::any_of(thresholds.begin(), thresholds.end(),
                     [](float t) { return t < std::numeric_limits<float>::max(); });
}

namespace detail {

/// A threshold that one confidence reaches and the next smaller one does not: in the middle, as another runtime's
/// confidences differ in their last bits.
inline float between(float above, float below) noexcept {
  const float middle = below + (above - below) / 2;
  return std::isfinite(below) && middle > below ? middle : above;
}

/// Exact searches along one exit's thresholds, all others fixed.
class ThresholdSearch {
 public:
  explicit ThresholdSearch(const ExitRecords& r) : r_(r), order_(static_cast<std::size_t>(r.exits - 1)) {
    OFFRAMP_REQUIRE(r.samples > 0, "there are no data to calibrate on");
    for (Index k = 0; k + 1 < r.exits; ++k) {
      auto& order = order_[static_cast<std::size_t>(k)];
      order.resize(static_cast<std::size_t>(r.samples));
      std::iota(order.begin(), order.end(), Index{0});
      std::sort(order.begin(), order.end(), [&](Index a, Index b) {
        const float x = r.confidence_at(a, k), y = r.confidence_at(b, k);
        return x > y || (x == y && a < b);
      });
    }
    full_ = r.full_price();
  }

  double full_price() const noexcept { return full_; }
  std::vector<float> all_off() const { return all_off(r_); }
  static std::vector<float> all_off(const ExitRecords& r) {
    return std::vector<float>(static_cast<std::size_t>((r.exits - 1) * r.groups), r.never());
  }

  /// Moves the thresholds to a local minimum of mean price / full price + fine * share of wrong answers.
  void descend(std::vector<float>& at, double fine) {
    for (int sweep = 0; sweep < 8; ++sweep) {
      bool moved = false;
      for (Index k = r_.exits - 2; k >= 0; --k) moved = step(at, k, fine) || moved;
      if (!moved) break;
    }
  }

  /// Spends what is left of an allowed number of wrong answers where it saves most, exit by exit, while that helps.
  void spend(std::vector<float>& at, Index wrong_allowed) {
    for (int sweep = 0; sweep < 4; ++sweep) {
      bool moved = false;
      for (Index k = 0; k + 1 < r_.exits && r_.groups == 1; ++k) moved = stretch(at, k, wrong_allowed) || moved;
      if (!moved) break;
    }
  }

 private:
  static constexpr float off = std::numeric_limits<float>::infinity();

  bool leaves(const std::vector<float>& at, Index i, Index k) const noexcept {
    return r_.confidence_at(i, k) >= at[static_cast<std::size_t>(k * r_.groups + r_.group_at(i, k))];
  }

  // For samples that reach exit k: what going on costs (a share of the full price), and whether its answer is wrong.
  void look_behind(const std::vector<float>& at, Index k) {
    reaches_.assign(static_cast<std::size_t>(r_.samples), 0);
    rest_.assign(static_cast<std::size_t>(r_.samples), 0.0);
    wrong_.assign(static_cast<std::size_t>(r_.samples), 0);
    std::vector<double> behind(static_cast<std::size_t>(r_.exits), 0);  // price from behind exit k to each later exit
    double so_far = 0;
    for (Index j = k + 1; j < r_.exits; ++j) {
      so_far += r_.stage_price(j) + (is_in_use(at, r_.groups, j) ? r_.head_price(j) : 0);
      behind[static_cast<std::size_t>(j)] = so_far / full_;
    }
    elsewhere_wrong_ = 0;
    for (Index i = 0; i < r_.samples; ++i) {
      Index j = 0;
      while (j < k && !leaves(at, i, j)) ++j;
      if (j < k) {
        elsewhere_wrong_ += !r_.right_at(i, j);
        continue;
      }
      reaches_[static_cast<std::size_t>(i)] = 1;
      j = k + 1;
      while (j + 1 < r_.exits && !leaves(at, i, j)) ++j;
      rest_[static_cast<std::size_t>(i)] = behind[static_cast<std::size_t>(j)];
      wrong_[static_cast<std::size_t>(i)] = !r_.right_at(i, j);
    }
  }

  bool step(std::vector<float>& at, Index k, double fine) {
    look_behind(at, k);
    const auto groups = static_cast<std::size_t>(r_.groups);
    std::vector<double> gain(groups, 0), best(groups, 0);  // of leaving here, from the surest sample on
    std::vector<float> chosen(groups, r_.never()), last(groups, off);
    Index reaching = 0;
    // A cut stands only between two different confidences; it is judged when the next one is seen.
    const auto judge_cut = [&](std::size_t g, float below) {
      if (last[g] == off || below == last[g] || gain[g] <= best[g] + 1e-15) return;
      best[g] = gain[g];
      chosen[g] = between(last[g], below);
    };
    for (const Index i : order_[static_cast<std::size_t>(k)]) {
      const auto u = static_cast<std::size_t>(i);
      if (!reaches_[u]) continue;
      ++reaching;
      const float c = r_.confidence_at(i, k);
      if (!std::isfinite(c)) continue;
      const auto g = static_cast<std::size_t>(r_.group_at(i, k));
      judge_cut(g, c);
      gain[g] += rest_[u] + fine * (static_cast<double>(wrong_[u]) - static_cast<double>(!r_.right_at(i, k)));
      last[g] = c;
    }
    for (std::size_t g = 0; g < groups; ++g) judge_cut(g, -off);
    double total = r_.looks_back ? 0 : -static_cast<double>(reaching) * r_.head_price(k) / full_;
    for (const double b : best) total += b;
    if (total <= 1e-12) std::fill(chosen.begin(), chosen.end(), r_.never());
    const auto first = at.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(k) * groups);
    const bool moved = !std::equal(chosen.begin(), chosen.end(), first);
    std::copy(chosen.begin(), chosen.end(), first);
    return moved;
  }

  bool stretch(std::vector<float>& at, Index k, Index wrong_allowed) {
    look_behind(at, k);
    Index wrong = elsewhere_wrong_, reaching = 0;
    double price = 0;
    for (Index i = 0; i < r_.samples; ++i) {
      const auto u = static_cast<std::size_t>(i);
      if (!reaches_[u]) continue;
      ++reaching;
      wrong += wrong_[u];
      price += rest_[u];
    }
    const double head = static_cast<double>(reaching) * r_.head_price(k) / full_;
    double best = wrong <= wrong_allowed ? price : std::numeric_limits<double>::infinity();
    float chosen = r_.never();
    price += r_.looks_back ? 0 : head;
    const auto& order = order_[static_cast<std::size_t>(k)];
    for (std::size_t s = 0; s < order.size(); ++s) {
      const auto u = static_cast<std::size_t>(order[s]);
      if (!reaches_[u]) continue;
      const float c = r_.confidence_at(order[s], k);
      if (!std::isfinite(c)) break;
      price -= rest_[u];
      wrong += static_cast<Index>(!r_.right_at(order[s], k)) - wrong_[u];
      std::size_t next = s + 1;
      while (next < order.size() && !reaches_[static_cast<std::size_t>(order[next])]) ++next;
      const float below = next < order.size() ? r_.confidence_at(order[next], k) : -off;
      if (below == c) continue;
      if (wrong <= wrong_allowed && price < best - 1e-12) {
        best = price;
        chosen = between(c, below);
      }
    }
    const bool moved = at[static_cast<std::size_t>(k)] != chosen;
    at[static_cast<std::size_t>(k)] = chosen;
    return moved;
  }

  const ExitRecords& r_;
  std::vector<std::vector<Index>> order_;  // of each exit: the samples, the surest first
  double full_ = 0;
  std::vector<std::uint8_t> reaches_;
  std::vector<double> rest_;
  std::vector<Index> wrong_;
  Index elsewhere_wrong_ = 0;
};

}  // namespace detail

/// Settings from strict to lax. First local minima of mean price plus a fine for each wrong answer, for fines that
/// fall, each found from the one before; they lie on a convex curve, so the gaps between them are filled: for numbers
/// of wrong answers that grow, what is left of them is spent where it saves most. The price falls along the path.
inline std::vector<ThresholdSetting> threshold_path(const ExitRecords& r, int fines = 160) {
  detail::ThresholdSearch search(r);
  const auto n = static_cast<double>(r.samples);
  const auto wrong = [&](const ThresholdSetting& s) {
    return static_cast<Index>(std::llround((1 - s.outcome.accuracy) * n));
  };
  std::vector<ThresholdSetting> hull;
  std::vector<float> at = search.all_off();
  constexpr double least = 0.05, most = 3000;
  const double ratio = std::pow(most / least, 1.0 / std::max(1, fines - 1));
  double fine = most;
  for (int i = 0; i < fines; ++i, fine /= ratio) {
    search.descend(at, fine);
    if (hull.empty() || hull.back().thresholds != at) hull.push_back({at, apply_thresholds(r, at)});
  }
  std::vector<ThresholdSetting> path;
  const auto add = [&](const std::vector<float>& thresholds) {
    Outcome o = apply_thresholds(r, thresholds);
    if (path.empty() || o.mean_price < path.back().outcome.mean_price) path.push_back({thresholds, std::move(o)});
  };
  const Index limit = hull.empty() ? 0 : wrong(hull.back());
  const double growth = std::pow(2.0, 8.0 / std::max(8, fines));
  std::size_t next = 0;
  at = search.all_off();
  for (double w = 0; w <= static_cast<double>(limit); w = std::max(w + 1, w * growth)) {
    const auto allowed = static_cast<Index>(w);
    while (next < hull.size() && wrong(hull[next]) <= allowed) ++next;
    // From the last setting of the path, and from the curve's.
    std::vector<float> other = next > 0 ? hull[next - 1].thresholds : at;
    search.spend(at, allowed);
    search.spend(other, allowed);
    const Outcome a = apply_thresholds(r, at), b = apply_thresholds(r, other);
    if (b.mean_price < a.mean_price) at = std::move(other);
    add(at);
  }
  if (!hull.empty()) add(hull.back().thresholds);
  return path;
}

/// The same path with settings between those that lie far apart in price, and between all exits off and the first:
/// thresholds that differ move together, through the confidences that the samples have there. Where a step of the path
/// costs few answers on the samples that found it and many on others, a certificate can then stop within the step
/// instead of before it. That matters most for the first step: it takes all that leaves without a wrong answer on the
/// samples that found it, which can be most of them.
inline std::vector<ThresholdSetting> denser_path(const ExitRecords& r, const std::vector<ThresholdSetting>& path,
                                                 double step = 0.004) {
  std::vector<ThresholdSetting> dense{{detail::ThresholdSearch::all_off(r), full_outcome(r)}};
  const double full = std::max(r.full_price(), 1e-300);
  const auto add = [&](ThresholdSetting s) {
    if (s.outcome.mean_price < dense.back().outcome.mean_price) dense.push_back(std::move(s));
  };
  for (const ThresholdSetting& to : path) {
    const ThresholdSetting from = dense.back();
    const double gap = (from.outcome.mean_price - to.outcome.mean_price) / full;
    const auto parts = static_cast<Index>(std::clamp(std::ceil(gap / step), 1.0, std::ceil(1 / step)));
    // Of each threshold that moves: what parts the confidences that it passes, in the order in which it does.
    std::vector<std::vector<float>> passed(to.thresholds.size());
    for (std::size_t c = 0; parts > 1 && c < to.thresholds.size(); ++c) {
      const float high = std::max(from.thresholds[c], to.thresholds[c]),
                  low = std::min(from.thresholds[c], to.thresholds[c]);
      if (!(low < high)) continue;
      const auto exit = static_cast<Index>(c) / r.groups, group = static_cast<Index>(c) % r.groups;
      for (Index i = 0; i < r.samples; ++i) {
        const float x = r.confidence_at(i, exit);
        if (r.group_at(i, exit) == group && std::isfinite(x) && x >= low && x < high) passed[c].push_back(x);
      }
      std::sort(passed[c].rbegin(), passed[c].rend());
      passed[c].erase(std::unique(passed[c].begin(), passed[c].end()), passed[c].end());
      for (std::size_t i = 0; i < passed[c].size(); ++i)
        passed[c][i] = detail::between(passed[c][i], i + 1 < passed[c].size() ? passed[c][i + 1] : low);
      if (to.thresholds[c] > from.thresholds[c]) std::reverse(passed[c].begin(), passed[c].end());
    }
    for (Index p = 1; p < parts; ++p) {
      std::vector<float> at = to.thresholds;
      for (std::size_t c = 0; c < at.size(); ++c) {
        const auto n = static_cast<Index>(passed[c].size());
        if (n > 0) at[c] = passed[c][static_cast<std::size_t>(std::min(n - 1, n * p / parts))];
      }
      Outcome o = apply_thresholds(r, at);
      add({std::move(at), std::move(o)});
    }
    add(to);
  }
  dense.erase(dense.begin());  // where it started
  return dense;
}

/// Chooses the thresholds. Raises an Error where no setting reaches the target.
inline Calibration calibrate_thresholds(const ExitRecords& r, const CalibrationTarget& target, int fines = 160) {
  OFFRAMP_REQUIRE(target.max_accuracy_drop.has_value() != target.budget.has_value(),
                  "calibration needs either a largest accuracy drop or a budget");
  Calibration best;
  best.full = full_outcome(r);
  const auto path = threshold_path(r, fines);
  bool found = false;
  const auto consider = [&](const std::vector<float>& t, const Outcome& o) {
    const bool admissible = target.budget ? o.mean_price <= *target.budget
                                          : o.accuracy >= best.full.accuracy - *target.max_accuracy_drop - 1e-12;
    const bool better =
        !found || (target.budget ? o.accuracy > best.outcome.accuracy : o.mean_price < best.outcome.mean_price);
    if (!admissible || !better) return;
    best.thresholds = t;
    best.outcome = o;
    found = true;
  };
  consider(
      std::vector<float>(static_cast<std::size_t>((r.exits - 1) * r.groups), std::numeric_limits<float>::infinity()),
      best.full);
  for (const ThresholdSetting& s : path) consider(s.thresholds, s.outcome);
  OFFRAMP_REQUIRE(found, "no thresholds reach the target: the cheapest way through the network takes " +
                             std::to_string(r.stage_price(0) + r.head_price(0)) + " a sample");
  if (target.max_accuracy_drop) {
    detail::ThresholdSearch search(r);
    std::vector<float> at = best.thresholds;
    search.spend(at,
                 static_cast<Index>(std::floor(
                     static_cast<double>(r.samples) * (1 - best.full.accuracy + *target.max_accuracy_drop) + 1e-6)));
    consider(at, apply_thresholds(r, at));
  }
  return best;
}

}  // namespace offramp
