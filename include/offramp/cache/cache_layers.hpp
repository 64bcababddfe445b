/// @file cache_layers.hpp
/// Layer caching: a pretrained classifier and inputs without labels in, the same network with exits and a certificate
/// out (after Abedi et al., arXiv 2209.08625; docs/caching.md says what is done differently and why).
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/calibrate/certificate.hpp"
#include "offramp/calibrate/prices.hpp"
#include "offramp/calibrate/select.hpp"
#include "offramp/compress/quantize.hpp"
#include "offramp/exit/designs.hpp"
#include "offramp/fit/train.hpp"
#include "offramp/graph/attach.hpp"
#include "offramp/graph/places.hpp"
#include "offramp/policy/any_policy.hpp"

namespace offramp {

/// How a network is cached.
struct CacheOptions {
  CertificateOptions certificate;  ///< the risk that is allowed, and how surely
  bool certify = true;             ///< false: all that does not train chooses, and nothing is guaranteed
  std::optional<double> budget;    ///< instead: the most agreement within this mean price of a sample, FLOPs or ms
  Objective objective = Objective::modelled;  ///< with a budget, `modelled` counts nominal FLOPs
  PlaceOptions places;
  ModelOptions model;
  /// All candidates; then the chosen heads, for the samples that reach them. 0 epochs: as many as suit the data.
  fit::TrainOptions explore, refine;
  bool read_earlier = false;  ///< heads also read the exit before (Wołczyk et al. 2021)
  bool augment = true;        ///< shift and mirror images while training
  /// The larger products of heads are done in bytes (`offramp::quantize_heads`), where the CPU does those faster and
  /// time is what is to be saved. Another runtime sees the same logits within 1e-4 of the largest.
  bool quantize_heads = true;
  double fit_share = 0.5;     ///< of the samples, to train on; a tenth of them is held out
  double select_share = 0.2;  ///< to choose heads, policy and thresholds; the rest certifies
  double largest_head = 0.3;  ///< of what is behind it, that a head may cost
  std::uint64_t seed = 0;     ///< of training
  /// Draws which samples train, choose and certify; apart from `seed`, so that trying another seed never moves a sample
  /// that certified into training.
  std::uint64_t split_seed = 0;
  int threads = 1;

