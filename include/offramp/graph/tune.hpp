/// @file tune.hpp
/// The methods of a network's convolutions, chosen by timing them.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "offramp/graph/model.hpp"
#include "offramp/graph/repeated_run.hpp"
#include "offramp/layer/conv_method.hpp"

namespace offramp {

struct TuneOptions {
  double seconds = 0.3;  ///< that each method is timed for, beside what the cost model chose
  double margin = 0.03;  ///< share of the time by which another method must be faster
};

/// Times every method that the network's convolutions can go, each inside of the network that `options` prepare (batch,
/// threads, instruction set), where inputs and weights come from where they will come from later, and in turn with what
/// the cost model chose. Returns those that are faster, for `ModelOptions::conv_methods`; layers of the same name are
/// taken together. The choice is for this machine, and the neighbours that it had. Methods differ in how they round;
/// those in bfloat16 are tried only where `options` allow it.
inline std::shared_ptr<const ConvMethods> tune_convolutions(const Graph& graph, ModelOptions options,
                                                            const TuneOptions& how = {}) {
  using clock = std::chrono::steady_clock;
  auto chosen = std::make_shared<ConvMethods>();
  options.conv_methods = nullptr;
  options.keep_graph = false;
  const Model usual(graph, options);
  if (!usual.has_plan()) return chosen;
  RepeatedRun usual_run(usual, options.batch);
  const auto layers = usual.layers();
  std::map<std::string, double> least;  // of each layer's time by the usual method
  for (const ConvMethod& method : all_conv_methods) {
    auto forced = std::make_shared<ConvMethods>();
    for (const LayerInfo& l : layers) forced->emplace(l.name, method);
    options.conv_methods = forced;
    const Model other(graph, options);
    std::map<std::string, std::pair<std::vector<double>, std::vector<double>>> times;  // usual and other
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (other.layers()[i].algorithm != layers[i].algorithm) times[layers[i].name];
    }
    if (times.empty()) continue;
    RepeatedRun other_run(other, options.batch);
    const auto note = [&](RepeatedRun& run, bool is_other) {
      for (auto& [name, pair] : times) (is_other ? pair.second : pair.first).push_back(0);
      run.run();  // brings its weights back, as a call after a call finds them
      const auto ms = run.layer_ms();
      for (std::size_t i = 0; i < layers.size(); ++i) {
        const auto at = times.find(layers[i].name);
        if (at != times.end()) (is_other ? at->second.second : at->second.first).back() += ms[i];
      }
    };
    const auto end =
        clock::now() + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(how.seconds));
    for (int rounds = 0; rounds < 5 || clock::now() < end; ++rounds) {
      note(usual_run, false);
      note(other_run, true);
    }
    const auto median = [](std::vector<double>& v) {
      std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
      return v[v.size() / 2];
    };
    for (auto& [name, pair] : times) {
      const double share = median(pair.second) / median(pair.first);
      double& best = least.try_emplace(name, 1 - how.margin).first->second;
      if (share < best) best = share, (*chosen)[name] = method;
    }
  }
  return chosen;
}

}  // namespace offramp
