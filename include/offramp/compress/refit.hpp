/// @file refit.hpp
/// Fits the products of a pruned network to what the whole network computed, one after the other, by least squares on
/// inputs without labels: each reads what the pruned network computes in front of it (He et al. 2017, arXiv 1707.06168,
/// section 3.1).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/compress/blocks.hpp"
#include "offramp/compress/channels.hpp"
#include "offramp/compress/least_squares.hpp"
#include "offramp/compress/observe.hpp"
#include "offramp/fit/layers.hpp"

namespace offramp {

/// How products are fitted.
struct RefitOptions {
  ModelOptions model;
  Index batch = 16;     ///< samples at a time
  Index rows = 48'000;  ///< equations for each fit
  Index widest = 8192;  ///< numbers that a product may read and still be fitted (memory grows with the square); what
                        ///< wider ones read stays, and they are left as they are
  double ridge = 1e-3;  ///< pull to the weights before the fit, as a share of the mean square of what they read
  std::uint64_t seed = 0;
};

namespace detail {

/// What a pruned network lacks.
struct Cut {
  std::vector<bool> removed;  ///< of each class of channels
  std::vector<bool> gone;     ///< of each residual block: its branch

  bool operator==(const Cut&) const = default;
  bool has_gone() const noexcept { return std::find(gone.begin(), gone.end(), true) != gone.end(); }
};

inline bool is_too_wide(const ChannelClasses::Product& p, const RefitOptions& o) noexcept {
  return !p.depthwise && static_cast<double>(p.taps) * static_cast<double>(p.in.size()) > static_cast<double>(o.widest);
}

/// The node that alone reads a value, or null.
inline const Node* only_reader(const Graph& g, ValueId v) {
  const Node* reader = nullptr;
  for (const Node& n : g.nodes) {
    for (const ValueId in : n.inputs) {
      if (in != v) continue;
      if (reader) return nullptr;
      reader = &n;
    }
  }
  return g.is_output(v) ? nullptr : reader;
}
inline bool is_rectified(const Graph& g, ValueId v) {
  const Node* reader = only_reader(g, v);
  return reader && reader->op == "Relu";
}
/// A value, or what a ReLU that alone reads it makes of it.
inline ValueId behind_relu(const Graph& g, ValueId v) {
  return is_rectified(g, v) ? only_reader(g, v)->outputs[0] : v;
}

/// The addition that alone reads a value and whose operands are both computed, and its other operand.
inline std::pair<const Node*, ValueId> addition_behind(const Graph& g, ValueId v) {
  const Node* reader = only_reader(g, v);
  if (!reader || reader->op != "Add" || reader->inputs.size() != 2) return {};
  const ValueId other = reader->inputs[reader->inputs[0] == v ? 1 : 0];
  if (g.is_constant(other) || other == v) return {};
  return {reader, other};
}

/// Fits pruned forms of one graph.
class Refit {
 public:
  /// Everything must outlive this.
  Refit(const Graph& whole, const ChannelClasses& classes, const std::vector<ResidualBlock>& blocks,
        std::span<const float> samples, const RefitOptions& options)
      : g_(whole), classes_(classes), blocks_(blocks), samples_(samples), o_(options) {
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) by_name_[g_.nodes[i].name] = i;
    for (const auto& p : classes_.products()) {
      if (!p.depthwise && !is_too_wide(p, o_)) products_.insert(g_.nodes[p.node].name);
    }
  }

  /// Fits every product of `small`, which is the whole graph less `cut`.
  Graph all(Graph small, const Cut& cut) const { return fitted(std::move(small), cut, {}); }
  /// Fits only what stands in front of a block that is gone, and `count` products from the first one behind it, or from
  /// each one with fewer weights, on.
  Graph around(Graph small, const Cut& cut, std::size_t count) const { return fitted(std::move(small), cut, count); }

