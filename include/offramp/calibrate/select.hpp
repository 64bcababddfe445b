/// @file select.hpp
/// Which exits, which confidence: chosen together, by what they save at the allowed risk.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "offramp/calibrate/calibrate.hpp"
#include "offramp/calibrate/certificate.hpp"
#include "offramp/calibrate/confidence.hpp"
#include "offramp/calibrate/records.hpp"
#include "offramp/calibrate/route.hpp"
#include "offramp/policy/max_probability.hpp"
#include "offramp/policy/parse.hpp"
#include "offramp/policy/route.hpp"

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
  Risk risk = Risk::disagreement;
  double epsilon = 0.01;         ///< what the risk may be
  std::optional<double> budget;  ///< instead: mean price of a sample
  bool even = false;  ///< of sets of heads that save nearly as much, rather one whose price follows its FLOPs
};

/// How exits judge their answers.
struct Confidence {
  PolicyKind kind = PolicyKind::max_probability;
  Gate gate{{}, Thresholds(1.0f)};  ///< of the kinds that have one
  bool last_ensemble = false;       ///< the answer of the last exit is the mean of all exits (`LastEnsemble`)
  RouteRule route{};                ///< samples that skip exits (`Route`)
};

/// A choice of exits and of a confidence.
struct Selection : Confidence {
  std::vector<Index> exits;                           ///< of those that were offered, in order; empty: none pays
  std::vector<std::pair<std::string, double>> tried;  ///< each kind's held-out loss
};

/// What a risk is judged by.
constexpr Truth truth_of(Risk risk) noexcept {
  return risk == Risk::accuracy_drop ? Truth::labels : Truth::full_network;
}

/// What a confidence makes of scores. Agreement with the full network is always that of the exits' own answers: where
/// the last answer is the mean of all, labels say what that is worth.
inline ExitRecords judge_with(const Confidence& by, const ExitScores& scores, Truth truth) {
  const auto judged = [&](const auto& policy, bool by_class) {
    if (by.route.target == 0) return judge(scores, policy, truth, by_class);
    return judge(scores, Route{by.route, policy}, truth, by_class);
  };
  const auto with = [&](const auto& policy, bool by_class) {
    if (!by.last_ensemble) return judged(policy, by_class);
    if (truth == Truth::labels) return judged(LastEnsemble{policy}, by_class);
    ExitRecords r = judged(policy, by_class);
    r.looks_back = true;
    return r;
  };
  const MaxProbability plain{Thresholds(1.0f)};
  switch (by.kind) {
    case PolicyKind::max_probability:
      break;
    case PolicyKind::max_probability_per_class:
      return with(plain, true);
    case PolicyKind::ensemble:
      return with(Ensemble<MaxProbability>{plain, {}}, false);
    case PolicyKind::gate:
      return with(by.gate, false);
    case PolicyKind::ensemble_gate:
      return with(Ensemble<Gate>{by.gate, {}}, false);
  }
  return with(plain, false);
}

/// The gate that a kind wants, learned from these scores; an empty one for kinds without.
inline Gate gate_for(PolicyKind kind, const ExitScores& scores) {
  if (kind != PolicyKind::gate && kind != PolicyKind::ensemble_gate) return {{}, Thresholds(1.0f)};
  GateOptions o;
  o.of_ensemble = kind == PolicyKind::ensemble_gate;
  return fit_gate(scores, o);
}

/// The policy as a file carries it.
inline std::string policy_text_of(const Confidence& by, const std::vector<float>& thresholds, Index classes) {
  if (by.route.target > 0)
    return policy_text_in(by.route, policy_text_of({by.kind, by.gate, by.last_ensemble}, thresholds, classes));
  if (by.last_ensemble)
    return policy_text_in("last-ensemble", policy_text_of({by.kind, by.gate, false}, thresholds, classes));
  Gate gate = by.gate;
  switch (by.kind) {
    case PolicyKind::max_probability:
      break;
    case PolicyKind::max_probability_per_class:
      return policy_text("max-probability-per-class:" + std::to_string(classes), thresholds);
    case PolicyKind::ensemble:
      return policy_text_in("ensemble", policy_text("max-probability", thresholds));
    case PolicyKind::gate:
    case PolicyKind::ensemble_gate:
      gate.thresholds = Thresholds(thresholds);
      return by.kind == PolicyKind::gate ? policy_text(gate) : policy_text_in("ensemble", policy_text(gate));
  }
  return policy_text("max-probability", thresholds);
}

