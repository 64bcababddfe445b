/// @file calibrate.hpp
/// Thresholds from data: the cheapest that keep the accuracy, or the most accurate within a budget.
///
/// A threshold for each exit is searched jointly, for the samples that really reach it, because an exit changes which
/// samples the later ones see. An exit whose head does not pay for itself gets the threshold infinity: its head is not
/// run. The search is a coordinate descent on mean cost plus a price for each lost answer, for a range of prices; of
/// all settings met, the best admissible one is kept. The numbers are those of the given data: nothing is guaranteed
/// for other data.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "offramp/network/early_exit_network.hpp"
#include "offramp/policy/policy.hpp"

namespace offramp {

/// What every exit of a network said about every sample of a data set.
struct ExitRecords {
  Index samples = 0, exits = 0;
  std::vector<float> confidence;    ///< [sample][exit], from the policy that recorded
  std::vector<std::uint8_t> right;  ///< [sample][exit]: equals the label, or the full network's answer without labels
  std::vector<Cost> stages, heads;  ///< of one sample

  float confidence_at(Index i, Index k) const noexcept { return confidence[static_cast<std::size_t>(i * exits + k)]; }
  bool right_at(Index i, Index k) const noexcept { return right[static_cast<std::size_t>(i * exits + k)] != 0; }
};

/// Runs all exits over `samples` (whole samples in NCHW order) and keeps the confidence that `policy` computes. With
/// `labels` empty an answer is right where it is the full network's. `progress(done)` is called now and then.
template <EarlyExitNetwork N, ExitPolicy P, class Progress>
ExitRecords record_exits(const N& network, const P& policy, std::span<const float> samples,
                         std::span<const Index> labels, Progress&& progress) {
  const Index size = network.sample_size(), classes = network.class_count(), exits = network.exit_count();
  OFFRAMP_REQUIRE(size > 0 && !samples.empty() && static_cast<Index>(samples.size()) % size == 0,
                  "the data do not hold whole samples of " + std::to_string(size) + " numbers");
  ExitRecords r;
  r.samples = static_cast<Index>(samples.size()) / size;
  r.exits = exits;
  OFFRAMP_REQUIRE(
      labels.empty() || static_cast<Index>(labels.size()) == r.samples,
      "there are " + std::to_string(labels.size()) + " labels for " + std::to_string(r.samples) + " samples");
  r.confidence.assign(static_cast<std::size_t>(r.samples * exits), 0.0f);
  r.right.assign(static_cast<std::size_t>(r.samples * exits), 0);
  Cost full;
  for (Index k = 0; k < exits; ++k) {
    r.stages.push_back(network.stage_cost(k));
    r.heads.push_back(network.head_cost(k));
    full += network.stage_cost(k);
  }
  const Index step = std::min<Index>(32, network.max_batch());
  auto state = network.make_state(step);
  const auto width = static_cast<std::size_t>(classes);
  std::vector<float> history(static_cast<std::size_t>(step * exits) * width), probabilities(width);
  std::vector<Index> answers(static_cast<std::size_t>(step * exits));
  for (Index first = 0; first < r.samples; first += step) {
    const Index n = std::min(step, r.samples - first);
    network.load(state, samples.data() + first * size, n);
    std::vector<std::uint8_t> evaluated(static_cast<std::size_t>(exits), 0);
    Cost spent;
    for (Index k = 0; k < exits; ++k) {
      const bool last = k + 1 == exits;
      OFFRAMP_REQUIRE(network.run_stage(state, k) && (last || network.run_head(state, k)),
                      "an index in the data is out of range");
      evaluated[static_cast<std::size_t>(k)] = 1;
      spent += r.stages[static_cast<std::size_t>(k)] + (last ? Cost{} : r.heads[static_cast<std::size_t>(k)]);
      const float* logits = network.logits(state, k);
      for (Index i = 0; i < n; ++i) {
        const std::span<const float> row(logits + i * classes, width);
        const float largest = *std::max_element(row.begin(), row.end());
        float sum = 0;
        for (std::size_t c = 0; c < width; ++c) sum += probabilities[c] = std::exp(row[c] - largest);
        for (float& p : probabilities) p /= sum;
        float* own = history.data() + static_cast<std::size_t>(i * exits) * width;
        std::copy(probabilities.begin(), probabilities.end(), own + static_cast<std::size_t>(k) * width);
        ExitContext c{k,         exits, row, probabilities, {own, static_cast<std::size_t>(exits) * width},
                      evaluated, spent, {},  full,          {}};
        const Verdict v = policy(c);
        const bool finite = std::isfinite(v.confidence) && std::isfinite(sum);
        r.confidence[static_cast<std::size_t>((first + i) * exits + k)] =
            finite ? v.confidence : -std::numeric_limits<float>::infinity();
        answers[static_cast<std::size_t>(i * exits + k)] = c.label();
      }
    }
    for (Index i = 0; i < n; ++i) {
      const Index truth = labels.empty() ? answers[static_cast<std::size_t>(i * exits + exits - 1)]
                                         : labels[static_cast<std::size_t>(first + i)];
      for (Index k = 0; k < exits; ++k)
        r.right[static_cast<std::size_t>((first + i) * exits + k)] =
            answers[static_cast<std::size_t>(i * exits + k)] == truth;
    }
    progress(first + n);
  }
  return r;
}

/// What a set of thresholds does to recorded data.
struct Outcome {
  double accuracy = 0;                     ///< share of right answers
  double mean_flops = 0;                   ///< heads of the exits in use included
  std::vector<double> shares, accuracies;  ///< of each exit; accuracy 0 where nothing left
};

/// Leaves at the first exit whose confidence reaches its threshold; an infinite threshold switches the exit off.
inline Outcome apply_thresholds(const ExitRecords& r, std::span<const float> thresholds) {
  Outcome o;
  std::vector<Index> left(static_cast<std::size_t>(r.exits), 0), right(static_cast<std::size_t>(r.exits), 0);
  std::vector<double> upto(static_cast<std::size_t>(r.exits), 0);
  double so_far = 0;
  for (Index k = 0; k < r.exits; ++k) {
    const auto u = static_cast<std::size_t>(k);
    so_far += static_cast<double>(r.stages[u].flops);
    if (k + 1 < r.exits && !std::isinf(thresholds[u])) so_far += static_cast<double>(r.heads[u].flops);
    upto[u] = so_far;
  }
  for (Index i = 0; i < r.samples; ++i) {
    Index k = 0;
    while (k + 1 < r.exits && !(r.confidence_at(i, k) >= thresholds[static_cast<std::size_t>(k)])) ++k;
    ++left[static_cast<std::size_t>(k)];
    right[static_cast<std::size_t>(k)] += r.right_at(i, k);
  }
  Index all_right = 0;
  for (std::size_t k = 0; k < left.size(); ++k) {
    o.mean_flops += static_cast<double>(left[k]) * upto[k];
    all_right += right[k];
    o.shares.push_back(r.samples > 0 ? static_cast<double>(left[k]) / static_cast<double>(r.samples) : 0);
    o.accuracies.push_back(left[k] > 0 ? static_cast<double>(right[k]) / static_cast<double>(left[k]) : 0);
  }
  o.mean_flops /= static_cast<double>(std::max<Index>(1, r.samples));
  o.accuracy = static_cast<double>(all_right) / static_cast<double>(std::max<Index>(1, r.samples));
  return o;
}

/// What calibration looks for: exactly one of the two.
struct CalibrationTarget {
  std::optional<double> max_accuracy_drop;  ///< as a share: 0.005 is half a point
  std::optional<double> flops_budget;       ///< mean nominal FLOPs of a sample
};

struct Calibration {
  std::vector<float> thresholds;  ///< one for each early exit; infinity: off
  Outcome outcome, full;
};

/// One setting of all thresholds and what it does to the data that it was found on.
struct ThresholdSetting {
  std::vector<float> thresholds;  ///< one for each early exit; infinity: off
  Outcome outcome;
};

namespace detail {

/// Calls `consider(thresholds)`, which returns the outcome, for every setting that the search meets.
template <class Consider>
void search_thresholds(const std::vector<std::vector<float>>& grid, Consider&& consider) {
  std::vector<float> at(grid.size(), std::numeric_limits<float>::infinity());
  const double full_flops = consider(at).mean_flops;
  for (double price = 0.2; price < 2000; price *= 1.6) {  // full networks that one lost answer is worth
    const auto loss = [&](const Outcome& o) { return o.mean_flops / full_flops + price * (1 - o.accuracy); };
    double current = loss(consider(at));
    for (int sweep = 0; sweep < 6; ++sweep) {
      bool moved = false;
      for (std::size_t k = 0; k < grid.size(); ++k) {
        const float old = at[k];
        float chosen = old;
        for (const float t : grid[k]) {
          at[k] = t;
          const double l = loss(consider(at));
          if (l < current - 1e-12) {
            current = l;
            chosen = t;
          }
        }
        at[k] = chosen;
        moved = moved || chosen != old;
      }
      if (!moved) break;
    }
  }
}

/// Candidates at each early exit: quantiles of its confidence, and off.
inline std::vector<std::vector<float>> threshold_grid(const ExitRecords& r) {
  OFFRAMP_REQUIRE(r.samples > 0, "there are no data to calibrate on");
  constexpr std::size_t steps = 40;
  std::vector<std::vector<float>> grid(static_cast<std::size_t>(r.exits - 1));
  for (std::size_t k = 0; k < grid.size(); ++k) {
    std::vector<float> c;
    for (Index i = 0; i < r.samples; ++i) c.push_back(r.confidence_at(i, static_cast<Index>(k)));
    std::sort(c.begin(), c.end());
    for (std::size_t s = 0; s < steps; ++s) {
      const float q = c[s * c.size() / steps];
      if (std::isfinite(q) && (grid[k].empty() || q > grid[k].back())) grid[k].push_back(q);
    }
    grid[k].push_back(std::numeric_limits<float>::infinity());
  }
  return grid;
}

}  // namespace detail

/// The settings that no other one met in the search beats in both accuracy and FLOPs, the most accurate first.
inline std::vector<ThresholdSetting> threshold_front(const ExitRecords& r) {
  std::vector<ThresholdSetting> met;
  detail::search_thresholds(detail::threshold_grid(r), [&](const std::vector<float>& t) {
    met.push_back({t, apply_thresholds(r, t)});
    return met.back().outcome;
  });
  std::stable_sort(met.begin(), met.end(), [](const ThresholdSetting& a, const ThresholdSetting& b) {
    return a.outcome.accuracy != b.outcome.accuracy ? a.outcome.accuracy > b.outcome.accuracy
                                                    : a.outcome.mean_flops < b.outcome.mean_flops;
  });
  std::vector<ThresholdSetting> front;
  for (ThresholdSetting& s : met) {
    if (front.empty() || s.outcome.mean_flops < front.back().outcome.mean_flops) front.push_back(std::move(s));
  }
  return front;
}

/// Chooses the thresholds. Raises an Error where no setting reaches the target.
inline Calibration calibrate_thresholds(const ExitRecords& r, const CalibrationTarget& target) {
  OFFRAMP_REQUIRE(target.max_accuracy_drop.has_value() != target.flops_budget.has_value(),
                  "calibration needs either a largest accuracy drop or a FLOP budget");
  const auto grid = detail::threshold_grid(r);
  Calibration best;
  best.full = apply_thresholds(r, std::vector<float>(grid.size(), std::numeric_limits<float>::infinity()));
  const auto admissible = [&](const Outcome& o) {
    return target.max_accuracy_drop ? o.accuracy >= best.full.accuracy - *target.max_accuracy_drop - 1e-12
                                    : o.mean_flops <= *target.flops_budget;
  };
  const auto better = [&](const Outcome& a, const Outcome& b) {
    if (target.max_accuracy_drop)
      return a.mean_flops < b.mean_flops || (a.mean_flops == b.mean_flops && a.accuracy > b.accuracy);
    return a.accuracy > b.accuracy || (a.accuracy == b.accuracy && a.mean_flops < b.mean_flops);
  };
  bool found = false;
  const auto consider = [&](const std::vector<float>& t) {
    const Outcome o = apply_thresholds(r, t);
    if (admissible(o) && (!found || better(o, best.outcome))) {
      best.outcome = o;
      best.thresholds = t;
      found = true;
    }
    return o;
  };
  detail::search_thresholds(grid, consider);
  OFFRAMP_REQUIRE(found,
                  "no thresholds reach the target: the cheapest way through the network takes " +
                      std::to_string(static_cast<Index>(r.stages.empty() ? 0 : (r.stages[0] + r.heads[0]).flops)) +
                      " FLOPs a sample");
  // Last steps on the grid while they help.
  for (bool moved = true; moved;) {
    moved = false;
    for (std::size_t k = 0; k < grid.size(); ++k) {
      const std::vector<float> from = best.thresholds;
      for (const float t : grid[k]) {
        std::vector<float> trial = from;
        trial[k] = t;
        consider(trial);
      }
      moved = moved || best.thresholds != from;
    }
  }
  return best;
}

}  // namespace offramp
