/// @file channels.hpp
/// Which channels of a network belong together: found in the graph, through residual additions, concatenations,
/// depthwise convolutions, paddings and the heads of attention, so that some of them can be taken out everywhere at
/// once.
#pragma once

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "offramp/graph/simplify.hpp"

namespace offramp {

/// The channels of every value, each with the class that it belongs to: channels of one class are kept or removed
/// together. The channels of a head of attention are one class, from the products that compute queries, keys and values
/// to the one that reads all heads. Works on a graph from `simplified`.
class ChannelClasses {
 public:
  static constexpr int none = -1;      ///< zeros that a padding made: of no class
  static constexpr Index samples = 2;  ///< that `shapes` must have been inferred for

  /// A convolution or product, with the classes that it reads and computes.
  struct Product {
    std::size_t node = 0;
    std::vector<int> in, out;  ///< the class of each channel
    bool depthwise = false;
    Index taps = 1;    ///< weights for each pair of channels
    Index pixels = 1;  ///< outputs of each channel, for one sample
  };
  /// A product of two computed values, as in attention: its work grows with channels that it keeps apart.
  struct InnerProduct {
    std::size_t node = 0;
    std::vector<int> classes;
    double macs = 0;  ///< of each of them, for one sample
  };

  ChannelClasses(const Graph& g, const Inference& shapes) : g_(g), shapes_(shapes) {
    for (const ValueId v : g.inputs) freeze(channels_of_value(v).classes);
    for (const Node& n : g.nodes) visit(n);
    for (const ValueId v : g.outputs) freeze(channels_of_value(v).classes);
    finish();
  }

  Index count() const noexcept { return static_cast<Index>(removable_.size()); }
  /// Whether a class may be removed: it is neither part of an input or output nor touched by an unknown operator.
  bool removable(int c) const noexcept { return removable_[static_cast<std::size_t>(c)]; }
  /// A class stays from now on.
  void keep(int c) noexcept {
    if (c != none) removable_[static_cast<std::size_t>(c)] = false;
  }
  const std::vector<Product>& products() const noexcept { return products_; }
  const std::vector<InnerProduct>& inner_products() const noexcept { return inner_products_; }
  /// Outputs of one product that belong to a class: 1, or what a head of attention has.
  Index width(int c) const noexcept { return widths_[static_cast<std::size_t>(c)]; }
  /// The classes of the channels of a value; empty where it has none that are known.
  const std::vector<int>& of(ValueId v) const {
    static const std::vector<int> nothing;
    const auto i = channels_.find(v);
    return i == channels_.end() ? nothing : i->second.classes;
  }
  /// The axis of the channels that a product reads or computes.
  static int axis_of(const Node& product, int rank) noexcept { return product.op == "Conv" ? 1 : rank - 1; }