  CacheOptions() {
    explore.epochs = refine.epochs = 0;
    explore.halvings = {{1.0 / 8, 5}, {1.0 / 3, 3}};
    refine.rate = 2e-3f;
  }
};

/// Inputs, whole samples in NCHW order. Labels may be empty; they are read only for a certificate of accuracy and for
/// `fit::TrainOptions::label_share`, never otherwise.
struct CacheData {
  std::span<const float> samples;
  std::span<const Index> labels;
  std::span<const float> calibration;  ///< empty: a part of `samples` serves
  std::span<const Index> calibration_labels;
  bool labels_in_training = false;
};

/// One exit of a cached network.
struct CachedExit {
  std::string name, place, head;
  std::vector<float> thresholds;  ///< one, or one for each class
  double share = 0;               ///< of the calibration samples that leave here
  Cost stage, head_cost;          ///< of one sample
  double accuracy = 0;            ///< of those that leave here: agreement, or accuracy with labels
};

/// A head that was tried.
struct TriedHead {
  std::string place, head;
  double place_share = 0, head_share = 0;  ///< of the FLOPs of the full network
  double agreement = 0;                    ///< with the full network, over all samples
  bool chosen = false;
};

struct CacheResult {
  Graph graph;  ///< with exits as outputs, policy and certificate in its metadata
  bool has_exits = false;
  std::string reason;  ///< why there are no exits
  std::string policy;
  ExitCalibration calibration;
  std::vector<CachedExit> exits;
  std::vector<TriedHead> tried;
  Index fitted = 0, selected = 0, calibrated = 0;  ///< samples of each part
  double seconds = 0;
};

/// Called with what is being done, how much of it is done, and how much there is.
using CacheProgress = std::function<void(const std::string& what, Index done, Index total)>;

namespace detail {

/// A graph with one head on each of `places`, as outputs `prefix_0`, `prefix_1`, ... before its answer.
inline Graph with_heads(Graph g, ValueId answer, std::span<const ValueId> places, std::span<const Head> heads,
                        std::span<const int> earlier, const std::string& prefix) {
  std::vector<ValueId> outputs;
  for (std::size_t i = 0; i < places.size(); ++i) {
    std::string name = prefix + std::to_string(i);
    while (std::any_of(g.values.begin(), g.values.end(), [&](const Value& v) { return v.name == name; })) name += "_";
    const ValueId before = earlier[i] < 0 ? no_value : outputs[static_cast<std::size_t>(earlier[i])];
    const ValueId v = append_head(g, places[i], heads[i], "offramp/" + name, before);
    g[v].name = name;
    outputs.push_back(v);
  }
  outputs.push_back(answer);
  g.metadata.erase("offramp.exits");
  g.metadata.erase("offramp.policy");
  g.metadata.erase("offramp.certificate");
  return with_outputs(std::move(g), outputs);
}

/// `count` samples in the given order.
inline std::vector<float> take(std::span<const float> samples, Index size, std::span<const Index> which) {
  std::vector<float> v;
  v.reserve(which.size() * static_cast<std::size_t>(size));
  for (const Index i : which) {
    const auto from = samples.subspan(static_cast<std::size_t>(i * size), static_cast<std::size_t>(size));
    v.insert(v.end(), from.begin(), from.end());
  }
  return v;
}
inline std::vector<Index> take(std::span<const Index> labels, std::span<const Index> which) {
  std::vector<Index> v;
  for (const Index i : which) {
    if (!labels.empty()) v.push_back(labels[static_cast<std::size_t>(i)]);
  }
  return v;
}

inline void require_finite(std::span<const float> samples, Index size, const char* what) {
  for (std::size_t i = 0; i < samples.size(); ++i) {
    OFFRAMP_REQUIRE(std::isfinite(samples[i]), std::string(what) + ": sample " +
                                                   std::to_string(static_cast<Index>(i) / size) +
                                                   " holds a number that is not finite");
  }
}

/// Runs the steps of `cache_layers`, one a method.
class Cacher {
 public:
  Cacher(const Graph& graph, const CacheData& data, const CacheOptions& options, CacheProgress progress)
      : options_(options), progress_(std::move(progress)), pool_(std::make_shared<ThreadPool>(options.threads)) {
    options_.model.pool = nullptr;
    const Model model(graph, options_.model);
    OFFRAMP_REQUIRE(model.has_plan(), model.why_not());
    model.make_state(1);  // raises the reason where the network is no classifier
    OFFRAMP_REQUIRE(model.inputs().size() == 1, "exits need a network with one input");
    classes_ = model.class_count();
    size_ = model.sample_size();
    graph_ = graph;
    for (const ValueId v : graph.outputs) {
      if (graph[v].name == model.exits().back().name) answer_ = v;
    }
    // Exits that the network had already give way.
    graph_ = with_outputs(std::move(graph_), {answer_});
    answer_ = graph_.outputs[0];
    split(data);
  }

  CacheResult run() {
    const auto start = std::chrono::steady_clock::now();
    CacheResult r;
    r.graph = graph_;
    r.fitted = static_cast<Index>(fit_.size() + held_.size()) / size_;
    r.selected = static_cast<Index>(select_.size()) / size_;
    r.calibrated = static_cast<Index>(certify_.size()) / size_;
    r.reason = find_exits(r);
    r.has_exits = r.reason.empty();
    if (!r.has_exits) {
      for (const char* key : {"offramp.exits", "offramp.policy", "offramp.certificate"}) r.graph.metadata.erase(key);
    }
    r.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return r;
  }

 private:
  struct Chosen {
    std::size_t place = 0;
    Head head;
    int earlier = -1;
  };

