/// @file infer.hpp
/// Shapes, types and known values of a whole graph for given inputs; with all inputs known, that is evaluation.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/graph/graph.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "offramp/layer/operators.hpp"

namespace offramp {

/// What the passes and the evaluator share.
struct GraphContext {
  const Operators& operators;
  const kernel::Kernels& kernels;
  Limits limits;
  PrepareOptions prepare{kernels};
  bool keep_bytes = false;  ///< constant bytes that only products read are not dequantized
};

/// Rethrows an Error with the node named, and what a standard container throws as an Error.
template <class F>
decltype(auto) at_node(const Node& node, F&& f) {
#if OFFRAMP_EXCEPTIONS
  try {
    return f();
  } catch (const Error& e) {
    throw e.at_node(node.name, node.op);
  } catch (const std::bad_alloc&) {
    throw Error("out of memory", node.name, node.op, "");
  } catch (const std::length_error&) {
    throw Error("sizes overflow", node.name, node.op, "");
  }
#else
  static_cast<void>(node);
  return f();
#endif
}

/// Shape, type and (where known) elements of every value of a graph.
struct Inference {
  std::vector<TensorView> views;
  std::vector<Tensor> known;                           ///< owns what `views` point to
  std::vector<std::unique_ptr<Operation>> operations;  ///< one a node; null for `If`
};

namespace detail {

inline void check_size(const TensorView& x, Index limit) {
  const Index bytes = checked_product(x.shape.checked_count(), static_cast<Index>(size_of(x.type)));
  OFFRAMP_REQUIRE(bytes <= limit,
                  "a tensor of shape " + x.shape.text() + " is above the limit of " + std::to_string(limit) + " bytes");
}

/// Runs a prepared operation on known inputs into fresh tensors.
OFFRAMP_COLD inline std::vector<Tensor> run_known(const Operation& op, const Node& node, std::span<const TensorView> in,
                                                  std::vector<TensorView>& out, const GraphContext& context) {
  std::vector<Tensor> results;
  for (std::size_t i = 0; i < out.size(); ++i) {
    results.emplace_back(out[i].type, out[i].shape, context.limits.tensor_bytes);
    out[i].data = i < node.outputs.size() && node.outputs[i] != no_value ? results.back().mutable_data() : nullptr;
    if (i == 0) out[0].data = results[0].mutable_data();
  }
  const std::size_t scratch = op.scratch_bytes(in, out, 1);
  OFFRAMP_REQUIRE(scratch <= static_cast<std::size_t>(context.limits.memory_bytes),
                  "scratch memory is above the limit");
  const auto memory = allocate_aligned(scratch);
  OFFRAMP_REQUIRE(op.forward({in, out, memory.get(), context.kernels}), "an index in the data is out of range");
  return results;
}

/// The outputs of a node whose inputs are all known.
OFFRAMP_COLD inline std::vector<Tensor> compute(const Graph& graph, const Node& node, std::span<const TensorView> in,
                                                const GraphContext& context) {
  const auto op = context.operators.make(node, graph.opset);
  std::vector<TensorView> out(std::max<std::size_t>(1, node.outputs.size()));
  op->infer(in, out);
  for (const TensorView& o : out) check_size(o, context.limits.tensor_bytes);
  op->prepare(in, context.prepare);
  return run_known(*op, node, in, out, context);
}

/// Whether a node makes floats of bytes that are constants.
inline bool dequantizes_constant(const Graph& graph, const Node& node, const GraphContext& context) {
  return node.op == "DequantizeLinear" && !context.operators.is_own(node) && node.outputs.size() == 1 &&
         node.outputs[0] != no_value && std::all_of(node.inputs.begin(), node.inputs.end(), [&](ValueId v) {
           return v == no_value || graph.is_constant(v);
         });
}

/// What such a node makes.
OFFRAMP_COLD inline Tensor dequantized(const Graph& graph, const Node& node, const GraphContext& context) {
  std::vector<TensorView> in;
  for (const ValueId v : node.inputs) in.push_back(v == no_value ? TensorView{} : graph[v].constant.view());
  return at_node(node, [&] { return compute(graph, node, in, context)[0]; });
}

/// Whether a node may be done with bytes instead of the floats that they stand for.
inline bool may_take_bytes(const Node& node, const GraphContext& context) {
  return (node.op == "Conv" || node.op == "Gemm" || node.op == "MatMul") && !context.operators.is_own(node);
}

}  // namespace detail

inline std::vector<Tensor> evaluate(const Graph& graph, std::span<const Tensor> inputs, const GraphContext& context,
                                    std::span<const Tensor> captured = {}, int depth = 0);

/// Infers every value of `graph`. `inputs` gives type and shape, and elements where they are known. Values above
/// `known_bytes` are not computed ahead. Of the operations, those are prepared that were run. Raises an Error that
/// names the node.
inline Inference infer(const Graph& graph, std::span<const TensorView> inputs, const GraphContext& context,
                       Index known_bytes = Index{1} << 26, std::span<const TensorView> captured = {}, int depth = 0) {
  Inference result;
  result.views.resize(graph.values.size());
  result.known.resize(graph.values.size());
  const auto view = [&](ValueId v) -> TensorView& { return result.views[static_cast<std::size_t>(v)]; };
  for (std::size_t i = 0; i < graph.values.size(); ++i) {
    if (!graph.values[i].constant.empty()) result.views[i] = graph.values[i].constant.view();
  }
  for (std::size_t i = 0; i < graph.inputs.size(); ++i) view(graph.inputs[i]) = inputs[i];
  for (std::size_t i = 0; i < graph.captures.size(); ++i) view(graph.captures[i].second) = captured[i];
  std::vector<const Node*> put_off(graph.values.size(), nullptr);  // what would dequantize a value
  const auto need = [&](ValueId v) {
    if (v == no_value || !put_off[static_cast<std::size_t>(v)]) return;
    const Node& node = *std::exchange(put_off[static_cast<std::size_t>(v)], nullptr);
    result.known[static_cast<std::size_t>(v)] = detail::dequantized(graph, node, context);
    view(v) = result.known[static_cast<std::size_t>(v)].view();
  };
  std::vector<TensorView> in, out;
  for (const Node& node : graph.nodes) {
    const ValueId first = node.input(0);
    need(first);
    if (!detail::may_take_bytes(node, context) || first == no_value || view(first).data) each_read(node, need);
    at_node(node, [&] {
      in.clear();
      for (const ValueId v : node.inputs) in.push_back(v == no_value ? TensorView{} : view(v));
      out.assign(std::max<std::size_t>(1, node.outputs.size()), TensorView{});
      bool known = true;
      std::vector<Tensor> results;
      if (node.op == "If") {
        OFFRAMP_REQUIRE(!in.empty() && in[0].type == DType::boolean && in[0].count() == 1,
                        "the condition must be one bool");
        OFFRAMP_REQUIRE(in[0].data != nullptr, "the condition depends on the input");
        OFFRAMP_REQUIRE(depth < context.limits.subgraph_depth, "subgraphs are nested too deeply");
        const auto* branch = node.get<std::shared_ptr<Graph>>(*in[0].as<bool>() ? "then_branch" : "else_branch");
        OFFRAMP_REQUIRE(branch && *branch && (*branch)->outputs.size() == node.outputs.size(),
                        "a branch is missing or has the wrong number of outputs");
        std::vector<TensorView> outer;
        for (const auto& [from, to] : (*branch)->captures) outer.push_back(view(from));
        Inference inner = infer(**branch, {}, context, known_bytes, outer, depth + 1);
        for (std::size_t i = 0; i < out.size(); ++i) {
          const auto v = static_cast<std::size_t>((*branch)->outputs[i]);
          out[i] = inner.views[v];
          known = known && out[i].data;
          Tensor copy(out[i].type, out[i].shape, context.limits.tensor_bytes);
          if (out[i].data && out[i].count() > 0) std::memcpy(copy.mutable_data(), out[i].data, out[i].bytes());
          results.push_back(copy);
        }
        result.operations.push_back(nullptr);
      } else {
        auto op = context.operators.make(node, graph.opset);
        op->infer(in, out);
        Index total = 0;
        for (const TensorView& o : out) {
          detail::check_size(o, context.limits.tensor_bytes);
          total += static_cast<Index>(o.bytes());
        }
        for (std::size_t i = 0; i < in.size(); ++i)
          known = known && (in[i].data || in[i].type == DType::none || op->use(i) == InputUse::shape);
        for (std::size_t i = 0; i < in.size(); ++i) {
          OFFRAMP_REQUIRE(op->use(i) != InputUse::parameter || in[i].type == DType::none || in[i].data ||
                              in[i].count() == 0 || put_off[static_cast<std::size_t>(node.inputs[i])],
                          "input " + std::to_string(i) + " must be known before the network runs");
        }
        known = known && total <= known_bytes;
        if (known && context.keep_bytes && detail::dequantizes_constant(graph, node, context)) {
          known = false;
          put_off[static_cast<std::size_t>(node.outputs[0])] = &node;
        }
        if (known) {
          op->prepare(in, context.prepare);
          results = detail::run_known(*op, node, in, out, context);
        }
        result.operations.push_back(std::move(op));
      }
      for (std::size_t i = 0; i < node.outputs.size(); ++i) {
        if (node.outputs[i] == no_value) continue;
        const auto v = static_cast<std::size_t>(node.outputs[i]);
        result.views[v] = out[i];
        result.views[v].data = nullptr;
        if (known) {
          result.known[v] = results[i];
          result.views[v] = results[i].view();
        }
      }
    });
  }
  for (const ValueId v : graph.outputs) need(v);
  return result;
}

/// Computes the outputs of any graph node by node, whatever depends on the data: slower than a session, and it
/// allocates.
OFFRAMP_COLD inline std::vector<Tensor> evaluate(const Graph& graph, std::span<const Tensor> inputs,
                                                 const GraphContext& context, std::span<const Tensor> captured,
                                                 int depth) {
  OFFRAMP_REQUIRE(inputs.size() == graph.inputs.size(), "expected " + std::to_string(graph.inputs.size()) +
                                                            " inputs, found " + std::to_string(inputs.size()));
  std::vector<TensorView> in, outer;
  for (const Tensor& t : inputs) in.push_back(t.view());
  for (const Tensor& t : captured) outer.push_back(t.view());
  Inference all = infer(graph, in, context, std::numeric_limits<Index>::max(), outer, depth);
  std::vector<Tensor> results;
  for (const ValueId v : graph.outputs) {
    const auto at = static_cast<std::size_t>(v);
    if (!all.known[at].empty()) {
      results.push_back(all.known[at]);
    } else if (graph.is_constant(v)) {
      results.push_back(graph[v].constant);
    } else {
      const auto i = std::find(graph.inputs.begin(), graph.inputs.end(), v);
      OFFRAMP_REQUIRE(i != graph.inputs.end(), "output '" + graph[v].name + "' is not computed");
      results.push_back(inputs[static_cast<std::size_t>(i - graph.inputs.begin())]);
    }
  }
  return results;
}

/// Type and shape of every input of a graph for a batch of n. `given` are the sizes of the first input where the file
/// leaves them open, or empty.
OFFRAMP_COLD inline std::vector<TensorView> input_views(const Graph& g, Index n, const std::vector<Index>& given,
                                                        const Limits& limits) {
  std::vector<TensorView> in;
  for (std::size_t i = 0; i < g.inputs.size(); ++i) {
    const Value& v = g[g.inputs[i]];
    TensorView x;
    x.type = v.type;
    std::vector<Index> sizes = v.sizes;
    if (i == 0 && !given.empty()) {
      sizes = given;
      OFFRAMP_REQUIRE(!v.has_shape || sizes.size() == v.sizes.size(),
                      "input '" + v.name + "' has " + std::to_string(v.sizes.size()) + " axes, the given shape " +
                          std::to_string(sizes.size()));
      for (std::size_t a = 1; v.has_shape && a < sizes.size(); ++a) {
        OFFRAMP_REQUIRE(v.sizes[a] == dynamic || v.sizes[a] == sizes[a],
                        "axis " + std::to_string(a) + " of input '" + v.name + "' is " + std::to_string(v.sizes[a]) +
                            ", the given shape has " + std::to_string(sizes[a]));
      }
    } else {
      OFFRAMP_REQUIRE(v.has_shape, "input '" + v.name + "' has no declared shape: give one");
    }
    // The batch is axis 0 where the file leaves it open; a lone input that was exported with a batch of 1 takes any.
    const bool has_batch = !sizes.empty() && v.has_shape && !v.sizes.empty()
                               ? v.sizes[0] == dynamic || (g.inputs.size() == 1 && v.sizes[0] == 1)
                               : !v.has_shape;
    for (std::size_t a = 0; a < sizes.size(); ++a) {
      const Index size = a == 0 && has_batch ? n : sizes[a];
      OFFRAMP_REQUIRE(size != dynamic,
                      "axis " + std::to_string(a) + " of input '" + v.name + "' is open: give a shape");
      OFFRAMP_REQUIRE(size >= 0, "input '" + v.name + "' has a negative size");
      x.shape.push_back(size);
    }
    detail::check_size(x, limits.tensor_bytes);
    in.push_back(x);
  }
  return in;
}

}  // namespace offramp
