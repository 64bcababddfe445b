/// @file head.hpp
/// An exit head in training.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "offramp/exit/head.hpp"
#include "offramp/fit/distillation.hpp"
#include "offramp/fit/layers.hpp"

namespace offramp::fit {

/// A head that learns. Not for two threads at once.
class TrainableHead {
 public:
  TrainableHead(const HeadDesign& design, const MapShape& input, Index classes, std::uint64_t seed)
      : design_(design), input_(input), classes_(classes) {
    std::mt19937_64 random(seed);
    MapShape s = input;
    for (const HeadConvDesign& c : design.convolutions) {
      if (c.cells > 1) layers_.push_back(std::make_unique<AverageLayer>(c.cells));
      if (c.separable) layers_.push_back(std::make_unique<DepthwiseLayer>(s.channels, random));
      layers_.push_back(std::make_unique<ConvLayer>(s.channels, c.width, c.separable ? 1 : 3, random));
      s.channels = c.width;
      s.height = (s.height + c.cells - 1) / c.cells;
      s.width = (s.width + c.cells - 1) / c.cells;
    }
    const bool is_vector = s.positions() == 1 && !s.tokens;
    const HeadPool pool{is_vector ? std::vector<Index>{1} : design.grids, is_vector || design.average,
                        !is_vector && design.maximum, !is_vector && design.first_token};
    layers_.push_back(std::make_unique<PoolLayer>(pool));
    features_ = s.channels * pool.per_channel();
    Index width = features_;
    if (design.class_means) {
      sums_.assign(static_cast<std::size_t>(classes * features_), 0.0);
      squares_.assign(static_cast<std::size_t>(features_), 0.0);
      counts_.assign(static_cast<std::size_t>(classes), 0);
    } else {
      if (design.hidden > 0) {
        layers_.push_back(std::make_unique<DenseLayer>(features_, design.hidden, true, random));
        width = design.hidden;
      }
      layers_.push_back(std::make_unique<DenseLayer>(width, classes, false, random));
    }
    maps_.resize(layers_.size());
  }

  const HeadDesign& design() const noexcept { return design_; }
  bool reads_earlier() const noexcept { return earlier_ > 0; }

  /// Lets the last layer read the log-probabilities of another exit from now on.
  void read_earlier() {
    if (earlier_ > 0 || design_.class_means) return;
    earlier_ = classes_;
    static_cast<DenseLayer&>(*layers_.back()).widen(classes_);
  }

  /// Everything before the last layer, which alone may read the exit before.
  void forward_features(const Map& in, bool training) {
    const Map* at = &in;
    for (std::size_t i = 0; i < body(); ++i) {
      layers_[i]->forward(*at, maps_[i], training);
      at = &maps_[i];
    }
  }
  /// The scores, after `forward_features`; `earlier` holds the scores of the exit before where it reads them.
  const Map& forward_scores(const Map* earlier, bool training) {
    const Map& features = maps_[body() - 1];
    if (design_.class_means) {
      scores_of_means(features);
      return scores_;
    }
    if (earlier_ > 0) join(features, *earlier);
    layers_.back()->forward(earlier_ > 0 ? joined_ : features, maps_.back(), training);
    return maps_.back();
  }
  const Map& scores() const noexcept { return design_.class_means ? scores_ : maps_.back(); }

  /// One step on the batch of the last forward with `training` on; returns the loss.
  double learn(const Map& in, const Targets& targets, std::span<const float> weights, float rate,
               const Adam& adam = {}) {
    if (design_.class_means) {
      add_to_means(maps_.back(), targets);
      return 0;
    }
    Map d = scores();
    const double loss = distillation_loss(scores().values, targets, weights, d.values);
    backward(in, std::move(d));
    ++steps_;
    for (Parameter* p : parameters()) adam.step(*p, rate, steps_);
    return loss;
  }

  /// Adds the gradients by the parameters, from that by the scores, after a forward with `training` on.
  void backward(const Map& in, Map d) {
    std::size_t first = 0;  // what is before it does not learn
    while (layers_[first]->parameters().empty()) ++first;
    Map* now = &d;
    Map* next = &gradients_[0];
    for (std::size_t i = layers_.size(); i-- > first;) {
      const bool reads = earlier_ > 0 && i == body();
      const Map& from = reads ? joined_ : i == 0 ? in : maps_[i - 1];
      layers_[i]->backward(from, maps_[i], *now, i == first ? nullptr : next);
      if (i == first) break;
      if (reads) *next = without_earlier(*next);
      now = next;
      next = &gradients_[now == &gradients_[0] ? 1 : 0];
    }
  }

  std::vector<Parameter*> parameters() {
    std::vector<Parameter*> all;
    for (const auto& layer : layers_) {
      for (Parameter* p : layer->parameters()) all.push_back(p);
    }
    return all;
  }

  /// Weights and statistics, one array a parameter.
  using Weights = std::vector<std::vector<float>>;

