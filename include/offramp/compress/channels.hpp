/// @file channels.hpp
/// Which channels of a network belong together: found in the graph, through residual additions, concatenations,
/// depthwise convolutions and paddings, so that some of them can be taken out everywhere at once.
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
/// together. Works on a graph from `simplified`.
class ChannelClasses {
 public:
  static constexpr int none = -1;  ///< zeros that a padding made: of no class

  /// A convolution or product, with the classes that it reads and computes.
  struct Product {
    std::size_t node = 0;
    std::vector<int> in, out;  ///< the class of each channel
    bool depthwise = false;
    Index taps = 1;    ///< weights for each pair of channels
    Index pixels = 1;  ///< outputs of each channel, for one sample
  };

  ChannelClasses(const Graph& g, const Inference& shapes) : g_(g), shapes_(shapes) {
    for (const ValueId v : g.inputs) freeze(channels_of_value(v));
    for (const Node& n : g.nodes) visit(n);
    for (const ValueId v : g.outputs) freeze(channels_of_value(v));
    finish();
  }

  Index count() const noexcept { return static_cast<Index>(removable_.size()); }
  /// Whether a class may be removed: it is neither part of an input or output nor touched by an unknown operator.
  bool removable(int c) const noexcept { return removable_[static_cast<std::size_t>(c)]; }
  const std::vector<Product>& products() const noexcept { return products_; }
  /// The classes of the channels of a value; empty where it has none that are known.
  const std::vector<int>& of(ValueId v) const {
    static const std::vector<int> nothing;
    const auto i = channels_.find(v);
    return i == channels_.end() ? nothing : i->second;
  }

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
    for (Node& n : g.nodes) {
      if (n.outputs.empty() || n.outputs[0] == no_value || !channels_.contains(n.outputs[0])) {
        if (!is_product(n)) continue;
      }
      if (is_product(n)) {
        const std::vector<Index> in = kept(of(n.inputs[0])), out = kept(of(n.outputs[0]));
        const Tensor w = g[n.inputs[1]].constant;
        const bool conv = n.op == "Conv", turned = n.integer("transB", 0) != 0;
        const bool depthwise = conv && n.integer("group", 1) > 1;
        if (depthwise) {
          n.inputs[1] = g.add_constant(n.name + "_pruned_weight", cut(w, 0, out));
          n.set("group", static_cast<Index>(out.size()));
        } else {
          const int rows = conv || turned ? 0 : 1, columns = 1 - rows;
          n.inputs[1] = g.add_constant(n.name + "_pruned_weight", cut(cut(w, rows, out), columns, in));
        }
        if (n.input(2) != no_value) {
          const Tensor b = g[n.inputs[2]].constant;
          if (b.count() > 1) n.inputs[2] = g.add_constant(n.name + "_pruned_bias", cut(b, b.shape().rank() - 1, out));
        }
        continue;
      }
      const std::vector<Index> out = kept(of(n.outputs[0]));
      if (n.op == "BatchNormalization") {
        for (std::size_t i = 1; i < 5; ++i)
          n.inputs[i] = g.add_constant(n.name + "_pruned_" + std::to_string(i), cut(g[n.inputs[i]].constant, 0, out));
      } else if (find_binary(n.op)) {
        for (ValueId& v : n.inputs) {
          if (!g.is_constant(v) || g[v].constant.count() == 1) continue;
          const Tensor t = g[v].constant;
          const int axis = t.shape().rank() - (shape(n.outputs[0]).rank() - 1);
          v = g.add_constant(n.name + "_pruned_constant", cut(t, axis, out));
        }
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
  // The axis of channels: the second of images, the last of rows.
  int axis_of(ValueId v) const { return shape(v).rank() >= 3 ? 1 : shape(v).rank() - 1; }
  std::vector<int>& channels_of_value(ValueId v) {
    const auto i = channels_.find(v);
    if (i != channels_.end()) return i->second;
    std::vector<int> own;
    const Index n = shape(v).rank() > 0 ? shape(v)[axis_of(v)] : 1;
    for (Index c = 0; c < n; ++c) own.push_back(fresh(false));
    return channels_[v] = std::move(own);
  }
  bool has_weights(const Node& n) const {
    return is_product(n) && n.domain.empty() && n.input(1) != no_value && g_.is_constant(n.inputs[1]) &&
           g_[n.inputs[1]].constant.type() == DType::f32 && g_[n.inputs[1]].constant.shape().rank() >= 2 &&
           (n.input(2) == no_value || g_.is_constant(n.inputs[2])) && n.integer("transA", 0) == 0;
  }

  void visit(const Node& n) {
    const auto unknown = [&] {
      for (const ValueId v : n.inputs) {
        if (v != no_value && !g_.is_constant(v)) freeze(channels_of_value(v));
      }
      for (const ValueId v : n.outputs) {
        if (v != no_value) freeze(channels_of_value(v));
      }
    };
    const ValueId in = n.inputs.empty() ? no_value : n.inputs[0];
    if (in == no_value || n.outputs.size() != 1 || !n.domain.empty()) return unknown();
    const ValueId out = n.outputs[0];
    if (has_weights(n)) {
      const Tensor& w = g_[n.inputs[1]].constant;
      const std::vector<int> source = channels_of_value(in);
      const Index group = n.integer("group", 1);
      Product p;
      p.node = static_cast<std::size_t>(&n - g_.nodes.data());
      if (n.op == "Conv") {
        const Index outs = w.shape()[0];
        p.taps = w.shape().count(2, w.shape().rank());
        p.pixels = shape(out).count(2, shape(out).rank());
        if (group == 1) {
          for (Index c = 0; c < outs; ++c) p.out.push_back(fresh(true));
        } else if (group == outs && group == static_cast<Index>(source.size())) {
          p.depthwise = true;
          p.out = source;
        } else {
          return unknown();
        }
      } else {
        if (w.shape().rank() != 2 || shape(in).rank() != 2) return unknown();
        const Index outs = w.shape()[n.op == "Gemm" && n.integer("transB", 0) != 0 ? 0 : 1];
        for (Index c = 0; c < outs; ++c) p.out.push_back(fresh(true));
      }
      p.in = source;
      channels_[out] = p.out;
      products_.push_back(std::move(p));
      return;
    }
    const bool same = n.op == "Relu" || n.op == "Clip" || n.op == "Sigmoid" || n.op == "Tanh" || n.op == "LeakyRelu" ||
                      n.op == "HardSwish" || n.op == "HardSigmoid" || n.op == "Elu" || n.op == "Identity" ||
                      n.op == "MaxPool" || n.op == "AveragePool" || n.op == "GlobalAveragePool" ||
                      n.op == "GlobalMaxPool" || n.op == "BatchNormalization";
    if (same) {
      channels_[out] = channels_of_value(in);
      return;
    }
    if (find_binary(n.op) && n.inputs.size() == 2) {
      const int rank = shape(out).rank();
      std::optional<std::vector<int>> result;
      for (const ValueId v : n.inputs) {
        if (g_.is_constant(v)) {
          // One number, or one for each channel.
          const Shape& s = shape(v);
          const int axis = s.rank() - (rank - 1);
          const bool fits = rank >= 3 && axis >= 0 && s.count() == s[axis] && s[axis] == shape(out)[1];
          if (s.count() != 1 && !fits) return unknown();
          continue;
        }
        if (shape(v) != shape(out) && !(rank >= 3 && shape(v).rank() == rank && shape(v)[1] == shape(out)[1]))
          return unknown();
        std::vector<int> own = channels_of_value(v);
        if (!result) {
          result = own;
        } else {
          for (std::size_t i = 0; i < own.size(); ++i) (*result)[i] = unite((*result)[i], own[i]);
        }
      }
      if (!result) return unknown();
      channels_[out] = *result;
      return;
    }
    if (n.op == "Concat" && shape(out).rank() >= 2) {
      const Index axis = n.integer("axis", 1) < 0 ? n.integer("axis", 1) + shape(out).rank() : n.integer("axis", 1);
      if (axis != axis_of(out)) return unknown();
      std::vector<int> all;
      for (const ValueId v : n.inputs) {
        const auto& own = channels_of_value(v);
        all.insert(all.end(), own.begin(), own.end());
      }
      channels_[out] = std::move(all);
      return;
    }
    if (n.op == "Flatten" && n.integer("axis", 1) == 1 && shape(in).rank() >= 2) {
      const Index each = shape(in).rank() >= 3 ? shape(in).count(2, shape(in).rank()) : 1;
      std::vector<int> all;
      for (const int c : channels_of_value(in)) all.insert(all.end(), static_cast<std::size_t>(each), c);
      channels_[out] = std::move(all);
      return;
    }
    if (n.op == "Slice" && n.inputs.size() >= 4 && n.input(3) != no_value && g_.is_constant(n.inputs[3])) {
      for (const Index a : known_integers(g_[n.inputs[3]].constant.view(), "axes")) {
        if ((a < 0 ? a + shape(in).rank() : a) == axis_of(in)) return unknown();
      }
      channels_[out] = channels_of_value(in);
      return;
    }
    if (n.op == "Pad" && n.text("mode", "constant") == "constant" && n.input(1) != no_value &&
        g_.is_constant(n.inputs[1]) && n.input(3) == no_value && shape(in).rank() >= 3) {
      const auto pads = known_integers(g_[n.inputs[1]].constant.view(), "pads");
      if (static_cast<int>(pads.size()) != 2 * shape(in).rank() || pads[1] < 0 || pads[pads.size() / 2 + 1] < 0)
        return unknown();
      std::vector<int> all(static_cast<std::size_t>(pads[1]), none);
      const auto& own = channels_of_value(in);
      all.insert(all.end(), own.begin(), own.end());
      all.insert(all.end(), static_cast<std::size_t>(pads[pads.size() / 2 + 1]), none);
      channels_[out] = std::move(all);
      if (pads[1] > 0 || pads[pads.size() / 2 + 1] > 0) paddings_.push_back(out);
      return;
    }
    unknown();
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
    for (auto& [v, classes] : channels_) {
      for (int& c : classes) c = numbered(c);
    }
    for (Product& p : products_) {
      for (int& c : p.in) c = numbered(c);
      for (int& c : p.out) c = numbered(c);
    }
    // A padding's zeros are added to channels of some class: what the reader of the padding made of them.
    for (const ValueId v : paddings_) {
      std::vector<int> met = channels_.at(v);
      for (const Node& n : g_.nodes) {
        if (std::find(n.inputs.begin(), n.inputs.end(), v) == n.inputs.end()) continue;
        const auto& sum = of(n.outputs[0]);
        if (!find_binary(n.op) || sum.size() != met.size()) {  // its zeros must stay where they are
          for (const int c : met) {
            if (c != none) removable_[static_cast<std::size_t>(c)] = false;
          }
          continue;
        }
        for (std::size_t i = 0; i < met.size(); ++i) met[i] = met[i] == none ? sum[i] : met[i];
      }
      padded_[v] = std::move(met);
    }
    for (Product& p : products_) {
      if (std::find(p.in.begin(), p.in.end(), none) == p.in.end()) continue;
      for (const int c : p.in) {
        if (c != none) removable_[static_cast<std::size_t>(c)] = false;
      }
    }
  }

  const Graph& g_;
  const Inference& shapes_;
  std::vector<int> parent_;
  std::vector<bool> frozen_, removable_;
  std::map<ValueId, std::vector<int>> channels_, padded_;
  std::vector<ValueId> paddings_;
  std::vector<Product> products_;
};

}  // namespace offramp
