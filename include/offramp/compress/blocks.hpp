/// @file blocks.hpp
/// Residual blocks whose shortcut hands on its input unchanged: without their branch the network still fits together.
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "offramp/graph/simplify.hpp"

namespace offramp {

/// A branch that is added to its own input.
struct ResidualBlock {
  std::string name;             ///< of the addition
  ValueId shortcut = no_value;  ///< what the branch reads and is added to
  ValueId sum = no_value;       ///< what the addition computes
};

/// Every block of a graph whose branch nothing else reads, in the order of the graph.
inline std::vector<ResidualBlock> residual_blocks(const Graph& g, const Inference& shapes) {
  const std::vector<int> producer = g.producers(), uses = g.use_counts();
  const auto shape = [&](ValueId v) { return shapes.views[static_cast<std::size_t>(v)].shape; };
  // Whether everything that `v` is computed from leads to `shortcut`, and nothing in between is read elsewhere.
  const auto branches_from = [&](ValueId v, ValueId shortcut) {
    std::vector<ValueId> next{v};
    std::map<ValueId, int> reads;
    std::set<int> nodes;
    bool reached = false;
    while (!next.empty()) {
      const ValueId at = next.back();
      next.pop_back();
      if (at == shortcut) {
        reached = true;
        continue;
      }
      if (at == no_value || g.is_constant(at)) continue;
      const int p = producer[static_cast<std::size_t>(at)];
      if (p < 0 || g.is_output(at)) return false;
      ++reads[at];
      if (!nodes.insert(p).second) continue;
      for (const ValueId in : g.nodes[static_cast<std::size_t>(p)].inputs) next.push_back(in);
    }
    for (const auto& [value, count] : reads) {
      if (uses[static_cast<std::size_t>(value)] != count) return false;
    }
    return reached;
  };
  std::vector<ResidualBlock> blocks;
  for (const Node& n : g.nodes) {
    if (n.op != "Add" || n.inputs.size() != 2 || n.outputs.empty()) continue;
    for (std::size_t i = 0; i < 2; ++i) {
      const ValueId shortcut = n.inputs[i], branch = n.inputs[1 - i];
      if (shortcut == branch || g.is_constant(shortcut) || g.is_constant(branch) || shape(shortcut) != shape(branch) ||
          !branches_from(branch, shortcut))
        continue;
      blocks.push_back({n.name, shortcut, n.outputs[0]});
      break;
    }
  }
  return blocks;
}

/// The graph without the branches of these blocks. A ReLU behind an addition goes, too, where its input is one's
/// output already.
inline Graph without_blocks(Graph g, const std::vector<std::string>& names, const Inference& shapes) {
  for (const ResidualBlock& b : residual_blocks(g, shapes)) {
    if (std::find(names.begin(), names.end(), b.name) == names.end()) continue;
    g.replace_uses(b.sum, b.shortcut);
  }
  const std::vector<int> producer = g.producers();
  for (Node& n : g.nodes) {
    if (n.op != "Relu" || g.is_output(n.outputs[0])) continue;
    const int before = producer[static_cast<std::size_t>(n.inputs[0])];
    if (before >= 0 && g.nodes[static_cast<std::size_t>(before)].op == "Relu")
      g.replace_uses(n.outputs[0], n.inputs[0]);
  }
  g.remove_dead_nodes();
  return g;
}

}  // namespace offramp
