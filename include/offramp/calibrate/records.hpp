/// @file records.hpp
/// What every exit of a network said about every sample of a data set, and what a policy makes of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/network/early_exit_network.hpp"
#include "offramp/policy/policy.hpp"

namespace offramp {

/// What a sample costs, in what is to be saved: one price for each exit, of the stage up to it and of its head. Empty:
/// nominal FLOPs count.
struct ExitPrices {
  std::vector<double> stages, heads;
  double full = 0;  ///< of the network that is to be equalled, where that is another one; else 0

  bool empty() const noexcept { return stages.empty(); }
  /// What the full network takes.
  double full_price() const noexcept { return full > 0 ? full : std::accumulate(stages.begin(), stages.end(), 0.0); }
};

/// The scores of every exit for every sample, and what stages and heads cost.
struct ExitScores {
  Index samples = 0, exits = 0, classes = 0;
  std::vector<float> scores;        ///< [sample][exit][class], before the softmax
  std::vector<Index> labels;        ///< empty, or one a sample
  std::vector<Cost> stages, heads;  ///< of one sample
  Cost full;                        ///< the last exit alone; without one, the sum of the stages
  /// Answers of the network that is to be equalled, where that is not the last exit (it was quantized, say): one a
  /// sample, and `full` is then that network's. Empty: the last exit.
  std::vector<Index> reference;
  ExitPrices prices;

  std::span<const float> at(Index sample, Index exit) const noexcept {
    return std::span(scores).subspan(static_cast<std::size_t>((sample * exits + exit) * classes),
                                     static_cast<std::size_t>(classes));
  }
};

/// Runs all exits over `samples` (whole samples in NCHW order). `progress(done)` is called now and then.
template <EarlyExitNetwork N, class Progress>
ExitScores record_scores(const N& network, std::span<const float> samples, std::span<const Index> labels,
                         Progress&& progress) {
  const Index size = network.sample_size(), exits = network.exit_count();
  OFFRAMP_REQUIRE(size > 0 && !samples.empty() && static_cast<Index>(samples.size()) % size == 0,
                  "the data do not hold whole samples of " + std::to_string(size) + " numbers");
  ExitScores r;
  r.samples = static_cast<Index>(samples.size()) / size;
  r.exits = exits;
  r.classes = network.class_count();
  OFFRAMP_REQUIRE(
      labels.empty() || static_cast<Index>(labels.size()) == r.samples,
      "there are " + std::to_string(labels.size()) + " labels for " + std::to_string(r.samples) + " samples");
  r.labels.assign(labels.begin(), labels.end());
  r.scores.resize(static_cast<std::size_t>(r.samples * exits * r.classes));
  for (Index k = 0; k < exits; ++k) {
    r.stages.push_back(network.stage_cost(k));
    r.heads.push_back(network.head_cost(k));
  }
  r.full = full_cost_of(network);
  const Index step = std::min<Index>(32, network.max_batch());
  auto state = network.make_state(step);
  for (Index first = 0; first < r.samples; first += step) {
    const Index n = std::min(step, r.samples - first);
    network.load(state, samples.data() + first * size, n);
    for (Index k = 0; k < exits; ++k) {
      OFFRAMP_REQUIRE(network.run_stage(state, k) && (k + 1 == exits || network.run_head(state, k)),
                      "an index in the data is out of range");
      const float* scores = network.logits(state, k);
      for (Index i = 0; i < n; ++i)
        std::copy_n(scores + i * r.classes, r.classes, r.scores.data() + ((first + i) * exits + k) * r.classes);
    }
    progress(first + n);
  }
  return r;
}

namespace detail {

/// What stages and heads cost where only some exits are kept: a stage begins behind the exit that was kept before.
template <class Recorded>
void keep_costs(const Recorded& all, std::span<const Index> kept, Recorded& r) {
  r.prices.full = all.prices.full;
  const bool priced = !all.prices.empty();
  Index from = 0;
  for (const Index k : kept) {
    Cost stage;
    double price = 0;
    for (; from <= k; ++from) {
      stage += all.stages[static_cast<std::size_t>(from)];
      if (priced) price += all.prices.stages[static_cast<std::size_t>(from)];
    }
    r.stages.push_back(stage);
    r.heads.push_back(all.heads[static_cast<std::size_t>(k)]);
    if (priced) {
      r.prices.stages.push_back(price);
      r.prices.heads.push_back(all.prices.heads[static_cast<std::size_t>(k)]);
    }
  }
}

}  // namespace detail

/// The same network with only these of its early exits, in order; the last exit always stays.
inline ExitScores keep_exits(const ExitScores& all, std::span<const Index> early) {
  ExitScores r;
  std::vector<Index> kept(early.begin(), early.end());
  kept.push_back(all.exits - 1);
  r.samples = all.samples, r.exits = static_cast<Index>(kept.size()), r.classes = all.classes, r.labels = all.labels;
  r.full = all.full, r.reference = all.reference;
  detail::keep_costs(all, kept, r);
  r.scores.reserve(static_cast<std::size_t>(r.samples * r.exits * r.classes));
  for (Index i = 0; i < all.samples; ++i) {
    for (const Index k : kept) r.scores.insert(r.scores.end(), all.at(i, k).begin(), all.at(i, k).end());
  }
  return r;
}

/// These samples alone.
inline ExitScores keep_samples(const ExitScores& all, std::span<const Index> samples) {
  ExitScores r;
  r.samples = static_cast<Index>(samples.size()), r.exits = all.exits, r.classes = all.classes;
  r.stages = all.stages, r.heads = all.heads, r.full = all.full, r.prices = all.prices;
  const auto row = static_cast<std::size_t>(all.exits * all.classes);
  r.scores.reserve(row * samples.size());
  for (const Index i : samples) {
    const auto from = all.scores.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(i) * row);
    r.scores.insert(r.scores.end(), from, from + static_cast<std::ptrdiff_t>(row));
    if (!all.labels.empty()) r.labels.push_back(all.labels[static_cast<std::size_t>(i)]);
    if (!all.reference.empty()) r.reference.push_back(all.reference[static_cast<std::size_t>(i)]);
  }
  return r;
}

