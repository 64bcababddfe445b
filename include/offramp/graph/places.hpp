/// @file places.hpp
/// Where exits can stand: values that carry all information onward.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "offramp/graph/attach.hpp"
#include "offramp/graph/model.hpp"

namespace offramp {

/// A value through which everything passes on its way from the input to the answer.
struct Place {
  ValueId value = no_value;  ///< of the graph that was searched
  std::string name;
  int rank = 0;  ///< axes of the value, the batch among them
  MapShape shape;
  Cost upto, full;   ///< the backbone up to here, and all of it, for one sample
  double share = 0;  ///< of the whole backbone's FLOPs
};

/// How places are thinned.
struct PlaceOptions {
  Index most = 10;                          ///< places that are kept
  double least_gap = 0.03;                  ///< share of the FLOPs between two places
  double largest_share = 0.92;              ///< of the FLOPs; later exits cannot pay
  Index largest_features = Index{1} << 22;  ///< elements of a map
};

namespace detail {

/// The values of `g` that every way from the input to `target` passes, in order; `target` itself is left out.
inline std::vector<ValueId> dominators(const Graph& g, ValueId target) {
  // A node depends on the input where one of its operands does; constants pass nothing on.
  const auto operands = [&](const Node& n) {
    std::vector<ValueId> in;
    each_read(n, [&](ValueId v) { in.push_back(v); });
    return in;
  };
  // Whether the target still depends on the input once `cut` is taken away; nodes are in topological order.
  const auto reaches = [&](ValueId cut, std::vector<bool>& reached) {
    reached.assign(g.values.size(), false);
    for (const ValueId v : g.inputs) reached[static_cast<std::size_t>(v)] = v != cut;
    for (const Node& n : g.nodes) {
      const auto in = operands(n);
      const bool any = std::any_of(in.begin(), in.end(),
                                   [&](ValueId v) { return v != no_value && reached[static_cast<std::size_t>(v)]; });
      for (const ValueId v : n.outputs) {
        if (v != no_value && v != cut) reached[static_cast<std::size_t>(v)] = any;
      }
    }
    return static_cast<bool>(reached[static_cast<std::size_t>(target)]);
  };
  std::vector<bool> all, without;
  reaches(no_value, all);
  std::vector<ValueId> found;
  const auto consider = [&](ValueId v) {
    if (v != no_value && v != target && all[static_cast<std::size_t>(v)] && !reaches(v, without)) found.push_back(v);
  };
  for (const ValueId v : g.inputs) consider(v);
  for (const Node& n : g.nodes) {
    if (n.op == "Shape" || n.op == "Size") continue;
    for (const ValueId v : n.outputs) consider(v);
  }
  return found;
}

/// Whether a rank-3 value is a sequence of tokens: the first operator behind it that tells reads the last axis.
inline bool is_sequence(const Graph& g, ValueId value) {
  std::vector<bool> reached(g.values.size(), false);
  reached[static_cast<std::size_t>(value)] = true;
  for (const Node& n : g.nodes) {
    if (std::none_of(n.inputs.begin(), n.inputs.end(),
                     [&](ValueId v) { return v != no_value && reached[static_cast<std::size_t>(v)]; }))
      continue;
    for (const char* op : {"Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization"}) {
      if (n.op == op) return false;
    }
    for (const char* op : {"MatMul", "LayerNormalization", "Gemm", "ReduceMean", "LSTM", "GRU", "Gather"}) {
      if (n.op == op) return true;
    }
    for (const ValueId v : n.outputs) {
      if (v != no_value) reached[static_cast<std::size_t>(v)] = true;
    }
  }
  return true;
}

}  // namespace detail

/// Every place of a classifier's graph where an exit can stand, thinned by cost, in depth order. `answer` is the value
/// of the network's own scores, [N, classes].
inline std::vector<Place> find_places(const Graph& graph, ValueId answer, Index classes, const ModelOptions& model,
                                      const PlaceOptions& options = {}) {
  Graph g = graph;
  g.sort();
  const std::vector<ValueId> values = detail::dominators(g, answer);
  // The shapes of two samples; what does not grow with the batch is no place.
  ModelOptions once = model;
  once.pool = nullptr;
  std::vector<Place> places;
  {
    const Model all(with_outputs(g, values), once);
    OFFRAMP_REQUIRE(all.inputs().size() == 1 && all.inputs()[0].type == DType::f32,
                    "exits need a network with one float32 input");
    Shape shape(std::span<const Index>(model.shape.empty() ? all.inputs()[0].sizes : model.shape));
    OFFRAMP_REQUIRE(shape.rank() > 0, "the input has no batch axis");
    std::vector<Tensor> one;
    std::vector<Tensor> two;
    for (const Index n : {Index{1}, Index{2}}) {
      shape[0] = n;
      const std::vector<Tensor> zeros{Tensor(DType::f32, shape)};
      (n == 1 ? one : two) = all.run(zeros);
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      const Shape &a = one[i].shape(), &b = two[i].shape();
      if (one[i].type() != DType::f32 || a.rank() < 2 || a.rank() > 4 || a[0] != 1 || b[0] != 2 ||
          a.count() * 2 != b.count() || a.count() > options.largest_features)
        continue;
      Place p;
      p.value = values[i];
      p.name = g[p.value].name;
      p.rank = a.rank();
      p.shape.channels = a[1];
      if (a.rank() == 3) {
        p.shape.tokens = detail::is_sequence(g, p.value);
        p.shape.channels = p.shape.tokens ? a[2] : a[1];
        p.shape.width = p.shape.tokens ? a[1] : a[2];
      } else if (a.rank() == 4) {
        p.shape.height = a[2], p.shape.width = a[3];
      }
      places.push_back(std::move(p));
    }
  }
  if (places.empty()) return places;
  // Costs, by putting the cheapest head on each place and asking the model.
  {
    Graph probe = g;
    std::vector<ValueId> outputs;
    for (const Place& p : places) {
      Head h;
      h.input = p.shape;
      h.classes = classes;
      h.layers.push_back(HeadPool{{1}, true, false, false});
      h.layers.push_back(HeadDense{p.shape.channels, classes, false,
                                   std::vector<float>(static_cast<std::size_t>(p.shape.channels * classes), 0.0f),
                                   std::vector<float>(static_cast<std::size_t>(classes), 0.0f)});
      const ValueId v = append_head(probe, p.value, h, "offramp/probe_" + std::to_string(outputs.size()));
      probe[v].name = "probe_" + std::to_string(outputs.size());
      outputs.push_back(v);
    }
    outputs.push_back(answer);
    probe.metadata.erase("offramp.exits");
    const Model costs(with_outputs(std::move(probe), outputs), once);
    OFFRAMP_REQUIRE(costs.has_plan(), costs.why_not());
    costs.make_state(1);  // raises the reason where the outputs are no exits
    Cost so_far, full;
    for (const ExitInfo& e : costs.exits()) full += e.stage;
    for (const ExitInfo& e : costs.exits()) {
      so_far += e.stage;
      for (std::size_t i = 0; i < places.size(); ++i) {
        if (e.name == "probe_" + std::to_string(i)) places[i].upto = so_far;
      }
    }
    for (Place& p : places) {
      p.full = full;
      p.share = static_cast<double>(p.upto.flops) / static_cast<double>(std::max<Index>(1, full.flops));
    }
  }
  std::erase_if(places, [&](const Place& p) { return p.share > options.largest_share; });
  std::stable_sort(places.begin(), places.end(),
                   [](const Place& a, const Place& b) { return a.upto.flops < b.upto.flops; });
  // Of places that cost nearly the same the last stands: it is behind the activation.
  std::vector<Place> thin;
  for (Place& p : places) {
    if (!thin.empty() && p.share - thin.back().share < options.least_gap / 2) {
      thin.back() = std::move(p);
    } else {
      thin.push_back(std::move(p));
    }
  }
  // Then the closest neighbours go, the later of two, until gaps and number are as asked.
  while (thin.size() > 1) {
    std::size_t closest = 1;
    for (std::size_t i = 1; i < thin.size(); ++i) {
      if (thin[i].share - thin[i - 1].share < thin[closest].share - thin[closest - 1].share) closest = i;
    }
    const bool crowded = static_cast<Index>(thin.size()) > options.most;
    if (!crowded && thin[closest].share - thin[closest - 1].share >= options.least_gap) break;
    thin.erase(thin.begin() + static_cast<std::ptrdiff_t>(closest));
  }
  return thin;
}

}  // namespace offramp