/// Records for a target. The search for thresholds always goes by agreement with the full network, which is steadier
/// than labels: a wrong answer of the full network says nothing about an exit. Labels only tell where on the path the
/// accuracy is as low as it may be.
struct JudgedTarget {
  ExitRecords agreement;
  std::optional<ExitRecords> labelled;

  JudgedTarget(const Confidence& by, const ExitScores& scores, const SelectionTarget& target)
      : agreement(judge_with(by, scores, Truth::full_network)) {
    if (target.risk == Risk::accuracy_drop) labelled = judge_with(by, scores, Truth::labels);
  }
  const ExitRecords& for_risk() const noexcept { return labelled ? *labelled : agreement; }
  double risk(std::span<const float> thresholds) const {
    const ExitRecords& r = for_risk();
    return full_outcome(r).accuracy - apply_thresholds(r, thresholds).accuracy;
  }
  bool meets(std::span<const float> thresholds, const SelectionTarget& target) const {
    return target.budget ? apply_thresholds(agreement, thresholds).mean_price <= *target.budget
                         : risk(thresholds) <= target.epsilon + 1e-12;
  }
};

namespace detail {

/// The setting of a path that does best at the target, or none.
inline const ThresholdSetting* at_target(const std::vector<ThresholdSetting>& path, const JudgedTarget& judged,
                                         const SelectionTarget& target) {
  const ThresholdSetting* best = nullptr;
  for (const ThresholdSetting& s : path) {
    if (!judged.meets(s.thresholds, target)) continue;
    best = &s;
    if (target.budget) break;  // the first within the budget agrees most
  }
  return best;
}

/// What a set of exits does at a target.
struct SetValue {
  double loss = 1;   ///< mean price as a share of the full network's; under a budget the disagreement
  double ratio = 1;  ///< price saved over FLOPs saved
};
inline SetValue value_at(const JudgedTarget& judged, const SelectionTarget& target, int fines) {
  const auto path = threshold_path(judged.agreement, fines);
  const ThresholdSetting* s = at_target(path, judged, target);
  if (target.budget) return {s ? 1 - s->outcome.accuracy : std::numeric_limits<double>::infinity(), 1};
  if (s == nullptr) return {};
  const Outcome full = full_outcome(judged.agreement);
  const double price = s->outcome.mean_price / full.mean_price, flops = s->outcome.mean_flops / full.mean_flops;
  return {price, flops < 1 ? (1 - price) / (1 - flops) : 1};
}

/// Heads whose price follows their FLOPs, both as shares of the full network's; cheap ones whatever they do.
inline std::vector<Index> even_heads(const ExitRecords& r) {
  constexpr double cheap = 0.01, most = 1.1;
  std::vector<Index> even;
  for (Index k = 0; k + 1 < r.exits; ++k) {
    const double price = r.head_price(k) / r.full_price(),
                 flops = static_cast<double>(r.heads[static_cast<std::size_t>(k)].flops) / r.full_flops();
    if (price < cheap || price <= most * flops) even.push_back(k);
  }
  return even;
}

/// Sets of heads for one fine: what they cost, and moves between them.
class HeadSearch {
 public:
  HeadSearch(const ExitRecords& records, std::span<const Index> offered, std::span<const std::size_t> place_of,
             double fine)
      : records_(records), offered_(offered), place_of_(place_of), fine_(fine) {}

  /// Heads that are added, taken out and exchanged one by one while that helps.
  std::vector<Index> best() {
    while (add() || exchange()) drop();
    return kept_;
  }

 private:
  // What one more head must save of the full price, and what another head in the place of one must.
  static constexpr double least_gain = 0.004, least_change = 0.001;

  double loss(const std::vector<Index>& kept) const {
    const ExitRecords r = keep_exits(records_, kept);
    const double full = full_outcome(r).mean_price;
    ThresholdSearch search(r);
    std::vector<float> at = search.all_off();
    search.descend(at, fine_);
    const Outcome o = apply_thresholds(r, at);
    return o.mean_price / full + fine_ * (1 - o.accuracy);
  }

