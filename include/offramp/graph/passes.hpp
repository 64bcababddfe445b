/// @file passes.hpp
/// What happens to a graph before it runs: constants folded, batch norm folded into convolutions, exported forms of
/// GELU, SiLU and layer norm recognised, biases, additions and activations fused, channels put last.
///
/// Every pass leaves the outputs as they were, up to rounding, and adds the origins of a node that it removes to the
/// node that now does its work, so that the nominal FLOP count stays that of the file.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/graph/graph.hpp"
#include "offramp/graph/infer.hpp"
#include "offramp/kernel/pack.hpp"
#include "offramp/layer/conv.hpp"
#include "offramp/layer/element.hpp"
#include "offramp/layer/elementwise.hpp"
#include "offramp/layer/grid.hpp"
#include "offramp/layer/movement.hpp"

namespace offramp::passes {

/// Producers and use counts of a graph, kept while a pass looks for patterns.
class Matcher {
 public:
  explicit Matcher(Graph& g) : g_(&g), producer_(g.producers()), uses_(g.use_counts()) {}

  /// The node that computes v if it has operator `op`, or null.
  Node* producer(ValueId v, std::string_view op) {
    if (v == no_value || producer_[static_cast<std::size_t>(v)] < 0) return nullptr;
    Node& n = g_->nodes[static_cast<std::size_t>(producer_[static_cast<std::size_t>(v)])];
    return n.op == op ? &n : nullptr;
  }
  Node* producer(ValueId v) {
    return v == no_value || producer_[static_cast<std::size_t>(v)] < 0
               ? nullptr
               : &g_->nodes[static_cast<std::size_t>(producer_[static_cast<std::size_t>(v)])];
  }
  /// Whether a value is read exactly once, and not by the outside.
  bool is_private(ValueId v) const { return uses_[static_cast<std::size_t>(v)] == 1 && !g_->is_output(v); }
  int uses(ValueId v) const { return uses_[static_cast<std::size_t>(v)]; }

  /// The one number that a constant holds, or nothing.
  std::optional<double> scalar(ValueId v) const {
    if (!g_->is_constant(v) || (*g_)[v].constant.count() != 1) return {};
    return real_at((*g_)[v].constant.view(), 0);
  }
  bool is_scalar(ValueId v, double wanted, double tolerance = 1e-5) const {
    const auto s = scalar(v);
    return s && std::fabs(*s - wanted) <= tolerance * std::fabs(wanted);
  }
  /// The other operand of a commutative node of which one operand is `v`.
  static ValueId other(const Node& n, ValueId v) { return n.inputs[0] == v ? n.inputs[1] : n.inputs[0]; }

