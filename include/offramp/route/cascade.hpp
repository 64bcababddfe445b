/// @file cascade.hpp
/// Several whole networks as one early-exit network: the cheap ones' answers are exits, the dearest one's is the last.
#pragma once

#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/graph/append.hpp"
#include "offramp/graph/model.hpp"

namespace offramp {

/// One version of a network, with the name that its exits are called by.
struct Version {
  std::string name;
  Model model;
};

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
    detail::GraphAppender append(g, own, v.name + "/", {{own.inputs[0], 0}});
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