  bool is_kept(Index k) const { return std::count(kept_.begin(), kept_.end(), k) > 0; }
  std::vector<Index> without(Index k) const {
    std::vector<Index> some = kept_;
    std::erase(some, k);
    return some;
  }
  static void insert(std::vector<Index>& some, Index k) {
    some.insert(std::upper_bound(some.begin(), some.end(), k), k);
  }
  // Goes to the best of some sets if it is better by `gain`.
  bool move_to(std::vector<std::vector<Index>> trials, double gain) {
    double best = current_ - gain;
    const std::vector<Index>* chosen = nullptr;
    for (const std::vector<Index>& trial : trials) {
      const double v = loss(trial);
      if (v < best) best = v, chosen = &trial;
    }
    if (chosen == nullptr) return false;
    kept_ = *chosen, current_ = best;
    return true;
  }

  // One more, instead of those that its place has or beside them.
  bool add() {
    std::vector<std::vector<Index>> trials;
    for (const Index k : offered_) {
      if (is_kept(k)) continue;
      std::vector<Index> alone = kept_;
      std::erase_if(alone, [&](Index j) {
        return place_of_[static_cast<std::size_t>(j)] == place_of_[static_cast<std::size_t>(k)];
      });
      if (alone.size() < kept_.size()) insert(trials.emplace_back(kept_), k);
      insert(alone, k);
      trials.push_back(std::move(alone));
    }
    return move_to(std::move(trials), least_gain);
  }
  bool exchange() {
    std::vector<std::vector<Index>> trials;
    for (const Index old : kept_)
      for (const Index k : offered_)
        if (!is_kept(k)) insert(trials.emplace_back(without(old)), k);
    return move_to(std::move(trials), least_change);
  }
  // Those that do not pay any more.
  void drop() {
    for (std::size_t i = 0; i < kept_.size() && kept_.size() > 1;) {
      std::vector<Index> trial = without(kept_[i]);
      const double v = loss(trial);
      if (v <= current_ + least_gain / 2) {
        kept_ = std::move(trial);
        current_ = v;
      } else {
        ++i;
      }
    }
  }

  const ExitRecords& records_;
  std::span<const Index> offered_;
  std::span<const std::size_t> place_of_;
  double fine_;
  std::vector<Index> kept_;
  double current_ = 1;
};

}  // namespace detail

/// Chooses heads among many: each time the one that saves most, instead of those that its place has or behind them (a
/// cheap head for easy samples, a dear one for others), or the one that is better than another, then those out that do
/// not pay any more, until nothing helps; for a range of fines, of which the set that does best at the target is kept.
/// Where the target says so, that is one whose price follows its FLOPs, if it saves nearly as much as the best.
/// `place_of[i]` is the place of exit i; exits are in order of place, those of a place in order of cost.
inline std::vector<Index> choose_heads(const ExitScores& scores, std::span<const std::size_t> place_of,
                                       const SelectionTarget& target) {
  constexpr double nearly = 0.85, least_ratio = 0.955;  // of prices that are cautious about heads
  const ExitRecords records = judge(scores, MaxProbability{Thresholds(1.0f)}, Truth::full_network);
  std::vector<std::vector<Index>> sets;
  std::vector<detail::SetValue> values;
  const auto search = [&](std::span<const Index> offered) {
    for (double fine = 2; fine < 600; fine *= 1.6) {
      std::vector<Index> kept = detail::HeadSearch(records, offered, place_of, fine).best();
      if (kept.empty() || std::count(sets.begin(), sets.end(), kept) > 0) continue;
      values.push_back(detail::value_at({Confidence{}, keep_exits(scores, kept), target}, target, 40));
      sets.push_back(std::move(kept));
    }
  };
  const auto best = [&](double limit, double ratio) {
    std::optional<std::size_t> found;
    for (std::size_t i = 0; i < sets.size(); ++i)
      if (values[i].loss < limit && values[i].ratio >= ratio) limit = values[i].loss, found = i;
    return found;
  };
  std::vector<Index> all(static_cast<std::size_t>(scores.exits - 1));
  std::iota(all.begin(), all.end(), Index{0});
  search(all);
  auto found = best(target.budget ? std::numeric_limits<double>::infinity() : 1, 0);
  if (!found) return {};
  if (target.even && !target.budget && values[*found].ratio < least_ratio) {
    search(detail::even_heads(records));
    found = best(1 - nearly * (1 - values[*found].loss), least_ratio).value_or(*found);
  }
  return sets[*found];
}

