/// @file halving.hpp
/// Successive halving: many candidates train a little, the better ones longer (Jamieson & Talwalkar, AISTATS 2016,
/// section 3). Here the candidates are exit heads, and they are compared place by place, by what each would save alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <span>
#include <vector>

#include "offramp/fit/distillation.hpp"
#include "offramp/policy/policy.hpp"

namespace offramp::fit {

/// After the share `at` of all steps, the best `per_place` heads of each place train on.
struct Halving {
  double at = 0;
  Index per_place = 0;
};

/// What a head said of a sample: its largest probability, and whether the full network says the same.
struct SureAnswer {
  float sureness = 0;
  bool same = false;
};

/// Adds a batch of scores, `targets.classes` a sample.
inline void add_answers(std::span<const float> scores, const Targets& targets, std::vector<SureAnswer>& to) {
  const auto classes = static_cast<std::size_t>(targets.classes);
  std::vector<float> p;
  soften(scores, targets.classes, 1.0f, p);
  for (std::size_t i = 0; i < static_cast<std::size_t>(targets.n); ++i) {
    const auto row = std::span<const float>(p).subspan(i * classes, classes);
    const Index label = ExitContext::label_of(row);
    to.push_back({row[static_cast<std::size_t>(label)], label == targets.answers[i]});
  }
}

/// The largest share of samples that may leave at one threshold while at most `epsilon` of all get another answer.
/// Samples that are equally sure leave together.
inline double share_alone(std::vector<SureAnswer> answers, double epsilon) {
  std::sort(answers.begin(), answers.end(),
            [](const SureAnswer& a, const SureAnswer& b) { return a.sureness > b.sureness; });
  const auto all = static_cast<double>(answers.size());
  std::size_t leave = 0, differ = 0;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    differ += !answers[i].same;
    if (static_cast<double>(differ) > epsilon * all) break;
    if (i + 1 == answers.size() || answers[i + 1].sureness < answers[i].sureness) leave = i + 1;
  }
  return answers.empty() ? 0 : static_cast<double>(leave) / all;
}

/// A candidate of a place.
struct Contender {
  std::size_t index = 0, place = 0;
  double saving = 0;
};

/// The indices of all but the best `per_place` of each place; among equals the first ones stay.
inline std::vector<std::size_t> losers(std::vector<Contender> all, Index per_place) {
  std::stable_sort(all.begin(), all.end(), [](const Contender& a, const Contender& b) { return a.saving > b.saving; });
  std::map<std::size_t, Index> seen;
  std::vector<std::size_t> out;
  for (const Contender& c : all) {
    if (++seen[c.place] > per_place) out.push_back(c.index);
  }
  return out;
}

}  // namespace offramp::fit