 private:
  Graph* g_;
  std::vector<int> producer_, uses_;
};

inline void adopt(Node& into, const Node& from) {
  into.origins.insert(into.origins.end(), from.origins.begin(), from.origins.end());
}

/// Marks a node as gone, until `erase_marked`.
inline void drop(Node& n) {
  n.op.clear();
  n.inputs.clear();
  n.outputs.clear();
}

/// Gives `node` the output of `last`, which is dropped.
inline void take_output(Node& node, Node& last) {
  adopt(node, last);
  node.outputs = last.outputs;
  drop(last);
}

inline void erase_marked(Graph& g) {
  std::erase_if(g.nodes, [](const Node& n) { return n.op.empty(); });
}

/// Replaces values that are known whatever the batch by constants; `a` and `b` were inferred with different batches.
/// What dequantizes constant bytes stays.
OFFRAMP_COLD inline void fold_constants(Graph& g, const Inference& a, const Inference& b) {
  for (Node& node : g.nodes) {
    bool all = node.op != "DequantizeLinear";
    for (const ValueId v : node.outputs) {
      if (v == no_value) continue;
      const Tensor &x = a.known[static_cast<std::size_t>(v)], &y = b.known[static_cast<std::size_t>(v)];
      all = all && !x.empty() && !y.empty() && x.shape() == y.shape() &&
            (x.bytes() == 0 || std::memcmp(x.data(), y.data(), x.bytes()) == 0);
    }
    if (!all) continue;
    for (const ValueId v : node.outputs) {
      if (v != no_value) g[v].constant = a.known[static_cast<std::size_t>(v)];
    }
    drop(node);
  }
  erase_marked(g);
}

/// Makes floats of the constant bytes that no pass took as they are.
OFFRAMP_COLD inline void dequantize_constants(Graph& g, const GraphContext& context) {
  for (Node& node : g.nodes) {
    if (!offramp::detail::dequantizes_constant(g, node, context)) continue;
    g[node.outputs[0]].constant = offramp::detail::dequantized(g, node, context);
    drop(node);
  }
  erase_marked(g);
}

/// Removes nodes that hand their input on: Identity, Dropout outside training, Cast to the same type.
OFFRAMP_COLD inline void remove_identities(Graph& g, const Inference& shapes) {
  for (Node& node : g.nodes) {
    const bool same = node.op == "Identity" ||
                      (node.op == "Dropout" && std::count_if(node.outputs.begin(), node.outputs.end(),
                                                             [](ValueId v) { return v != no_value; }) == 1) ||
                      (node.op == "Cast" && shapes.views[static_cast<std::size_t>(node.inputs[0])].type ==
                                                shapes.views[static_cast<std::size_t>(node.outputs[0])].type);
    if (!same || node.inputs.empty() || node.inputs[0] == no_value) continue;
    const ValueId in = node.inputs[0], out = node.outputs[0];
    if (g.is_output(out)) continue;  // an output keeps its name and its node
    g.replace_uses(out, in);
    drop(node);
  }
  erase_marked(g);
}

/// Folds BatchNormalization into the convolution in front of it.
OFFRAMP_COLD inline void fold_batch_norms(Graph& g) {
  Matcher m(g);
  for (Node& bn : g.nodes) {
    if (bn.op != "BatchNormalization" || bn.integer("training_mode", 0) != 0 || bn.inputs.size() != 5) continue;
    Node* conv = m.producer(bn.inputs[0], "Conv");
    if (!conv || !m.is_private(bn.inputs[0])) continue;
    bool constant = g.is_constant(conv->input(1)) && (conv->input(2) == no_value || g.is_constant(conv->input(2)));
    for (std::size_t i = 1; i < 5; ++i)
      constant = constant && g.is_constant(bn.inputs[i]) && g[bn.inputs[i]].constant.type() == DType::f32;
    if (!constant || g[conv->input(1)].constant.type() != DType::f32) continue;
    const Tensor& w = g[conv->input(1)].constant;
    const Index outs = w.shape()[0], each = outs > 0 ? w.count() / outs : 0;
    Tensor scaled(DType::f32, w.shape()), bias(DType::f32, Shape{outs});
    auto *ws = static_cast<float*>(scaled.mutable_data()), *bs = static_cast<float*>(bias.mutable_data());
    const auto parameter = [&](std::size_t i, Index c) {
      return static_cast<double>(g[bn.inputs[i]].constant.view().f32()[c]);
    };
    for (Index c = 0; c < outs; ++c) {
      const double scale =
          parameter(1, c) / std::sqrt(parameter(4, c) + static_cast<double>(bn.real("epsilon", 1e-5f)));
      for (Index i = 0; i < each; ++i)
        ws[c * each + i] = static_cast<float>(static_cast<double>(w.view().f32()[c * each + i]) * scale);
      const double old =
          conv->input(2) == no_value ? 0 : static_cast<double>(g[conv->input(2)].constant.view().f32()[c]);
      bs[c] = static_cast<float>((old - parameter(3, c)) * scale + parameter(2, c));
    }
    const std::string base = conv->name;
    conv->inputs.resize(3, no_value);
    conv->inputs[1] = g.add_constant(base + ".folded_weight", scaled);
    conv->inputs[2] = g.add_constant(base + ".folded_bias", bias);
    take_output(*conv, bn);
    m = Matcher(g);
  }
  erase_marked(g);
}

/// What elementwise operators do to the input of a convolution, a scale and a shift for each channel (the normalization
/// of an image), moves into its weights and bias. Padding then is what they would have made zero of, so a convolution
/// with padding must be one that can hold it. A shift by many times what is left behind it stays: the sums would round
/// to what it took away.
OFFRAMP_COLD inline void fold_input_scales(Graph& g, const Inference& shapes) {
  constexpr double largest_shift = 16;
  Matcher m(g);
  const auto shape = [&](ValueId v) -> const Shape& { return shapes.views[static_cast<std::size_t>(v)].shape; };
  for (Node& conv : g.nodes) {
    if (conv.op != "Conv" || !conv.domain.empty() || conv.integer("group", 1) != 1 || conv.inputs.size() < 2) continue;
    const auto is_constant = [&](ValueId v) { return g.is_constant(v) && g[v].constant.type() == DType::f32; };
    if (!is_constant(conv.inputs[1]) || (conv.input(2) != no_value && !is_constant(conv.input(2)))) continue;
    const Tensor& w = g[conv.inputs[1]].constant;
    const Index outs = w.shape()[0], channels = w.shape()[1], taps = w.shape().count(2, w.shape().rank());
    std::vector<double> scale(static_cast<std::size_t>(channels), 1.0), shift(scale.size(), 0.0);
    std::vector<Node*> chain;  // the last first
    ValueId x = conv.inputs[0];
    while (Node* n = m.producer(x)) {
      const bool known = n->op == "Add" || n->op == "Sub" || n->op == "Mul" || n->op == "Div";
      if (!known || !n->domain.empty() || !m.is_private(x)) break;
      const std::size_t side = g.is_constant(n->inputs[0]) ? 1 : 0;  // of the data
      const ValueId k = n->inputs[1 - side];
      if (!is_constant(k) || g.is_constant(n->inputs[side]) || (n->op == "Div" && side == 1) ||
          shape(n->inputs[side]) != shape(x))
        break;
      const Tensor& c = g[k].constant;
      const bool by_channel = c.count() == channels && c.shape().rank() >= shape(x).rank() - 1 &&
                              c.shape()[c.shape().rank() - shape(x).rank() + 1] == channels;
      if (!by_channel && c.count() != 1) break;
      for (std::size_t i = 0; i < scale.size(); ++i) {
        const auto v = static_cast<double>(c.view().f32()[by_channel ? static_cast<Index>(i) : 0]);
        if (n->op == "Mul") scale[i] *= v;
        if (n->op == "Div") scale[i] /= v;
        if (n->op == "Add") shift[i] += scale[i] * v;
        if (n->op == "Sub") shift[i] += scale[i] * (side == 0 ? -v : v);
        if (n->op == "Sub" && side == 1) scale[i] = -scale[i];
      }
      chain.push_back(n);
      x = n->inputs[side];
    }
    if (chain.empty()) continue;
    std::vector<float> padding;
    bool fits = true;
    for (std::size_t i = 0; i < scale.size(); ++i) {
      padding.push_back(static_cast<float>(-shift[i] / scale[i]));
      fits = fits && std::isnormal(static_cast<float>(scale[i])) && std::isfinite(padding.back()) &&
             std::fabs(shift[i]) <= largest_shift;
    }
    const Window window = WindowAttributes(conv).resolve(shape(x), w.shape(), false);
    const bool is_padded = window.padded() != window.in,
               is_shifted = std::any_of(padding.begin(), padding.end(), [](float p) { return p != 0; });
    if (!fits || (is_padded && is_shifted && !ConvPlan::copies_padding(window, channels, outs, 1))) continue;
    Tensor scaled(DType::f32, w.shape()), bias(DType::f32, Shape{outs});
    auto *ws = static_cast<float*>(scaled.mutable_data()), *bs = static_cast<float*>(bias.mutable_data());
    for (Index o = 0; o < outs; ++o) {
      double sum = conv.input(2) == no_value ? 0 : static_cast<double>(g[conv.input(2)].constant.view().f32()[o]);
      for (Index i = 0; i < channels * taps; ++i) {
        const auto v = static_cast<double>(w.view().f32()[o * channels * taps + i]);
        const auto c = static_cast<std::size_t>(i / taps);
        ws[o * channels * taps + i] = static_cast<float>(v * scale[c]);
        sum += v * shift[c];
      }
      bs[o] = static_cast<float>(sum);
    }
    const std::string base = conv.name;
    conv.inputs = {x, g.add_constant(base + ".scaled_weight", scaled), g.add_constant(base + ".scaled_bias", bias)};
    if (is_padded && is_shifted) conv.set("offramp.padding", padding);
    for (Node* n : chain) {
      adopt(conv, *n);
      drop(*n);
    }
    m = Matcher(g);
  }
  erase_marked(g);
}

/// x * sigmoid(x), x * erf-form of GELU, and x * clip(x + 3, 0, 6) / 6, as exporters write them.
OFFRAMP_COLD inline void recognise_activations(Graph& g) {
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    Matcher m(g);
    Node& mul = g.nodes[i];
    if (mul.op != "Mul") continue;
    for (const ValueId side : {mul.inputs[0], mul.inputs[1]}) {
      const ValueId x = Matcher::other(mul, side);
      Node* sigmoid = m.producer(side, "Sigmoid");
      if (sigmoid && sigmoid->inputs[0] == x && m.is_private(side)) {
        adopt(mul, *sigmoid);
        mul.op = "Silu";
        mul.inputs = {x};
        drop(*sigmoid);
        break;
      }
      // 0.5 * (x * (1 + erf(x / sqrt 2))), with the half on either factor.
      if (!m.is_scalar(side, 0.5)) continue;
      Node* product = m.producer(x, "Mul");
      if (!product || !m.is_private(x)) continue;
      bool done = false;
      for (const ValueId inner : {product->inputs[0], product->inputs[1]}) {
        const ValueId source = Matcher::other(*product, inner);
        Node* add = m.producer(inner, "Add");
        if (!add || !m.is_private(inner)) continue;
        const ValueId erf_out = m.is_scalar(add->inputs[0], 1)   ? add->inputs[1]
                                : m.is_scalar(add->inputs[1], 1) ? add->inputs[0]
                                                                 : no_value;
        Node* erf = m.producer(erf_out, "Erf");
        if (!erf || !m.is_private(erf_out)) continue;
        const ValueId scaled = erf->inputs[0];
        Node* divide = m.producer(scaled, "Div");
        Node* times = m.producer(scaled, "Mul");
        Node* scale = nullptr;
        if (divide && divide->inputs[0] == source && m.is_scalar(divide->inputs[1], 1.4142135)) scale = divide;
        if (times && (times->inputs[0] == source || times->inputs[1] == source) &&
            m.is_scalar(Matcher::other(*times, source), 0.70710678))
          scale = times;
        if (!scale || !m.is_private(scaled)) continue;
        for (Node* n : {product, add, erf, scale}) adopt(mul, *n);
        mul.op = "Gelu";
        mul.inputs = {source};
        for (Node* n : {product, add, erf, scale}) drop(*n);
        done = true;
        break;
      }
      if (done) break;
    }
    mul.domain = mul.op == "Mul" ? mul.domain : "offramp";
  }
  erase_marked(g);
}