  void split(const CacheData& data) {
    OFFRAMP_REQUIRE(size_ > 0 && static_cast<Index>(data.samples.size()) % size_ == 0 &&
                        static_cast<Index>(data.calibration.size()) % size_ == 0,
                    "the data do not hold whole samples of " + std::to_string(size_) + " numbers");
    const Index n = static_cast<Index>(data.samples.size()) / size_,
                m = static_cast<Index>(data.calibration.size()) / size_;
    const bool drop = options_.certificate.risk == Risk::accuracy_drop && !options_.budget;
    const bool apart = m > 0;
    OFFRAMP_REQUIRE(
        data.labels.empty() || static_cast<Index>(data.labels.size()) == n,
        "there are " + std::to_string(data.labels.size()) + " labels for " + std::to_string(n) + " samples");
    OFFRAMP_REQUIRE(data.calibration_labels.empty() || static_cast<Index>(data.calibration_labels.size()) == m,
                    "there are " + std::to_string(data.calibration_labels.size()) + " labels for " + std::to_string(m) +
                        " calibration samples");
    OFFRAMP_REQUIRE(!drop || !(apart ? data.calibration_labels : data.labels).empty(),
                    "a certificate of accuracy needs labels; one of agreement does not");
    const Index least = std::max<Index>(200, 8 * classes_);
    OFFRAMP_REQUIRE(n >= least && (!apart || m >= least),
                    "caching needs at least " + std::to_string(least) + " samples for " + std::to_string(classes_) +
                        " classes, found " + std::to_string(apart ? std::min(n, m) : n));
    require_finite(data.samples, size_, "data");
    require_finite(data.calibration, size_, "calibration data");
    std::mt19937_64 random(options_.split_seed);
    const auto shuffled = [&](Index count) {
      std::vector<Index> order(static_cast<std::size_t>(count));
      std::iota(order.begin(), order.end(), Index{0});
      std::shuffle(order.begin(), order.end(), random);
      return order;
    };
    const auto part = [](const std::vector<Index>& order, double from, double to) {
      const auto k = static_cast<double>(order.size());
      return std::vector<Index>(order.begin() + static_cast<std::ptrdiff_t>(k * from),
                                order.begin() + static_cast<std::ptrdiff_t>(k * to));
    };
    const auto order = shuffled(n);
    const double fitted = apart ? 1.0 : options_.fit_share;
    const auto train = part(order, 0, fitted * 0.9), held = part(order, fitted * 0.9, fitted);
    fit_ = take(data.samples, size_, train);
    held_ = take(data.samples, size_, held);
    if (data.labels_in_training) fit_labels_ = take(data.labels, train);
    const auto other = apart ? shuffled(m) : order;
    const double selected = options_.certify ? options_.select_share / (1 - options_.fit_share) : 1.0;
    const double cut = options_.certify ? fitted + options_.select_share : 1.0;
    const auto select = apart ? part(other, 0, selected) : part(order, fitted, cut);
    const auto certify = apart ? part(other, selected, 1) : part(order, cut, 1);
    const auto from = apart ? data.calibration : data.samples;
    select_ = take(from, size_, select);
    certify_ = take(from, size_, certify);
    if (drop) {
      const auto labels = apart ? data.calibration_labels : data.labels;
      select_labels_ = take(labels, select);
      certify_labels_ = take(labels, certify);
      for (const auto* all : {&select_labels_, &certify_labels_}) {
        for (const Index label : *all)
          OFFRAMP_REQUIRE(label >= 0 && label < classes_, "label " + std::to_string(label) + " is outside the " +
                                                              std::to_string(classes_) + " classes of the network");
      }
    }
  }

  void say(const std::string& what, Index done, Index total) const {
    if (progress_) progress_(what, done, total);
  }
  Objective objective() const noexcept {
    return options_.budget ? objective_of_budget(options_.objective) : options_.objective;
  }
  SelectionTarget target() const {
    SelectionTarget t;
    t.risk = options_.budget ? Risk::disagreement : options_.certificate.risk;
    t.budget = options_.budget;
    t.epsilon = options_.certificate.epsilon;
    t.even = objective() == Objective::modelled;
    return t;
  }

