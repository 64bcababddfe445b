/// @file prune.hpp
/// Structured pruning without training: channels taken out, what is left fitted again by least squares on inputs
/// without labels. The result is a smaller dense network.
///
/// Channels are chosen by what their removal costs after the best refit of whoever reads them: the structured form of
/// Optimal Brain Surgeon (Hassibi and Stork 1992; for channels Kurtic et al. 2023, arXiv 2302.04089, section 3), with
/// each layer's error weighed by what it does to the answers. After that every product in turn is fitted to what the
/// whole network computed there, reading what the pruned one does (He et al. 2017, arXiv 1707.06168, section 3.1).
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/LU>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/compress/channels.hpp"
#include "offramp/compress/observe.hpp"

namespace offramp {

/// What tells how much a channel matters.
enum class PruneCriterion : std::uint8_t {
  reconstruction,     ///< what its readers lose after their best refit
  activation_energy,  ///< its mean square times its readers' weights
  weight_norm,        ///< the sum of its weights' magnitudes
};

struct PruneOptions {
  ModelOptions model;
  double flops_share = 0.3;  ///< of the network's nominal FLOPs, to be removed
  PruneCriterion criterion = PruneCriterion::reconstruction;
  bool refit = true;
  Index granularity = 8;     ///< channels of a group that go together
  double most_share = 0.75;  ///< of the channels of a layer, that may go
  Index batch = 16;          ///< samples at a time
  Index rows = 24'000;       ///< equations for each least-squares fit
  double ridge = 1e-3;       ///< pull to the weights before the fit, as a share of the mean square of what they read
  std::uint64_t seed = 0;
};

struct PrunedLayer {
  std::string name;
  Index channels = 0, kept = 0;
};

struct PruneResult {
  Graph graph;
  std::vector<PrunedLayer> layers;
  double flops = 0, full_flops = 0;  ///< nominal, of one sample
  double agreement = 1;              ///< with the whole network, on the samples
  Index samples = 0;
};

namespace detail {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Reads windows of a product's input and the outputs that belong to them, at places drawn at random.
class PatchReader {
 public:
  PatchReader(const Node& node, const Graph& g, const Shape& in, const Shape& out) {
    is_conv_ = node.op == "Conv";
    if (is_conv_) {
      window_ = WindowAttributes(node).resolve(in, g[node.inputs[1]].constant.shape(), false);
      channels_ = in[1], outs_ = out[1];
    } else {
      channels_ = in[in.rank() - 1], outs_ = out[out.rank() - 1];
    }
  }
  Index taps() const noexcept { return is_conv_ ? window_.taps() : 1; }
  Index pixels() const noexcept { return is_conv_ ? window_.out_count() : 1; }
  Index width() const noexcept { return channels_ * taps(); }
  Index outputs() const noexcept { return outs_; }

  /// The window of output `p` of sample `i`, channel by channel.
  void read(const TensorView& x, Index i, Index p, double* to) const {
    if (!is_conv_) {
      for (Index c = 0; c < channels_; ++c) to[c] = static_cast<double>(x.f32()[i * channels_ + c]);
      return;
    }
    const Window& w = window_;
    const Index z0 = p / (w.out[1] * w.out[2]) * w.stride[0] - w.begin[0];
    const Index y0 = p / w.out[2] % w.out[1] * w.stride[1] - w.begin[1];
    const Index x0 = p % w.out[2] * w.stride[2] - w.begin[2];
    for (Index t = 0; t < w.taps(); ++t) {
      const Index d = z0 + t / (w.kernel[1] * w.kernel[2]) * w.dilation[0];
      const Index h = y0 + t / w.kernel[2] % w.kernel[1] * w.dilation[1];
      const Index k = x0 + t % w.kernel[2] * w.dilation[2];
      const bool inside = d >= 0 && d < w.in[0] && h >= 0 && h < w.in[1] && k >= 0 && k < w.in[2];
      const Index at = inside ? (d * w.in[1] + h) * w.in[2] + k : 0;
      for (Index c = 0; c < channels_; ++c)
        to[c * w.taps() + t] = inside ? static_cast<double>(x.f32()[(i * channels_ + c) * w.in_count() + at]) : 0.0;
    }
  }
  void target(const TensorView& y, Index i, Index p, double* to) const {
    for (Index o = 0; o < outs_; ++o)
      to[o] = static_cast<double>(is_conv_ ? y.f32()[(i * outs_ + o) * pixels() + p] : y.f32()[i * outs_ + o]);
  }