  /// The graph without these classes; weights and per-channel constants are cut to what is left.
  Graph without(const std::vector<bool>& removed) const {
    Graph g = g_;
    const auto kept = [&](const std::vector<int>& classes) {
      std::vector<Index> k;
      for (std::size_t i = 0; i < classes.size(); ++i) {
        if (classes[i] == none || !removed[static_cast<std::size_t>(classes[i])]) k.push_back(static_cast<Index>(i));
      }
      return k;
    };
    for (const Product& p : products_) {
      Node& n = g.nodes[p.node];
      const std::vector<Index> in = kept(p.in), out = kept(p.out);
      const Tensor w = g[n.inputs[1]].constant;
      if (p.depthwise) {
        n.inputs[1] = g.add_constant(n.name + "_pruned_weight", cut(w, 0, out));
        n.set("group", static_cast<Index>(out.size()));
      } else {
        const int rows = n.op == "Conv" || n.integer("transB", 0) != 0 ? 0 : 1, columns = 1 - rows;
        n.inputs[1] = g.add_constant(n.name + "_pruned_weight", cut(cut(w, rows, out), columns, in));
      }
      if (n.input(2) == no_value) continue;
      const Tensor b = g[n.inputs[2]].constant;
      if (b.count() > 1) n.inputs[2] = g.add_constant(n.name + "_pruned_bias", cut(b, b.shape().rank() - 1, out));
    }
    for (Node& n : g.nodes) {
      if (n.outputs.empty() || n.outputs[0] == no_value || !channels_.contains(n.outputs[0])) continue;
      const std::vector<Index> out = kept(of(n.outputs[0]));
      if (n.op == "BatchNormalization") {
        for (std::size_t i = 1; i < 5; ++i)
          n.inputs[i] = g.add_constant(n.name + "_pruned_" + std::to_string(i), cut(g[n.inputs[i]].constant, 0, out));
      } else if (find_binary(n.op)) {
        for (ValueId& v : n.inputs) {
          if (!g.is_constant(v) || g[v].constant.count() == 1) continue;
          const Tensor t = g[v].constant;
          const int axis = t.shape().rank() - shape(n.outputs[0]).rank() + channels_.at(n.outputs[0]).axis;
          if (axis >= 0 && t.shape()[axis] > 1) v = g.add_constant(n.name + "_pruned_constant", cut(t, axis, out));
        }
      } else if (n.op == "Reshape" && out.size() < of(n.outputs[0]).size()) {
        // What stands before the channels stays as it is, whatever its size is.
        const Channels& to = channels_.at(n.outputs[0]);
        std::vector<Index> sizes(static_cast<std::size_t>(to.axis), 0);
        sizes.push_back(static_cast<Index>(out.size()));
        for (int i = to.axis + 1; i < shape(n.outputs[0]).rank(); ++i) sizes.push_back(shape(n.outputs[0])[i]);
        std::erase_if(n.attributes, [](const Attribute& a) { return a.name == "allowzero"; });
        n.inputs[1] =
            g.add_constant(n.name + "_pruned_shape", Tensor::of<Index>({static_cast<Index>(sizes.size())}, sizes));
      } else if (n.op == "Pad") {
        // Of the zeros in front and behind, those whose channel is gone elsewhere are gone, too.
        const std::vector<int>& all = of(n.outputs[0]);
        const std::vector<int>& inner = of(n.inputs[0]);
        std::vector<Index> pads = known_integers(g[n.inputs[1]].constant.view(), "pads");
        const auto front = static_cast<std::size_t>(pads[1]);
        const auto left = [&](std::size_t from, std::size_t to) {
          Index count = 0;
          for (std::size_t i = from; i < to; ++i) {
            const int c = padded_.at(n.outputs[0])[i];
            count += c == none || !removed[static_cast<std::size_t>(c)];
          }
          return count;
        };
        const Index before = left(0, front), after = left(front + inner.size(), all.size());
        pads[1] = before;
        pads[pads.size() / 2 + 1] = after;
        n.inputs[1] =
            g.add_constant(n.name + "_pruned_pads", Tensor::of<Index>({static_cast<Index>(pads.size())}, pads));
      }
    }
    for (Value& v : g.values) {
      const auto id = static_cast<ValueId>(&v - g.values.data());
      if (channels_.contains(id) && std::find(g.inputs.begin(), g.inputs.end(), id) == g.inputs.end() &&
          !g.is_output(id))
        v.has_shape = false, v.sizes.clear();
    }
    g.remove_dead_nodes();
    return g;
  }

  static bool is_product(const Node& n) { return n.op == "Conv" || n.op == "Gemm" || n.op == "MatMul"; }

  /// These slices of an axis.
  static Tensor cut(const Tensor& t, int axis, const std::vector<Index>& kept) {
    Shape s = t.shape();
    const Index outer = s.count(0, axis), n = s[axis], inner = s.count(axis + 1, s.rank());
    s[axis] = static_cast<Index>(kept.size());
    Tensor r(t.type(), s);
    const Index width = static_cast<Index>(kept.size());
    for (Index o = 0; o < outer; ++o) {
      for (Index k = 0; k < width; ++k)
        copy_elements(r.mutable_data(), (o * width + k) * inner, t.data(),
                      (o * n + kept[static_cast<std::size_t>(k)]) * inner, inner, size_of(t.type()));
    }
    return r;
  }

 private:
  // An axis, and the class of each slice along it.
  struct Channels {
    int axis = 1;
    std::vector<int> classes;
  };

  const Shape& shape(ValueId v) const { return shapes_.views[static_cast<std::size_t>(v)].shape; }