/// (x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias over the last axis, as PyTorch exports it.
OFFRAMP_COLD inline void recognise_layer_norms(Graph& g, const Inference& shapes) {
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    Matcher m(g);
    Node& last = g.nodes[i];
    if (last.op != "Add") continue;
    for (const ValueId bias : {last.inputs[0], last.inputs[1]}) {
      if (!g.is_constant(bias)) continue;
      Node* scaled = m.producer(Matcher::other(last, bias), "Mul");
      if (!scaled || !m.is_private(scaled->outputs[0])) continue;
      const ValueId scale = g.is_constant(scaled->inputs[1]) ? scaled->inputs[1] : scaled->inputs[0];
      Node* divide = m.producer(Matcher::other(*scaled, scale), "Div");
      if (!g.is_constant(scale) || !divide || !m.is_private(divide->outputs[0])) continue;
      Node* centred = m.producer(divide->inputs[0], "Sub");
      Node* root = m.producer(divide->inputs[1], "Sqrt");
      if (!centred || !root || !m.is_private(root->outputs[0])) continue;
      Node* add = m.producer(root->inputs[0], "Add");
      if (!add || !m.is_private(add->outputs[0])) continue;
      const ValueId variance = m.scalar(add->inputs[1]) ? add->inputs[0] : add->inputs[1];
      const auto epsilon = m.scalar(Matcher::other(*add, variance));
      Node* spread = m.producer(variance, "ReduceMean");
      if (!epsilon || !spread || !m.is_private(variance)) continue;
      Node* square = m.producer(spread->inputs[0], "Pow");
      const bool squared = square && square->inputs[0] == centred->outputs[0] && m.is_scalar(square->inputs[1], 2);
      Node* mean = m.producer(centred->inputs[1], "ReduceMean");
      if (!squared || !m.is_private(square->outputs[0]) || !mean || mean->inputs[0] != centred->inputs[0] ||
          !m.is_private(mean->outputs[0]) || m.uses(centred->outputs[0]) != 2)
        continue;
      const TensorView& x = shapes.views[static_cast<std::size_t>(mean->inputs[0])];
      const Index rank = x.shape.rank(), n = rank > 0 ? x.shape[static_cast<int>(rank) - 1] : 0;
      const auto last_axis = [&](const Node& r) {
        return r.inputs.size() == 1 && r.integers("axes").size() == 1 &&
               (r.integers("axes")[0] == -1 || r.integers("axes")[0] == rank - 1) && r.integer("keepdims", 1) == 1;
      };
      if (x.type != DType::f32 || !last_axis(*mean) || !last_axis(*spread) || g[scale].constant.count() != n ||
          g[bias].constant.count() != n)
        continue;
      for (Node* p : {scaled, divide, centred, root, add, spread, square, mean}) adopt(last, *p);
      const ValueId source = mean->inputs[0];
      for (Node* p : {scaled, divide, centred, root, add, spread, square, mean}) drop(*p);
      last.op = "LayerNormalization";
      last.inputs = {source, scale, bias};
      last.set("axis", Index{-1});
      last.set("epsilon", static_cast<float>(*epsilon));
      break;
    }
  }
  erase_marked(g);
}

/// MatMul by a constant matrix, then Add of a constant row: the row becomes the product's bias.
OFFRAMP_COLD inline void fuse_matmul_bias(Graph& g) {
  Matcher m(g);
  for (Node& add : g.nodes) {
    if (add.op != "Add") continue;
    for (const ValueId bias : {add.inputs[0], add.inputs[1]}) {
      Node* product = m.producer(Matcher::other(add, bias), "MatMul");
      if (!product || !m.is_private(product->outputs[0]) || product->inputs.size() != 2 ||
          !g.is_constant(product->inputs[1]))
        continue;
      const Tensor& w = g[product->inputs[1]].constant;
      if (!g.is_constant(bias) || w.shape().rank() != 2) continue;
      const Tensor& b = g[bias].constant;
      if (b.type() != DType::f32 || b.count() != w.shape()[1] || b.shape().rank() == 0 ||
          b.shape()[b.shape().rank() - 1] != b.count())
        continue;
      product->inputs.push_back(bias);
      take_output(*product, add);
      m = Matcher(g);
      break;
    }
  }
  erase_marked(g);
}

inline bool takes_tail(const Node& n) {
  return n.op == "Conv" || n.op == "Gemm" || n.op == "MatMul";
}