 private:
  bool is_conv_ = false;
  Window window_;
  Index channels_ = 0, outs_ = 0;
};

/// Sums of products of windows with themselves and with outputs.
struct Moments {
  Matrix xx, xy;  // with a last row and column for the constant
  Matrix yy;      // [1][outputs]: squares
  double rows = 0;
};

inline void take(Moments& m, const PatchReader& r, const TensorView& x, const TensorView& y, Index each,
                 std::mt19937_64& random) {
  const Index n = x.shape[0], width = r.width() + 1;
  const Index per = std::min(each, r.pixels());
  Matrix a(n * per, width), b(n * per, r.outputs());
  for (Index i = 0; i < n; ++i) {
    for (Index k = 0; k < per; ++k) {
      const Index p = per == r.pixels() ? k : static_cast<Index>(random() % static_cast<std::uint64_t>(r.pixels()));
      const Index row = i * per + k;
      r.read(x, i, p, a.data() + row * width);
      a(row, width - 1) = 1;
      r.target(y, i, p, b.data() + row * r.outputs());
    }
  }
  if (m.rows == 0) {
    m.xx = Matrix::Zero(width, width);
    m.xy = Matrix::Zero(width, r.outputs());
    m.yy = Matrix::Zero(1, r.outputs());
  }
  m.xx.selfadjointView<Eigen::Lower>().rankUpdate(a.transpose());
  m.xy.noalias() += a.transpose() * b;
  m.yy += b.array().square().matrix().colwise().sum();
  m.rows += static_cast<double>(n * per);
}

/// The weights of a product as [in channel x tap, constant][outputs], and back.
inline Matrix weights_of(const Graph& g, const Node& n, Index width, Index outputs) {
  Matrix w = Matrix::Zero(width + 1, outputs);
  const Tensor& t = g[n.inputs[1]].constant;
  const bool by_row = n.op == "Conv" || n.integer("transB", 0) != 0;
  for (Index o = 0; o < outputs; ++o) {
    for (Index i = 0; i < width; ++i)
      w(i, o) = static_cast<double>(t.view().f32()[by_row ? o * width + i : i * outputs + o]);
    if (n.input(2) != no_value) {
      const Tensor& b = g[n.inputs[2]].constant;
      w(width, o) = real_at(b.view(), b.count() == 1 ? 0 : o);
    }
  }
  return w;
}
inline void set_weights(Graph& g, Node& n, const Matrix& w) {
  const Index width = static_cast<Index>(w.rows()) - 1, outputs = static_cast<Index>(w.cols());
  const Tensor& old = g[n.inputs[1]].constant;
  Tensor t(DType::f32, old.shape()), b(DType::f32, {outputs});
  const bool by_row = n.op == "Conv" || n.integer("transB", 0) != 0;
  for (Index o = 0; o < outputs; ++o) {
    for (Index i = 0; i < width; ++i)
      static_cast<float*>(t.mutable_data())[by_row ? o * width + i : i * outputs + o] = static_cast<float>(w(i, o));
    static_cast<float*>(b.mutable_data())[o] = static_cast<float>(w(width, o));
  }
  n.inputs[1] = g.add_constant(n.name + "_fitted_weight", t);
  if (n.op == "MatMul") return;  // has no bias of its own
  n.inputs.resize(std::max<std::size_t>(3, n.inputs.size()), no_value);
  n.inputs[2] = g.add_constant(n.name + "_fitted_bias", b);
}

/// Chooses what to remove from one simplified graph, and fits what is left.
class Pruner {
 public:
  Pruner(const Graph& g, std::span<const float> samples, const PruneOptions& o)
      : g_(g), samples_(samples), o_(o), shapes_(infer_batch(g, o.model, 2)), classes_(g_, shapes_) {
    removed_.assign(static_cast<std::size_t>(classes_.count()), false);
    members_.resize(static_cast<std::size_t>(classes_.count()));
  }

  const ChannelClasses& classes() const noexcept { return classes_; }