 private:
  // What a product is fitted to: a value of the whole network, and what is added to the product in the small one.
  struct Goal {
    ValueId value = no_value;  // of the whole network
    ValueId added = no_value;  // of the small one, or none
    bool rectified = false;    // a ReLU follows in both
    bool in_front_of_gap = false;
  };
  Goal goal_of(const Graph& small, const Node& n, const Cut& cut, const std::set<std::string>& left) const {
    const Node& source = g_.nodes[by_name_.at(n.name)];
    // Where the output is added to something, what counts is the sum: the product also makes up for what pruning did
    // to the other operand.
    const auto [addition, other] = addition_behind(small, n.outputs[0]);
    const bool adds = addition && by_name_.contains(addition->name);
    const ValueId end = adds ? addition->outputs[0] : n.outputs[0],
                  end_in_whole = adds ? g_.nodes[by_name_.at(addition->name)].outputs[0] : source.outputs[0];
    Goal goal;
    goal.value = behind_gaps(end_in_whole, cut, left);
    goal.added = adds ? other : no_value;
    goal.rectified = is_rectified(g_, goal.value) && is_rectified(small, end);
    goal.in_front_of_gap = goal.value != end_in_whole;
    return goal;
  }
  // What a value of the whole network should be in one where the nodes `left` are left: behind it blocks may be gone,
  // and then it is what the last of them added up to. That holds where nothing that is left reads it in between.
  ValueId behind_gaps(ValueId v, const Cut& cut, const std::set<std::string>& left) const {
    while (true) {
      const ValueId read = behind_relu(g_, v);
      std::size_t b = 0;
      while (b < blocks_.size() && !(cut.gone[b] && blocks_[b].shortcut == read)) ++b;
      if (b == blocks_.size() || g_.is_output(read)) return v;
      for (const Node& n : g_.nodes) {
        if (left.contains(n.name) && std::find(n.inputs.begin(), n.inputs.end(), read) != n.inputs.end()) return v;
      }
      v = blocks_[b].sum;
    }
  }
  // Whether a block that is gone ended between two places in the whole network.
  bool has_gap(std::size_t from, std::size_t to, const Cut& cut) const {
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      const std::size_t end = by_name_.at(blocks_[b].name);
      if (cut.gone[b] && from < end && end < to) return true;
    }
    return false;
  }
  std::vector<Index> kept_of(ValueId v, Index expected, const Cut& cut) const {
    std::vector<Index> kept;
    const auto& c = classes_.of(v);
    for (std::size_t i = 0; i < c.size(); ++i) {
      if (c[i] == ChannelClasses::none || !cut.removed[static_cast<std::size_t>(c[i])])
        kept.push_back(static_cast<Index>(i));
    }
    OFFRAMP_REQUIRE(static_cast<Index>(kept.size()) == expected, "channels of '" + g_[v].name + "' do not fit");
    return kept;
  }

  Graph fitted(Graph small, const Cut& cut, std::optional<std::size_t> count) const {
    std::set<std::string> left;
    for (const Node& n : small.nodes) left.insert(n.name);
    const Inference shapes = infer_batch(small, o_.model, 2);
    bool changed = cut.has_gone();
    std::size_t still = 0;  // products to be fitted, where not all are
    std::size_t last = 0;   // the place in the whole network of the product before
    for (std::size_t i = 0; i < small.nodes.size(); ++i) {
      Node& n = small.nodes[i];
      if (!products_.contains(n.name)) continue;
      const std::size_t place = by_name_.at(n.name);
      const Node& source = g_.nodes[place];
      const bool behind_gap = has_gap(std::exchange(last, place), place, cut);
      // Nothing in front has changed: nothing to make up for.
      const bool differs = g_[source.inputs[1]].constant.count() != small[n.inputs[1]].constant.count();
      changed = changed || differs;
      if (!changed) continue;
      const Goal goal = goal_of(small, n, cut, left);
      if (count) {
        if (differs || behind_gap) still = *count;
        if (!goal.in_front_of_gap && still == 0) continue;
        still -= still > 0;
      }
      const Shape in = shapes.views[static_cast<std::size_t>(n.inputs[0])].shape,
                  out = shapes.views[static_cast<std::size_t>(n.outputs[0])].shape;
      const int axis = ChannelClasses::axis_of(n, out.rank());
      const auto kept = kept_of(source.outputs[0], out[axis], cut);
      set_weights(small, n, fit(small, n, goal, PatchReader(n, small, in, out), axis, kept, o_.seed + i));
    }
    small.remove_dead_nodes();
    return small;
  }