/// Additions of an equal shape and activations move into the convolution or product in front of them.
OFFRAMP_COLD inline void fuse_tails(Graph& g, const Inference& shapes) {
  const auto shape = [&](ValueId v) -> const Shape& { return shapes.views[static_cast<std::size_t>(v)].shape; };
  g.sort();
  // An addition goes into the operand that is computed last. That operand is read by nothing else, so the other one
  // cannot depend on it and may be computed before.
  std::vector<std::size_t> position(g.values.size(), 0);
  for (std::size_t i = 0; i < g.nodes.size(); ++i) {
    for (const ValueId v : g.nodes[i].outputs) {
      if (v != no_value) position[static_cast<std::size_t>(v)] = i + 1;
    }
  }
  const auto activation_of = [&](Node& n) -> std::optional<std::pair<float, float>> {
    const UnaryFunction* f = find_unary(n.op);
    if (f && f->kernel != kernel::Unary::count && n.inputs.size() == 1) {
      if (n.op == "Neg" || n.op == "Abs" || n.op == "Sqrt" || n.op == "Reciprocal") return {};
      return std::pair{n.real("alpha", f->alpha), n.real("beta", f->beta)};
    }
    if (n.op == "Clip") {
      Matcher m(g);
      const auto bound = [&](std::size_t i, const char* name, float fallback) -> std::optional<float> {
        if (n.input(i) == no_value) return n.real(name, fallback);
        const auto s = m.scalar(n.input(i));
        return s ? std::optional(static_cast<float>(*s)) : std::nullopt;
      };
      const auto low = bound(1, "min", -std::numeric_limits<float>::infinity()),
                 high = bound(2, "max", std::numeric_limits<float>::infinity());
      if (low && high) return std::pair{*low, *high};
    }
    return {};
  };
  Matcher m(g);
  for (Node& n : g.nodes) {
    if (n.op == "Add") {
      Node* host = nullptr;
      ValueId residual = no_value;
      for (const ValueId v : {n.inputs[0], n.inputs[1]}) {
        Node* p = m.producer(v);
        const ValueId rest = Matcher::other(n, v);
        if (!p || !takes_tail(*p) || !m.is_private(v) || p->find("offramp.activation") || p->input(3) != no_value ||
            rest == v)
          continue;
        if (shape(v) != shape(rest) || shapes.views[static_cast<std::size_t>(rest)].type != DType::f32) continue;
        if (host && position[static_cast<std::size_t>(v)] < position[static_cast<std::size_t>(residual)]) continue;
        host = p, residual = rest;
      }
      if (!host) continue;
      host->inputs.resize(4, no_value);
      host->inputs[3] = residual;
      position[static_cast<std::size_t>(n.outputs[0])] = position[static_cast<std::size_t>(host->outputs[0])];
      take_output(*host, n);
      m = Matcher(g);
    } else if (const auto parameters = activation_of(n)) {
      Node* host = m.producer(n.inputs[0]);
      if (!host || !takes_tail(*host) || !m.is_private(n.inputs[0]) || host->find("offramp.activation")) continue;
      host->set("offramp.activation", n.op);
      host->set("offramp.alpha", parameters->first);
      host->set("offramp.beta", parameters->second);
      position[static_cast<std::size_t>(n.outputs[0])] = position[static_cast<std::size_t>(host->outputs[0])];
      take_output(*host, n);
      m = Matcher(g);
    }
  }
  erase_marked(g);
  g.sort();
}

/// Poolings of windows of 2 x 2 move into the convolution in front of them, where Winograd's tiles are in cache.
OFFRAMP_COLD inline void fuse_poolings(Graph& g, const Inference& shapes) {
  const auto shape = [&](ValueId v) -> const Shape& { return shapes.views[static_cast<std::size_t>(v)].shape; };
  Matcher m(g);
  for (Node& pool : g.nodes) {
    if ((pool.op != "MaxPool" && pool.op != "AveragePool") || pool.outputs.size() != 1 || !m.is_private(pool.inputs[0]))
      continue;
    Node* conv = m.producer(pool.inputs[0], "Conv");
    if (!conv || conv->input(3) != no_value || !g.is_constant(conv->inputs[1])) continue;
    const Shape &x = shape(conv->inputs[0]), &image = shape(pool.inputs[0]), &out = shape(pool.outputs[0]);
    if (image.rank() != 4 || out[2] != image[2] / 2 || out[3] != image[3] / 2) continue;
    const Window window = WindowAttributes(pool).resolve(image, false),
                 own = WindowAttributes(*conv).resolve(x, g[conv->inputs[1]].constant.shape(), false);
    constexpr std::array<Index, 3> one{1, 1, 1}, two{1, 2, 2};
    if (window.kernel != two || window.stride != two || window.dilation != one || window.padded() != window.in ||
        !WinogradPlan::fits(own, conv->integer("group", 1)))
      continue;
    conv->set("offramp.pooling", pool.op);
    take_output(*conv, pool);
    m = Matcher(g);
  }
  erase_marked(g);
}