  /// Nominal FLOPs of all products with some classes gone.
  double product_flops(const std::vector<bool>& gone) const {
    double all = 0;
    for (const auto& p : classes_.products()) {
      const auto left = [&](const std::vector<int>& c) {
        return static_cast<double>(std::count_if(c.begin(), c.end(), [&](int k) {
          return k == ChannelClasses::none || !gone[static_cast<std::size_t>(k)];
        }));
      };
      all += 2 * static_cast<double>(p.taps * p.pixels) * left(p.out) * (p.depthwise ? 1 : left(p.in));
    }
    return all;
  }

  /// Removes classes until the products' FLOPs are at most `budget`; false where that cannot be reached.
  bool choose(double budget) {
    gather();
    if (o_.criterion == PruneCriterion::reconstruction) weigh();
    group();
    double flops = product_flops(removed_);
    while (flops > budget) {
      std::size_t best = groups_.size();
      double least = std::numeric_limits<double>::infinity();
      for (std::size_t i = 0; i < groups_.size(); ++i) {
        if (groups_[i].empty()) continue;
        const double saved = flops - product_flops_without(groups_[i]);
        if (!(saved > 0)) continue;
        const double price = cost_of_group(groups_[i]) / saved;
        if (price < least) least = price, best = i;
      }
      if (best == groups_.size()) return false;
      remove(groups_[best]);
      regroup(best);
      flops = product_flops(removed_);
    }
    return true;
  }

  /// The pruned graph, its products fitted to what `g_` computed.
  Graph fitted() const {
    Graph small = classes_.without(removed_);
    if (!o_.refit) return small;
    return refitted(small);
  }

  /// Fits every product of `small`, in order, to what the product of the same name computed in `g_`.
  Graph refitted(Graph small) const {
    std::map<std::string, std::size_t> whole;
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) whole[g_.nodes[i].name] = i;
    const Inference shapes = infer_batch(small, o_.model, 2);
    const Index count = static_cast<Index>(samples_.size()) / sample_size(g_);
    bool changed = false;
    for (std::size_t i = 0; i < small.nodes.size(); ++i) {
      Node& n = small.nodes[i];
      if (!ChannelClasses::is_product(n) || !has_constant_weights(small, n) || n.integer("group", 1) != 1 ||
          !whole.contains(n.name) || shapes.views[static_cast<std::size_t>(n.inputs[0])].shape.rank() == 3)
        continue;
      const Node& source = g_.nodes[whole[n.name]];
      // Nothing in front has changed: nothing to make up for.
      changed = changed || g_[source.inputs[1]].constant.count() != small[n.inputs[1]].constant.count();
      if (!changed) continue;
      const Shape in = shapes.views[static_cast<std::size_t>(n.inputs[0])].shape,
                  out = shapes.views[static_cast<std::size_t>(n.outputs[0])].shape;
      const PatchReader reader(n, small, in, out);
      const Index each = std::max<Index>(1, o_.rows / std::max<Index>(1, count));
      const auto kept = kept_of(source.outputs[0], out[out.rank() >= 3 ? 1 : out.rank() - 1]);
      Moments m;
      std::mt19937_64 random(o_.seed + i);
      // Where the output is added to something, what counts is the sum: the product also makes up for what pruning did
      // to the other operand.
      const auto [sum, other] = addition_behind(small, n.outputs[0]);
      const bool adds = !sum.empty() && whole.contains(sum);
      const ValueId goal = adds ? g_.nodes[whole[sum]].outputs[0] : source.outputs[0];
      // Both networks over the same samples, batch by batch.
      std::vector<Tensor> targets;
      watch_values(g_, o_.model, {goal}, samples_, o_.batch, [&](std::size_t, const TensorView& y) {
        Tensor copy(y.type, y.shape);
        std::copy_n(y.f32(), y.count(), static_cast<float*>(copy.mutable_data()));
        targets.push_back(ChannelClasses::cut(copy, y.shape.rank() >= 3 ? 1 : y.shape.rank() - 1, kept));
      });
      std::size_t batch = 0;
      std::vector<ValueId> watched;
      if (adds) watched.push_back(other);
      watched.push_back(n.inputs[0]);
      watch_values(small, o_.model, watched, samples_, o_.batch, [&](std::size_t which, const TensorView& x) {
        Tensor& target = targets[batch];
        if (which + 1 < watched.size()) {
          auto* to = static_cast<float*>(target.mutable_data());
          for (Index k = 0; k < x.count(); ++k) to[k] -= x.f32()[k];
          return;
        }
        take(m, reader, x, target.view(), each, random);
        ++batch;
      });
      set_weights(small, n, solve(m, weights_of(small, n, reader.width(), reader.outputs())));
    }
    small.remove_dead_nodes();
    return small;
  }