/// What every exit of a network said about every sample of a data set, as a policy judges it.
struct ExitRecords {
  Index samples = 0, exits = 0;
  std::vector<float> confidence;    ///< [sample][exit], from the policy that recorded
  std::vector<std::uint8_t> right;  ///< [sample][exit]: equals the label, or the full network's answer without labels
  std::vector<std::uint8_t> full;   ///< [sample]: the full network alone is right; empty: as the last exit
  std::vector<Index> classes;       ///< [sample]: the label, or the full network's answer; empty where not asked for
  std::vector<Cost> stages, heads;  ///< of one sample
  Cost full_cost;                   ///< the last exit alone; without one, the sum of the stages
  bool has_reference = false;       ///< the full network is another than the last exit
  ExitPrices prices;
  /// The policy reads what exits before said: an exit that nobody leaves at must run its head all the same.
  bool looks_back = false;
  /// Where a policy lets samples skip exits: [sample], the exit that it skips at (it leaves nowhere before
  /// `skip_target`, and pays for nothing between), or -1. Empty: nobody skips.
  std::vector<Index> skips;
  Index skip_target = 0;
  std::vector<std::uint8_t> may_skip;  ///< [exit]: somebody may skip there, so that its head runs
  /// Samples of one group share a threshold: their class as the exit sees it, for thresholds for each class.
  Index groups = 1;
  std::vector<Index> group;  ///< [sample][exit]; empty with one group

  float confidence_at(Index i, Index k) const noexcept { return confidence[static_cast<std::size_t>(i * exits + k)]; }
  bool right_at(Index i, Index k) const noexcept { return right[static_cast<std::size_t>(i * exits + k)] != 0; }
  bool full_right(Index i) const noexcept {
    return full.empty() ? right_at(i, exits - 1) : full[static_cast<std::size_t>(i)] != 0;
  }
  Index group_at(Index i, Index k) const noexcept {
    return groups == 1 ? 0 : group[static_cast<std::size_t>(i * exits + k)];
  }
  /// A threshold that nobody reaches.
  float never() const noexcept {
    return looks_back ? std::numeric_limits<float>::max() : std::numeric_limits<float>::infinity();
  }
  double stage_price(Index k) const noexcept {
    const auto u = static_cast<std::size_t>(k);
    return prices.empty() ? static_cast<double>(stages[u].flops) : prices.stages[u];
  }
  double full_flops() const noexcept {
    if (full_cost.flops > 0) return static_cast<double>(full_cost.flops);
    double all = 0;
    for (const Cost& c : stages) all += static_cast<double>(c.flops);
    return all;
  }
  /// What the last exit alone takes.
  double full_price() const noexcept { return prices.empty() ? full_flops() : prices.full_price(); }
  double head_price(Index k) const noexcept {
    const auto u = static_cast<std::size_t>(k);
    return prices.empty() ? static_cast<double>(heads[u].flops) : prices.heads[u];
  }
};

/// The same where each exit is judged by itself: by no ensemble, by class neither, and nobody skips.
inline ExitRecords keep_exits(const ExitRecords& all, std::span<const Index> early) {
  ExitRecords r;
  std::vector<Index> kept(early.begin(), early.end());
  kept.push_back(all.exits - 1);
  r.samples = all.samples, r.exits = static_cast<Index>(kept.size());
  r.full = all.full, r.classes = all.classes, r.full_cost = all.full_cost, r.has_reference = all.has_reference;
  detail::keep_costs(all, kept, r);
  r.confidence.reserve(static_cast<std::size_t>(r.samples * r.exits));
  r.right.reserve(r.confidence.capacity());
  for (Index i = 0; i < all.samples; ++i) {
    for (const Index k : kept) {
      r.confidence.push_back(all.confidence_at(i, k));
      r.right.push_back(all.right_at(i, k));
    }
  }
  return r;
}