/// Thresholds of the largest probability that meet the target, for the weights of a second training: infinite where an
/// exit is off.
inline std::vector<float> reach_thresholds(const ExitScores& scores, const SelectionTarget& target) {
  const JudgedTarget judged(Confidence{}, scores, target);
  const auto path = threshold_path(judged.agreement, 60);
  const ThresholdSetting* s = detail::at_target(path, judged, target);
  return s ? s->thresholds
           : std::vector<float>(static_cast<std::size_t>(scores.exits - 1), std::numeric_limits<float>::infinity());
}

namespace detail {

/// Whether the exits err so far apart that the mean of all is a better last answer than the last exit's own. Judged on
/// all samples, whether they would go all the way or not: those that would are too few to tell.
inline bool last_ensemble_pays(const Confidence& by, const ExitScores& scores, const SelectionTarget& target) {
  if (target.risk != Risk::accuracy_drop || target.budget || scores.labels.empty()) return false;
  const ExitRecords own = judge_with(by, scores, Truth::labels),
                    joined = judge_with({by.kind, by.gate, true}, scores, Truth::labels);
  const Index last = scores.exits - 1;
  double better = 0, worse = 0;
  for (Index i = 0; i < scores.samples; ++i) {
    better += joined.right_at(i, last) && !own.right_at(i, last);
    worse += !joined.right_at(i, last) && own.right_at(i, last);
  }
  return better - worse > 2 * std::sqrt(better + worse);  // surely: a wrong guess can cost the whole certificate
}

inline double mean_of(const std::vector<double>& x) noexcept {
  return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(std::max<std::size_t>(1, x.size()));
}

/// Whether losses of the same samples are smaller on average by more than one standard error of the difference; with
/// `or_equal` also where they are the same.
inline bool surely_less(const std::vector<double>& a, const std::vector<double>& b, bool or_equal = false) noexcept {
  constexpr double rounding = 1e-9;
  const double gain = mean_of(b) - mean_of(a);
  double squares = 0;
  for (std::size_t i = 0; i < a.size(); ++i) squares += (b[i] - a[i] - gain) * (b[i] - a[i] - gain);
  return gain - std::sqrt(squares) / static_cast<double>(a.size()) > (or_equal ? -rounding : rounding);
}

}  // namespace detail