/// Joins a Slice, or several that follow each other, with the Slice or Pad behind them: the shortcut of a residual
/// block that halves the image takes two and pads the channels. `shapes` and `other` were inferred with different
/// batches.
OFFRAMP_COLD inline void join_slices(Graph& g, const Inference& shapes, const Inference& other) {
  struct Box {
    SliceOperation::Range taken;
    std::vector<Index> pads;
  };
  const auto view = [&](ValueId v) {  // constants may be younger than `shapes`
    if (v == no_value) return TensorView{};
    return g.is_constant(v) ? g[v].constant.view() : shapes.views[static_cast<std::size_t>(v)];
  };
  // What a node takes of its input and pads it with, where no size but the batch's can change.
  const auto box_of = [&](const Node& n) -> std::optional<Box> {
    if ((n.op != "Slice" && n.op != "Pad") || n.outputs.size() != 1) return {};
    std::vector<TensorView> in;
    for (const ValueId v : n.inputs) in.push_back(view(v));
    const Shape &x = in[0].shape, &y = view(n.outputs[0]).shape;
    const auto varies = [&](ValueId v, const Shape& s) {
      const Shape& o = other.views[static_cast<std::size_t>(v)].shape;
      return o.rank() != s.rank() || !std::equal(s.begin() + 1, s.end(), o.begin() + 1);
    };
    if (x.rank() < 2 || y.rank() != x.rank() || varies(n.inputs[0], x) || varies(n.outputs[0], y) || x[0] != y[0])
      return {};
    const std::size_t rank = x.sizes().size();
    Box box;
    if (n.op == "Slice") {
      box.taken = SliceOperation(n, g.opset).resolve(in);
      if (box.taken.step[0] != 1) return {};
      box.pads.assign(2 * rank, 0);
    } else {
      const bool attribute = n.input(1) == no_value;
      if (n.text("mode", "constant") != "constant" || n.input(3) != no_value) return {};
      if (!attribute && !g.is_constant(n.input(1))) return {};
      box.pads = attribute ? n.integers(n.find("pads") ? "pads" : "paddings")
                           : known_integers(g[n.input(1)].constant.view(), "pads");
      if (box.pads.size() != 2 * rank || std::ranges::any_of(box.pads, [](Index p) { return p < 0; }) ||
          box.pads[0] != 0 || box.pads[rank] != 0)
        return {};
      for (const Index size : x)
        box.taken.first.push_back(0), box.taken.step.push_back(1), box.taken.sizes.push_back(size);
    }
    return box;
  };
  for (bool joined = true; joined;) {
    joined = false;
    Matcher m(g);
    for (Node& n : g.nodes) {
      Node* before = n.inputs.empty() || !m.is_private(n.inputs[0]) ? nullptr : m.producer(n.inputs[0]);
      if (!before || before == &n) continue;
      const DType type = view(n.inputs[0]).type;
      if (type != DType::f32 && type != DType::u8 && type != DType::i8) continue;
      const std::optional<Box> second = box_of(n);
      if (!second) continue;
      SliceOperation::Range taken;
      if (before->op == "PaddedSlice" && !before->find("value")) {  // slices that this has joined
        taken = {Shape(before->integers("first")), Shape(before->integers("step")), Shape(before->integers("sizes"))};
      } else if (const auto first = before->op == "Slice" ? box_of(*before) : std::nullopt) {
        taken = first->taken;
      } else {
        continue;
      }
      std::optional<double> value;
      if (n.op == "Pad") {
        value = n.input(2) == no_value ? static_cast<double>(n.real("value", 0)) : m.scalar(n.input(2));
        if (!value) continue;
      }
      for (int i = 0; i < taken.first.rank(); ++i) {
        const Index size = second->taken.sizes[i];
        taken.first[i] += second->taken.first[i] * taken.step[i];
        taken.step[i] = size > 1 ? taken.step[i] * second->taken.step[i] : 1;  // of one, a step may be any number
        taken.sizes[i] = i == 0 ? -1 : size;
      }
      const auto numbers = [](const Shape& s) { return std::vector<Index>(s.begin(), s.end()); };
      n.op = "PaddedSlice";
      n.domain = std::string(Operators::fused_domain);
      n.attributes.clear();
      n.set("first", numbers(taken.first));
      n.set("step", numbers(taken.step));
      n.set("sizes", numbers(taken.sizes));
      n.set("pads", second->pads);
      if (value) n.set("value", static_cast<float>(*value));
      n.inputs = {before->inputs[0]};
      adopt(n, *before);
      drop(*before);
      joined = true;
      break;
    }
  }
  erase_marked(g);
}

/// softmax(q k^T) v with what scales, masks and permutes around it, as exporters write attention, in one node; the
/// operands' permutations become part of it. `a` and `b` were inferred with different batches.
class FuseAttention {
 public:
  FuseAttention(Graph& g, const Inference& a, const Inference& b) : g_(g), m_(g), a_(a), b_(b) {}

  void run() {
    for (Node& n : g_.nodes) {
      if (n.op == "MatMul") fuse(n);
    }
    for (Node& n : g_.nodes) {
      if (n.op == "Attention" && n.domain == Operators::fused_domain) take_transpose(n);
    }
    erase_marked(g_);
  }

 private:
  // An operand: the tensor behind what was taken in, and its axes in the order that attention sees them.
  struct Operand {
    ValueId value;
    std::vector<Index> axes;
  };

  void fuse(Node& last) {
    taken_.clear();
    scale_ = 1;
    Node* softmax = take(last.inputs[0], "Softmax");
    if (!softmax) return;
    const int rank = shape(softmax->inputs[0]).rank();
    if (rank < 3 || from_front(softmax->integer("axis", g_.opset < 13 ? 1 : -1), rank) != rank - 1) return;
    ValueId scores = softmax->inputs[0], mask = no_value;
    if (Node* add = take(scores, "Add")) {
      const bool first = m_.producer(add->inputs[0], "MatMul") || scalar_of(m_.producer(add->inputs[0])) != 0;
      scores = add->inputs[first ? 0 : 1];
      mask = add->inputs[first ? 1 : 0];
      if (type(mask) != DType::f32 || shape(mask).rank() > rank) return;
    }
    scores = without_scale(scores);
    Node* product = take(scores, "MatMul");
    if (!product) return;
    Operand q = operand(product->inputs[0], rank), k = operand(product->inputs[1], rank),
            v = operand(last.inputs[1], rank);
    if (!fits(product->inputs[0], product->inputs[1], last.inputs[1], rank) || q.axes.back() != rank - 1 ||
        !equal_shapes(product->outputs[0], softmax->inputs[0]) || !std::isfinite(static_cast<float>(scale_)))
      return;
    std::swap(k.axes[k.axes.size() - 1], k.axes[k.axes.size() - 2]);  // the product saw it transposed
    for (Node* n : taken_) {
      adopt(last, *n);
      drop(*n);
    }
    last.op = "Attention";
    last.domain = std::string(Operators::fused_domain);
    last.inputs = {q.value, k.value, v.value};
    if (mask != no_value) last.inputs.push_back(mask);
    last.attributes.clear();
    last.set("scale", static_cast<float>(scale_));
    last.set("q_axes", q.axes);
    last.set("k_axes", k.axes);
    last.set("v_axes", v.axes);
    last.set("y_axes", in_order(rank));
  }

  // Lets attention write its output as a Transpose behind it would.
  void take_transpose(Node& n) {
    const ValueId y = n.outputs[0];
    if (!m_.is_private(y)) return;
    const auto at = std::find_if(g_.nodes.begin(), g_.nodes.end(), [&](const Node& t) { return t.input(0) == y; });
    if (at == g_.nodes.end() || at->op != "Transpose") return;
    const auto perm = at->integers("perm");
    if (perm.empty() || perm.back() != static_cast<Index>(perm.size()) - 1) return;
    std::vector<Index> axes(perm.size());
    for (std::size_t i = 0; i < perm.size(); ++i) axes[static_cast<std::size_t>(perm[i])] = static_cast<Index>(i);
    n.set("y_axes", axes);
    take_output(n, *at);
  }