  std::vector<PrunedLayer> layers() const {
    std::vector<PrunedLayer> all;
    for (const auto& p : classes_.products()) {
      const auto left = std::count_if(p.out.begin(), p.out.end(), [&](int c) {
        return c == ChannelClasses::none || !removed_[static_cast<std::size_t>(c)];
      });
      all.push_back({g_.nodes[p.node].name, static_cast<Index>(p.out.size()), static_cast<Index>(left)});
    }
    return all;
  }

 private:
  // What one product's readers know of their input.
  struct Layer {
    Moments moments;
    Matrix inverse;     // of xx of what is left, with a ridge
    Matrix weights;     // best for what is left: [width + 1][outputs]
    double power = 0;   // mean square of the outputs, all together
    double weight = 1;  // of its error, by what it does to the answers
    std::vector<bool> gone;
  };

  static Index sample_size(const Graph& g) {
    Index n = 1;
    for (std::size_t i = 1; i < g[g.inputs[0]].sizes.size(); ++i) n *= std::max<Index>(1, g[g.inputs[0]].sizes[i]);
    return n;
  }
  std::vector<Index> kept_of(ValueId v, Index expected) const {
    std::vector<Index> kept;
    const auto& c = classes_.of(v);
    for (std::size_t i = 0; i < c.size(); ++i) {
      if (c[i] == ChannelClasses::none || !removed_[static_cast<std::size_t>(c[i])])
        kept.push_back(static_cast<Index>(i));
    }
    OFFRAMP_REQUIRE(static_cast<Index>(kept.size()) == expected, "channels of '" + g_[v].name + "' do not fit");
    return kept;
  }

  // The addition that alone reads a value and whose operands are of one shape, and its other operand.
  static std::pair<std::string, ValueId> addition_behind(const Graph& g, ValueId v) {
    const Node* reader = nullptr;
    for (const Node& n : g.nodes) {
      for (const ValueId in : n.inputs) {
        if (in != v) continue;
        if (reader) return {};
        reader = &n;
      }
    }
    if (!reader || reader->op != "Add" || reader->inputs.size() != 2 || g.is_output(v)) return {};
    const ValueId other = reader->inputs[reader->inputs[0] == v ? 1 : 0];
    if (g.is_constant(other) || other == v) return {};
    return {reader->name, other};
  }

  Matrix solve(const Moments& m, const Matrix& start) const {
    Matrix a = m.xx.selfadjointView<Eigen::Lower>();
    const Index n = static_cast<Index>(a.rows());
    const double mean = a.diagonal().head(n - 1).mean();
    const double ridge = o_.ridge * std::max(mean, 1e-12);
    Matrix b = m.xy;
    for (Index i = 0; i + 1 < n; ++i) {
      a(i, i) += ridge;
      b.row(i) += ridge * start.row(i);
    }
    a(n - 1, n - 1) += 1e-9 * m.rows;
    return a.selfadjointView<Eigen::Lower>().llt().solve(b);
  }