/// Chooses the confidence by cross-validation: learned and calibrated on some of the samples, judged on the others by
/// price plus a fine for lost answers, over a range of fines around the one that meets the target. A kind replaces one
/// before it, and an exit is left out, only where that is better by more than chance.
inline Selection choose_policy(const ExitScores& scores, const SelectionTarget& target,
                               std::span<const PolicyKind> kinds = {}) {
  static constexpr PolicyKind all_kinds[] = {PolicyKind::max_probability, PolicyKind::gate, PolicyKind::ensemble,
                                             PolicyKind::ensemble_gate, PolicyKind::max_probability_per_class};
  if (kinds.empty()) kinds = all_kinds;
  constexpr Index folds = 4;
  // The fine at which the plain rule meets the target; below a thousandth, samples do not tell.
  SelectionTarget reachable = target;
  reachable.epsilon = std::max(target.epsilon, 0.001);
  double fine = 3000;
  {
    const JudgedTarget judged(Confidence{}, scores, target);
    detail::ThresholdSearch search(judged.agreement);
    std::vector<float> at = search.all_off();
    for (double f = fine; f > 0.05; f /= 1.3) {
      search.descend(at, f);
      if (judged.meets(at, reachable)) {
        fine = f;
        if (target.budget) break;
      }
    }
  }
  constexpr double factors[] = {2.0, 1.41, 1.0, 0.71, 0.5};
  // The loss of each sample, held out.
  const auto held_out = [&](PolicyKind kind, const std::vector<Index>& kept) {
    const ExitScores some = keep_exits(scores, kept);
    std::vector<double> losses(static_cast<std::size_t>(some.samples), 0);
    for (Index f = 0; f < folds; ++f) {
      std::vector<Index> learn, check;
      for (Index i = 0; i < some.samples; ++i) (i % folds == f ? check : learn).push_back(i);
      const ExitScores a = keep_samples(some, learn), b = keep_samples(some, check);
      const Confidence learned{kind, gate_for(kind, a)};
      const ExitRecords known = judge_with(learned, a, Truth::full_network),
                        unknown = judge_with(learned, b, Truth::full_network);
      const double full = full_outcome(unknown).mean_price;
      detail::ThresholdSearch search(known);
      std::vector<float> at = search.all_off();
      for (const double factor : factors) {
        search.descend(at, fine * factor);
        const std::vector<double> price = detail::costs_upto(unknown, at).price;
        for (std::size_t i = 0; i < check.size(); ++i) {
          const auto sample = static_cast<Index>(i);
          const Index k = exit_of(unknown, at, sample);
          const double loss =
              price[static_cast<std::size_t>(k)] / full + (unknown.right_at(sample, k) ? 0 : fine * factor);
          losses[static_cast<std::size_t>(check[i])] += loss / static_cast<double>(std::size(factors));
        }
      }
    }
    return losses;
  };
  Selection best;
  std::vector<double> least;
  for (const PolicyKind kind : kinds) {
    std::vector<Index> kept(static_cast<std::size_t>(scores.exits - 1));
    std::iota(kept.begin(), kept.end(), Index{0});
    std::vector<double> current = held_out(kind, kept);
    // Exits that do not pay leave, the least useful first.
    while (kept.size() > 1) {
      std::vector<double> smallest;
      std::size_t which = 0;
      for (std::size_t i = 0; i < kept.size(); ++i) {
        std::vector<Index> trial = kept;
        trial.erase(trial.begin() + static_cast<std::ptrdiff_t>(i));
        std::vector<double> losses = held_out(kind, trial);
        if (smallest.empty() || detail::mean_of(losses) < detail::mean_of(smallest))
          smallest = std::move(losses), which = i;
      }
      if (!detail::surely_less(smallest, current, true)) break;
      current = std::move(smallest);
      kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(which));
    }
    best.tried.emplace_back(name_of(kind), detail::mean_of(current));
    if (least.empty() || detail::surely_less(current, least))
      least = std::move(current), best.kind = kind, best.exits = std::move(kept);
  }
  if (!target.budget && detail::mean_of(least) >= 1) best.exits.clear();
  if (!best.exits.empty()) {
    const ExitScores some = keep_exits(scores, best.exits);
    best.gate = gate_for(best.kind, some);
    best.last_ensemble = detail::last_ensemble_pays(best, some, target);
  }
  return best;
}

/// What each setting of a path that was found by `truth` on these samples loses, by five-fold cross-validation.
/// Settings of the folds' paths are matched by the share of wrong answers on the samples that found them: what a path
/// promises of its own samples is more than it keeps for others, and the folds tell how much more.
inline std::vector<LossCount> validated_losses(const std::vector<ThresholdSetting>& path, const ExitScores& scores,
                                               const Confidence& by, Risk risk, Truth truth) {
  constexpr Index folds = 5;
  std::vector<LossCount> counts(path.size());
  for (Index f = 0; f < folds; ++f) {
    std::vector<Index> learn, check;
    for (Index i = 0; i < scores.samples; ++i) (i % folds == f ? check : learn).push_back(i);
    const ExitScores a = keep_samples(scores, learn), b = keep_samples(scores, check);
    const Confidence learned{by.kind, gate_for(by.kind, a), by.last_ensemble};
    const auto own = threshold_path(judge_with(learned, a, truth), 120);
    const ExitRecords unknown = judge_with(learned, b, truth_of(risk));
    std::size_t at = 0, judged_at = own.size();
    LossCount here;
    for (std::size_t i = 0; i < path.size() && !own.empty(); ++i) {
      while (at + 1 < own.size() && own[at + 1].outcome.accuracy >= path[i].outcome.accuracy - 1e-12) ++at;
      if (at != judged_at) here = detail::losses_of(unknown, own[at].thresholds, risk, false).all, judged_at = at;
      counts[i].n += here.n;
      counts[i].lost += here.lost;
      counts[i].won += here.won;
    }
  }
  return counts;
}