  const TensorView& view(ValueId v) const { return a_.views[static_cast<std::size_t>(v)]; }
  const Shape& shape(ValueId v) const { return view(v).shape; }
  DType type(ValueId v) const { return view(v).type; }
  static std::vector<Index> in_order(int rank) {
    std::vector<Index> axes(static_cast<std::size_t>(rank));
    std::iota(axes.begin(), axes.end(), Index{0});
    return axes;
  }

  // The node that computes v, if it has operator `op` and nobody else reads v; it goes if all fits.
  Node* take(ValueId v, std::string_view op) {
    Node* n = m_.producer(v, op);
    if (!n || !m_.is_private(v)) return nullptr;
    taken_.push_back(n);
    return n;
  }
  // The factor of a node that multiplies by a number or divides by one; 0 for others.
  double scalar_of(const Node* n) const {
    if (!n || (n->op != "Mul" && n->op != "Div")) return 0;
    for (const std::size_t i : {std::size_t{1}, std::size_t{0}}) {
      const auto s = m_.scalar(n->input(i));
      if (!s || shape(n->inputs[i]).rank() > shape(n->inputs[1 - i]).rank()) continue;
      if (n->op == "Mul") return *s;
      return i == 1 && *s != 0 ? 1 / *s : 0;
    }
    return 0;
  }
  ValueId without_scale(ValueId v) {
    Node* n = v == no_value ? nullptr : m_.producer(v);
    const double s = scalar_of(n);
    if (s == 0 || !take(v, n->op)) return v;
    scale_ *= s;
    return m_.scalar(n->inputs[1]) ? n->inputs[0] : n->inputs[1];
  }
  // A factor and one permutation, in either order.
  Operand operand(ValueId v, int rank) {
    Operand x{without_scale(v), in_order(rank)};
    const auto* perm =
        m_.producer(x.value, "Transpose") ? m_.producer(x.value)->get<std::vector<Index>>("perm") : nullptr;
    if (perm && static_cast<int>(perm->size()) == rank) {
      if (const Node* transpose = take(x.value, "Transpose")) x = {without_scale(transpose->inputs[0]), *perm};
    }
    return x;
  }
  // Whatever the batch.
  bool equal_shapes(ValueId x, ValueId y) const {
    const auto equal = [&](const Inference& i) {
      return i.views[static_cast<std::size_t>(x)].shape == i.views[static_cast<std::size_t>(y)].shape;
    };
    return equal(a_) && equal(b_);
  }
  // Whether three operands have the same axes in front, whatever the batch, and are no constants.
  bool fits(ValueId q, ValueId k, ValueId v, int rank) const {
    for (const ValueId x : {q, k, v}) {
      if (type(x) != DType::f32 || shape(x).rank() != rank || g_.is_constant(x)) return false;
      for (const Inference* i : {&a_, &b_}) {
        const auto &s = i->views[static_cast<std::size_t>(x)].shape, &t = i->views[static_cast<std::size_t>(q)].shape;
        for (int a = 0; a + 2 < rank; ++a) {
          if (s[a] != t[a]) return false;
        }
      }
    }
    return true;
  }

  Graph& g_;
  Matcher m_;
  const Inference &a_, &b_;
  std::vector<Node*> taken_;  // of the attention that is being looked at
  double scale_ = 1;
};

/// Puts the weights of the product that alone reads a GridPool of an image [N, C, height, width] into the order in
/// which it computes cells, channels last, and divides those of averages: then it turns and divides nothing.
OFFRAMP_COLD inline void order_by_cells(Graph& g, Node& grid, const Shape& image, const Matcher& m) {
  const Index channels = image[1];
  const ValueId out = grid.outputs[0];
  const auto product = std::find_if(g.nodes.begin(), g.nodes.end(), [&](const Node& n) {
    return n.op == "Gemm" && n.inputs[0] == out && n.integer("transA", 0) == 0 && n.integer("transB", 0) == 1;
  });
  if (!m.is_private(out) || product == g.nodes.end() || !g.is_constant(product->inputs[1])) return;
  const Tensor w = g[product->inputs[1]].constant;
  const std::vector<Index> parts = grid.integers("parts");
  Index features = 0;
  for (const Index p : parts) features += p * p * channels;
  if (w.type() != DType::f32 || w.shape().rank() != 2 || w.shape()[1] != features) return;
  Tensor ordered = Tensor::uninitialized(DType::f32, w.shape());
  auto* to = static_cast<float*>(ordered.mutable_data());
  const float* from = w.view().f32();
  for (Index row = 0; row < w.shape()[0]; ++row) {
    for (const Index p : parts) {
      const Index n = p * p * channels;
      kernel::transpose(from, channels, p * p, to);
      const float cell = p > 0 ? static_cast<float>(grid_cell(image[2], image[3], p)) : 1;
      for (Index i = 0; i < n; ++i) to[i] /= cell;
      from += n, to += n;
    }
  }
  product->inputs[1] = g.add_constant(g[product->inputs[1]].name + ".by_cells", std::move(ordered));
  grid.set("by_cells", Index{1});
}

/// Joins average and maximum poolings of one image to grids, each flattened, all concatenated, into one node. Works on
/// windows without padding that tile the image as `append_head` lays them.
OFFRAMP_COLD inline void join_pools(Graph& g, const Inference& shapes) {
  Matcher m(g);
  for (Node& concat : g.nodes) {
    if (concat.op != "Concat" || concat.outputs.size() != 1 || concat.inputs.size() < 2) continue;
    std::vector<Index> parts;
    std::vector<Node*> used;
    ValueId image = no_value;
    bool fits = concat.integer("axis", 0) == 1;
    for (const ValueId v : concat.inputs) {
      Node* flatten = fits ? m.producer(v, "Flatten") : nullptr;
      Node* pool =
          flatten && m.is_private(v) && flatten->integer("axis", 1) == 1 ? m.producer(flatten->inputs[0]) : nullptr;
      fits = pool && pool->op.ends_with("Pool") && pool->outputs.size() == 1 && m.is_private(flatten->inputs[0]) &&
             (image == no_value || pool->inputs[0] == image);
      if (!fits) break;
      image = pool->inputs[0];
      const TensorView& x = shapes.views[static_cast<std::size_t>(image)];
      fits = x.type == DType::f32 && x.shape.rank() == 4;
      if (!fits) break;
      const bool average = pool->op.ends_with("AveragePool");
      fits = average || pool->op.ends_with("MaxPool");
      Index grid = 1;
      if (fits && !pool->op.starts_with("Global")) {
        const auto kernel = pool->integers("kernel_shape"), stride = pool->integers("strides", {1, 1});
        fits = kernel.size() == 2 && stride.size() == 2 && !pool->find("pads") && !pool->find("auto_pad") &&
               !pool->find("dilations") && !pool->find("ceil_mode") && stride[0] > 0 && x.shape[2] >= kernel[0];
        if (!fits) break;
        grid = (x.shape[2] - kernel[0]) / stride[0] + 1;
        for (int a = 0; a < 2; ++a) {
          const GridAxis axis(x.shape[a + 2], grid);
          const auto u = static_cast<std::size_t>(a);
          fits = fits && stride[u] == axis.stride && kernel[u] == axis.kernel;
        }
      }
      const Index part = average ? grid : -grid;
      fits = fits && std::find(parts.begin(), parts.end(), part) == parts.end();
      if (!fits) break;
      parts.push_back(part);
      used.push_back(flatten);
      used.push_back(pool);
    }
    if (!fits) continue;
    for (Node* n : used) {
      adopt(concat, *n);
      drop(*n);
    }
    concat.op = "GridPool";
    concat.domain = std::string(Operators::fused_domain);
    concat.attributes.clear();
    concat.set("parts", std::move(parts));
    concat.inputs = {image};
    order_by_cells(g, concat, shapes.views[static_cast<std::size_t>(image)].shape, m);
    m = Matcher(g);
  }
  erase_marked(g);
}

