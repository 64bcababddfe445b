/// @file append.hpp
/// One graph's nodes at the end of another.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "offramp/graph/graph.hpp"

namespace offramp::detail {

/// Appends the nodes of `from` to `to`. Values that stand in `names` (of `from`, and what they are called in `to`) are
/// shared; all others are copied. `prefix` goes before the names of nodes and values.
class GraphAppender {
 public:
  GraphAppender(Graph& to, const Graph& from, std::string prefix, std::map<ValueId, ValueId> names)
      : to_(to), from_(from), prefix_(std::move(prefix)), names_(std::move(names)) {
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

  /// What a value of `from` is called in `to`.
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

}  // namespace offramp::detail
