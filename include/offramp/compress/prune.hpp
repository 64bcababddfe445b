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
#include <functional>
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

#include "offramp/compress/blocks.hpp"
#include "offramp/compress/channels.hpp"
#include "offramp/compress/observe.hpp"
#include "offramp/fit/distil.hpp"
#include "offramp/flops/objective.hpp"

namespace offramp {

/// What tells how much a channel matters.
enum class PruneCriterion : std::uint8_t {
  reconstruction,     ///< what its readers lose after their best refit
  activation_energy,  ///< its mean square times its readers' weights
  weight_norm,        ///< the sum of its weights' magnitudes
};

struct PruneOptions {
  ModelOptions model;
  double share = 0.3;  ///< of the network's price, to be removed
  Objective objective = Objective::flops;
  bool blocks = true;  ///< whole branches of residual blocks may go
  PruneCriterion criterion = PruneCriterion::reconstruction;
  bool refit = true;
  fit::DistilOptions distil;  ///< all weights learn from the whole network's answers after that; 0 epochs: they do not
  Index granularity = 16;     ///< channels of a group that go together: the kernels work on 16 columns at a time
  double most_share = 0.75;   ///< of the channels of a layer, that may go
  Index fit_samples = 1000;   ///< from the front, that choose and that least squares read; distillation reads all
  Index batch = 16;           ///< samples at a time
  Index rows = 48'000;        ///< equations for each least-squares fit
  Index widest = 8192;        ///< numbers that a product may read and still be fitted (memory grows with the square);
                              ///< what wider ones read stays, and they are left as they are
  double ridge = 1e-3;        ///< pull to the weights before the fit, as a share of the mean square of what they read
  std::uint64_t seed = 0;

  PruneOptions() { distil.epochs = 0; }
};

struct PrunedLayer {
  std::string name;
  Index channels = 0, kept = 0;
};

struct PruneResult {
  Graph graph;
  std::vector<PrunedLayer> layers;
  double flops = 0, full_flops = 0;  ///< nominal, of one sample
  std::vector<std::string> blocks;   ///< additions whose branch is gone
  double ms = 0, full_ms = 0;        ///< of one sample on this machine, where that was the objective
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
      rows_ = in.count(1, in.rank() - 1);
    }
  }
  Index taps() const noexcept { return is_conv_ ? window_.taps() : 1; }
  Index pixels() const noexcept { return is_conv_ ? window_.out_count() : rows_; }
  Index width() const noexcept { return channels_ * taps(); }
  Index outputs() const noexcept { return outs_; }

  /// The window of output `p` of sample `i`, channel by channel.
  void read(const TensorView& x, Index i, Index p, double* to) const {
    if (!is_conv_) {
      for (Index c = 0; c < channels_; ++c) to[c] = static_cast<double>(x.f32()[(i * rows_ + p) * channels_ + c]);
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
      to[o] = static_cast<double>(y.f32()[is_conv_ ? (i * outs_ + o) * pixels() + p : (i * rows_ + p) * outs_ + o]);
  }

 private:
  bool is_conv_ = false;
  Window window_;
  Index channels_ = 0, outs_ = 0, rows_ = 1;
};

/// Sums of products of windows with themselves and with outputs.
struct Moments {
  Matrix xx, xy;  // with a last row and column for the constant
  Matrix yy;      // [1][outputs]: squares
  double rows = 0;
};

/// Windows of a product's input, a 1 behind each, and what the product should make of them. Where `floor` is not
/// infinite, anything up to it is as good: a ReLU behind makes it zero.
struct Equations {
  Matrix a, b, floor;
};

/// Equations of some samples at up to `each` places of each; `floor` is null where none is wanted.
inline Equations draw(const PatchReader& r, const TensorView& x, const TensorView& y, const TensorView* floor,
                      Index each, std::mt19937_64& random) {
  const Index n = x.shape[0], width = r.width() + 1;
  const Index per = std::min(each, r.pixels());
  Equations e{Matrix(n * per, width), Matrix(n * per, r.outputs()), Matrix(floor ? n * per : 0, r.outputs())};
  for (Index i = 0; i < n; ++i) {
    for (Index k = 0; k < per; ++k) {
      const Index p = per == r.pixels() ? k : static_cast<Index>(random() % static_cast<std::uint64_t>(r.pixels()));
      const Index row = i * per + k;
      r.read(x, i, p, e.a.data() + row * width);
      e.a(row, width - 1) = 1;
      r.target(y, i, p, e.b.data() + row * r.outputs());
      if (floor) r.target(*floor, i, p, e.floor.data() + row * r.outputs());
    }
  }
  return e;
}