  int fresh(bool can_go) {
    parent_.push_back(static_cast<int>(parent_.size()));
    frozen_.push_back(!can_go);
    return parent_.back();
  }
  int find(int c) {
    while (parent_[static_cast<std::size_t>(c)] != c) c = parent_[static_cast<std::size_t>(c)];
    return c;
  }
  int unite(int a, int b) {
    if (a == none || b == none) return a == none ? b : a;
    a = find(a), b = find(b);
    if (a == b) return a;
    parent_[static_cast<std::size_t>(b)] = a;
    frozen_[static_cast<std::size_t>(a)] = frozen_[static_cast<std::size_t>(a)] || frozen_[static_cast<std::size_t>(b)];
    return a;
  }
  void freeze(const std::vector<int>& classes) {
    for (const int c : classes) {
      if (c != none) frozen_[static_cast<std::size_t>(find(c))] = true;
    }
  }
  std::vector<int> fresh_ones(Index n, bool can_go) {
    std::vector<int> own;
    for (Index c = 0; c < n; ++c) own.push_back(fresh(can_go));
    return own;
  }
  // The channels of a value; where nothing has said so yet, the second axis of images, the last of rows.
  const Channels& channels_of_value(ValueId v) {
    const auto i = channels_.find(v);
    if (i != channels_.end()) return i->second;
    const int rank = shape(v).rank(), axis = rank >= 3 ? 1 : rank - 1;
    return channels_[v] = {axis, fresh_ones(rank > 0 ? shape(v)[axis] : 1, false)};
  }
  // The classes along an axis. A value whose channels lie along another one keeps them all.
  std::vector<int> classes_along(ValueId v, int axis) {
    const Channels& c = channels_of_value(v);
    if (c.axis == axis) return c.classes;
    freeze(c.classes);
    return fresh_ones(shape(v)[axis], false);
  }
  bool has_weights(const Node& n) const {
    return is_product(n) && n.domain.empty() && n.input(1) != no_value && g_.is_constant(n.inputs[1]) &&
           g_[n.inputs[1]].constant.type() == DType::f32 && g_[n.inputs[1]].constant.shape().rank() >= 2 &&
           (n.input(2) == no_value || g_.is_constant(n.inputs[2])) && n.integer("transA", 0) == 0;
  }

  void visit(const Node& n) {
    if (!n.inputs.empty() && n.inputs[0] != no_value && n.outputs.size() == 1 && n.domain.empty() && follow(n)) return;
    for (const ValueId v : n.inputs) {
      if (v != no_value && !g_.is_constant(v)) freeze(channels_of_value(v).classes);
    }
    for (const ValueId v : n.outputs) {
      if (v != no_value) freeze(channels_of_value(v).classes);
    }
  }

  // What a node does to channels; false where that is not known.
  bool follow(const Node& n) {
    const ValueId in = n.inputs[0], out = n.outputs[0];
    if (has_weights(n)) return follow_product(n);
    if (find_binary(n.op) && n.inputs.size() == 2) return follow_binary(n);
    if (n.op == "MatMul") return follow_inner_product(n);
    if (n.op == "Concat") return follow_concat(n);
    if (g_.is_constant(in)) return false;
    const Channels own = channels_of_value(in);
    const int rank = shape(in).rank();
    const auto same = [&](bool known) {
      if (known) channels_[out] = own;
      return known;
    };
    if (n.op == "Relu" || n.op == "Clip" || n.op == "Sigmoid" || n.op == "Tanh" || n.op == "LeakyRelu" ||
        n.op == "HardSwish" || n.op == "HardSigmoid" || n.op == "Elu" || n.op == "Erf" || n.op == "Gelu" ||
        n.op == "Identity")
      return same(true);
    if (n.op == "MaxPool" || n.op == "AveragePool" || n.op == "GlobalAveragePool" || n.op == "GlobalMaxPool" ||
        n.op == "BatchNormalization")
      return same(own.axis == 1);
    if (n.op == "Softmax") {
      const Index axis = n.integer("axis", g_.opset < 13 ? 1 : -1);
      return same(from_front(axis, rank) == rank - 1 && own.axis < rank - 1);
    }
    if (n.op == "Slice" && n.inputs.size() >= 4 && n.input(3) != no_value && g_.is_constant(n.inputs[3])) {
      for (const Index a : known_integers(g_[n.inputs[3]].constant.view(), "axes")) {
        if (from_front(a, rank) == own.axis) return false;
      }
      return same(true);
    }
    if (n.op == "Transpose") {
      const auto* perm = n.get<std::vector<Index>>("perm");
      if (!perm) return false;
      const auto at = std::find(perm->begin(), perm->end(), own.axis);
      if (at == perm->end()) return false;
      channels_[out] = {static_cast<int>(at - perm->begin()), own.classes};
      return true;
    }
    if (n.op == "Reshape" || (n.op == "Flatten" && n.integer("axis", 1) == 1)) return regroup(own, in, out);
    if (n.op == "Pad") return follow_padding(n, own);
    return false;
  }