  /// Returns the reason where there are no exits.
  std::string find_exits(CacheResult& r) {
    places_ = find_places(graph_, answer_, classes_, options_.model, options_.places);
    if (places_.empty()) return "no single tensor carries all information onward anywhere before the end";
    const fit::Backbone backbone(graph_, answer_, places_, classes_, options_.model, pool_, options_.explore.batch);
    std::vector<Index> answers(static_cast<std::size_t>(classes_), 0);
    const fit::Augmentation augmentation =
        fit::look_at_answers(backbone, fit_, options_.explore.batch,
                             options_.augment ? backbone.augmentation() : fit::Augmentation{}, answers);
    if (std::count_if(answers.begin(), answers.end(), [](Index n) { return n > 0; }) < 2)
      return "the full network gives the same answer to every sample";

    // Every head at every place, trained together.
    std::vector<fit::PlacedHead> heads;
    for (std::size_t p = 0; p < places_.size(); ++p) {
      const auto behind = static_cast<double>(places_[p].full.flops - places_[p].upto.flops);
      for (const HeadDesign& d : head_designs(places_[p].shape)) {
        // A head that costs much of what it could save is not worth trying.
        const auto cost = static_cast<double>(2 * d.macs(places_[p].shape, classes_));
        if (cost > options_.largest_head * behind) continue;
        fit::PlacedHead h;
        h.place = p;
        h.behind = behind, h.cost = cost;
        h.head = std::make_unique<fit::TrainableHead>(d, places_[p].shape, classes_, options_.seed + heads.size() + 1);
        heads.push_back(std::move(h));
      }
    }
    options_.explore.epochs = epochs_for(options_.explore.epochs, 90e3, 40);
    if (!options_.budget) options_.explore.epsilon = options_.certificate.epsilon;
    options_.refine.epochs = epochs_for(options_.refine.epochs, 180e3, 120);
    train(backbone, heads, augmentation, options_.explore, "training " + std::to_string(heads.size()) + " heads");

    // The set of heads that is cheapest at the target.
    std::vector<Chosen> all;
    for (const fit::PlacedHead& h : heads) all.push_back({h.place, h.head->write(), -1});
    ExitScores scores = record(all, select_, select_labels_, "trying the heads");
    sharpen(all, scores);
    for (std::size_t i = 0; i < all.size(); ++i) {
      TriedHead t;
      t.place = places_[all[i].place].name;
      t.head = all[i].head.name;
      t.place_share = places_[all[i].place].share;
      double full = 0;
      for (const Cost& c : scores.stages) full += static_cast<double>(c.flops);
      t.head_share = static_cast<double>(scores.heads[i].flops) / full;
      Index same = 0;
      for (Index k = 0; k < scores.samples; ++k)
        same += ExitContext::label_of(scores.at(k, static_cast<Index>(i))) ==
                ExitContext::label_of(scores.at(k, scores.exits - 1));
      t.agreement = static_cast<double>(same) / static_cast<double>(scores.samples);
      r.tried.push_back(std::move(t));
    }
    std::vector<std::size_t> place_of;
    for (const Chosen& c : all) place_of.push_back(c.place);
    say("choosing heads", 0, 1);
    const std::vector<Index> kept = choose_heads(scores, place_of, target());
    if (kept.empty()) return "no exit pays for itself at this risk";
    for (const Index k : kept) r.tried[static_cast<std::size_t>(k)].chosen = true;

    // The chosen ones again, for the samples that reach them.
    std::vector<fit::PlacedHead> refined;
    const ExitScores of_kept = keep_exits(scores, kept);
    const auto thresholds = reach_thresholds(of_kept, target());
    for (std::size_t i = 0; i < kept.size(); ++i) {
      fit::PlacedHead h = std::move(heads[static_cast<std::size_t>(kept[i])]);
      h.threshold = thresholds[i];
      if (options_.read_earlier && i > 0 && !h.head->design().class_means) {
        h.head->read_earlier();
        h.earlier = static_cast<int>(i) - 1;
      }
      refined.push_back(std::move(h));
    }
    heads.clear();
    train(backbone, refined, augmentation, options_.refine, "refining " + std::to_string(refined.size()) + " heads");
    std::vector<Chosen> chosen;
    for (const fit::PlacedHead& h : refined) chosen.push_back({h.place, h.head->write(), h.earlier});
    scores = record(chosen, select_, select_labels_, "choosing the policy");
    sharpen(chosen, scores);
    ExitCalibrationOptions how;
    how.target = target();
    how.per_class = options_.certificate.per_class;
    if (options_.certify) {
      how.delta = options_.certificate.delta;
      r.calibration = calibrate_exits(scores, record(chosen, certify_, certify_labels_, "certifying"), how);
    } else {
      r.calibration = calibrate_exits(scores, scores, how);
    }
    if (r.calibration.selection.exits.empty()) return "no exit pays for itself at this risk";
    if (!r.calibration.has_exits)
      return options_.certify ? refusal_of(options_.certificate, r.calibrated) : "no exit pays for itself at this risk";
    write(r, chosen, scores);
    return {};
  }

  /// Epochs in which so many samples are seen: with more data the same work sees each less often.
  Index epochs_for(Index given, double seen, Index most) const noexcept {
    if (given > 0) return given;
    const auto n = static_cast<double>(std::max<Index>(1, static_cast<Index>(fit_.size()) / size_));
    return std::clamp(static_cast<Index>(std::lround(seen / n)), Index{1}, most);
  }