  /// Moves an average of what the weights and statistics were by `share` of the way to what they are.
  void average_into(Weights& average, float share) const {
    std::size_t at = 0;
    const auto add = [&](const std::vector<float>& now) {
      if (at == average.size()) average.push_back(now);
      std::vector<float>& mean = average[at++];
      for (std::size_t i = 0; i < mean.size(); ++i) mean[i] += share * (now[i] - mean[i]);
    };
    for (const auto& layer : layers_) {
      for (const Parameter* p : layer->parameters()) add(p->value);
      for (const std::vector<float>* v : layer->statistics()) add(*v);
    }
  }
  /// Takes other weights and statistics, and leaves its own in their place.
  void swap(Weights& other) {
    std::size_t at = 0;
    for (const auto& layer : layers_) {
      for (Parameter* p : layer->parameters()) p->value.swap(other[at++]);
      for (std::vector<float>* v : layer->statistics()) v->swap(other[at++]);
    }
  }

  /// The head as it runs.
  Head write() const {
    Head h;
    h.name = design_.name;
    h.input = input_;
    h.classes = classes_;
    h.reads_earlier = earlier_ > 0;
    for (const auto& layer : layers_) layer->write(h.layers);
    if (design_.class_means) h.layers.push_back(means());
    return h;
  }

 private:
  std::size_t body() const noexcept { return layers_.size() - (design_.class_means ? 0 : 1); }

  void join(const Map& features, const Map& earlier) {
    std::vector<float> said;
    soften(earlier.values, classes_, 1.0f, said);
    joined_.resize(features.n, 1, 1, features.channels + classes_);
    for (Index n = 0; n < features.n; ++n) {
      float* to = joined_.values.data() + n * joined_.channels;
      std::copy_n(features.values.data() + n * features.channels, features.channels, to);
      for (Index i = 0; i < classes_; ++i)
        to[features.channels + i] = std::log(std::max(said[static_cast<std::size_t>(n * classes_ + i)], 1e-30f));
    }
  }
  Map without_earlier(const Map& d) const {
    Map less;
    less.resize(d.n, 1, 1, d.channels - earlier_);
    for (Index n = 0; n < d.n; ++n)
      std::copy_n(d.values.data() + n * d.channels, less.channels, less.values.data() + n * less.channels);
    return less;
  }

  // Nearest class mean with one variance for each feature, shared by the classes: the class of the largest
  // sum of x mean / variance - mean^2 / (2 variance).
  void add_to_means(const Map& features, const Targets& targets) {
    const auto f = static_cast<std::size_t>(features_);
    for (std::size_t n = 0; n < static_cast<std::size_t>(features.n); ++n) {
      const auto label = static_cast<std::size_t>(targets.answers[n]);
      ++counts_[label];
      for (std::size_t i = 0; i < f; ++i) {
        const auto x = static_cast<double>(features.values[n * f + i]);
        sums_[label * f + i] += x;
        squares_[i] += x * x;
      }
    }
    fresh_ = false;
  }
  HeadDense means() const {
    const auto f = static_cast<std::size_t>(features_);
    HeadDense d;
    d.in = features_, d.out = classes_;
    std::vector<double> within(squares_);
    double samples = 0;
    for (std::size_t c = 0; c < counts_.size(); ++c) {
      samples += static_cast<double>(counts_[c]);
      for (std::size_t i = 0; counts_[c] > 0 && i < f; ++i)
        within[i] -= sums_[c * f + i] * sums_[c * f + i] / static_cast<double>(counts_[c]);
    }
    for (double& v : within) v = std::max(v / std::max(1.0, samples), 1e-6);
    for (std::size_t c = 0; c < counts_.size(); ++c) {
      double bias = 0;
      for (std::size_t i = 0; i < f; ++i) {
        const double mean = counts_[c] > 0 ? sums_[c * f + i] / static_cast<double>(counts_[c]) : 0;
        d.weights.push_back(static_cast<float>(mean / within[i]));
        bias -= mean * mean / within[i] / 2;
      }
      d.bias.push_back(counts_[c] > 0 ? static_cast<float>(bias) : -1e6f);  // a class that was never seen
    }
    return d;
  }
  void scores_of_means(const Map& features) {
    if (!fresh_) {
      dense_ = means();
      fresh_ = true;
    }
    scores_.resize(features.n, 1, 1, classes_);
    for (Index n = 0; n < features.n && dense_.out > 0; ++n) {
      for (Index c = 0; c < classes_; ++c) {
        float s = dense_.bias[static_cast<std::size_t>(c)];
        for (Index i = 0; i < features_; ++i)
          s += dense_.weights[static_cast<std::size_t>(c * features_ + i)] *
               features.values[static_cast<std::size_t>(n * features_ + i)];
        scores_.values[static_cast<std::size_t>(n * classes_ + c)] = s;
      }
    }
  }

  HeadDesign design_;
  MapShape input_;
  Index classes_ = 0, features_ = 0, earlier_ = 0;
  std::int64_t steps_ = 0;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::vector<Map> maps_;
  std::array<Map, 2> gradients_;  // by the input of one layer and of the layer before it
  Map joined_, scores_;
  std::vector<double> sums_, squares_;
  std::vector<Index> counts_;
  HeadDense dense_;
  bool fresh_ = true;
};

}  // namespace offramp::fit