  // Moments of every product that reads a removable class.
  void gather() {
    const Index count = static_cast<Index>(samples_.size()) / sample_size(g_);
    const auto& products = classes_.products();
    layers_.resize(products.size());
    for (std::size_t l = 0; l < products.size(); ++l) {
      const auto& p = products[l];
      layers_[l].gone.assign(p.in.size(), false);
      if (p.depthwise) continue;
      const bool matters = std::any_of(p.in.begin(), p.in.end(),
                                       [&](int c) { return c != ChannelClasses::none && classes_.removable(c); });
      if (!matters) continue;
      const Node& n = g_.nodes[p.node];
      const Shape in = shapes_.views[static_cast<std::size_t>(n.inputs[0])].shape,
                  out = shapes_.views[static_cast<std::size_t>(n.outputs[0])].shape;
      const PatchReader reader(n, g_, in, out);
      std::mt19937_64 random(o_.seed + l);
      const Index each = std::max<Index>(1, o_.rows / std::max<Index>(1, count));
      Layer& layer = layers_[l];
      watch_values(g_, o_.model, {n.inputs[0], n.outputs[0]}, samples_, o_.batch,
                   [&, x = std::vector<Tensor>(1)](std::size_t i, const TensorView& v) mutable {
                     if (i == 0) {
                       x[0] = Tensor(v.type, v.shape);
                       std::copy_n(v.f32(), v.count(), static_cast<float*>(x[0].mutable_data()));
                     } else {
                       take(layer.moments, reader, x[0].view(), v, each, random);
                     }
                   });
      layer.weights = weights_of(g_, n, reader.width(), reader.outputs());
      layer.power = layer.moments.yy.sum();
      Matrix a = layer.moments.xx.selfadjointView<Eigen::Lower>();
      const double ridge = o_.ridge * std::max(1e-12, a.diagonal().head(a.rows() - 1).mean());
      a.diagonal().array() += ridge;
      layer.inverse = a.selfadjointView<Eigen::Lower>().llt().solve(Matrix::Identity(a.rows(), a.cols()));
    }
    for (std::size_t l = 0; l < products.size(); ++l) {
      const auto& p = products[l];
      for (std::size_t i = 0; i < p.in.size(); ++i) {
        const int c = p.in[i];
        if (c != ChannelClasses::none && classes_.removable(c))
          members_[static_cast<std::size_t>(c)].emplace_back(l, static_cast<Index>(i));
      }
    }
  }

  // Weighs each layer's relative error by what an error of that size does to the answers: its output is disturbed by
  // noise of a tenth of its power, and the answers' squared change is divided by that.
  void weigh() {
    const auto part = samples_.first(static_cast<std::size_t>(
        std::min<Index>(64, static_cast<Index>(samples_.size()) / sample_size(g_)) * sample_size(g_)));
    const std::vector<ValueId> answer{g_.outputs.back()};
    std::vector<float> plain;
    watch_values(g_, o_.model, answer, part, o_.batch,
                 [&](std::size_t, const TensorView& x) { plain.insert(plain.end(), x.f32(), x.f32() + x.count()); });
    double power = 0;
    for (const float x : plain) power += static_cast<double>(x) * static_cast<double>(x);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      Layer& layer = layers_[l];
      if (layer.moments.rows == 0) continue;
      Graph noisy = g_;
      Node& n = noisy.nodes[classes_.products()[l].node];
      // Noise on the weights, scaled so that the output's error is a hundredth of its power.
      Matrix w = layer.weights;
      std::mt19937_64 random(o_.seed + 17 * l);
      std::normal_distribution<double> normal;
      Matrix e(w.rows(), w.cols());
      for (Eigen::Index i = 0; i < e.rows(); ++i) {
        for (Eigen::Index k = 0; k < e.cols(); ++k) e(i, k) = i + 1 < e.rows() ? normal(random) : 0.0;
      }
      const Matrix xx = layer.moments.xx.selfadjointView<Eigen::Lower>();
      const double error = (e.transpose() * xx * e).trace();
      if (!(error > 0) || !(layer.power > 0)) continue;
      w += std::sqrt(0.01 * layer.power / error) * e;
      set_weights(noisy, n, w);
      std::vector<float> changed;
      watch_values(noisy, o_.model, answer, part, o_.batch, [&](std::size_t, const TensorView& x) {
        changed.insert(changed.end(), x.f32(), x.f32() + x.count());
      });
      double d = 0;
      for (std::size_t i = 0; i < plain.size(); ++i)
        d += static_cast<double>(plain[i] - changed[i]) * static_cast<double>(plain[i] - changed[i]);
      layer.weight = std::max(1e-6, d / std::max(power, 1e-30) / 0.01);
    }
  }