/// The exit that sample i leaves at with these thresholds, [exit] or [exit][group], if it has come to exit `from`.
inline Index exit_of(const ExitRecords& r, std::span<const float> thresholds, Index i, Index from = 0) noexcept {
  Index k = from;
  while (k + 1 < r.exits &&
         !(r.confidence_at(i, k) >= thresholds[static_cast<std::size_t>(k * r.groups + r.group_at(i, k))]))
    ++k;
  return k;
}

/// What makes an answer right.
enum class Truth : std::uint8_t {
  full_network,  ///< it is the full network's; no labels are read
  labels,        ///< it is the label
};

/// The confidence that `policy` computes at every exit. With `by_class`, the class that an exit sees is the group.
template <ExitPolicy P>
ExitRecords judge(const ExitScores& all, const P& policy, Truth truth, bool by_class = false) {
  OFFRAMP_REQUIRE(truth == Truth::full_network || static_cast<Index>(all.labels.size()) == all.samples,
                  "the data have no labels");
  ExitRecords r;
  r.samples = all.samples, r.exits = all.exits;
  r.stages = all.stages, r.heads = all.heads, r.full_cost = all.full, r.prices = all.prices;
  r.has_reference = !all.reference.empty();
  r.groups = by_class ? all.classes : 1;
  r.looks_back = policy_looks_back<P>();
  r.skip_target = policy_skip_target(policy);
  if (r.skip_target > 0) r.skips.assign(static_cast<std::size_t>(all.samples), -1);
  for (Index k = 0; k < all.exits; ++k) r.may_skip.push_back(k < r.skip_target && policy_may_skip(policy, k));
  const auto cells = static_cast<std::size_t>(all.samples * all.exits), width = static_cast<std::size_t>(all.classes);
  r.confidence.assign(cells, 0.0f);
  r.right.assign(cells, 0);
  r.group.assign(by_class ? cells : 0, 0);
  std::vector<float> history(static_cast<std::size_t>(all.exits) * width), probabilities(width);
  std::vector<Index> answers(static_cast<std::size_t>(all.exits));
  Cost full;
  for (const Cost& c : all.stages) full += c;
  for (Index i = 0; i < all.samples; ++i) {
    std::vector<std::uint8_t> evaluated(static_cast<std::size_t>(all.exits), 0);
    Cost spent;
    Index skipped_at = -1;
    for (Index k = 0; k < all.exits; ++k) {
      const auto u = static_cast<std::size_t>(k);
      evaluated[u] = 1;
      if (skipped_at >= 0 && k < r.skip_target) {
        const auto said = history.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(skipped_at) * width);
        std::copy_n(said, width, history.begin() + static_cast<std::ptrdiff_t>(u * width));
        answers[u] = answers[static_cast<std::size_t>(skipped_at)];
        r.confidence[static_cast<std::size_t>(i * all.exits + k)] = -std::numeric_limits<float>::infinity();
        if (by_class) r.group[static_cast<std::size_t>(i * all.exits + k)] = answers[u];
        continue;
      }
      spent += all.stages[u] + (k + 1 == all.exits ? Cost{} : all.heads[u]);
      const std::span<const float> row = all.at(i, k);
      const float largest = *std::max_element(row.begin(), row.end());
      float sum = 0;
      for (std::size_t c = 0; c < width; ++c) sum += probabilities[c] = std::exp(row[c] - largest);
      for (float& p : probabilities) p /= sum;
      std::copy(probabilities.begin(), probabilities.end(), history.data() + u * width);
      ExitContext context{k, all.exits, row, probabilities, history, evaluated, spent, {}, full, {}};
      const Verdict v = policy(context);
      const bool finite = std::isfinite(v.confidence) && std::isfinite(sum);
      const auto cell = static_cast<std::size_t>(i * all.exits + k);
      r.confidence[cell] = finite ? v.confidence : -std::numeric_limits<float>::infinity();
      answers[u] = context.label();
      if (by_class) r.group[cell] = answers[u];
      if (finite && v.skip && skipped_at < 0 && k < r.skip_target)
        r.skips[static_cast<std::size_t>(i)] = skipped_at = k;
    }
    // The full network's own answer, whatever an ensemble makes of it at the last exit.
    const Index whole = all.reference.empty() ? ExitContext::label_of(all.at(i, all.exits - 1))
                                              : all.reference[static_cast<std::size_t>(i)];
    const Index truth_of = truth == Truth::labels ? all.labels[static_cast<std::size_t>(i)] : whole;
    for (Index k = 0; k < all.exits; ++k)
      r.right[static_cast<std::size_t>(i * all.exits + k)] = answers[static_cast<std::size_t>(k)] == truth_of;
    r.full.push_back(whole == truth_of);
    r.classes.push_back(truth_of);
  }
  return r;
}

/// Runs all exits over `samples` and keeps the confidence that `policy` computes. With `labels` empty an answer is
/// right where it is the full network's.
template <EarlyExitNetwork N, ExitPolicy P, class Progress>
ExitRecords record_exits(const N& network, const P& policy, std::span<const float> samples,
                         std::span<const Index> labels, Progress&& progress) {
  return judge(record_scores(network, samples, labels, std::forward<Progress>(progress)), policy,
               labels.empty() ? Truth::full_network : Truth::labels);
}

}  // namespace offramp