inline void take(Moments& m, const Equations& e) {
  if (m.rows == 0) {
    m.xx = Matrix::Zero(e.a.cols(), e.a.cols());
    m.xy = Matrix::Zero(e.a.cols(), e.b.cols());
    m.yy = Matrix::Zero(1, e.b.cols());
  }
  m.xx.selfadjointView<Eigen::Lower>().rankUpdate(e.a.transpose());
  m.xy.noalias() += e.a.transpose() * e.b;
  m.yy += e.b.array().square().matrix().colwise().sum();
  m.rows += static_cast<double>(e.a.rows());
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
/// The constant, one number for each output, that is added to a product without a bias of its own by the only node that
/// reads it, or null.
inline ValueId* bias_behind(Graph& g, const Node& n, Index outputs) {
  Node* reader = nullptr;
  for (Node& r : g.nodes) {
    const auto reads = std::count(r.inputs.begin(), r.inputs.end(), n.outputs[0]);
    if (reads == 0) continue;
    if (reader || reads > 1) return nullptr;
    reader = &r;
  }
  if (!reader || reader->op != "Add" || g.is_output(n.outputs[0])) return nullptr;
  for (ValueId& v : reader->inputs) {
    if (!g.is_constant(v)) continue;
    const Shape& s = g[v].constant.shape();
    if (s.rank() > 0 && s.count() == outputs && s[s.rank() - 1] == outputs && g[v].constant.type() == DType::f32)
      return &v;
  }
  return nullptr;
}
inline void set_weights(Graph& g, Node& n, const Matrix& w) {
  const Index width = static_cast<Index>(w.rows()) - 1, outputs = static_cast<Index>(w.cols());
  Tensor t(DType::f32, g[n.inputs[1]].constant.shape()), b(DType::f32, {outputs});
  const bool by_row = n.op == "Conv" || n.integer("transB", 0) != 0;
  for (Index o = 0; o < outputs; ++o) {
    for (Index i = 0; i < width; ++i)
      static_cast<float*>(t.mutable_data())[by_row ? o * width + i : i * outputs + o] = static_cast<float>(w(i, o));
    static_cast<float*>(b.mutable_data())[o] = static_cast<float>(w(width, o));
  }
  n.inputs[1] = g.add_constant(n.name + "_fitted_weight", t);
  if (n.op == "MatMul") {  // has no bias of its own
    ValueId* bias = bias_behind(g, n, outputs);
    if (!bias) return;
    Tensor sum(DType::f32, g[*bias].constant.shape());
    for (Index o = 0; o < outputs; ++o)
      static_cast<float*>(sum.mutable_data())[o] = g[*bias].constant.view().f32()[o] + static_cast<float>(w(width, o));
    *bias = g.add_constant(n.name + "_fitted_bias", sum);
    return;
  }
  n.inputs.resize(std::max<std::size_t>(3, n.inputs.size()), no_value);
  n.inputs[2] = g.add_constant(n.name + "_fitted_bias", b);
}

inline ValueId output_called(const Graph& g, const std::string& name) {
  return *std::find_if(g.outputs.begin(), g.outputs.end(), [&](ValueId v) { return g[v].name == name; });
}

/// Chooses what to remove from one simplified graph, and fits what is left.
class Pruner {
 public:
  /// `answer` is the name of the output whose answers count.
  Pruner(const Graph& g, std::string answer, std::span<const float> samples, const PruneOptions& o)
      : g_(g),
        answer_(std::move(answer)),
        samples_(samples),
        o_(o),
        shapes_(infer_batch(g, o.model, 2)),
        classes_(g_, shapes_) {
    for (const auto& p : classes_.products()) {
      if (is_too_wide(p)) {
        for (const int c : p.in) classes_.keep(c);
      }
    }
    now_.removed.assign(static_cast<std::size_t>(classes_.count()), false);
    members_.resize(static_cast<std::size_t>(classes_.count()));
  }

  /// Finds out what each channel and block costs. Called once, first.
  void prepare() {
    observe();
    gather();
    if (o_.criterion == PruneCriterion::reconstruction) weigh();
    find_blocks();
    group();
    other_flops_ = static_cast<double>(Model(g_, o_.model).full_cost().flops) - product_flops();
    start_ = now_;
  }

  /// What a sample costs without what is gone: nominal FLOPs, or milliseconds.
  double price() const {
    return by_latency() ? milliseconds_of(Model(cut(), o_.model)) : other_flops_ + product_flops();
  }

  /// Takes out channels and blocks until a sample costs at most `target`; false where that cannot be reached. The costs
  /// of blocks count `block_weight` times: they are those before any refit.
  bool choose(double block_weight, double target) {
    now_ = start_;
    for (double now = price(); now > target; now = price()) {
      const double left = now - target;
      std::optional<std::size_t> best;
      double least = std::numeric_limits<double>::infinity();
      // What saves more than is asked for is not cheaper for that.
      const auto consider = [&](std::size_t i, double cost, double saving) {
        if (saving > 0 && cost / std::min(saving, left) < least) least = cost / std::min(saving, left), best = i;
      };
      for (std::size_t i = 0; i < now_.groups.size(); ++i) {
        if (now_.groups[i].empty()) continue;
        if (!by_latency() || now_.savings[i] < 0) now_.savings[i] = now - price_without(now_.groups[i]);
        consider(i, cost_of_group(now_.groups[i]), now_.savings[i]);
      }
      for (std::size_t i = 0; i < now_.blocks.size(); ++i) {
        if (now_.blocks[i].gone) continue;
        if (!by_latency() || now_.blocks[i].saving < 0) now_.blocks[i].saving = now - price_without_block(i);
        consider(now_.groups.size() + i, block_weight * now_.blocks[i].cost, now_.blocks[i].saving);
      }
      if (!best) return false;
      if (*best < now_.groups.size()) {
        remove(now_.groups[*best]);
        regroup(*best);
      } else {
        remove_block(*best - now_.groups.size());
      }
    }
    return true;
  }

  /// What is gone, to tell two choices apart.
  std::pair<std::vector<bool>, std::vector<std::string>> chosen() const { return {now_.removed, blocks_gone()}; }

  /// Names of the additions whose branch is gone.
  std::vector<std::string> blocks_gone() const {
    std::vector<std::string> names;
    for (const Block& b : now_.blocks) {
      if (b.gone) names.push_back(b.residual.name);
    }
    return names;
  }
  /// The answers' squared change in a changed network, relative to their square.
  double change_of(const Graph& changed) const {
    std::vector<float> said;
    watch_values(changed, o_.model, {output_called(changed, answer_)}, part_, o_.batch,
                 [&](std::size_t, const TensorView& x) { said.insert(said.end(), x.f32(), x.f32() + x.count()); });
    double d = 0;
    for (std::size_t i = 0; i < said.size(); ++i)
      d += static_cast<double>(answers_[i] - said[i]) * static_cast<double>(answers_[i] - said[i]);
    return d / std::max(answers_power_, 1e-30);
  }

  /// The pruned graph, its products fitted to what `g_` computed.
  Graph fitted() const {
    Graph small = cut();
    if (!o_.refit) return small;
    return refitted(std::move(small));
  }

  /// Fits every product of `small`, in order, to what the product of the same name computed in `g_`.
  Graph refitted(Graph small) const {
    std::map<std::string, std::size_t> whole;
    for (std::size_t i = 0; i < g_.nodes.size(); ++i) whole[g_.nodes[i].name] = i;
    std::set<std::string> products;
    for (const auto& p : classes_.products()) {
      if (!p.depthwise && !is_too_wide(p)) products.insert(g_.nodes[p.node].name);
    }
    constexpr int rounds = 3;
    std::set<std::string> left;
    for (const Node& n : small.nodes) left.insert(n.name);
    const Inference shapes = infer_batch(small, o_.model, 2);
    const Index count = static_cast<Index>(samples_.size()) / sample_size(g_);
    bool changed = !blocks_gone().empty();
    for (std::size_t i = 0; i < small.nodes.size(); ++i) {
      Node& n = small.nodes[i];
      if (!products.contains(n.name)) continue;
      const Node& source = g_.nodes[whole[n.name]];
      // Nothing in front has changed: nothing to make up for.
      changed = changed || g_[source.inputs[1]].constant.count() != small[n.inputs[1]].constant.count();
      if (!changed) continue;
      const Shape in = shapes.views[static_cast<std::size_t>(n.inputs[0])].shape,
                  out = shapes.views[static_cast<std::size_t>(n.outputs[0])].shape;
      const PatchReader reader(n, small, in, out);
      const Index each = std::max<Index>(1, o_.rows / std::max<Index>(1, count));
      const int axis = ChannelClasses::axis_of(n, out.rank());
      const auto kept = kept_of(source.outputs[0], out[axis]);
      Moments m;
      std::mt19937_64 random(o_.seed + i);
      // Where the output is added to something, what counts is the sum: the product also makes up for what pruning did
      // to the other operand.
      const auto [addition, other] = addition_behind(small, n.outputs[0]);
      const bool adds = addition && whole.contains(addition->name);
      const Node &end = adds ? *addition : n, &end_in_whole = adds ? g_.nodes[whole[addition->name]] : source;
      const ValueId goal = goal_behind(end_in_whole.outputs[0], left);
      const bool rectified = is_rectified(g_, goal) && is_rectified(small, end.outputs[0]);
      // Both networks over the same samples, batch by batch.
      std::vector<Tensor> targets, floors;
      watch_values(g_, o_.model, {goal}, samples_, o_.batch, [&](std::size_t, const TensorView& y) {
        Tensor copy(y.type, y.shape);
        std::copy_n(y.f32(), y.count(), static_cast<float*>(copy.mutable_data()));
        targets.push_back(ChannelClasses::cut(copy, axis, kept));
        if (!rectified) return;
        const TensorView t = targets.back().view();
        floors.emplace_back(t.type, t.shape);
        auto* floor = static_cast<float*>(floors.back().mutable_data());
        for (Index k = 0; k < t.count(); ++k) floor[k] = t.f32()[k] < 0 ? 0.0f : std::numeric_limits<float>::infinity();
      });
      std::size_t batch = 0;
      std::vector<Equations> equations;
      std::vector<ValueId> watched;
      if (adds) watched.push_back(other);
      watched.push_back(n.inputs[0]);
      watch_values(small, o_.model, watched, samples_, o_.batch, [&](std::size_t which, const TensorView& x) {
        if (which + 1 < watched.size()) {
          for (Tensor* t : {&targets[batch], rectified ? &floors[batch] : nullptr}) {
            auto* to = t ? static_cast<float*>(t->mutable_data()) : nullptr;
            for (Index k = 0; to && k < x.count(); ++k) to[k] -= x.f32()[k];
          }
          return;
        }
        const TensorView floor = rectified ? floors[batch].view() : TensorView{};
        Equations drawn = draw(reader, x, targets[batch].view(), rectified ? &floor : nullptr, each, random);
        take(m, drawn);
        if (rectified) equations.push_back(std::move(drawn));
        ++batch;
      });
      const bool has_bias = n.op != "MatMul" || bias_behind(small, n, reader.outputs());
      const Matrix start = weights_of(small, n, reader.width(), reader.outputs());
      Matrix fitted = solve(m, start, has_bias);
      // What a ReLU makes zero may be anything below: each round asks for what the round before found there (Zhang,
      // Zou, He and Sun, TPAMI 2016, section 3.2, fit through the ReLU, too).
      for (int round = 0; round < rounds && rectified; ++round) {
        m.xy.setZero();
        for (const Equations& e : equations) {
          const Matrix found = e.a * fitted;
          m.xy.noalias() +=
              e.a.transpose() *
              (e.floor.array() < std::numeric_limits<double>::infinity()).select(found.cwiseMin(e.floor), e.b);
        }
        fitted = solve(m, start, has_bias);
      }
      set_weights(small, n, fitted);
    }
    small.remove_dead_nodes();
    return small;
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
  // A residual block whose branch may go.
  struct Block {
    ResidualBlock residual;
    std::vector<std::size_t> products, inner_products;
    double cost = 0, saving = -1;
    bool gone = false;
  };

  bool by_latency() const noexcept { return o_.objective == Objective::latency; }
  bool is_too_wide(const ChannelClasses::Product& p) const noexcept {
    return !p.depthwise &&
           static_cast<double>(p.taps) * static_cast<double>(p.in.size()) > static_cast<double>(o_.widest);
  }
  Index left_of(const std::vector<int>& channels) const {
    return std::count_if(channels.begin(), channels.end(), [&](int c) {
      return c == ChannelClasses::none || !now_.removed[static_cast<std::size_t>(c)];
    });
  }
  double product_flops() const {
    const auto flops_of = [&](const ChannelClasses::Product& p) {
      return 2 * static_cast<double>(p.taps * p.pixels * left_of(p.out)) *
             (p.depthwise ? 1 : static_cast<double>(left_of(p.in)));
    };
    const auto flops_inside = [&](const ChannelClasses::InnerProduct& p) {
      return 2 * p.macs * static_cast<double>(left_of(p.classes));
    };
    double all = 0;
    for (const auto& p : classes_.products()) all += flops_of(p);
    for (const auto& p : classes_.inner_products()) all += flops_inside(p);
    for (const Block& b : now_.blocks) {
      if (!b.gone) continue;
      for (const std::size_t l : b.products) all -= flops_of(classes_.products()[l]);
      for (const std::size_t i : b.inner_products) all -= flops_inside(classes_.inner_products()[i]);
    }
    return all;
  }
  double price_without(const std::vector<int>& classes) {
    for (const int c : classes) now_.removed[static_cast<std::size_t>(c)] = true;
    const double p = price();
    for (const int c : classes) now_.removed[static_cast<std::size_t>(c)] = false;
    return p;
  }
  double price_without_block(std::size_t i) {
    now_.blocks[i].gone = true;
    const double p = price();
    now_.blocks[i].gone = false;
    return p;
  }

  /// The graph without what is gone, weights as they were.
  Graph cut() const {
    const std::vector<std::string> names = blocks_gone();
    if (names.empty()) return classes_.without(now_.removed);
    Graph g = without_blocks(g_, names, shapes_);
    const Inference shapes = infer_batch(g, o_.model, 2);
    const ChannelClasses classes(g, shapes);
    std::map<std::string, const ChannelClasses::Product*> of;
    for (const auto& p : classes_.products()) of[g_.nodes[p.node].name] = &p;
    std::vector<bool> removed(static_cast<std::size_t>(classes.count()), false);
    const auto carry_over = [&](const std::vector<int>& from, const std::vector<int>& to) {
      for (std::size_t i = 0; i < to.size(); ++i) {
        if (to[i] != ChannelClasses::none && from[i] != ChannelClasses::none &&
            now_.removed[static_cast<std::size_t>(from[i])])
          removed[static_cast<std::size_t>(to[i])] = true;
      }
    };
    for (const auto& p : classes.products()) {
      const auto& old = *of.at(g.nodes[p.node].name);
      carry_over(old.out, p.out);
      carry_over(old.in, p.in);
    }
    return classes.without(removed);
  }

  void find_blocks() {
    if (!o_.blocks || o_.criterion != PruneCriterion::reconstruction) return;
    for (ResidualBlock& b : residual_blocks(g_, shapes_)) {
      Block block;
      const Graph without = without_blocks(g_, {b.name}, shapes_);
      std::set<std::string> left;
      for (const Node& n : without.nodes) left.insert(n.name);
      for (std::size_t l = 0; l < classes_.products().size(); ++l) {
        if (!left.contains(g_.nodes[classes_.products()[l].node].name)) block.products.push_back(l);
      }
      for (std::size_t i = 0; i < classes_.inner_products().size(); ++i) {
        if (!left.contains(g_.nodes[classes_.inner_products()[i].node].name)) block.inner_products.push_back(i);
      }
      block.residual = std::move(b);
      if (!block.products.empty()) now_.blocks.push_back(std::move(block));
    }
    price_blocks();
  }
  // What each block that is left adds to the change of the answers, beside the blocks that are gone.
  void price_blocks() {
    std::vector<std::string> names = blocks_gone();
    const double before = names.empty() ? 0 : change_of(without_blocks(g_, names, shapes_));
    for (Block& b : now_.blocks) {
      if (b.gone) continue;
      names.push_back(b.residual.name);
      b.cost = std::max(1e-9, change_of(without_blocks(g_, names, shapes_)) - before);
      names.pop_back();
    }
  }
  void remove_block(std::size_t i) {
    Block& b = now_.blocks[i];
    b.gone = true;
    for (const std::size_t l : b.products) std::fill(now_.layers[l].gone.begin(), now_.layers[l].gone.end(), true);
    // Channels that only the branch had.
    std::vector<bool> needed(static_cast<std::size_t>(classes_.count()), false);
    for (std::size_t l = 0; l < classes_.products().size(); ++l) {
      if (std::find(b.products.begin(), b.products.end(), l) != b.products.end()) continue;
      for (const auto* channels : {&classes_.products()[l].in, &classes_.products()[l].out}) {
        for (const int c : *channels) {
          if (c != ChannelClasses::none) needed[static_cast<std::size_t>(c)] = true;
        }
      }
    }
    for (std::size_t k = 0; k < now_.kinds.size(); ++k) {
      std::erase_if(now_.kinds[k], [&](int c) { return !needed[static_cast<std::size_t>(c)]; });
      for (const int c : now_.kinds[k]) now_.cost[c] = cost_of(c);
      now_.groups[k] = next_group(k);
      now_.savings[k] = -1;
    }
    for (Block& other : now_.blocks) other.saving = -1;
    price_blocks();
  }

  static Index sample_size(const Graph& g) {
    Index n = 1;
    for (std::size_t i = 1; i < g[g.inputs[0]].sizes.size(); ++i) n *= std::max<Index>(1, g[g.inputs[0]].sizes[i]);
    return n;
  }
  std::vector<Index> kept_of(ValueId v, Index expected) const {
    std::vector<Index> kept;
    const auto& c = classes_.of(v);
    for (std::size_t i = 0; i < c.size(); ++i) {
      if (c[i] == ChannelClasses::none || !now_.removed[static_cast<std::size_t>(c[i])])
        kept.push_back(static_cast<Index>(i));
    }
    OFFRAMP_REQUIRE(static_cast<Index>(kept.size()) == expected, "channels of '" + g_[v].name + "' do not fit");
    return kept;
  }

  // The node that alone reads a value, or null.
  static const Node* only_reader(const Graph& g, ValueId v) {
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
  static bool is_rectified(const Graph& g, ValueId v) {
    const Node* reader = only_reader(g, v);
    return reader && reader->op == "Relu";
  }
  // What a value of the whole network should be in one where the nodes `left` are left: behind it blocks may be gone,
  // and then it is what the last of them added up to. That holds where nothing that is left reads it in between.
  ValueId goal_behind(ValueId v, const std::set<std::string>& left) const {
    while (true) {
      const ValueId read = is_rectified(g_, v) ? only_reader(g_, v)->outputs[0] : v;
      const auto b = std::find_if(now_.blocks.begin(), now_.blocks.end(),
                                  [&](const Block& x) { return x.gone && x.residual.shortcut == read; });
      if (b == now_.blocks.end() || g_.is_output(read)) return v;
      for (const Node& n : g_.nodes) {
        if (left.contains(n.name) && std::find(n.inputs.begin(), n.inputs.end(), read) != n.inputs.end()) return v;
      }
      v = b->residual.sum;
    }
  }

  // The addition that alone reads a value and whose operands are of one shape, and its other operand.
  static std::pair<const Node*, ValueId> addition_behind(const Graph& g, ValueId v) {
    const Node* reader = only_reader(g, v);
    if (!reader || reader->op != "Add" || reader->inputs.size() != 2) return {};
    const ValueId other = reader->inputs[reader->inputs[0] == v ? 1 : 0];
    if (g.is_constant(other) || other == v) return {};
    return {reader, other};
  }

  Matrix solve(const Moments& m, const Matrix& start, bool has_bias) const {
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
    if (!has_bias) {
      a.row(n - 1).head(n - 1).setZero();
      b.row(n - 1).setZero();
    }
    return a.selfadjointView<Eigen::Lower>().llt().solve(b);
  }

  // What the whole network says of some samples.
  void observe() {
    part_ = samples_.first(static_cast<std::size_t>(
        std::min<Index>(64, static_cast<Index>(samples_.size()) / sample_size(g_)) * sample_size(g_)));
    watch_values(g_, o_.model, {output_called(g_, answer_)}, part_, o_.batch, [&](std::size_t, const TensorView& x) {
      answers_.insert(answers_.end(), x.f32(), x.f32() + x.count());
    });
    for (const float x : answers_) answers_power_ += static_cast<double>(x) * static_cast<double>(x);
  }

  // Moments of every product that reads a removable class.
  void gather() {
    const Index count = static_cast<Index>(samples_.size()) / sample_size(g_);
    const auto& products = classes_.products();
    now_.layers.resize(products.size());
    for (std::size_t l = 0; l < products.size(); ++l) {
      const auto& p = products[l];
      now_.layers[l].gone.assign(p.in.size(), false);
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
      Layer& layer = now_.layers[l];
      watch_values(g_, o_.model, {n.inputs[0], n.outputs[0]}, samples_, o_.batch,
                   [&, x = std::vector<Tensor>(1)](std::size_t i, const TensorView& v) mutable {
                     if (i == 0) {
                       x[0] = Tensor(v.type, v.shape);
                       std::copy_n(v.f32(), v.count(), static_cast<float*>(x[0].mutable_data()));
                     } else {
                       take(layer.moments, draw(reader, x[0].view(), v, nullptr, each, random));
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
        if (c == ChannelClasses::none || !classes_.removable(c)) continue;
        auto& readers = members_[static_cast<std::size_t>(c)];
        if (readers.empty() || readers.back().first != l) readers.push_back({l, {}});
        readers.back().second.push_back(static_cast<Index>(i));
      }
    }
  }

  // Weighs each layer's relative error by what an error of that size does to the answers: its output is disturbed by
  // noise of a tenth of its power, and the answers' squared change is divided by that.
  void weigh() {
    for (std::size_t l = 0; l < now_.layers.size(); ++l) {
      Layer& layer = now_.layers[l];
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
      layer.weight = std::max(1e-6, change_of(noisy) / 0.01);
    }
  }

  // Rows of a layer's weights that read these channels.
  static std::vector<Index> rows_of(const std::vector<Index>& channels, Index taps) {
    std::vector<Index> rows;
    for (const Index c : channels) {
      for (Index t = 0; t < taps; ++t) rows.push_back(c * taps + t);
    }
    return rows;
  }

  // The error that the readers of a class make more without it, after their best refit.
  double cost_of(int c) const {
    double all = 0;
    for (const auto& [l, channels] : members_[static_cast<std::size_t>(c)]) {
      const Layer& layer = now_.layers[l];
      if (layer.moments.rows == 0 || layer.gone[static_cast<std::size_t>(channels[0])]) continue;
      const std::vector<Index> at = rows_of(channels, classes_.products()[l].taps);
      const Matrix rows = layer.weights(at, Eigen::all);
      double error = 0;
      switch (o_.criterion) {
        case PruneCriterion::reconstruction: {
          const Matrix block = layer.inverse(at, at);
          const Matrix solved = block.ldlt().solve(rows);
          error = (rows.array() * solved.array()).sum() / std::max(layer.power, 1e-30) * layer.weight;
          break;
        }
        case PruneCriterion::activation_energy:
          error = layer.moments.xx.diagonal()(at).sum() / layer.moments.rows * rows.squaredNorm();
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
    for (const int c : classes) all += now_.cost.at(c);
    return all;
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
      now_.cost[c] = cost_of(c);
    }
    for (auto& [key, classes] : kinds) {
      now_.kinds.push_back(classes);
      limits_.push_back(static_cast<std::size_t>(std::ceil(static_cast<double>(classes.size()) * (1 - o_.most_share))));
      now_.groups.push_back(next_group(now_.kinds.size() - 1));
      now_.savings.push_back(-1);
    }
  }
  std::vector<int> next_group(std::size_t kind) {
    std::vector<int> left;
    for (const int c : now_.kinds[kind]) {
      if (!now_.removed[static_cast<std::size_t>(c)]) left.push_back(c);
    }
    if (left.empty()) return {};
    // The first group leaves a multiple of the granularity.
    const auto step = static_cast<std::size_t>(std::max<Index>(1, o_.granularity / classes_.width(left[0])));
    std::size_t take_away = left.size() % step == 0 ? step : left.size() % step;
    if (left.size() < take_away + std::max<std::size_t>(1, limits_[kind])) return {};
    std::stable_sort(left.begin(), left.end(), [&](int a, int b) { return now_.cost[a] < now_.cost[b]; });
    left.resize(take_away);
    return left;
  }
  void regroup(std::size_t changed) {
    // Whoever shares a reader with what has gone costs something else now.
    std::set<std::size_t> touched;
    for (const int c : now_.groups[changed]) {
      for (const auto& [l, channels] : members_[static_cast<std::size_t>(c)]) touched.insert(l);
    }
    for (std::size_t k = 0; k < now_.kinds.size(); ++k) {
      bool affected = k == changed;
      for (const int c : now_.kinds[k]) {
        for (const auto& [l, channels] : members_[static_cast<std::size_t>(c)])
          affected = affected || touched.contains(l);
        if (affected) break;
      }
      if (!affected) continue;
      for (const int c : now_.kinds[k]) {
        if (!now_.removed[static_cast<std::size_t>(c)]) now_.cost[c] = cost_of(c);
      }
      now_.groups[k] = next_group(k);
      now_.savings[k] = -1;
    }
    for (Block& b : now_.blocks) {
      if (std::any_of(b.products.begin(), b.products.end(), [&](std::size_t l) { return touched.contains(l); }))
        b.saving = -1;
    }
  }

  void remove(const std::vector<int>& classes) {
    for (const int c : classes) {
      now_.removed[static_cast<std::size_t>(c)] = true;
      for (const auto& [l, channels] : members_[static_cast<std::size_t>(c)]) {
        for (const Index channel : channels) eliminate(now_.layers[l], classes_.products()[l].taps, channel);
      }
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
  std::string answer_;
  std::span<const float> samples_;
  const PruneOptions& o_;
  Inference shapes_;
  ChannelClasses classes_;
  // What is gone, and what the rest would cost.
  struct State {
    std::vector<bool> removed;  // of each class
    std::vector<Layer> layers;  // of each product
    std::map<int, double> cost;
    std::vector<std::vector<int>> kinds, groups;
    std::vector<double> savings;  // of each group; negative: not known
    std::vector<Block> blocks;
  } now_, start_;
  std::vector<std::vector<std::pair<std::size_t, std::vector<Index>>>> members_;  // of each class: who reads what
  std::vector<std::size_t> limits_;
  std::span<const float> part_;  // the samples that tell what a change does to the answers
  std::vector<float> answers_;
  double answers_power_ = 0, other_flops_ = 0;
};

/// What is left of every convolution and product of a graph in a pruned form of it.
inline std::vector<PrunedLayer> layers_left(const Graph& whole, const Graph& pruned) {
  const auto outputs = [](const Graph& g, const Node& n) {
    const Shape& w = g[n.inputs[1]].constant.shape();
    return n.op == "Conv" || n.integer("transB", 0) != 0 ? w[0] : w[w.rank() - 1];
  };
  std::vector<PrunedLayer> layers;
  for (const Node& n : whole.nodes) {
    if (!ChannelClasses::is_product(n) || !has_constant_weights(whole, n)) continue;
    PrunedLayer l{n.name, outputs(whole, n), 0};
    for (const Node& m : pruned.nodes) {
      if (m.name == n.name) l.kept = outputs(pruned, m);
    }
    layers.push_back(std::move(l));
  }
  return layers;
}

}  // namespace detail

/// Prunes a network by inputs without labels: whole samples in NCHW order. Raises an Error where the budget cannot be
/// met.
inline PruneResult prune(
    const Model& model, std::span<const float> samples, const PruneOptions& options = {},
    const std::function<void(Index done, Index total)>& progress = [](Index, Index) {}) {
  OFFRAMP_REQUIRE(model.has_plan() && model.exit_count() > 0, "the network is no classifier with one float32 input");
  OFFRAMP_REQUIRE(options.share > 0 && options.share < 1, "the share to remove must lie between 0 and 1");
  OFFRAMP_REQUIRE(options.objective != Objective::modelled, "pruning counts nominal FLOPs or milliseconds");
  detail::check_samples(samples, model.sample_size());
  Graph g = simplified(model.graph(), options.model);
  detail::name_nodes(g);
  PruneResult r;
  r.full_flops = static_cast<double>(model.full_cost().flops);
  const Index size = model.sample_size(), count = static_cast<Index>(samples.size()) / size;
  const auto fit = samples.first(static_cast<std::size_t>(std::min(count, options.fit_samples) * size));
  const std::string& name = model.exits().back().name;
  const ValueId answer = detail::output_called(g, name);
  const bool learns = options.distil.epochs > 0;
  OFFRAMP_REQUIRE(!learns || model.exit_count() == 1,
                  "exits do not learn with the network that they stand on: prune it before it gets them");
  const bool by_latency = options.objective == Objective::latency;
  const auto price_of = [&](const Graph& of) {
    const Model m(of, options.model);
    return by_latency ? detail::milliseconds_of(m) : static_cast<double>(m.full_cost().flops);
  };
  const auto learned = [&](const Graph& from, Index epochs, std::span<const float> inputs) {
    fit::DistilOptions o = options.distil;
    o.epochs = epochs;
    return fit::distil(from, detail::output_called(from, name), g, answer, inputs, options.model, o, progress);
  };
  // What a few epochs' worth of samples say about a cut is enough to compare it with another.
  const auto trial = samples.first(static_cast<std::size_t>(std::min<Index>(count, 10'000) * size));
  const double full = price_of(g);
  r.graph = g;
  // With training between them, several small cuts lose less than a large one.
  const int rounds = learns ? 2 : 1;
  for (int round = 1; round <= rounds; ++round) {
    const Graph before = std::move(r.graph);
    detail::Pruner pruner(before, name, fit, options);
    pruner.prepare();
    // What a block is worth once the rest has been fitted cannot be told ahead: several weights are tried.
    std::vector<std::pair<std::vector<bool>, std::vector<std::string>>> seen;
    std::vector<std::string> blocks;
    double least = std::numeric_limits<double>::infinity();
    for (const double weight : {1.0, 0.1, 0.03, 0.01}) {
      if (!pruner.choose(weight, full * (1 - options.share * round / rounds)) ||
          std::find(seen.begin(), seen.end(), pruner.chosen()) != seen.end())
        continue;
      seen.push_back(pruner.chosen());
      Graph fitted = pruner.fitted();
      double loss = 0;
      if (learns) {
        fit::DistilResult once = learned(fitted, 1, trial);
        loss = std::min(once.before, once.after);
        fitted = std::move(once.graph);
      } else {
        loss = pruner.change_of(fitted);
      }
      if (loss >= least) continue;
      least = loss;
      r.graph = std::move(fitted);
      blocks = pruner.blocks_gone();
    }
    OFFRAMP_REQUIRE(!seen.empty(), "the network cannot lose " + std::to_string(100 * options.share) + " % of its " +
                                       (by_latency ? "latency" : "FLOPs") + " and keep a part of each layer");
    r.blocks.insert(r.blocks.end(), blocks.begin(), blocks.end());
  }
  if (learns) r.graph = learned(r.graph, options.distil.epochs, samples).graph;
  r.layers = detail::layers_left(g, r.graph);
  if (by_latency) {
    r.full_ms = full;
    r.ms = price_of(r.graph);
  }
  const auto expected = detail::answers_of(g, answer, options.model, fit, options.batch);
  const auto answers =
      detail::answers_of(r.graph, detail::output_called(r.graph, name), options.model, fit, options.batch);
  Index same = 0;
  for (std::size_t i = 0; i < answers.size(); ++i) same += answers[i] == expected[i];
  r.samples = static_cast<Index>(answers.size());
  r.agreement = static_cast<double>(same) / static_cast<double>(std::max<Index>(1, r.samples));
  r.flops = static_cast<double>(Model(r.graph, options.model).full_cost().flops);
  return r;
}

}  // namespace offramp
