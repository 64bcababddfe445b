/// @file save.hpp
/// From a model to an ONNX file, with its exits as outputs or nested.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "offramp/onnx/condition.hpp"
#include "offramp/onnx/onnx.hpp"
#include "offramp/onnx/write.hpp"
#include "offramp/policy/parse.hpp"

namespace offramp {

namespace detail {

/// Splits the nodes of a graph by the first exit that needs them and nests the rest in `If` nodes.
inline Graph nest_exits(const Graph& source, const std::vector<ValueId>& exits, const std::vector<Index>& numbers,
                        const WrittenPolicy& policy, Index classes) {
  std::vector<std::size_t> first(source.nodes.size(), exits.size());
  for (std::size_t k = exits.size(); k-- > 0;) {
    const std::vector<bool> needed = source.ancestors_of(exits[k]);
    for (std::size_t i = 0; i < first.size(); ++i) first[i] = needed[i] ? k : first[i];
  }
  // The innermost level first; each level reads the values of the ones around it by name.
  std::shared_ptr<Graph> inner;
  for (std::size_t k = exits.size(); k-- > 0;) {
    Graph level;
    level.opset = source.opset;
    level.name = k == 0 ? source.name : "stage_" + std::to_string(k);
    std::map<ValueId, ValueId> names;
    std::set<ValueId> local;
    for (std::size_t i = 0; i < source.nodes.size(); ++i) {
      if (first[i] == k) local.insert(source.nodes[i].outputs.begin(), source.nodes[i].outputs.end());
    }
    const auto translate = [&](ValueId v) {
      if (v == no_value) return v;
      const auto [at, fresh] = names.try_emplace(v, no_value);
      if (fresh) {
        level.values.push_back(source[v]);
        at->second = static_cast<ValueId>(level.values.size() - 1);
        if (k > 0 && !source.is_constant(v) && !local.contains(v)) level.captures.emplace_back(v, at->second);
      }
      return at->second;
    };
    for (std::size_t i = 0; i < source.nodes.size(); ++i) {
      if (first[i] != k) continue;
      Node copy = source.nodes[i];
      for (ValueId& v : copy.inputs) v = translate(v);
      for (ValueId& v : copy.outputs) v = translate(v);
      level.nodes.push_back(std::move(copy));
    }
    if (k == 0) {
      for (const ValueId v : source.inputs) level.inputs.push_back(translate(v));
    }
    const ValueId answer = translate(exits[k]);
    if (!inner) {
      level.outputs = {answer};
      if (policy.last_ensemble) {
        std::vector<ValueId> all;
        for (const ValueId e : exits) all.push_back(translate(e));
        NodeWriter writer(level, "offramp.last_ensemble");
        level.outputs = {write_geometric_mean(writer, all)};
        level[level.outputs[0]].type = DType::f32;
      }
    } else {
      const std::string base = "offramp.exit_" + std::to_string(k);
      std::vector<ValueId> scores;
      for (std::size_t e = 0; e < k && policy.looks_back(); ++e) scores.push_back(translate(exits[e]));
      scores.push_back(answer);
      NodeWriter writer(level, base);
      const ValueId leave = write_condition(writer, policy, numbers[k], scores, classes);
      auto then_branch = std::make_shared<Graph>();
      then_branch->opset = source.opset;
      then_branch->name = base + ".answer";
      const ValueId captured = then_branch->add_value(level[answer].name);
      then_branch->captures.emplace_back(answer, captured);
      Node hand_on;
      hand_on.op = "Identity";
      hand_on.inputs = {captured};
      hand_on.outputs = {then_branch->add_value(base + ".logits")};
      (*then_branch)[hand_on.outputs[0]].type = DType::f32;
      then_branch->outputs = hand_on.outputs;
      then_branch->nodes.push_back(std::move(hand_on));
      for (auto& [outer, own] : inner->captures) outer = translate(outer);
      Node node;
      node.op = "If";
      node.name = base;
      node.inputs = {leave};
      node.outputs = {level.add_value(
          k == 0 ? source[exits.back()].name + (names.contains(exits.back()) ? ".answer" : "") : base + ".rest")};
      level[node.outputs[0]].type = DType::f32;
      node.set("then_branch", then_branch);
      node.set("else_branch", inner);
      level.nodes.push_back(std::move(node));
      level.outputs = level.nodes.back().outputs;
    }
    inner = std::make_shared<Graph>(std::move(level));
  }
  return std::move(*inner);
}

}  // namespace detail

#if OFFRAMP_HAS_DEFINITIONS
OFFRAMP_SEPARABLE std::string save_onnx(const Model& model, ExitForm form,
                                        const std::map<std::string, std::string>& metadata) {
  Graph g = model.graph();
  for (const auto& [key, value] : metadata) g.metadata[key] = value;
  for (std::size_t i = 0; i < g.outputs.size(); ++i) {
    if (g[g.outputs[i]].type == DType::none) g[g.outputs[i]].type = DType::f32;
  }
  if (form == ExitForm::outputs) return onnx::write(g);
  OFFRAMP_REQUIRE(model.exit_count() > 1, "a network without early exits has none to nest");
  OFFRAMP_REQUIRE(g.opset >= 12 && g.opset < 18,
                  "nested exits need opset 12 to 17, the network has " + std::to_string(g.opset));
  const auto policy = g.metadata.find("offramp.policy");
  OFFRAMP_REQUIRE(policy != g.metadata.end(), "nested exits need a policy: calibrate the network first");
  WrittenPolicy written = WrittenPolicy::parse(policy->second);
  std::vector<ValueId> exits;
  std::vector<Index> numbers;
  for (std::size_t k = 0; k < model.exits().size(); ++k) {
    const bool last = k + 1 == model.exits().size();
    const auto exit = static_cast<Index>(k);
    if (!last && !written.needs(exit, model.class_count())) continue;
    for (const ValueId v : g.outputs) {
      if (g[v].name == model.exits()[k].name) exits.push_back(v);
    }
    numbers.push_back(exit);
  }
  OFFRAMP_REQUIRE(exits.size() > 1, "the policy never takes an early exit");
  Graph nested = detail::nest_exits(g, exits, numbers, written, model.class_count());
  nested.metadata = g.metadata;
  // What is left of the policy, for whoever reads the exits back.
  nested.metadata["offramp.policy"] = written.text_of(numbers, model.class_count());
  nested.metadata.erase("offramp.exits");
  return onnx::write(nested);
}

OFFRAMP_SEPARABLE void save_onnx(const Model& model, const std::string& path, ExitForm form,
                                 const std::map<std::string, std::string>& metadata) {
  onnx::write_file(path, save_onnx(model, form, metadata));
}
#endif  // OFFRAMP_HAS_DEFINITIONS

}  // namespace offramp