/// Rewrites convolutions, poolings and what stands between them to channels last, with transpositions at the edges.
class ChannelsLast {
 public:
  ChannelsLast(Graph& g, const Inference& shapes) : g_(g), shapes_(shapes) {}

  void run() {
    std::vector<Node> old = std::move(g_.nodes);
    g_.nodes.clear();
    for (Node& node : old) {
      if (!rewrite(node)) {
        each_read(node, [&](ValueId& v) { v = plain(v); });
        g_.nodes.push_back(std::move(node));
      }
    }
    for (const ValueId v : g_.outputs) restore(v);
  }

 private:
  // The channels-last twin of a plain value, made by a transposition where there is none yet.
  OFFRAMP_COLD ValueId last(ValueId v) {
    const auto i = static_cast<std::size_t>(v);
    if (i < twin_.size() && twin_[i] != no_value) return twin_[i];
    const int rank = shape(v).rank();
    if (g_.is_constant(v))
      return remember(v, g_.add_constant(g_[v].name + ".channels_last", transposed(g_[v].constant)));
    std::vector<Index> perm{0};
    for (int a = 2; a < rank; ++a) perm.push_back(a);
    perm.push_back(1);
    const ValueId t = g_.add_value(g_[v].name + ".channels_last");
    g_.nodes.push_back(transpose(plain(v), t, std::move(perm)));
    return remember(v, t);
  }
  // The plain value, computed from its twin where only that exists.
  ValueId plain(ValueId v) {
    if (v == no_value) return v;
    restore(v);
    return v;
  }
  void restore(ValueId v) {
    const auto i = static_cast<std::size_t>(v);
    if (i >= missing_.size() || !missing_[i]) return;
    missing_[i] = false;
    const int rank = shape(v).rank();
    std::vector<Index> perm{0, rank - 1};
    for (int a = 1; a < rank - 1; ++a) perm.push_back(a);
    g_.nodes.push_back(transpose(twin_[i], v, std::move(perm)));
  }
  Node transpose(ValueId from, ValueId to, std::vector<Index> perm) const {
    Node n;
    n.op = "Transpose";
    n.name = g_[to].name;
    n.inputs = {from};
    n.outputs = {to};
    n.set("perm", std::move(perm));
    return n;
  }
  ValueId remember(ValueId v, ValueId t) {
    const auto i = static_cast<std::size_t>(v);
    if (twin_.size() <= i) twin_.resize(i + 1, no_value);
    return twin_[i] = t;
  }
  bool has_twin(ValueId v) const {
    const auto i = static_cast<std::size_t>(v);
    return v != no_value && i < twin_.size() && twin_[i] != no_value;
  }
  const Shape& shape(ValueId v) const { return shapes_.views[static_cast<std::size_t>(v)].shape; }
  static Tensor transposed(const Tensor& t) {
    const int rank = t.shape().rank();
    Shape s;
    s.push_back(t.shape()[0]);
    for (int a = 2; a < rank; ++a) s.push_back(t.shape()[a]);
    s.push_back(t.shape()[1]);
    Tensor r(t.type(), s);
    const Index channels = t.shape()[1], pixels = t.shape().count(2, rank);
    for (Index n = 0; n < t.shape()[0]; ++n) {
      for (Index c = 0; c < channels; ++c) {
        for (Index p = 0; p < pixels; ++p)
          copy_elements(r.mutable_data(), (n * pixels + p) * channels + c, t.data(), (n * channels + c) * pixels + p, 1,
                        size_of(t.type()));
      }
    }
    return r;
  }
  static Index moved(Index axis, int rank) {
    axis = from_front(axis, rank);
    return axis == 0 ? 0 : axis == 1 ? rank - 1 : axis - 1;
  }

  void emit(Node node, ValueId out) {
    const ValueId t = g_.add_value(g_[out].name + ".channels_last");
    node.outputs.assign(1, t);
    remember(out, t);
    const auto i = static_cast<std::size_t>(out);
    if (missing_.size() <= i) missing_.resize(i + 1, false);
    missing_[i] = true;
    g_.nodes.push_back(std::move(node));
  }

  static bool turns_back(const Node& transpose, int rank) {
    const auto* perm = transpose.get<std::vector<Index>>("perm");
    if (!perm || static_cast<int>(perm->size()) != rank || perm->back() != 1 || perm->front() != 0) return false;
    for (int a = 1; a + 1 < rank; ++a) {
      if ((*perm)[static_cast<std::size_t>(a)] != a + 1) return false;
    }
    return true;
  }

