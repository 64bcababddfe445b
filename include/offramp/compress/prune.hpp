/// @file prune.hpp
/// Structured pruning without training: channels taken out, what is left fitted again by least squares on inputs
/// without labels. The result is a smaller dense network.
///
/// Among channels of a kind those go first whose readers lose least after their best refit: the structured form of
/// Optimal Brain Surgeon (Hassibi and Stork 1992; for channels Kurtic et al. 2023, arXiv 2302.04089, section 3). What
/// that does to the answers is measured, for several numbers of channels of each kind, and so is what they change by
/// without a residual branch; the budget goes where it changes them least (as NetAdapt measures its proposals: Yang et
/// al. 2018, arXiv 1804.03230, section 3.2). After that every product in turn is fitted again (refit.hpp).
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Core>
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

#include "offramp/compress/refit.hpp"
#include "offramp/fit/distil.hpp"
#include "offramp/flops/objective.hpp"

namespace offramp {

/// What tells how much a channel matters.
enum class PruneCriterion : std::uint8_t {
  reconstruction,     ///< what its readers lose after their best refit
  activation_energy,  ///< its mean square times its readers' weights
  weight_norm,        ///< the sum of its weights' magnitudes
};

struct PruneOptions : RefitOptions {
  double share = 0.3;  ///< of the network's price, to be removed
  Objective objective = Objective::flops;
  bool blocks = true;  ///< whole branches of residual blocks may go
  PruneCriterion criterion = PruneCriterion::reconstruction;
  bool refit = true;
  fit::DistilOptions distil;  ///< all weights learn from the whole network's answers after that; 0 epochs: they do not
  Index granularity = 16;     ///< channels of a group that go together: the kernels work on 16 columns at a time
  double most_share = 0.75;   ///< of the channels of a layer, that may go
  Index fit_samples = 1000;   ///< from the front, that choose and that least squares read; distillation reads all

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

inline ValueId output_called(const Graph& g, const std::string& name) {
  return *std::find_if(g.outputs.begin(), g.outputs.end(), [&](ValueId v) { return g[v].name == name; });
}

/// Chooses what to remove from one simplified graph, and fits what is left.
class Pruner {
 public:
  /// `answer` is the name of the output whose answers count; `judges` tell what a change does to them.
  Pruner(const Graph& g, std::string answer, std::span<const float> samples, std::span<const float> judges,
         const PruneOptions& o)
      : g_(g),
        answer_(std::move(answer)),
        samples_(samples),
        judges_(judges),
        o_(o),
        shapes_(infer_batch(g, o.model, 2)),
        classes_(g_, shapes_),
        refit_(g_, classes_, blocks_, samples_, o_),
        trial_options_(o),
        trial_(g_, classes_, blocks_,
               samples_.first(static_cast<std::size_t>((this->samples() + 3) / 4 * sample_size())), trial_options_) {
    trial_options_.rows = std::max<Index>(1, o.rows / 4);
    for (const auto& p : classes_.products()) {
      if (is_too_wide(p, o_)) {
        for (const int c : p.in) classes_.keep(c);
      }
    }
  }

  Pruner(const Pruner&) = delete;  // its parts refer to one another
  Pruner& operator=(const Pruner&) = delete;

  /// Finds out what channels and blocks cost. Called once, first.
  void prepare() {
    observe();
    find_blocks();
    gather();
    find_kinds();
    layers_.clear();
    reset();
    other_flops_ = static_cast<double>(Model(g_, o_.model).full_cost().flops) - product_flops();
  }

  /// What a sample costs without what is gone: nominal FLOPs, or milliseconds.
  double price() const {
    return by_latency() ? milliseconds_of(Model(smaller(), o_.model)) : other_flops_ + product_flops();
  }