  bool follow_product(const Node& n) {
    const ValueId in = n.inputs[0], out = n.outputs[0];
    const Shape& w = g_[n.inputs[1]].constant.shape();
    const int rank = shape(in).rank(), axis = axis_of(n, rank);
    Product p;
    p.node = static_cast<std::size_t>(&n - g_.nodes.data());
    if (n.op == "Conv") {
      const Index outs = w[0], group = n.integer("group", 1);
      if (group != 1 && (group != outs || group != shape(in)[1])) return false;
      p.in = classes_along(in, axis);
      p.depthwise = group != 1;
      p.taps = w.count(2, w.rank());
      p.pixels = shape(out).count(2, shape(out).rank());
      p.out = p.depthwise ? p.in : fresh_ones(outs, true);
    } else {
      if (w.rank() != 2 || rank < 2) return false;
      p.in = classes_along(in, axis);
      p.pixels = shape(out).count(0, axis) / samples;
      p.out = fresh_ones(w[n.integer("transB", 0) != 0 ? 0 : 1], true);
    }
    channels_[out] = {axis, p.out};
    products_.push_back(std::move(p));
    return true;
  }

  bool follow_binary(const Node& n) {
    if (g_.opset < 7) return false;  // an attribute said where operands meet
    const ValueId out = n.outputs[0];
    const int rank = shape(out).rank();
    // The operand that has all the channels says where they lie.
    std::optional<Channels> result;
    for (const ValueId v : n.inputs) {
      if (g_.is_constant(v) || shape(v).rank() != rank) continue;
      const Channels& own = channels_of_value(v);
      if (shape(v)[own.axis] != shape(out)[own.axis] || (result && shape(v) != shape(out))) continue;
      result = own;
    }
    if (!result) return false;
    const int axis = result->axis;
    for (const ValueId v : n.inputs) {
      const Shape& s = shape(v);
      const int a = s.rank() - rank + axis;
      if (a < 0 || s[a] == 1) {  // the same for every channel
        if (!g_.is_constant(v) && shape(out)[axis] > 1) freeze(channels_of_value(v).classes);
        continue;
      }
      if (g_.is_constant(v)) continue;
      const Channels own = channels_of_value(v);
      if (own.axis != a || s.rank() != rank) return false;
      for (std::size_t i = 0; i < own.classes.size(); ++i)
        result->classes[i] = unite(result->classes[i], own.classes[i]);
    }
    channels_[out] = std::move(*result);
    return true;
  }

  bool follow_inner_product(const Node& n) {
    const ValueId a = n.inputs[0], b = n.inputs[1], out = n.outputs[0];
    const int rank = shape(out).rank();
    if (g_.is_constant(a) || g_.is_constant(b) || shape(a).rank() != rank || shape(b).rank() != rank) return false;
    Channels result = channels_of_value(a);
    const Channels other = channels_of_value(b);
    if (result.axis != other.axis || result.axis >= rank - 2 || result.classes.size() != other.classes.size())
      return false;
    for (std::size_t i = 0; i < result.classes.size(); ++i)
      result.classes[i] = unite(result.classes[i], other.classes[i]);
    const auto channels = static_cast<double>(std::max<std::size_t>(1, result.classes.size()));
    inner_products_.push_back({static_cast<std::size_t>(&n - g_.nodes.data()), result.classes,
                               static_cast<double>(shape(out).count() * shape(a)[rank - 1]) / samples / channels});
    channels_[out] = std::move(result);
    return true;
  }

  bool follow_concat(const Node& n) {
    const ValueId out = n.outputs[0];
    const int rank = shape(out).rank();
    const Index axis = from_front(n.integer("axis", 1), rank);
    Channels all{static_cast<int>(axis), {}};
    for (const ValueId v : n.inputs) {
      if (rank < 2 || v == no_value) return false;
      const Channels& own = channels_of_value(v);
      if (own.axis != all.axis) return false;
      all.classes.insert(all.classes.end(), own.classes.begin(), own.classes.end());
    }
    channels_[out] = std::move(all);
    return true;
  }