  void train(const fit::Backbone& backbone, std::vector<fit::PlacedHead>& heads, const fit::Augmentation& augmentation,
             fit::TrainOptions how, const std::string& what) const {
    how.seed = options_.seed;
    fit::train_heads(backbone, heads, {fit_, held_, fit_labels_}, augmentation, how,
                     [&](Index done, Index total) { say(what, done, total); });
  }

  /// What heads at their places say of samples, with costs, in the order of `heads`.
  ExitScores record(const std::vector<Chosen>& heads, std::span<const float> samples, std::span<const Index> labels,
                    const std::string& what) const {
    const Model model(graph_with(heads), options_.model);
    const Index n = static_cast<Index>(samples.size()) / size_;
    ExitScores r = record_scores(model, samples, labels, [&](Index done) { say(what, done, n); });
    r.prices = prices_of(model, samples, objective());
    // The model orders its exits by cost, and heads of one place may change places.
    std::vector<Index> order;
    for (std::size_t i = 0; i < heads.size(); ++i) {
      const std::string name = model.outputs()[i].name;
      for (std::size_t k = 0; k < model.exits().size(); ++k) {
        if (model.exits()[k].name == name) order.push_back(static_cast<Index>(k));
      }
    }
    return in_order(r, order, heads);
  }
  // A head's bytes depend on its place and itself alone, so heads stay as they are when others go.
  Graph graph_with(const std::vector<Chosen>& heads) const {
    Graph g = float_graph_with(heads);
    if (!options_.quantize_heads || objective() == Objective::flops || byte_multiply_adds(options_.model.isa) == 1)
      return g;
    const std::span<const float> samples =
        std::span(fit_).first(std::min(fit_.size(), static_cast<std::size_t>(samples_for_ranges * size_)));
    QuantizeOptions q;
    q.model = options_.model;
    return quantize_heads(Model(std::move(g), options_.model), samples, q);
  }
  Graph float_graph_with(const std::vector<Chosen>& heads) const {
    std::vector<ValueId> places;
    std::vector<Head> plain;
    std::vector<int> earlier;
    for (const Chosen& c : heads) {
      places.push_back(places_[c.place].value);
      plain.push_back(c.head);
      earlier.push_back(c.earlier);
    }
    return with_heads(graph_, answer_, places, plain, earlier, "exit_");
  }
  /// Exits as `heads` lists them: by place, each with the cost of the stage up to its place.
  static ExitScores in_order(const ExitScores& all, const std::vector<Index>& order, const std::vector<Chosen>& heads) {
    ExitScores r;
    r.samples = all.samples, r.exits = all.exits, r.classes = all.classes, r.labels = all.labels;
    const bool priced = !all.prices.empty();
    std::vector<Cost> upto(order.size());
    std::vector<double> upto_price(order.size(), 0);
    Cost so_far;
    double price = 0;
    for (Index k = 0; k < all.exits; ++k) {
      so_far += all.stages[static_cast<std::size_t>(k)];
      if (priced) price += all.prices.stages[static_cast<std::size_t>(k)];
      for (std::size_t i = 0; i < order.size(); ++i) {
        if (order[i] == k) upto[i] = so_far, upto_price[i] = price;
      }
    }
    Cost before;
    double price_before = 0;
    for (std::size_t i = 0; i < order.size(); ++i) {
      // The first of a place's heads in the model carries its stage.
      for (std::size_t j = 0; j < order.size(); ++j) {
        if (heads[j].place == heads[i].place && upto[j].flops < upto[i].flops)
          upto[i] = upto[j], upto_price[i] = upto_price[j];
      }
      r.stages.push_back(upto[i] - before);
      before = upto[i];
      const auto u = static_cast<std::size_t>(order[i]);
      r.heads.push_back(all.heads[u]);
      if (priced) {
        r.prices.stages.push_back(std::max(0.0, upto_price[i] - price_before));
        price_before = std::max(price_before, upto_price[i]);
        r.prices.heads.push_back(all.prices.heads[u]);
      }
    }
    r.stages.push_back(so_far - before);
    r.heads.push_back({});
    if (priced) {
      r.prices.stages.push_back(std::max(0.0, price - price_before));
      r.prices.heads.push_back(0);
    }
    r.scores.reserve(all.scores.size());
    for (Index i = 0; i < all.samples; ++i) {
      for (const Index k : order) r.scores.insert(r.scores.end(), all.at(i, k).begin(), all.at(i, k).end());
      r.scores.insert(r.scores.end(), all.at(i, all.exits - 1).begin(), all.at(i, all.exits - 1).end());
    }
    return r;
  }