  OFFRAMP_COLD bool rewrite(Node& node) {
    if (node.outputs.size() != 1 || node.inputs.empty() || node.inputs[0] == no_value) return false;
    const ValueId out = node.outputs[0];
    const int rank = shape(node.inputs[0]).rank();
    if (rank < 3 || rank > 5) return false;
    // A file that turns channels to the back itself finds them there.
    if (node.op == "Transpose" && has_twin(node.inputs[0]) && turns_back(node, rank)) {
      node.op = "Identity";
      node.attributes.clear();
      node.inputs[0] = last(node.inputs[0]);
      g_.nodes.push_back(std::move(node));
      return true;
    }
    if (node.op == "GridPool") {
      node.inputs[0] = last(node.inputs[0]);
      g_.nodes.push_back(std::move(node));
      return true;
    }
    const bool is_integer_conv = node.op == "IntegerConv";
    const DType type = shapes_.views[static_cast<std::size_t>(node.inputs[0])].type;
    if (node.op == "Conv" || is_integer_conv ||
        (node.op.ends_with("Pool") && (type == DType::f32 || type == DType::u8 || type == DType::i8))) {
      // A few channels are turned to the back while their image is copied with its padding; one needs no turning.
      const Index channels = shape(node.inputs[0])[1];
      if (node.op == "Conv" && !has_twin(node.inputs[0]) && channels > 1 && channels <= 4 &&
          node.integer("group", 1) == 1) {
        node.inputs[0] = plain(node.inputs[0]);
        node.set("offramp.planes", Index{1});
      } else {
        node.inputs[0] = last(node.inputs[0]);
      }
      const std::size_t residual = is_integer_conv ? 4 : 3;
      if (node.input(residual) != no_value) node.inputs[residual] = last(node.inputs[residual]);
      node.set("offramp.channels_last", Index{1});
      emit(std::move(node), out);
      return true;
    }
    if (!has_twin(node.inputs[0]) && !(node.inputs.size() > 1 && has_twin(node.inputs[1]))) return false;
    const bool scales =
        (node.op == "QuantizeLinear" || node.op == "DequantizeLinear") && shape(node.inputs[1]).count() == 1;
    const bool unary = find_unary(node.op) || node.op == "Clip" || node.op == "Cast" || node.op == "Identity" || scales;
    if (unary && has_twin(node.inputs[0])) {
      node.inputs[0] = last(node.inputs[0]);
      emit(std::move(node), out);
      return true;
    }
    if (node.op == "BatchNormalization" && has_twin(node.inputs[0])) {
      node.inputs[0] = last(node.inputs[0]);
      node.set("offramp.channels_last", Index{1});
      emit(std::move(node), out);
      return true;
    }
    if (node.op == "IntegerAdd") {
      for (ValueId& v : node.inputs) v = last(v);
      emit(std::move(node), out);
      return true;
    }
    if (find_binary(node.op) && node.inputs.size() == 2 && g_.opset >= 7) return rewrite_binary(node, out);
    if (node.op == "Concat") {
      const bool ready = std::all_of(node.inputs.begin(), node.inputs.end(), [&](ValueId v) { return has_twin(v); });
      if (!ready) return false;
      node.set("axis", moved(node.integer("axis", 1), rank));
      for (ValueId& v : node.inputs) v = last(v);
      emit(std::move(node), out);
      return true;
    }
    if ((node.op == "Pad" || node.op == "Slice" || node.op == "PaddedSlice") && has_twin(node.inputs[0]))
      return rewrite_ranges(node, out, rank);
    if (node.op == "ReduceMean" && node.inputs.size() == 1 && node.integer("keepdims", 1) == 1 && node.find("axes") &&
        has_twin(node.inputs[0])) {
      auto axes = node.integers("axes");
      for (Index& a : axes) a = moved(a, rank);
      node.set("axes", std::move(axes));
      node.inputs[0] = last(node.inputs[0]);
      emit(std::move(node), out);
      return true;
    }
    return false;
  }

  // Both operands of full rank, or one a scalar or a constant of fewer axes.
  OFFRAMP_COLD bool rewrite_binary(Node& node, ValueId out) {
    const int rank = shape(out).rank();
    std::vector<ValueId> operands;
    for (const ValueId v : node.inputs) {
      if (shape(v).count() == 1 && shape(v).rank() <= rank) {
        operands.push_back(shape(v).rank() == rank && has_twin(v) ? last(v) : no_value);
      } else if (shape(v).rank() == rank) {
        operands.push_back(last(v));
      } else if (g_.is_constant(v) && shape(v).rank() < rank) {
        Shape s;
        for (int i = shape(v).rank(); i < rank; ++i) s.push_back(1);
        for (const Index n : shape(v).sizes()) s.push_back(n);
        operands.push_back(g_.add_constant(g_[v].name + ".channels_last", transposed(g_[v].constant.reshaped(s))));
      } else {
        return false;
      }
    }
    for (std::size_t i = 0; i < 2; ++i) node.inputs[i] = operands[i] == no_value ? plain(node.inputs[i]) : operands[i];
    emit(std::move(node), out);
    return true;
  }

  // One number an axis, as often as it takes.
  static std::vector<Index> reordered(const std::vector<Index>& numbers, int rank) {
    std::vector<Index> to(numbers.size());
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const auto n = static_cast<std::size_t>(rank);
      to[i / n * n + static_cast<std::size_t>(moved(static_cast<Index>(i % n), rank))] = numbers[i];
    }
    return to;
  }

  // Pad and Slice: reorder the numbers, which are attributes in old opsets and constants in new ones.
  OFFRAMP_COLD bool rewrite_ranges(Node& node, ValueId out, int rank) {
    if (node.op == "PaddedSlice") {
      for (const char* key : {"first", "step", "sizes", "pads"}) node.set(key, reordered(node.integers(key), rank));
    } else if (node.op == "Pad") {
      const bool attribute = node.input(1) == no_value;
      if (node.input(3) != no_value) return false;
      if (!attribute && !g_.is_constant(node.input(1))) return false;
      const char* key = node.find("pads") ? "pads" : "paddings";
      const std::vector<Index> pads =
          attribute ? node.integers(key) : known_integers(g_[node.input(1)].constant.view(), "pads");
      if (static_cast<int>(pads.size()) != 2 * rank) return false;
      if (attribute)
        node.set(key, reordered(pads, rank));
      else
        node.inputs[1] = g_.add_constant(g_[out].name + ".pads", Tensor::of<Index>({2 * rank}, reordered(pads, rank)));
    } else {
      const bool attribute = node.find("starts") != nullptr;
      if (!attribute && (node.input(3) == no_value || !g_.is_constant(node.input(3)))) return false;
      if (attribute && !node.find("axes")) return false;
      std::vector<Index> axes =
          attribute ? node.integers("axes") : known_integers(g_[node.input(3)].constant.view(), "axes");
      for (Index& a : axes) a = moved(a, rank);
      const auto n = static_cast<Index>(axes.size());
      if (attribute)
        node.set("axes", axes);
      else
        node.inputs[3] = g_.add_constant(g_[out].name + ".axes", Tensor::of<Index>({n}, axes));
    }
    node.inputs[0] = last(node.inputs[0]);
    emit(std::move(node), out);
    return true;
  }

  Graph& g_;
  const Inference& shapes_;
  std::vector<ValueId> twin_;
  std::vector<bool> missing_;
};

}  // namespace offramp::passes
