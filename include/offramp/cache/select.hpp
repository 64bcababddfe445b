/// @file select.hpp
/// Which exits, which confidence: chosen together, by what they save at the allowed risk.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "offramp/calibrate/calibrate.hpp"
#include "offramp/calibrate/confidence.hpp"
#include "offramp/calibrate/records.hpp"
#include "offramp/policy/max_probability.hpp"
#include "offramp/policy/parse.hpp"

namespace offramp {

/// Kinds of confidence that a cached network may carry.
enum class PolicyKind : std::uint8_t {
  max_probability,            ///< one threshold an exit
  max_probability_per_class,  ///< one an exit and class
  ensemble,                   ///< the geometric mean of the exits so far
  gate,                       ///< a learned estimate of agreement
  ensemble_gate,              ///< the same, of the ensemble
};

constexpr std::string_view name_of(PolicyKind kind) noexcept {
  switch (kind) {
    case PolicyKind::max_probability:
      return "max-probability";
    case PolicyKind::max_probability_per_class:
      return "max-probability-per-class";
    case PolicyKind::ensemble:
      return "ensemble";
    case PolicyKind::gate:
      return "gate";
    case PolicyKind::ensemble_gate:
      return "ensemble of gates";
  }
  return "max-probability";
}

/// What is aimed at: a risk, or a mean price.
struct SelectionTarget {
  Truth truth = Truth::full_network;
  double epsilon = 0.01;         ///< share of answers that may differ, or of accuracy that may be lost
  std::optional<double> budget;  ///< instead: mean price of a sample
};

/// A choice of exits and of a confidence.
struct Selection {
  PolicyKind kind = PolicyKind::max_probability;
  std::vector<Index> exits;  ///< of those that were offered, in order; empty: none pays
  Gate gate{{}, Thresholds(1.0f)};
  std::vector<std::pair<std::string, double>> tried;  ///< each kind's held-out loss
};

/// The records of a kind of confidence. `gate` is read by the kinds that have one.
inline ExitRecords judge_with(PolicyKind kind, const Gate& gate, const ExitScores& scores, Truth truth) {
  const MaxProbability plain{Thresholds(1.0f)};
  switch (kind) {
    case PolicyKind::max_probability:
      return judge(scores, plain, truth);
    case PolicyKind::max_probability_per_class:
      return judge(scores, plain, truth, true);
    case PolicyKind::ensemble:
      return judge(scores, Ensemble<MaxProbability>{plain, {}}, truth);
    case PolicyKind::gate:
      return judge(scores, gate, truth);
    case PolicyKind::ensemble_gate:
      return judge(scores, Ensemble<Gate>{gate, {}}, truth);
  }
  return judge(scores, plain, truth);
}

/// The gate that a kind wants, learned from these scores; an empty one for kinds without.
inline Gate gate_for(PolicyKind kind, const ExitScores& scores) {
  if (kind != PolicyKind::gate && kind != PolicyKind::ensemble_gate) return {{}, Thresholds(1.0f)};
  GateOptions o;
  o.of_ensemble = kind == PolicyKind::ensemble_gate;
  return fit_gate(scores, o);
}

/// The policy as a file carries it.
inline std::string policy_text_of(PolicyKind kind, Gate gate, const std::vector<float>& thresholds, Index classes) {
  switch (kind) {
    case PolicyKind::max_probability:
      break;
    case PolicyKind::max_probability_per_class:
      return policy_text("max-probability-per-class:" + std::to_string(classes), thresholds);
    case PolicyKind::ensemble:
      return policy_text_in("ensemble", policy_text("max-probability", thresholds));
    case PolicyKind::gate:
    case PolicyKind::ensemble_gate:
      gate.thresholds = Thresholds(thresholds);
      return kind == PolicyKind::gate ? policy_text(gate) : policy_text_in("ensemble", policy_text(gate));
  }
  return policy_text("max-probability", thresholds);
}

namespace detail {

/// How good the best thresholds for a target are, the smaller the better: mean price as a share of the full network's,
/// or accuracy lost within a budget.
inline double value_at(const ExitRecords& r, const SelectionTarget& target, int fines) {
  const double full = full_outcome(r).mean_price;
  CalibrationTarget t;
  if (target.budget) {
    t.budget = target.budget;
  } else {
    t.max_accuracy_drop = target.epsilon;
  }
#if OFFRAMP_EXCEPTIONS
  try {
    const Calibration c = calibrate_thresholds(r, t, fines);
    return target.budget ? 1 - c.outcome.accuracy : c.outcome.mean_price / full;
  } catch (const Error&) {
    return std::numeric_limits<double>::infinity();  // the budget is out of reach
  }
#else
  const Calibration c = calibrate_thresholds(r, t, fines);
  return target.budget ? 1 - c.outcome.accuracy : c.outcome.mean_price / full;
#endif
}

}  // namespace detail

/// Chooses heads among many: at most one a place, each time the one that saves most, then those out that do not pay any
/// more, until nothing helps. `place_of[i]` is the place of exit i; exits are in order of place.
inline std::vector<Index> choose_heads(const ExitScores& scores, std::span<const std::size_t> place_of,
                                       const SelectionTarget& target) {
  constexpr double least_gain = 0.004;
  constexpr int fines = 14;
  const auto value = [&](const std::vector<Index>& kept) {
    if (kept.empty()) return target.budget ? std::numeric_limits<double>::infinity() : 1.0;
    const ExitScores some = keep_exits(scores, kept);
    return detail::value_at(judge(some, MaxProbability{Thresholds(1.0f)}, target.truth), target, fines);
  };
  std::vector<Index> kept;
  double current = value(kept);
  while (true) {
    double best = std::numeric_limits<double>::infinity();
    std::vector<Index> chosen;
    for (Index k = 0; k + 1 < scores.exits; ++k) {
      if (std::count(kept.begin(), kept.end(), k) > 0) continue;
      std::vector<Index> trial;
      for (const Index j : kept) {
        if (place_of[static_cast<std::size_t>(j)] != place_of[static_cast<std::size_t>(k)]) trial.push_back(j);
      }
      trial.insert(std::upper_bound(trial.begin(), trial.end(), k), k);
      const double v = value(trial);
      if (v < best) best = v, chosen = std::move(trial);
    }
    if (chosen.empty() || !(best < current - least_gain)) break;
    kept = std::move(chosen);
    current = best;
    for (std::size_t i = 0; i < kept.size() && kept.size() > 1;) {
      std::vector<Index> trial = kept;
      trial.erase(trial.begin() + static_cast<std::ptrdiff_t>(i));
      const double v = value(trial);
      if (v <= current + least_gain / 2) {
        kept = std::move(trial);
        current = v;
      } else {
        ++i;
      }
    }
  }
  return kept;
}

/// Thresholds of the largest probability that meet the target, for the weights of a second training: infinite where an
/// exit is off.
inline std::vector<float> reach_thresholds(const ExitScores& scores, const SelectionTarget& target) {
  const ExitRecords r = judge(scores, MaxProbability{Thresholds(1.0f)}, target.truth);
  CalibrationTarget t;
  if (target.budget) {
    t.budget = target.budget;
  } else {
    t.max_accuracy_drop = target.epsilon;
  }
  return calibrate_thresholds(r, t).thresholds;
}

/// Chooses the confidence by cross-validation: learned and calibrated on some of the samples, judged on the others by
/// mean price plus a fine for risk. Exits that do not pay under it are left out.
inline Selection choose_policy(const ExitScores& scores, const SelectionTarget& target,
                               std::span<const PolicyKind> kinds = {}) {
  static constexpr PolicyKind all_kinds[] = {PolicyKind::max_probability, PolicyKind::max_probability_per_class,
                                             PolicyKind::ensemble, PolicyKind::gate, PolicyKind::ensemble_gate};
  if (kinds.empty()) kinds = all_kinds;
  constexpr Index folds = 4;
  constexpr int fines = 24;
  const auto early = [](const ExitScores& s) {
    std::vector<Index> e(static_cast<std::size_t>(s.exits - 1));
    std::iota(e.begin(), e.end(), Index{0});
    return e;
  };
  // What a share of risk is worth, from what the plain rule saves with it.
  const double plain = detail::value_at(judge(scores, MaxProbability{Thresholds(1.0f)}, target.truth), target, fines);
  const double fine = target.budget ? 0 : std::max(0.05, 1 - plain) / target.epsilon;
  const auto held_out = [&](PolicyKind kind, const std::vector<Index>& kept) {
    const ExitScores some = keep_exits(scores, kept);
    double sum = 0;
    for (Index f = 0; f < folds; ++f) {
      std::vector<Index> learn, check;
      for (Index i = 0; i < some.samples; ++i) (i % folds == f ? check : learn).push_back(i);
      const ExitScores a = keep_samples(some, learn), b = keep_samples(some, check);
      const Gate gate = gate_for(kind, a);
      const ExitRecords known = judge_with(kind, gate, a, target.truth), unknown = judge_with(kind, gate, b, target.truth);
      CalibrationTarget t;
      if (target.budget) {
        t.budget = target.budget;
      } else {
        t.max_accuracy_drop = target.epsilon;
      }
      const Calibration c = calibrate_thresholds(known, t, fines);
      const Outcome o = apply_thresholds(unknown, c.thresholds), full = full_outcome(unknown);
      sum += target.budget ? 1 - o.accuracy : o.mean_price / full.mean_price + fine * (full.accuracy - o.accuracy);
    }
    return sum / static_cast<double>(folds);
  };
  Selection best;
  double least = std::numeric_limits<double>::infinity();
  for (const PolicyKind kind : kinds) {
    std::vector<Index> kept = early(scores);
    double current = held_out(kind, kept);
    // Exits that do not pay leave, one after the other, the least useful first.
    while (kept.size() > 1) {
      double smallest = std::numeric_limits<double>::infinity();
      std::size_t which = 0;
      for (std::size_t i = 0; i < kept.size(); ++i) {
        std::vector<Index> trial = kept;
        trial.erase(trial.begin() + static_cast<std::ptrdiff_t>(i));
        const double v = held_out(kind, trial);
        if (v < smallest) smallest = v, which = i;
      }
      if (!(smallest <= current)) break;
      current = smallest;
      kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(which));
    }
    best.tried.emplace_back(name_of(kind), current);
    if (current < least) least = current, best.kind = kind, best.exits = std::move(kept);
  }
  if (!target.budget && least >= 1) best.exits.clear();
  if (!best.exits.empty()) best.gate = gate_for(best.kind, keep_exits(scores, best.exits));
  return best;
}

}  // namespace offramp
