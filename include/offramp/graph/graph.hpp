/// @file graph.hpp
/// A network as a graph of operators, as an ONNX file states it.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/core/tensor.hpp"
#include "offramp/layer/node.hpp"

namespace offramp {

/// What loading a network may use. A file is untrusted: nothing above these limits is allocated.
struct Limits {
  Index tensor_bytes = Index{1} << 31;  ///< largest single tensor
  Index memory_bytes = Index{1} << 33;  ///< the working memory of one session
  int subgraph_depth = 64;              ///< `If` inside `If`
};

/// A named value: an input, a constant, or what a node computes.
struct Value {
  std::string name;
  Tensor constant;                  ///< empty unless the value is known
  DType type = DType::none;         ///< declared, or none
  bool has_shape = false;           ///< whether `sizes` was declared
  std::vector<Index> sizes;         ///< declared; `dynamic` where the file leaves it open
  std::vector<std::string> labels;  ///< names of the open axes, for writing the file again
};

/// Which of `nodes` nodes the value `v` needs; `producer[v]` makes v (-1: none), `inputs_of(node)` are what it reads.
template <class Inputs>
std::vector<bool> ancestors(ValueId v, const std::vector<int>& producer, std::size_t nodes, Inputs&& inputs_of) {
  std::vector<bool> seen(nodes, false);
  std::vector<ValueId> open{v};
  while (!open.empty()) {
    const ValueId at = open.back();
    open.pop_back();
    const int p = at == no_value ? -1 : producer[static_cast<std::size_t>(at)];
    if (p < 0 || seen[static_cast<std::size_t>(p)]) continue;
    const auto u = static_cast<std::size_t>(p);
    seen[u] = true;
    const std::vector<ValueId>& read = inputs_of(u);
    open.insert(open.end(), read.begin(), read.end());
  }
  return seen;
}

/// Calls `f` with each value that a `Node` or `const Node` reads, itself (`no_value` where it has none) or in its
/// subgraphs.
template <class N, class F>
void each_read(N& node, F&& f) {
  for (auto& v : node.inputs) f(v);
  for (auto& a : node.attributes) {
    if (auto* sub = std::get_if<std::shared_ptr<Graph>>(&a.value); sub && *sub) {
      for (auto& capture : (*sub)->captures) f(capture.first);
    }
  }
}

/// Nodes in topological order over values. A subgraph names what it takes from the graph around it in `captures`.
class Graph {
 public:
  std::string name;
  std::vector<Value> values;
  std::vector<Node> nodes;
  std::vector<ValueId> inputs, outputs;
  std::vector<std::pair<ValueId, ValueId>> captures;  ///< value of the graph around, value of this one
  Index opset = 17;
  std::map<std::string, std::string> metadata;

  Value& operator[](ValueId v) noexcept { return values[static_cast<std::size_t>(v)]; }
  const Value& operator[](ValueId v) const noexcept { return values[static_cast<std::size_t>(v)]; }

  ValueId add_value(std::string value_name) {
    values.push_back({});
    values.back().name = std::move(value_name);
    return static_cast<ValueId>(values.size() - 1);
  }
  ValueId add_constant(std::string value_name, Tensor t) {
    const ValueId v = add_value(std::move(value_name));
    (*this)[v].constant = std::move(t);
    return v;
  }
  bool is_constant(ValueId v) const noexcept { return v != no_value && !(*this)[v].constant.empty(); }

  /// For each value the node that computes it, or -1.
  std::vector<int> producers() const {
    std::vector<int> p(values.size(), -1);
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      for (const ValueId v : nodes[i].outputs) {
        if (v != no_value) p[static_cast<std::size_t>(v)] = static_cast<int>(i);
      }
    }
    return p;
  }

  /// The nodes that `v` needs.
  std::vector<bool> ancestors_of(ValueId v) const {
    return ancestors(v, producers(), nodes.size(),
                     [&](std::size_t i) -> const std::vector<ValueId>& { return nodes[i].inputs; });
  }

  /// For each value the number of nodes that read it, plus one where it is an output of the graph.
  std::vector<int> use_counts() const {
    std::vector<int> n(values.size(), 0);
    for (const Node& node : nodes) {
      each_read(node, [&](ValueId v) {
        if (v != no_value) ++n[static_cast<std::size_t>(v)];
      });
    }
    for (const ValueId v : outputs) ++n[static_cast<std::size_t>(v)];
    return n;
  }

  bool is_output(ValueId v) const noexcept { return std::find(outputs.begin(), outputs.end(), v) != outputs.end(); }

  /// Lets every reader of `from` read `to` instead.
  void replace_uses(ValueId from, ValueId to) {
    for (Node& node : nodes) {
      each_read(node, [&](ValueId& v) { v = v == from ? to : v; });
    }
    std::replace(outputs.begin(), outputs.end(), from, to);
  }

  /// Drops nodes that nothing needs.
  OFFRAMP_COLD void remove_dead_nodes() {
    std::vector<int> used = use_counts();
    for (std::size_t i = nodes.size(); i-- > 0;) {
      const bool alive = std::any_of(nodes[i].outputs.begin(), nodes[i].outputs.end(),
                                     [&](ValueId v) { return v != no_value && used[static_cast<std::size_t>(v)] > 0; });
      if (alive) continue;
      for (const ValueId v : nodes[i].inputs) {
        if (v != no_value) --used[static_cast<std::size_t>(v)];
      }
      nodes[i].op.clear();
    }
    std::erase_if(nodes, [](const Node& n) { return n.op.empty(); });
  }

  /// Puts the nodes into an order in which every value is computed before it is read; raises an Error on a cycle.
  OFFRAMP_COLD void sort() {
    const std::vector<int> producer = producers();
    std::vector<int> state(nodes.size(), 0);  // 0 new, 1 entered, 2 done
    std::vector<std::size_t> order;
    std::vector<std::pair<std::size_t, std::size_t>> stack;
    std::vector<std::vector<std::size_t>> before(nodes.size());
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      each_read(nodes[i], [&](ValueId v) {
        if (v != no_value && producer[static_cast<std::size_t>(v)] >= 0)
          before[i].push_back(static_cast<std::size_t>(producer[static_cast<std::size_t>(v)]));
      });
    }
    for (std::size_t root = 0; root < nodes.size(); ++root) {
      if (state[root] != 0) continue;
      stack.assign(1, {root, 0});
      state[root] = 1;
      while (!stack.empty()) {
        auto& [node, next] = stack.back();
        if (next == before[node].size()) {
          state[node] = 2;
          order.push_back(node);
          stack.pop_back();
          continue;
        }
        const std::size_t child = before[node][next++];
        if (state[child] == 1) raise(Error("the graph has a cycle", nodes[child].name, nodes[child].op, ""));
        if (state[child] == 0) {
          state[child] = 1;
          stack.emplace_back(child, 0);
        }
      }
    }
    std::vector<Node> sorted;
    sorted.reserve(nodes.size());
    for (const std::size_t i : order) sorted.push_back(std::move(nodes[i]));
    nodes = std::move(sorted);
  }
};

}  // namespace offramp
