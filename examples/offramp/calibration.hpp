/// @file calibration.hpp
/// Chooses the exits, the confidence and the thresholds of a network that has exits.
#pragma once

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cache.hpp"
#include "data.hpp"
#include "evaluation.hpp"
#include "offramp/graph/attach.hpp"
#include "offramp/offramp.hpp"
#include "output.hpp"

namespace tool {

using offramp::Model;

struct CalibrateCommand {
  std::string data, output;
  std::optional<double> disagreement, drop, budget, confidence;
  std::string objective = "modelled";
  std::vector<std::string> kinds;
  bool per_class = false, int8_heads = false;
  std::uint64_t seed = 0;
};

/// The same network with these early exits and its last one alone.
inline Model with_exits(const Model& m, const std::vector<Index>& early) {
  offramp::Graph g = m.graph();
  std::vector<offramp::ValueId> outputs;
  std::string names;
  const auto take = [&](const std::string& name) {
    for (const offramp::ValueId v : g.outputs) {
      if (g[v].name == name) outputs.push_back(v);
    }
    names += (names.empty() ? "" : ",") + name;
  };
  for (const Index k : early) take(m.exits()[static_cast<std::size_t>(k)].name);
  take(m.exits().back().name);
  g = with_outputs(std::move(g), outputs);
  g.metadata["offramp.exits"] = names;
  g.metadata.erase("offramp.policy");
  return Model(std::move(g), {});
}

/// The same network with the convolutions of its heads in bytes, whose ranges some of these samples tell.
inline Model with_int8_heads(const Model& m, const Data& data, const std::vector<Index>& samples,
                             const offramp::ModelOptions& options) {
  constexpr auto most = static_cast<std::size_t>(offramp::samples_for_ranges);
  std::vector<float> seen;
  for (const Index i : std::span(samples).first(std::min(samples.size(), most))) {
    const auto x = data.sample(i);
    seen.insert(seen.end(), x.begin(), x.end());
  }
  offramp::QuantizeOptions q;
  q.model = options;
  return Model(offramp::quantize_heads(m, seen, q), options);
}

/// A policy kind from its name, with `-` for each blank.
inline offramp::PolicyKind policy_kind(const std::string& name) {
  using offramp::PolicyKind;
  for (const PolicyKind k : {PolicyKind::max_probability, PolicyKind::max_probability_per_class, PolicyKind::ensemble,
                             PolicyKind::gate, PolicyKind::ensemble_gate}) {
    std::string known(name_of(k));
    std::replace(known.begin(), known.end(), ' ', '-');
    if (known == name) return k;
  }
  offramp::raise("confidence '" + name + "' is unknown");
}

/// Calibrates a network, says what came of it, and writes it. `drops_exits`: those that are not used leave the file.
inline int calibrate(const offramp::Model& given, const offramp::ModelOptions& model_options, const CalibrateCommand& o,
                     bool as_json, bool drops_exits) {
  OFFRAMP_REQUIRE(given.exit_count() > 1, "the network has no early exit to calibrate");
  const Data data = read_data(o.data);
  check_data(given, data);
  offramp::ExitCalibrationOptions options;
  const auto [first, second] = offramp::split_samples(data.count(), o.confidence ? options.select_share : 1.0, o.seed);
  const Model m = o.int8_heads ? with_int8_heads(given, data, first, model_options) : given;
  Progress progress("recording", data.count());
  const offramp::Objective objective =
      o.budget ? offramp::objective_of_budget(objective_called(o.objective)) : objective_called(o.objective);
  offramp::ExitScores all =
      offramp::record_scores(m, data.samples, o.drop ? std::span<const Index>(data.labels) : std::span<const Index>(),
                             [&](Index done) { progress.at(done); });
  all.prices = offramp::prices_of(m, data.samples, objective);
  options.per_class = o.per_class;
  options.target.budget = o.budget;
  if (o.disagreement) options.target.epsilon = *o.disagreement / 100;
  if (o.drop) {
    options.target.risk = offramp::Risk::accuracy_drop;
    options.target.epsilon = *o.drop / 100;
  }
  for (const std::string& k : o.kinds) options.kinds.push_back(policy_kind(k));
  if (drops_exits) options.can_skip = [&m](Index from, Index to) { return m.can_skip(from, to); };
  offramp::ExitCalibration r;
  if (o.confidence) {
    options.delta = 1 - *o.confidence;
    r = offramp::calibrate_exits(offramp::keep_samples(all, first), offramp::keep_samples(all, second), options);
  } else {
    r = offramp::calibrate_exits(all, all, options);
  }
  const std::string policy = r.has_exits ? policy_text_of(r.selection, r.thresholds, m.class_count()) : "never";
  std::string names;
  const auto exit_name = [&](Index k) {  // of those that were chosen
    const std::vector<Index>& chosen = r.selection.exits;
    return k < static_cast<Index>(chosen.size())
               ? m.exits()[static_cast<std::size_t>(chosen[static_cast<std::size_t>(k)])].name
               : m.exits().back().name;
  };
  for (Index k = 0; k < static_cast<Index>(r.selection.exits.size()); ++k) names += exit_name(k) + ",";
  names += m.exits().back().name;
  OFFRAMP_REQUIRE(r.has_exits || !o.budget, "no thresholds reach the target");
  if (!o.output.empty()) {
    std::map<std::string, std::string> metadata{{"offramp.policy", policy}};
    if (r.has_exits) metadata["offramp.exits"] = names;
    if (r.has_exits && options.delta) metadata["offramp.certificate"] = text_of(r.certificate);
    const Model written = drops_exits && r.has_exits ? with_exits(m, r.selection.exits) : m;
    offramp::save_onnx(written, o.output, offramp::ExitForm::outputs, metadata);
  }
  const double saving = 1 - r.outcome.mean_flops / r.full.mean_flops,
               price_saving = 1 - r.outcome.mean_price / r.full.mean_price;
  const std::string reason =
      r.has_exits ? ""
      : options.delta && !r.selection.exits.empty()
          ? offramp::refusal_of({options.target.risk, options.target.epsilon, *options.delta, false}, r.certified)
          : "no exit pays for itself at this risk";
  if (as_json) {
    json exits = json::array();
    for (std::size_t k = 0; r.has_exits && k <= r.selection.exits.size(); ++k) {
      const bool last = k == r.selection.exits.size();
      const std::size_t groups = r.thresholds.size() / r.selection.exits.size();
      const auto from = r.thresholds.begin() + static_cast<std::ptrdiff_t>(k * groups);
      exits.push_back(
          {{"name", exit_name(static_cast<Index>(k))},
           {"threshold", last ? json(nullptr) : threshold_json({from, from + static_cast<std::ptrdiff_t>(groups)})},
           {"share", r.outcome.shares[k]},
           {"accuracy", r.outcome.accuracies[k]}});
    }
    json j = {{"policy", policy},
              {"reason", reason},
              {"samples", {{"selected", r.selected}, {"certified", r.certified}}},
              {"accuracy", r.outcome.accuracy},
              {"full", {{"accuracy", r.full.accuracy}}},
              {"flops", {{"mean", r.outcome.mean_flops}, {"full", r.full.mean_flops}, {"saving", saving}}},
              {"price", {{"objective", name_of(objective)}, {"saving", price_saving}}},
              {"exits", exits}};
    if (r.route_saves > 0)
      j["route"] = {{"to", exit_name(r.selection.route.target)},
                    {"below", threshold_json(r.selection.route.below)},
                    {"share", r.outcome.skipping}};
    if (options.delta) j["calibration"] = certificate_json(r.certificate);
    std::cout << j.dump(2) << '\n';
    return 0;
  }
  const bool labelled = o.drop.has_value();
  std::printf("policy     %s\n%s  %s, full network %s\nFLOPs      %s of %s, saved %s\n", policy.c_str(),
              labelled ? "accuracy " : "agreement", percent(r.outcome.accuracy).c_str(),
              percent(r.full.accuracy).c_str(), engineering(r.outcome.mean_flops).c_str(),
              engineering(r.full.mean_flops).c_str(), percent(saving, 1).c_str());
  if (objective != offramp::Objective::flops)
    std::printf("time       saved %s (%s)\n", percent(price_saving, 1).c_str(),
                objective == offramp::Objective::latency ? "measured" : "modelled");
  if (!reason.empty()) std::printf("no exits:  %s\n", reason.c_str());
  if (r.has_exits && r.route_saves > 0)
    std::printf("router     %s of the samples go on to %s at once\n", percent(r.outcome.skipping, 1).c_str(),
                exit_name(r.selection.route.target).c_str());
  else if (r.has_exits && drops_exits)
    std::printf("router     none: no exit knows early enough who goes on to the end\n");
  if (r.has_exits && options.delta)
    std::printf("certificate: %s\n", text_of(r.certificate).c_str());
  else
    std::printf("on the %ld samples that chose; nothing is guaranteed for others (use --confidence)\n",
                static_cast<long>(r.selected));
  if (!o.output.empty()) std::printf("written    %s\n", o.output.c_str());
  return 0;
}

}  // namespace tool