  // The error that the readers of a class make more without it, after their best refit.
  double cost_of(int c) const {
    double all = 0;
    for (const auto& [l, channel] : members_[static_cast<std::size_t>(c)]) {
      const Layer& layer = layers_[l];
      if (layer.moments.rows == 0 || layer.gone[static_cast<std::size_t>(channel)]) continue;
      const Index taps = classes_.products()[l].taps;
      const Index at = channel * taps;
      const auto rows = layer.weights.middleRows(at, taps);
      double error = 0;
      switch (o_.criterion) {
        case PruneCriterion::reconstruction: {
          const Matrix block = layer.inverse.block(at, at, taps, taps);
          const Matrix solved = block.ldlt().solve(Matrix(rows));
          error = (rows.array() * solved.array()).sum() / std::max(layer.power, 1e-30) * layer.weight;
          break;
        }
        case PruneCriterion::activation_energy:
          error = layer.moments.xx.diagonal().segment(at, taps).sum() / layer.moments.rows * rows.squaredNorm();
          break;
        case PruneCriterion::weight_norm:
          break;
      }
      all += error;
    }
    if (o_.criterion == PruneCriterion::weight_norm) {
      // Of the weights that compute the channel, as Li et al. 2017 (arXiv 1608.08710) do.
      for (const auto& p : classes_.products()) {
        for (std::size_t o = 0; o < p.out.size(); ++o) {
          if (p.out[o] != c || p.depthwise) continue;
          const Node& n = g_.nodes[p.node];
          const Tensor& w = g_[n.inputs[1]].constant;
          const bool by_row = n.op == "Conv" || n.integer("transB", 0) != 0;
          const auto outs = static_cast<Index>(p.out.size());
          const Index each = w.count() / outs;
          double sum = 0;
          for (Index i = 0; i < each; ++i)
            sum += static_cast<double>(std::fabs(
                w.view().f32()[by_row ? static_cast<Index>(o) * each + i : i * outs + static_cast<Index>(o)]));
          all += sum / static_cast<double>(each);
        }
      }
    }
    return all;
  }
  double cost_of_group(const std::vector<int>& classes) const {
    double all = 0;
    for (const int c : classes) all += cost_.at(c);
    return all;
  }
  double product_flops_without(const std::vector<int>& classes) {
    for (const int c : classes) removed_[static_cast<std::size_t>(c)] = true;
    const double flops = product_flops(removed_);
    for (const int c : classes) removed_[static_cast<std::size_t>(c)] = false;
    return flops;
  }

  // Channels that are read and computed by the same products are of one kind: they go in groups, the least useful
  // first.
  void group() {
    std::map<std::string, std::vector<int>> kinds;
    for (int c = 0; c < classes_.count(); ++c) {
      if (!classes_.removable(c)) continue;
      std::string key;
      for (std::size_t l = 0; l < classes_.products().size(); ++l) {
        const auto& p = classes_.products()[l];
        const bool reads = std::find(p.in.begin(), p.in.end(), c) != p.in.end();
        const bool makes = std::find(p.out.begin(), p.out.end(), c) != p.out.end();
        if (reads || makes) key += std::to_string(l) + (reads ? "r" : "") + (makes ? "m" : "") + " ";
      }
      kinds[key].push_back(c);
      cost_[c] = cost_of(c);
    }
    for (auto& [key, classes] : kinds) {
      kinds_.push_back(classes);
      limits_.push_back(static_cast<std::size_t>(std::ceil(static_cast<double>(classes.size()) * (1 - o_.most_share))));
      groups_.push_back(next_group(kinds_.size() - 1));
    }
  }
  std::vector<int> next_group(std::size_t kind) {
    std::vector<int> left;
    for (const int c : kinds_[kind]) {
      if (!removed_[static_cast<std::size_t>(c)]) left.push_back(c);
    }
    // The first group leaves a multiple of the granularity.
    const auto step = static_cast<std::size_t>(std::max<Index>(1, o_.granularity));
    std::size_t take_away = left.size() % step == 0 ? step : left.size() % step;
    if (left.size() < take_away + std::max<std::size_t>(1, limits_[kind])) return {};
    std::stable_sort(left.begin(), left.end(), [&](int a, int b) { return cost_[a] < cost_[b]; });
    left.resize(take_away);
    return left;
  }
  void regroup(std::size_t changed) {
    // Whoever shares a reader with what has gone costs something else now.
    std::set<std::size_t> touched;
    for (const int c : groups_[changed]) {
      for (const auto& [l, channel] : members_[static_cast<std::size_t>(c)]) touched.insert(l);
    }
    for (std::size_t k = 0; k < kinds_.size(); ++k) {
      bool affected = k == changed;
      for (const int c : kinds_[k]) {
        for (const auto& [l, channel] : members_[static_cast<std::size_t>(c)])
          affected = affected || touched.contains(l);
        if (affected) break;
      }
      if (!affected) continue;
      for (const int c : kinds_[k]) {
        if (!removed_[static_cast<std::size_t>(c)]) cost_[c] = cost_of(c);
      }
      groups_[k] = next_group(k);
    }
  }

