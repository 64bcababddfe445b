/// @file cascade.hpp
/// Several whole networks as one early-exit network: the cheap ones' answers are exits, the dearest one's is the last.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "offramp/graph/model.hpp"

namespace offramp {

/// One version of a network, with the name that its exits are called by.
struct Version {
  std::string name;
  Model model;
};

namespace detail {

/// Appends a graph's nodes to another, its one input replaced by `input`; returns what its values are called there.
class GraphAppender {
 public:
  GraphAppender(Graph& to, const Graph& from, std::string prefix, ValueId input)
      : to_(to), from_(from), prefix_(std::move(prefix)) {
    names_[from.inputs[0]] = input;
    for (const Node& n : from.nodes) {
      Node copy = n;
      copy.name = prefix_ + n.name;
      for (ValueId& v : copy.inputs) v = translate(v);
      for (ValueId& v : copy.outputs) v = translate(v);
      for (Attribute& a : copy.attributes) {
        if (auto* sub = std::get_if<std::shared_ptr<Graph>>(&a.value); sub && *sub) {
          *sub = std::make_shared<Graph>(**sub);
          for (auto& [outer, inner] : (*sub)->captures) outer = translate(outer);
        }
      }
      to_.nodes.push_back(std::move(copy));
    }
  }
  ValueId translate(ValueId v) {
    if (v == no_value) return v;
    const auto [i, fresh] = names_.try_emplace(v, no_value);
    if (fresh) {
      to_.values.push_back(from_[v]);
      to_.values.back().name = prefix_ + from_[v].name;
      i->second = static_cast<ValueId>(to_.values.size() - 1);
    }
    return i->second;
  }

 private:
  Graph& to_;
  const Graph& from_;
  std::string prefix_;
  std::map<ValueId, ValueId> names_;
};

}  // namespace detail

/// Joins versions, the cheapest first, into one graph: they read the same input, and every exit of each is an exit of
/// the cascade, called `version/exit`, in that order. Raises an Error where their inputs, classes or opsets differ.
inline Graph cascade(std::span<const Version> versions) {
  OFFRAMP_REQUIRE(versions.size() >= 2, "a cascade needs two networks or more");
  std::set<std::string> taken;
  for (const Version& v : versions) {
    OFFRAMP_REQUIRE(v.model.has_plan(), "'" + v.name + "': " + v.model.why_not());
    OFFRAMP_REQUIRE(v.model.exit_count() > 0, "'" + v.name + "' is no classifier with one float32 input");
    OFFRAMP_REQUIRE(!v.name.empty() && v.name.find(',') == std::string::npos && taken.insert(v.name).second,
                    "versions need names of their own, without commas: '" + v.name + "'");
    const Model &a = versions[0].model, &b = v.model;
    OFFRAMP_REQUIRE(a.class_count() == b.class_count(), "'" + v.name + "' has " + std::to_string(b.class_count()) +
                                                            " classes, '" + versions[0].name + "' " +
                                                            std::to_string(a.class_count()));
    OFFRAMP_REQUIRE(a.sample_size() == b.sample_size() && a.inputs()[0].sizes.size() == b.inputs()[0].sizes.size(),
                    "'" + v.name + "' takes another input than '" + versions[0].name + "'");
    for (std::size_t i = 1; i < a.inputs()[0].sizes.size(); ++i)
      OFFRAMP_REQUIRE(a.inputs()[0].sizes[i] == b.inputs()[0].sizes[i],
                      "'" + v.name + "' takes another input than '" + versions[0].name + "'");
    OFFRAMP_REQUIRE(a.graph().opset == b.graph().opset, "'" + v.name + "' is of opset " +
                                                            std::to_string(b.graph().opset) + ", '" + versions[0].name +
                                                            "' of " + std::to_string(a.graph().opset));
  }
  Graph g;
  g.name = "cascade";
  g.opset = versions[0].model.graph().opset;
  const Graph& first = versions[0].model.graph();
  g.values.push_back(first[first.inputs[0]]);
  g.inputs = {0};
  if (!g.values[0].sizes.empty() && g.values[0].sizes[0] == 1) g.values[0].sizes[0] = dynamic;
  std::string exits, names;
  for (const Version& v : versions) {
    const Graph& own = v.model.graph();
    detail::GraphAppender append(g, own, v.name + "/", 0);
    for (const ExitInfo& e : v.model.exits()) {
      for (const ValueId o : own.outputs) {
        if (own[o].name != e.name) continue;
        const ValueId out = append.translate(o);
        g.outputs.push_back(out);
        if (g[out].type == DType::none) g[out].type = DType::f32;
        exits += (exits.empty() ? "" : ",") + g[out].name;
        break;
      }
    }
    names += (names.empty() ? "" : ",") + v.name;
  }
  g.metadata["offramp.exits"] = exits;
  g.metadata["offramp.cascade"] = names;
  return g;
}

}  // namespace offramp