  // An axis of channels that is split into heads, or joined with all that is behind it. Row-major order keeps what is
  // before it.
  bool regroup(const Channels& own, ValueId in, ValueId out) {
    const Shape &s = shape(in), &t = shape(out);
    const int a = own.axis;
    if (a < 0 || t.rank() <= a) return false;
    for (int i = 0; i < a; ++i) {
      if (s[i] != t[i]) return false;
    }
    Channels result{a, {}};
    if (t.rank() == a + 1) {
      const auto each = static_cast<std::size_t>(s.count(a + 1, s.rank()));
      for (const int c : own.classes) result.classes.insert(result.classes.end(), each, c);
    } else if (s.rank() == a + 1 && t.rank() == a + 2) {
      const auto each = static_cast<std::size_t>(t[a + 1]);
      for (std::size_t i = 0; i < own.classes.size(); ++i) {
        if (i % each == 0)
          result.classes.push_back(own.classes[i]);
        else
          result.classes.back() = unite(result.classes.back(), own.classes[i]);
      }
    } else {
      return false;
    }
    channels_[out] = std::move(result);
    return true;
  }

  bool follow_padding(const Node& n, const Channels& own) {
    const ValueId in = n.inputs[0], out = n.outputs[0];
    if (own.axis != 1 || n.text("mode", "constant") != "constant" || n.input(1) == no_value ||
        !g_.is_constant(n.inputs[1]) || n.input(3) != no_value || shape(in).rank() < 3)
      return false;
    const auto pads = known_integers(g_[n.inputs[1]].constant.view(), "pads");
    if (static_cast<int>(pads.size()) != 2 * shape(in).rank() || pads[1] < 0 || pads[pads.size() / 2 + 1] < 0)
      return false;
    Channels all{1, std::vector<int>(static_cast<std::size_t>(pads[1]), none)};
    all.classes.insert(all.classes.end(), own.classes.begin(), own.classes.end());
    all.classes.insert(all.classes.end(), static_cast<std::size_t>(pads[pads.size() / 2 + 1]), none);
    channels_[out] = std::move(all);
    if (pads[1] > 0 || pads[pads.size() / 2 + 1] > 0) paddings_.push_back(out);
    return true;
  }

  // Numbers classes from 0, and tells paddings which classes their zeros meet.
  void finish() {
    std::map<int, int> number;
    const auto numbered = [&](int c) {
      if (c == none) return c;
      const int root = find(c);
      const auto [i, is_new] = number.try_emplace(root, static_cast<int>(number.size()));
      if (is_new) removable_.push_back(!frozen_[static_cast<std::size_t>(root)]);
      return i->second;
    };
    const auto number_all = [&](std::vector<int>& classes) {
      for (int& c : classes) c = numbered(c);
    };
    for (auto& [v, channels] : channels_) number_all(channels.classes);
    for (Product& p : products_) number_all(p.in), number_all(p.out);
    for (InnerProduct& p : inner_products_) number_all(p.classes);
    widths_.assign(removable_.size(), 1);
    for (const Product& p : products_) {
      std::map<int, Index> outputs;
      for (const int c : p.out) ++outputs[c];
      for (const auto& [c, n] : outputs) {
        if (c != none) widths_[static_cast<std::size_t>(c)] = std::max(widths_[static_cast<std::size_t>(c)], n);
      }
    }
    // A padding's zeros are added to channels of some class: what the reader of the padding made of them.
    for (const ValueId v : paddings_) {
      std::vector<int> met = channels_.at(v).classes;
      for (const Node& n : g_.nodes) {
        if (std::find(n.inputs.begin(), n.inputs.end(), v) == n.inputs.end()) continue;
        const auto& sum = of(n.outputs[0]);
        if (!find_binary(n.op) || sum.size() != met.size()) {  // its zeros must stay where they are
          for (const int c : met) keep(c);
          continue;
        }
        for (std::size_t i = 0; i < met.size(); ++i) met[i] = met[i] == none ? sum[i] : met[i];
      }
      padded_[v] = std::move(met);
    }
    for (Product& p : products_) {
      if (std::find(p.in.begin(), p.in.end(), none) == p.in.end()) continue;
      for (const int c : p.in) keep(c);
    }
  }

  const Graph& g_;
  const Inference& shapes_;
  std::vector<int> parent_;
  std::vector<bool> frozen_, removable_;
  std::map<ValueId, Channels> channels_;
  std::map<ValueId, std::vector<int>> padded_;
  std::vector<ValueId> paddings_;
  std::vector<Product> products_;
  std::vector<InnerProduct> inner_products_;
  std::vector<Index> widths_;
};

}  // namespace offramp