  /// Divides each head's scores by the temperature that fits them best.
  void sharpen(std::vector<Chosen>& heads, ExitScores& scores) const {
    const std::vector<float> temperatures = fit_temperatures(scores);
    for (std::size_t k = 0; k < heads.size(); ++k) {
      // What another head reads must stay as that head knows it.
      const bool is_read =
          std::any_of(heads.begin(), heads.end(), [&](const Chosen& c) { return c.earlier == static_cast<int>(k); });
      if (is_read) continue;
      heads[k].head.divide_scores(temperatures[k]);
      for (Index i = 0; i < scores.samples; ++i) {
        float* row = scores.scores.data() + (i * scores.exits + static_cast<Index>(k)) * scores.classes;
        for (Index c = 0; c < scores.classes; ++c) row[c] /= temperatures[k];
      }
    }
  }

  void write(CacheResult& r, const std::vector<Chosen>& chosen, const ExitScores& scores) const {
    const Selection& best = r.calibration.selection;
    const ExitCalibration& c = r.calibration;
    // An exit that the certificate left off goes. Where others look back at it, its thresholds are finite.
    const auto groups = c.thresholds.size() / best.exits.size();
    std::vector<std::size_t> used;  // of the selection
    std::vector<Index> exits;
    std::vector<float> thresholds;
    for (std::size_t k = 0; k < best.exits.size(); ++k) {
      if (!is_in_use(c.thresholds, static_cast<Index>(groups), static_cast<Index>(k))) continue;
      const auto own = std::span(c.thresholds).subspan(k * groups, groups);
      used.push_back(k);
      exits.push_back(best.exits[k]);
      thresholds.insert(thresholds.end(), own.begin(), own.end());
    }
    const ExitScores selected = keep_exits(scores, exits);
    const bool linked = std::any_of(chosen.begin(), chosen.end(), [](const Chosen& head) { return head.earlier >= 0; });
    std::vector<Chosen> heads;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      if (linked || std::count(exits.begin(), exits.end(), static_cast<Index>(i)) > 0) heads.push_back(chosen[i]);
    }
    r.graph = graph_with(heads);
    std::string names;
    for (std::size_t k = 0; k < exits.size(); ++k) {
      const std::size_t at = linked ? static_cast<std::size_t>(exits[k]) : k;
      CachedExit e;
      e.name = r.graph[r.graph.outputs[at]].name;
      e.place = places_[heads[at].place].name;
      e.head = heads[at].head.name;
      e.thresholds.assign(thresholds.begin() + static_cast<std::ptrdiff_t>(k * groups),
                          thresholds.begin() + static_cast<std::ptrdiff_t>((k + 1) * groups));
      e.share = c.outcome.shares[used[k]];
      e.accuracy = c.outcome.accuracies[used[k]];
      e.stage = selected.stages[k];
      e.head_cost = selected.heads[k];
      names += e.name + ",";
      r.exits.push_back(std::move(e));
    }
    names += r.graph[r.graph.outputs.back()].name;
    r.policy = policy_text_of(best, thresholds, classes_);
    r.graph.metadata["offramp.policy"] = r.policy;
    r.graph.metadata["offramp.exits"] = names;
    if (options_.certify) r.graph.metadata["offramp.certificate"] = text_of(c.certificate);
  }

  CacheOptions options_;
  CacheProgress progress_;
  std::shared_ptr<ThreadPool> pool_;
  Graph graph_;
  ValueId answer_ = no_value;
  Index classes_ = 0, size_ = 0;
  std::vector<Place> places_;
  std::vector<float> fit_, held_, select_, certify_;
  std::vector<Index> fit_labels_, select_labels_, certify_labels_;
};

}  // namespace detail

/// Puts exits on a pretrained classifier: finds the places, trains heads on the frozen network by self-distillation,
/// chooses heads, confidence and thresholds for the samples that really reach them, and certifies the result on samples
/// that nothing was chosen by. Exits that do not pay are not added; where none pays, or the data cannot support the
/// certificate, the network comes back as it was, with the reason. Exits that it had before give way. The same inputs
/// and seed give the same result, however many threads. Raises an Error for networks that are no classifiers and for
/// data that do not fit.
inline CacheResult cache_layers(const Model& model, const CacheData& data, const CacheOptions& options = {},
                                CacheProgress progress = {}) {
  return detail::Cacher(model.graph(), data, options, std::move(progress)).run();
}

}  // namespace offramp