  void remove(const std::vector<int>& classes) {
    for (const int c : classes) {
      removed_[static_cast<std::size_t>(c)] = true;
      for (const auto& [l, channel] : members_[static_cast<std::size_t>(c)])
        eliminate(layers_[l], classes_.products()[l].taps, channel);
    }
  }
  // Takes a channel out of a reader: its best weights for what is left, and the inverse that goes with them.
  static void eliminate(Layer& layer, Index taps, Index channel) {
    if (layer.moments.rows == 0 || layer.gone[static_cast<std::size_t>(channel)]) return;
    layer.gone[static_cast<std::size_t>(channel)] = true;
    const Index at = channel * taps;
    const Matrix columns = layer.inverse.middleCols(at, taps);
    const Matrix block = layer.inverse.block(at, at, taps, taps);
    const auto factor = block.ldlt();
    layer.weights -= columns * factor.solve(Matrix(layer.weights.middleRows(at, taps)));
    layer.inverse -= columns * factor.solve(Matrix(columns.transpose()));
    layer.weights.middleRows(at, taps).setZero();
    layer.inverse.middleRows(at, taps).setZero();
    layer.inverse.middleCols(at, taps).setZero();
    layer.inverse.diagonal().segment(at, taps).setOnes();
  }

  const Graph& g_;
  std::span<const float> samples_;
  const PruneOptions& o_;
  Inference shapes_;
  ChannelClasses classes_;
  std::vector<bool> removed_;
  std::vector<Layer> layers_;                                        // of each product
  std::vector<std::vector<std::pair<std::size_t, Index>>> members_;  // of each class: readers and their channel
  std::map<int, double> cost_;
  std::vector<std::vector<int>> kinds_, groups_;
  std::vector<std::size_t> limits_;
};

}  // namespace detail

/// Prunes a network by inputs without labels: whole samples in NCHW order. Raises an Error where the budget cannot be
/// met.
inline PruneResult prune(const Model& model, std::span<const float> samples, const PruneOptions& options = {}) {
  OFFRAMP_REQUIRE(model.has_plan() && model.exit_count() > 0, "the network is no classifier with one float32 input");
  OFFRAMP_REQUIRE(options.flops_share > 0 && options.flops_share < 1,
                  "the share of FLOPs to remove must lie between 0 and 1");
  detail::check_samples(samples, model.sample_size());
  Graph g = simplified(model.graph(), options.model);
  detail::name_nodes(g);
  const ValueId answer = *std::find_if(g.outputs.begin(), g.outputs.end(),
                                       [&](ValueId v) { return g[v].name == model.exits().back().name; });
  PruneResult r;
  r.full_flops = static_cast<double>(model.full_cost().flops);
  detail::Pruner pruner(g, samples, options);
  const std::vector<bool> nothing(static_cast<std::size_t>(pruner.classes().count()), false);
  const double products = pruner.product_flops(nothing);
  OFFRAMP_REQUIRE(pruner.choose(products - options.flops_share * r.full_flops),
                  "the network cannot lose " + std::to_string(100 * options.flops_share) +
                      " % of its FLOPs and keep a quarter of each layer");
  r.graph = pruner.fitted();
  r.layers = pruner.layers();
  const auto expected = detail::answers_of(g, answer, options.model, samples, options.batch);
  const ValueId small_answer = *std::find_if(r.graph.outputs.begin(), r.graph.outputs.end(),
                                             [&](ValueId v) { return r.graph[v].name == model.exits().back().name; });
  const auto answers = detail::answers_of(r.graph, small_answer, options.model, samples, options.batch);
  Index same = 0;
  for (std::size_t i = 0; i < answers.size(); ++i) same += answers[i] == expected[i];
  r.samples = static_cast<Index>(answers.size());
  r.agreement = static_cast<double>(same) / static_cast<double>(std::max<Index>(1, r.samples));
  r.flops = static_cast<double>(Model(r.graph, options.model).full_cost().flops);
  return r;
}

}  // namespace offramp