  /// Takes out channels and blocks until a sample costs at most `target`; false where that cannot be reached. What
  /// blocks cost counts `block_weight` times.
  bool choose(double block_weight, double target) {
    reset();
    for (double now = price(); now > target; now = price()) {
      const double left = now - target;
      std::optional<std::size_t> best;
      double least = std::numeric_limits<double>::infinity();
      // What saves more than is asked for is not cheaper for that.
      const auto consider = [&](std::size_t i, double cost, double saving) {
        if (saving > 0 && cost / std::min(saving, left) < least) least = cost / std::min(saving, left), best = i;
      };
      for (std::size_t i = 0; i < kinds_.size(); ++i) {
        Kind& k = kinds_[i];
        if (k.taken == k.groups.size() || is_gone(k)) continue;
        if (!by_latency() || k.saving < 0) k.saving = now - price_without(k.groups[k.taken]);
        consider(i, k.costs[k.taken], k.saving);
      }
      for (std::size_t i = 0; i < blocks_.size(); ++i) {
        if (cut_.gone[i]) continue;
        if (!by_latency() || branches_[i].saving < 0) branches_[i].saving = now - price_without_block(i);
        consider(kinds_.size() + i, block_weight * cost_of_block(i), branches_[i].saving);
      }
      if (!best) return false;
      if (*best < kinds_.size())
        remove_group(kinds_[*best]);
      else
        remove_block(*best - kinds_.size());
    }
    return true;
  }

  /// What is gone.
  const Cut& chosen() const noexcept { return cut_; }

  /// Names of the additions whose branch is gone.
  std::vector<std::string> blocks_gone() const { return names_of(cut_); }

  /// The answers' squared change in a changed network, relative to their square.
  double change_of(const Graph& changed) const {
    std::vector<float> said;
    watch_values(changed, o_.model, {output_called(changed, answer_)}, judges_, o_.batch,
                 [&](std::size_t, const TensorView& x) { said.insert(said.end(), x.f32(), x.f32() + x.count()); });
    double d = 0;
    for (std::size_t i = 0; i < said.size(); ++i)
      d += static_cast<double>(answers_[i] - said[i]) * static_cast<double>(answers_[i] - said[i]);
    return d / std::max(answers_power_, 1e-30);
  }

  /// The pruned graph, its products fitted to what the whole one computed.
  Graph fitted() const { return o_.refit ? refit_.all(smaller(), cut_) : smaller(); }

 private:
  static constexpr std::size_t surroundings = 5;  // products from a cut on that are fitted to tell what it costs

  // What one product knows of its input.
  struct Layer {
    Matrix inverse;          // of the moments of what is left, with a ridge
    Matrix weights;          // best for what is left: [width + 1][outputs]
    Eigen::VectorXd energy;  // mean squares of what it reads
    double power = 0;        // squares of the outputs, all together
  };
  // Channels that are read and computed by the same products.
  struct Kind {
    std::vector<std::size_t> products;
    std::vector<std::vector<int>> groups;  // that go together, in the order in which they go
    std::vector<double> costs;             // of each group
    std::size_t taken = 0;                 // groups
    double saving = -1;                    // of the next group; negative: not known
  };
  // What only a residual block's branch computes.
  struct Branch {
    std::vector<std::size_t> products, inner_products;
    std::optional<std::size_t> next, previous;  // the block that reads what this one adds up to, and the other way
    double saving = -1;
  };

