/// @file exits.hpp
/// Exits written as nested `If` nodes, turned back into outputs of one graph.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/graph/append.hpp"
#include "offramp/graph/graph.hpp"
#include "offramp/graph/passes.hpp"

namespace offramp {

namespace detail {

/// Copies the nodes of a branch into the graph around it; returns what its outputs are called there.
OFFRAMP_COLD inline std::vector<ValueId> inline_branch(Graph& outer, const Graph& branch) {
  std::map<ValueId, ValueId> names;
  for (const auto& [from, to] : branch.captures) names[to] = from;
  GraphAppender append(outer, branch, "", std::move(names));
  std::vector<ValueId> outputs;
  for (const ValueId v : branch.outputs) outputs.push_back(append.translate(v));
  return outputs;
}

/// The threshold t of a condition `ReduceMax(Softmax(logits)) > t` or `>= t`, or nothing.
OFFRAMP_COLD inline std::optional<double> probability_threshold(Graph& g, ValueId condition) {
  passes::Matcher m(g);
  Node* compare = m.producer(condition);
  while (compare && (compare->op == "Squeeze" || compare->op == "Reshape" || compare->op == "Identity"))
    compare = m.producer(compare->inputs[0]);
  if (!compare || (compare->op != "Greater" && compare->op != "GreaterOrEqual") || compare->inputs.size() != 2)
    return {};
  const auto t = m.scalar(compare->inputs[1]);
  Node* largest = m.producer(compare->inputs[0]);
  while (largest && (largest->op == "Squeeze" || largest->op == "Reshape" || largest->op == "ReduceMin"))
    largest = m.producer(largest->inputs[0]);
  if (!t || !largest || largest->op != "ReduceMax") return {};
  return m.producer(largest->inputs[0], "Softmax") ? t : std::nullopt;
}

}  // namespace detail

/// Where the one output of `g` is an `If` of which one branch answers and the other goes on, makes every answer an
/// output, in depth order, and writes the thresholds of recognised conditions into the metadata as a policy. Returns
/// false, with `g` unchanged, where a condition is of another kind and the file names no policy.
OFFRAMP_COLD inline bool flatten_exits(Graph& g, const Limits& limits) {
  Graph flat = g;
  std::vector<ValueId> exits;
  std::string thresholds;
  bool recognised = true, found = false;
  for (int depth = 0; depth < limits.subgraph_depth; ++depth) {
    passes::Matcher m(flat);
    if (flat.outputs.size() != 1) break;
    Node* node = m.producer(flat.outputs[0], "If");
    if (!node || flat.is_constant(node->inputs[0])) break;
    found = true;
    const auto* then_branch = node->get<std::shared_ptr<Graph>>("then_branch");
    const auto* else_branch = node->get<std::shared_ptr<Graph>>("else_branch");
    if (!then_branch || !else_branch || !*then_branch || !*else_branch || (*then_branch)->outputs.size() != 1 ||
        (*else_branch)->outputs.size() != 1)
      return false;
    const std::shared_ptr<Graph> answer = *then_branch, rest = *else_branch;
    const auto t = detail::probability_threshold(flat, node->inputs[0]);
    recognised = recognised && t;
    if (t) thresholds += (thresholds.empty() ? "" : ",") + std::to_string(*t);
    passes::drop(*node);
    passes::erase_marked(flat);
    exits.push_back(detail::inline_branch(flat, *answer)[0]);
    flat.outputs[0] = detail::inline_branch(flat, *rest)[0];
  }
  if (!found) return true;
  if (!flat.metadata.contains("offramp.policy")) {
    if (!recognised) return false;
    flat.metadata["offramp.policy"] = "max-probability:" + thresholds;
  }
  exits.push_back(flat.outputs[0]);
  // Two branches may hand on the same value, and an output needs a name and a type of its own.
  for (std::size_t i = 0; i < exits.size(); ++i) {
    Node identity;
    identity.op = "Identity";
    identity.inputs = {exits[i]};
    const ValueId v = flat.add_value(i + 1 == exits.size() ? g[g.outputs[0]].name : "exit_" + std::to_string(i));
    identity.outputs = {v};
    identity.name = flat[v].name;
    flat.nodes.push_back(std::move(identity));
    exits[i] = v;
  }
  flat.outputs = exits;
  flat.sort();
  flat.remove_dead_nodes();
  g = std::move(flat);
  return true;
}

}  // namespace offramp