/// A risk as cross-validation estimates it.
struct ValidatedRisk {
  double mean = 0, standard_error = 0;
};

/// The risks of settings along a path from what they lost, by isotonic regression: along a path the risk grows, and
/// what shrinks in the estimate is noise.
inline std::vector<ValidatedRisk> validated_risks(std::span<const LossCount> counts) {
  struct Block {
    double lost, changed;
    std::size_t count;
    double mean() const noexcept { return lost / static_cast<double>(count); }
  };
  std::vector<Block> blocks;
  for (const LossCount& c : counts) {
    blocks.push_back({static_cast<double>(c.lost - c.won), static_cast<double>(c.lost + c.won), 1});
    while (blocks.size() > 1 && blocks[blocks.size() - 2].mean() >= blocks.back().mean()) {
      Block& into = blocks[blocks.size() - 2];
      into.lost += blocks.back().lost, into.changed += blocks.back().changed, into.count += blocks.back().count;
      blocks.pop_back();
    }
  }
  std::vector<ValidatedRisk> risks;
  const auto n = static_cast<double>(counts.empty() ? 1 : std::max<Index>(1, counts.front().n));
  for (const Block& b : blocks)
    risks.insert(risks.end(), b.count, {b.mean() / n, std::sqrt(b.changed / static_cast<double>(b.count)) / n});
  return risks;
}

namespace detail {

/// The last setting of a path whose risk, by cross-validation, is as allowed, up to a quarter of a standard error.
inline const ThresholdSetting* at_validated_target(const std::vector<ThresholdSetting>& path,
                                                   std::span<const LossCount> counts, const SelectionTarget& target) {
  constexpr double alike = 0.001;  // share of answers that differ, below which labels tell nothing
  const std::vector<ValidatedRisk> risks = validated_risks(counts);
  const ThresholdSetting* best = nullptr;
  for (std::size_t i = 0; i < path.size(); ++i) {
    const bool is_alike = target.risk == Risk::accuracy_drop && path[i].outcome.accuracy >= 1 - alike;
    if (is_alike || risks[i].mean <= target.epsilon + risks[i].standard_error / 4) best = &path[i];
  }
  return best;
}

}  // namespace detail

/// How the exits that a network has are calibrated.
struct ExitCalibrationOptions {
  SelectionTarget target;
  std::optional<double> delta;  ///< certify, on a part of the samples that chooses nothing
  bool per_class = false;
  double select_share = 0.4;      ///< of the samples, to choose by, where there is a certificate
  std::vector<PolicyKind> kinds;  ///< empty: all
  /// Whether samples may go from one exit to the stage of another (`Model::can_skip`). Empty: no routes are tried.
  std::function<bool(Index from, Index to)> can_skip;
};

/// The path of settings, strict to lax, of a selection on the samples that chose it.
inline std::vector<ThresholdSetting> path_of(const ExitRecords& agreement) {
  return denser_path(agreement, threshold_path(agreement, 240));
}

struct ExitCalibration {
  Selection selection;
  std::vector<ThresholdSetting> path;  ///< strict to lax, on the samples that chose
  std::vector<float> thresholds;       ///< of the exits of the selection
  Outcome outcome, full;               ///< on the samples that certify, or else on those that chose
  Certificate certificate;
  bool has_exits = false;
  Index selected = 0, certified = 0;  ///< samples
  double route_saves = 0;             ///< of the full price, on the samples that chose; 0: no route pays
};

