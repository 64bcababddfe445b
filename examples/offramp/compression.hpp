/// @file compression.hpp
/// Smaller networks from one, and what they lose: quantize and prune.
#pragma once

#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "cache.hpp"
#include "calibration.hpp"
#include "contest.hpp"
#include "offramp/compress/operator_form.hpp"
#include "offramp/compress/prune.hpp"
#include "offramp/compress/quantize.hpp"
#include "offramp/route/cascade.hpp"
#include "output.hpp"

namespace tool {

/// What quantize and prune share.
struct CompressCommand {
  std::string data, test, output;
  Index samples = offramp::samples_for_ranges;
  // quantize
  std::string form = "qdq", range = "squared-error";
  double percentile = 0.9999, max_disagreement = 1;
  std::vector<std::string> keep;
  bool no_bias_correction = false, no_equalization = false;
  // prune
  double remove = 30;
  std::string criterion = "reconstruction";
  std::string objective = "flops";
  bool no_refit = false, no_blocks = false;
  Index granularity = 16, epochs = 0;
  int threads = 2;
  std::uint64_t seed = 0;
};

inline std::span<const float> first_samples(const Data& d, Index n) {
  return std::span(d.samples).first(static_cast<std::size_t>(std::min(n, d.count()) * d.sample_size));
}

inline offramp::QuantizeOptions quantize_options(const CompressCommand& o, const offramp::ModelOptions& model) {
  offramp::QuantizeOptions q;
  q.model = model;
  q.range = o.range == "percentile" ? offramp::RangeChoice::percentile
            : o.range == "extremes" ? offramp::RangeChoice::extremes
                                    : offramp::RangeChoice::squared_error;
  q.percentile = o.percentile;
  q.max_disagreement = o.max_disagreement / 100;
  q.keep = o.keep;
  q.correct_bias = !o.no_bias_correction;
  q.equalize = !o.no_equalization;
  return q;
}

inline offramp::PruneOptions prune_options(const CompressCommand& o, const offramp::ModelOptions& model) {
  offramp::PruneOptions p;
  p.model = model;
  p.share = o.remove / 100;
  p.criterion = o.criterion == "weight-norm"         ? offramp::PruneCriterion::weight_norm
                : o.criterion == "activation-energy" ? offramp::PruneCriterion::activation_energy
                                                     : offramp::PruneCriterion::reconstruction;
  p.objective = objective_called(o.objective);
  p.refit = !o.no_refit;
  p.blocks = !o.no_blocks;
  p.granularity = o.granularity;
  p.fit_samples = o.samples;
  p.distil.epochs = o.epochs;
  p.distil.threads = o.threads;
  p.distil.seed = p.seed = o.seed;
  return p;
}

/// Both networks in turn on the test data (else on those that compressed), with everything in `j` that both need.
inline void compare_and_print(const Model& before, const Model& after, const CompressCommand& o, json j, bool as_json,
                              const std::string& name) {
  const Data test = read_data(o.test.empty() ? o.data : o.test);
  check_data(before, test);
  std::vector<Contender> both{contender("full", before, offramp::Never{}), contender(name, after, offramp::Never{})};
  contest(both, test.samples, test.labels);
  if (!as_json) {
    std::printf("\n");
    print_contenders(both);
    if (!o.output.empty()) std::printf("\nwritten: %s\n", o.output.c_str());
    return;
  }
  j.update(contender_json(both[1]));
  j["full"] = contender_json(both[0]);
  std::cout << j.dump(2) << '\n';
}

inline int quantize_command(const Model& m, const CompressCommand& o, const offramp::ModelOptions& options,
                            bool as_json) {
  const Data data = read_data(o.data);
  check_data(m, data);
  const offramp::QuantizeResult r = offramp::quantize(m, first_samples(data, o.samples), quantize_options(o, options));
  const std::string file = offramp::onnx::write(o.form == "qoperator" ? offramp::operator_form(r.graph) : r.graph);
  if (!o.output.empty()) offramp::onnx::write_file(o.output, file);
  json j = {{"samples", r.samples}, {"calibration_agreement", r.agreement}, {"layers", json::array()}};
  for (const auto& l : r.layers)
    j["layers"].push_back({{"name", l.name}, {"op", l.op}, {"in_float", l.in_float}, {"error", l.error}});
  if (!as_json) {
    Index kept = 0;
    for (const auto& l : r.layers) kept += l.in_float;
    std::printf("%ld of %zu layers in bytes; on the %ld samples that chose their ranges %s of the answers stay\n",
                static_cast<long>(static_cast<Index>(r.layers.size()) - kept), r.layers.size(),
                static_cast<long>(r.samples), percent(r.agreement).c_str());
    for (const auto& l : r.layers) {
      if (l.in_float) std::printf("in float: %s (error alone %.2g)\n", l.name.c_str(), l.error);
    }
  }
  const Model written = offramp::load_onnx(std::as_bytes(std::span(file)), options);
  compare_and_print(m, written, o, std::move(j), as_json, "in bytes");
  return 0;
}

inline int prune_command(const Model& m, const CompressCommand& o, const offramp::ModelOptions& options, bool as_json) {
  const Data data = read_data(o.data);
  check_data(m, data);
  const auto bar = cache_progress();
  const offramp::PruneResult r = offramp::prune(m, data.samples, prune_options(o, options),
                                                [&](Index done, Index total) { bar("distilling", done, total); });
  if (!o.output.empty()) offramp::onnx::write_file(o.output, offramp::onnx::write(r.graph));
  json j = {{"samples", r.samples}, {"calibration_agreement", r.agreement}, {"layers", json::array()}};
  for (const auto& l : r.layers) j["layers"].push_back({{"name", l.name}, {"channels", l.channels}, {"kept", l.kept}});
  j["blocks"] = r.blocks;
  if (!as_json) {
    for (const auto& b : r.blocks) std::printf("%-44s its branch is gone\n", b.c_str());
    for (const auto& l : r.layers) {
      if (l.kept > 0 && l.kept < l.channels)
        std::printf("%-44s %5ld of %5ld channels\n", l.name.c_str(), static_cast<long>(l.kept),
                    static_cast<long>(l.channels));
    }
    std::printf("FLOPs %s of %s; %s of the answers stay on the %ld samples that chose\n", engineering(r.flops).c_str(),
                engineering(r.full_flops).c_str(), percent(r.agreement).c_str(), static_cast<long>(r.samples));
  }
  compare_and_print(m, Model(r.graph, options), o, std::move(j), as_json, "pruned");
  return 0;
}

/// The last part of a path, without its ending, with commas replaced.
inline std::string version_name(const std::string& path) {
  std::string s = std::filesystem::path(path).stem().string();
  std::replace(s.begin(), s.end(), ',', '_');
  return s;
}

/// Files as versions, the cheapest first.
inline std::vector<offramp::Version> load_versions(const std::vector<std::string>& paths,
                                                   const offramp::ModelOptions& options) {
  std::vector<offramp::Version> versions;
  for (const std::string& p : paths) {
    versions.push_back({version_name(p), offramp::load_onnx(p, options)});
    for (std::size_t i = 0; i + 1 < versions.size(); ++i)
      OFFRAMP_REQUIRE(versions[i].name != versions.back().name, "two files are called '" + versions.back().name + "'");
  }
  std::stable_sort(versions.begin(), versions.end(), [](const offramp::Version& a, const offramp::Version& b) {
    return a.model.full_cost().flops < b.model.full_cost().flops;
  });
  return versions;
}

}  // namespace tool