  Index sample_size() const { return shapes_.views[static_cast<std::size_t>(g_.inputs[0])].shape.count() / 2; }
  Index samples() const { return static_cast<Index>(samples_.size()) / sample_size(); }
  bool by_latency() const noexcept { return o_.objective == Objective::latency; }
  bool reconstructs() const noexcept { return o_.criterion == PruneCriterion::reconstruction; }
  Cut nothing() const {
    return {std::vector<bool>(static_cast<std::size_t>(classes_.count()), false),
            std::vector<bool>(blocks_.size(), false)};
  }
  void reset() {
    cut_ = nothing();
    for (Kind& k : kinds_) k.taken = 0, k.saving = -1;
    for (Branch& b : branches_) b.saving = -1;
  }
  Index left_of(const std::vector<int>& channels) const {
    return std::count_if(channels.begin(), channels.end(), [&](int c) {
      return c == ChannelClasses::none || !cut_.removed[static_cast<std::size_t>(c)];
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
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      if (!cut_.gone[b]) continue;
      for (const std::size_t l : branches_[b].products) all -= flops_of(classes_.products()[l]);
      for (const std::size_t i : branches_[b].inner_products) all -= flops_inside(classes_.inner_products()[i]);
    }
    return all;
  }
  double price_without(const std::vector<int>& classes) {
    for (const int c : classes) cut_.removed[static_cast<std::size_t>(c)] = true;
    const double p = price();
    for (const int c : classes) cut_.removed[static_cast<std::size_t>(c)] = false;
    return p;
  }
  double price_without_block(std::size_t i) {
    cut_.gone[i] = true;
    const double p = price();
    cut_.gone[i] = false;
    return p;
  }
  bool is_gone(const Kind& k) const {
    return std::all_of(k.products.begin(), k.products.end(), [&](std::size_t l) {
      for (std::size_t b = 0; b < blocks_.size(); ++b) {
        const auto& own = branches_[b].products;
        if (cut_.gone[b] && std::find(own.begin(), own.end(), l) != own.end()) return true;
      }
      return false;
    });
  }
  void remove_group(Kind& kind) {
    for (const int c : kind.groups[kind.taken]) cut_.removed[static_cast<std::size_t>(c)] = true;
    ++kind.taken;
    // Whoever shares a product with what has gone saves something else now.
    const auto shares = [&](const std::vector<std::size_t>& products) {
      return std::find_first_of(products.begin(), products.end(), kind.products.begin(), kind.products.end()) !=
             products.end();
    };
    for (Kind& k : kinds_) {
      if (shares(k.products)) k.saving = -1;
    }
    for (Branch& b : branches_) {
      if (shares(b.products)) b.saving = -1;
    }
  }
  void remove_block(std::size_t i) {
    cut_.gone[i] = true;
    for (Kind& k : kinds_) k.saving = -1;
    for (Branch& b : branches_) b.saving = -1;
  }

  /// The graph without what is gone, weights as they were.
  Graph smaller() const {
    if (!cut_.has_gone()) return classes_.without(cut_.removed);
    Graph g = without_blocks(g_, blocks_gone(), shapes_);
    const Inference shapes = infer_batch(g, o_.model, 2);
    const ChannelClasses classes(g, shapes);
    std::map<std::string, const ChannelClasses::Product*> of;
    for (const auto& p : classes_.products()) of[g_.nodes[p.node].name] = &p;
    std::vector<bool> removed(static_cast<std::size_t>(classes.count()), false);
    const auto carry_over = [&](const std::vector<int>& from, const std::vector<int>& to) {
      for (std::size_t i = 0; i < to.size(); ++i) {
        if (to[i] != ChannelClasses::none && from[i] != ChannelClasses::none &&
            cut_.removed[static_cast<std::size_t>(from[i])])
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
    if (!o_.blocks || !reconstructs()) return;
    for (ResidualBlock& block : residual_blocks(g_, shapes_)) {
      Branch b;
      const Graph without = without_blocks(g_, {block.name}, shapes_);
      std::set<std::string> left;
      for (const Node& n : without.nodes) left.insert(n.name);
      for (std::size_t l = 0; l < classes_.products().size(); ++l) {
        if (!left.contains(g_.nodes[classes_.products()[l].node].name)) b.products.push_back(l);
      }
      for (std::size_t i = 0; i < classes_.inner_products().size(); ++i) {
        if (!left.contains(g_.nodes[classes_.inner_products()[i].node].name)) b.inner_products.push_back(i);
      }
      if (b.products.empty()) continue;
      blocks_.push_back(std::move(block));
      branches_.push_back(std::move(b));
    }
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const ValueId read = behind_relu(g_, blocks_[i].sum);
      for (std::size_t k = 0; k < blocks_.size(); ++k) {
        if (blocks_[k].shortcut == read) branches_[i].next = k, branches_[k].previous = i;
      }
    }
  }
  std::vector<std::string> names_of(const Cut& cut) const {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      if (cut.gone[i]) names.push_back(blocks_[i].name);
    }
    return names;
  }
  // What a block that is left adds to the change of the answers, beside those that are gone.
  double cost_of_block(std::size_t i) {
    std::vector<std::size_t> before, behind;
    for (auto b = branches_[i].previous; b && cut_.gone[*b]; b = branches_[*b].previous) before.push_back(*b);
    for (auto b = branches_[i].next; b && cut_.gone[*b]; b = branches_[*b].next) behind.push_back(*b);
    std::vector<std::size_t> run = before;
    run.push_back(i);
    run.insert(run.end(), behind.begin(), behind.end());
    return std::max(1e-9, change_without(run) - change_without(before) - change_without(behind));
  }
  // The answers' change without neighbouring blocks, once what stands in front of the gap has been fitted to what the
  // last of them added up to, and what stands behind to what it computed.
  double change_without(std::vector<std::size_t> run) {
    if (run.empty()) return 0;
    std::sort(run.begin(), run.end());
    const auto [known, is_new] = runs_.try_emplace(run, 0.0);
    if (!is_new) return known->second;
    Cut cut = nothing();
    for (const std::size_t b : run) cut.gone[b] = true;
    Graph small = without_blocks(g_, names_of(cut), shapes_);
    if (o_.refit) small = trial_.around(std::move(small), cut, surroundings);
    return known->second = change_of(small);
  }

  // What the whole network says of the samples that judge.
  void observe() {
    watch_values(g_, o_.model, {output_called(g_, answer_)}, judges_, o_.batch, [&](std::size_t, const TensorView& x) {
      answers_.insert(answers_.end(), x.f32(), x.f32() + x.count());
    });
    for (const float x : answers_) answers_power_ += static_cast<double>(x) * static_cast<double>(x);
  }

  // Moments of every product that reads a removable class.
  void gather() {
    const auto& products = classes_.products();
    layers_.resize(products.size());
    readers_.resize(static_cast<std::size_t>(classes_.count()));
    for (std::size_t l = 0; l < products.size(); ++l) {
      const auto& p = products[l];
      if (p.depthwise) continue;
      const bool matters = std::any_of(p.in.begin(), p.in.end(),
                                       [&](int c) { return c != ChannelClasses::none && classes_.removable(c); });
      if (!matters) continue;
      for (std::size_t i = 0; i < p.in.size(); ++i) {
        const int c = p.in[i];
        if (c == ChannelClasses::none || !classes_.removable(c)) continue;
        auto& readers = readers_[static_cast<std::size_t>(c)];
        if (readers.empty() || readers.back().first != l) readers.push_back({l, {}});
        readers.back().second.push_back(static_cast<Index>(i));
      }
      const Node& n = g_.nodes[p.node];
      const Shape in = shapes_.views[static_cast<std::size_t>(n.inputs[0])].shape,
                  out = shapes_.views[static_cast<std::size_t>(n.outputs[0])].shape;
      const PatchReader reader(n, g_, in, out);
      std::mt19937_64 random(o_.seed + l);
      const Index each = std::max<Index>(1, o_.rows / std::max<Index>(1, samples()));
      Moments m;
      watch_values(g_, o_.model, {n.inputs[0], n.outputs[0]}, samples_, o_.batch,
                   [&, x = Tensor()](std::size_t i, const TensorView& v) mutable {
                     if (i == 0) {
                       x = copied(v);
                     } else {
                       take(m, draw(reader, x.view(), v, nullptr, each, random));
                     }
                   });
      require_finite(m, n);
      Layer& layer = layers_[l];
      layer.weights = weights_of(g_, n, reader.width(), reader.outputs());
      layer.energy = m.xx.diagonal() / m.rows;
      layer.power = m.yy.sum();
      Matrix a = m.xx.selfadjointView<Eigen::Lower>();
      a.diagonal().array() += o_.ridge * std::max(1e-12, a.diagonal().head(a.rows() - 1).mean());
      layer.inverse = a.selfadjointView<Eigen::Lower>().llt().solve(Matrix::Identity(a.rows(), a.cols()));
    }
  }

  void find_kinds() {
    const auto& products = classes_.products();
    std::map<std::vector<std::pair<std::size_t, bool>>, std::vector<int>> kinds;
    for (int c = 0; c < classes_.count(); ++c) {
      if (!classes_.removable(c)) continue;
      std::vector<std::pair<std::size_t, bool>> key;
      for (std::size_t l = 0; l < products.size(); ++l) {
        const auto& p = products[l];
        if (std::find(p.in.begin(), p.in.end(), c) != p.in.end()) key.push_back({l, false});
        if (std::find(p.out.begin(), p.out.end(), c) != p.out.end()) key.push_back({l, true});
      }
      kinds[key].push_back(c);
    }
    for (auto& [key, classes] : kinds) {
      Kind k;
      for (const auto& [l, makes] : key) k.products.push_back(l);
      order(k, std::move(classes));
      kinds_.push_back(std::move(k));
    }
  }

  // Groups of channels of a kind in the order in which they go, the least useful first, and what each costs.
  void order(Kind& kind, std::vector<int> left) const {
    const auto least = std::max<std::size_t>(
        1, static_cast<std::size_t>(std::ceil(static_cast<double>(left.size()) * (1 - o_.most_share))));
    const auto step = static_cast<std::size_t>(std::max<Index>(1, o_.granularity / classes_.width(left[0])));
    // The first group leaves a multiple of the granularity.
    const std::size_t first = left.size() % step == 0 ? step : left.size() % step;
    if (left.size() < first + least) return;
    const std::size_t groups = 1 + (left.size() - first - least) / step;
    std::map<std::size_t, Layer> layers;  // without what has gone
    for (const int c : left) {
      for (const auto& [l, channels] : readers_[static_cast<std::size_t>(c)]) layers.try_emplace(l, layers_[l]);
    }
    std::vector<std::pair<std::size_t, double>> changes{{0, 0.0}};  // groups that are gone: the answers' change
    for (std::size_t g = 0; g < groups; ++g) {
      std::map<int, double> cost;
      for (const int c : left) cost[c] = cost_of(c, layers);
      std::stable_sort(left.begin(), left.end(), [&](int a, int b) { return cost[a] < cost[b]; });
      const auto end = left.begin() + static_cast<std::ptrdiff_t>(g == 0 ? first : step);
      kind.groups.emplace_back(left.begin(), end);
      left.erase(left.begin(), end);
      kind.costs.push_back(0);
      for (const int c : kind.groups.back()) {
        kind.costs.back() += cost[c];
        if (!reconstructs()) continue;
        for (const auto& [l, channels] : readers_[static_cast<std::size_t>(c)]) {
          for (const Index channel : channels) eliminate(layers.at(l), classes_.products()[l].taps, channel);
        }
      }
      if (!reconstructs() || !is_measured(g + 1, groups)) continue;
      Graph without = g_;
      for (const auto& [l, layer] : layers)
        set_weights(without, without.nodes[classes_.products()[l].node], layer.weights);
      changes.emplace_back(g + 1, std::max(changes.back().second, change_of(without)));
    }
    if (!reconstructs()) return;
    // Between two measurements the error of the readers tells how the change grows.
    for (std::size_t m = 1; m < changes.size(); ++m) {
      const auto from = kind.costs.begin() + static_cast<std::ptrdiff_t>(changes[m - 1].first),
                 to = kind.costs.begin() + static_cast<std::ptrdiff_t>(changes[m].first);
      const double error = std::accumulate(from, to, 0.0), grown = changes[m].second - changes[m - 1].second;
      for (auto c = from; c != to; ++c) *c = grown * (error > 0 ? *c / error : 1 / static_cast<double>(to - from));
    }
    const double healed = o_.refit ? share_that_stays(kind, changes) : 1;
    for (double& c : kind.costs) c *= healed;
  }
  // What is left of the answers' change without half the groups of a kind once the products behind the readers have
  // been fitted, too: early layers have many behind them that make up for what is lost, the last have none. Where half
  // the network reads a kind, its readers are what could make up for it.
  double share_that_stays(const Kind& kind, const std::vector<std::pair<std::size_t, double>>& changes) const {
    const std::size_t half = (kind.groups.size() + 1) / 2;
    const auto at = std::find_if(changes.begin(), changes.end(), [&](const auto& c) { return c.first == half; });
    if (!(at->second > 0) || kind.products.size() > 2 * surroundings) return 1;
    Cut cut = nothing();
    for (std::size_t g = 0; g < half; ++g) {
      for (const int c : kind.groups[g]) cut.removed[static_cast<std::size_t>(c)] = true;
    }
    return std::min(1.0, change_of(trial_.around(classes_.without(cut.removed), cut, surroundings)) / at->second);
  }
  // What the answers change by is measured for up to five numbers of groups.
  static bool is_measured(std::size_t gone, std::size_t groups) noexcept {
    for (const std::size_t eighths : {1U, 2U, 4U, 6U, 8U}) {
      if (gone == (groups * eighths + 7) / 8) return true;
    }
    return false;
  }

  // The error that the readers of a class make more without it, after their best refit.
  double cost_of(int c, const std::map<std::size_t, Layer>& layers) const {
    double all = 0;
    for (const auto& [l, channels] : readers_[static_cast<std::size_t>(c)]) {
      const Layer& layer = layers.at(l);
      const std::vector<Index> at = rows_of(channels, classes_.products()[l].taps);
      const Matrix rows = layer.weights(at, Eigen::all);
      switch (o_.criterion) {
        case PruneCriterion::reconstruction: {
          const Matrix block = layer.inverse(at, at);
          const Matrix solved = block.ldlt().solve(rows);
          all += (rows.array() * solved.array()).sum() / std::max(layer.power, 1e-30);
          break;
        }
        case PruneCriterion::activation_energy:
          all += layer.energy(at).sum() * rows.squaredNorm();
          break;
        case PruneCriterion::weight_norm:
          break;
      }
    }
    return o_.criterion == PruneCriterion::weight_norm ? weight_of(c) : all;
  }
  // The mean magnitude of the weights that compute a channel, as Li et al. 2017 (arXiv 1608.08710) do.
  double weight_of(int c) const {
    double all = 0;
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
          sum += static_cast<double>(
              std::fabs(w.view().f32()[by_row ? static_cast<Index>(o) * each + i : i * outs + static_cast<Index>(o)]));
        all += sum / static_cast<double>(each);
      }
    }
    return all;
  }
  // Rows of a layer's weights that read these channels.
  static std::vector<Index> rows_of(const std::vector<Index>& channels, Index taps) {
    std::vector<Index> rows;
    for (const Index c : channels) {
      for (Index t = 0; t < taps; ++t) rows.push_back(c * taps + t);
    }
    return rows;
  }
  // Takes a channel out of a reader: its best weights for what is left, and the inverse that goes with them.
  static void eliminate(Layer& layer, Index taps, Index channel) {
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
  std::span<const float> samples_;  // for least squares
  std::span<const float> judges_;   // that tell what a change does to the answers
  const PruneOptions& o_;
  Inference shapes_;
  ChannelClasses classes_;
  std::vector<ResidualBlock> blocks_;
  Refit refit_;
  // A quarter of the equations tells what a cut costs once its surroundings have been fitted.
  RefitOptions trial_options_;
  Refit trial_;
  std::vector<Branch> branches_;  // of each block
  std::map<std::vector<std::size_t>, double> runs_;
  std::vector<Kind> kinds_;
  std::vector<Layer> layers_;                                                     // of each product
  std::vector<std::vector<std::pair<std::size_t, std::vector<Index>>>> readers_;  // of each class: who reads what
  Cut cut_;
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
  // Those that judge, as many as take 20 GFLOP, stand behind those that fit, where there are enough.
  const Index ahead = static_cast<Index>(fit.size()) / size, behind = count - ahead;
  const auto wanted = static_cast<Index>(std::clamp(20e9 / std::max(1.0, r.full_flops), 64.0, 512.0));
  const auto rest = behind >= 64 ? samples.subspan(static_cast<std::size_t>(ahead * size)) : samples;
  const auto judging = static_cast<std::size_t>(std::min(wanted, static_cast<Index>(rest.size()) / size) * size);
  const auto judges = behind >= 64 ? rest.first(judging) : rest.last(judging);
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
    detail::Pruner pruner(before, name, fit, judges, options);
    pruner.prepare();
    // How much of what a block costs the fit of the rest makes good cannot be told ahead: several weights are tried.
    std::vector<detail::Cut> seen;
    std::vector<std::string> blocks;
    double least = std::numeric_limits<double>::infinity();
    for (const double weight : {2.0, 1.0, 0.5, 0.25}) {
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