/// Gives a selection the route that pays at a setting. It must do so by what exits say to samples that skipped, too,
/// and take no accuracy. Returns what it saves of the full price; 0: none does.
inline double add_route(Selection& s, const ExitScores& scores, const SelectionTarget& target,
                        const JudgedTarget& judged, const ThresholdSetting& at,
                        const std::function<bool(Index, Index)>& can_skip) {
  constexpr double least = 0.002;
  // Exits that were left out belong to the stage of the next one that stayed.
  const auto stage_of = [&](Index exit) { return exit == 0 ? 0 : s.exits[static_cast<std::size_t>(exit - 1)] + 1; };
  const ChosenRoute chosen = choose_route(judged.agreement, at.thresholds, [&](Index from, Index to) {
    return can_skip(s.exits[static_cast<std::size_t>(from)], stage_of(to));
  });
  if (chosen.saved < least) return 0;
  Selection with = s;
  with.route = chosen.rule;
  const JudgedTarget routed(with, scores, target);
  const double before = apply_thresholds(judged.agreement, at.thresholds).mean_price,
               after = apply_thresholds(routed.agreement, at.thresholds).mean_price,
               saved = (before - after) / judged.agreement.full_price();
  if (saved < least || routed.risk(at.thresholds) > judged.risk(at.thresholds) + 1e-12) return 0;
  s.route = chosen.rule;
  return saved;
}

/// Chooses exits, confidence and thresholds for a target from some samples and, with a delta, certifies them on others.
inline ExitCalibration calibrate_exits(const ExitScores& select, const ExitScores& certify,
                                       const ExitCalibrationOptions& options) {
  ExitCalibration r;
  r.selected = select.samples, r.certified = options.delta ? certify.samples : 0;
  r.selection = choose_policy(select, options.target, options.kinds);
  Selection& s = r.selection;
  const ExitScores kept = keep_exits(select, s.exits);
  JudgedTarget chosen(s, kept, options.target);
  r.outcome = r.full = full_outcome(chosen.for_risk());
  r.thresholds.assign(
      static_cast<std::size_t>(chosen.agreement.exits - 1) * static_cast<std::size_t>(chosen.agreement.groups),
      std::numeric_limits<float>::infinity());
  if (s.exits.empty()) return r;
  r.path = path_of(chosen.agreement);
  std::vector<LossCount> validated;
  if (!options.target.budget) validated = validated_losses(r.path, kept, s, options.target.risk, Truth::full_network);
  const ThresholdSetting* best = options.target.budget ? detail::at_target(r.path, chosen, options.target)
                                                       : detail::at_validated_target(r.path, validated, options.target);
  if (const ThresholdSetting* at = best || r.path.empty() ? best : &r.path.back(); at && options.can_skip) {
    r.route_saves = add_route(s, kept, options.target, chosen, *at, options.can_skip);
    if (r.route_saves > 0) {
      chosen = JudgedTarget(s, kept, options.target);
      for (ThresholdSetting& t : r.path) t.outcome = apply_thresholds(chosen.agreement, t.thresholds);
    }
  }
  if (options.delta) {
    const JudgedTarget fresh(s, keep_exits(certify, s.exits), options.target);
    CertifiedThresholds c;
    if (!options.target.budget) {
      CertificateOptions o{options.target.risk, options.target.epsilon, *options.delta, options.per_class};
      c = certify_from(safest_of(validated, o, certify.samples), fresh.for_risk(), r.path, o);
    } else if (best) {
      c = certified_alone(fresh.agreement, best->thresholds, *options.delta);
    }
    r.full = full_outcome(fresh.for_risk());
    r.outcome = r.full;
    r.certificate = c.certificate;
    r.has_exits = c.has_exits && c.outcome.mean_price < r.full.mean_price;
    if (r.has_exits) r.thresholds = c.thresholds, r.outcome = c.outcome;
  } else if (best && has_early_exits(best->thresholds) && best->outcome.mean_price < r.full.mean_price) {
    r.has_exits = true;
    r.thresholds = best->thresholds;
    r.outcome = apply_thresholds(chosen.for_risk(), r.thresholds);
  }
  return r;
}

/// Splits samples at random into those that choose and those that certify.
inline std::pair<std::vector<Index>, std::vector<Index>> split_samples(Index samples, double first_share,
                                                                       std::uint64_t seed) {
  std::vector<Index> order(static_cast<std::size_t>(samples));
  std::iota(order.begin(), order.end(), Index{0});
  std::mt19937_64 random(seed);
  std::shuffle(order.begin(), order.end(), random);
  const auto cut = order.begin() + static_cast<std::ptrdiff_t>(first_share * static_cast<double>(samples));
  return {{order.begin(), cut}, {cut, order.end()}};
}

}  // namespace offramp