  Matrix fit(Graph& small, const Node& n, const Goal& goal, const PatchReader& reader, int axis,
             const std::vector<Index>& kept, std::uint64_t seed) const {
    constexpr int rounds = 3;
    // Both networks over the same samples, batch by batch.
    std::vector<Tensor> targets, floors;
    watch_values(g_, o_.model, {goal.value}, samples_, o_.batch, [&](std::size_t, const TensorView& y) {
      targets.push_back(ChannelClasses::cut(copied(y), axis, kept));
      if (!goal.rectified) return;
      const TensorView t = targets.back().view();
      floors.emplace_back(t.type, t.shape);
      auto* floor = static_cast<float*>(floors.back().mutable_data());
      for (Index k = 0; k < t.count(); ++k) floor[k] = t.f32()[k] < 0 ? 0.0f : std::numeric_limits<float>::infinity();
    });
    Index count = 0;
    for (const Tensor& t : targets) count += t.shape()[0];
    const Index each = std::max<Index>(1, o_.rows / std::max<Index>(1, count));
    Moments m;
    std::mt19937_64 random(seed);
    std::size_t batch = 0;
    std::vector<Equations> equations;
    std::vector<ValueId> watched;
    if (goal.added != no_value) watched.push_back(goal.added);
    watched.push_back(n.inputs[0]);
    watch_values(small, o_.model, watched, samples_, o_.batch, [&](std::size_t which, const TensorView& x) {
      if (which + 1 < watched.size()) {
        for (Tensor* t : {&targets[batch], goal.rectified ? &floors[batch] : nullptr}) {
          auto* to = t ? static_cast<float*>(t->mutable_data()) : nullptr;
          for (Index k = 0; to && k < x.count(); ++k) to[k] -= x.f32()[k];
        }
        return;
      }
      const TensorView floor = goal.rectified ? floors[batch].view() : TensorView{};
      Equations drawn = draw(reader, x, targets[batch].view(), goal.rectified ? &floor : nullptr, each, random);
      take(m, drawn);
      if (goal.rectified) equations.push_back(std::move(drawn));
      ++batch;
    });
    require_finite(m, n);
    const bool has_bias = n.op != "MatMul" || bias_behind(small, n, reader.outputs());
    const Matrix start = weights_of(small, n, reader.width(), reader.outputs());
    Matrix found = solve(m, start, has_bias, o_.ridge);
    fit::Products by_weights;
    // What a ReLU makes zero may be anything below: each round asks for what the round before found there (Zhang, Zou,
    // He and Sun, TPAMI 2016, section 3.2, fit through the ReLU, too).
    for (int round = 0; round < rounds && goal.rectified; ++round) {
      m.xy.setZero();
      const FloatMatrix weights = found.cast<float>();
      by_weights.pack(weights.data(), weights.rows(), weights.cols());
      for (const Equations& e : equations) {
        FloatMatrix said(e.a.rows(), weights.cols());
        by_weights.multiply(e.a.data(), said.data(), said.rows());
        add_products(
            e.a, (e.floor.array() < std::numeric_limits<float>::infinity()).select(said.cwiseMin(e.floor), e.b), m.xy);
      }
      found = solve(m, start, has_bias, o_.ridge);
    }
    return found;
  }

  const Graph& g_;
  const ChannelClasses& classes_;
  const std::vector<ResidualBlock>& blocks_;
  std::span<const float> samples_;
  const RefitOptions& o_;
  std::map<std::string, std::size_t> by_name_;
  std::set<std::string> products_;
};

}  // namespace detail
}  // namespace offramp
