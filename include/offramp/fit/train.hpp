/// @file train.hpp
/// Trains exit heads on a frozen backbone by self-distillation: the full network's softened answers are the targets,
/// labels only if they are given (Abedi et al., arXiv 2209.08625, section 3.2; Hinton et al. 2015).
///
/// Each batch runs through the backbone once, and every head learns from it. Features are never stored, so memory does
/// not grow with the data, and every batch can be changed anew (augment.hpp) with targets that are exactly the full
/// network's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "offramp/fit/augment.hpp"
#include "offramp/fit/halving.hpp"
#include "offramp/fit/head.hpp"
#include "offramp/graph/model.hpp"
#include "offramp/graph/places.hpp"
#include "offramp/policy/policy.hpp"

namespace offramp::fit {

/// f(i) for every i below n, on the threads of a pool; the first exception is thrown on.
template <class F>
void parallel(ThreadPool& pool, Index n, F&& f) {
  std::exception_ptr failure;
  std::mutex mutex;
  const auto guarded = [&](Index i) noexcept {
#if OFFRAMP_EXCEPTIONS
    try {
      f(i);
    } catch (...) {
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
#else
    f(i);
#endif
  };
  ExecutorRef(pool).each(n, guarded);
  if (failure) std::rethrow_exception(failure);
}

/// The frozen backbone: what stands at each place, and the full network's scores.
class Backbone {
 public:
  Backbone(const Graph& graph, ValueId answer, std::span<const Place> places, Index classes, ModelOptions options,
           std::shared_ptr<ThreadPool> pool, Index batch)
      : pool_(std::move(pool)), classes_(classes), model_(prepared(graph, answer, places, options, batch)) {
    for (const Place& p : places) shapes_.push_back(p.shape);
    shape_ = Shape(std::span<const Index>(options.shape.empty() ? model_.inputs()[0].sizes : options.shape));
    OFFRAMP_REQUIRE(model_.has_plan(), model_.why_not());
    shape_[0] = 1;
  }

  Index sample_size() const noexcept { return shape_.count(); }
  Index classes() const noexcept { return classes_; }
  ThreadPool& pool() const noexcept { return *pool_; }
  /// [channels, height, width] of an image input; empty for other inputs.
  Augmentation augmentation() const noexcept {
    Augmentation a;
    if (shape_.rank() == 4 && shape_[1] <= 4 && shape_[2] >= 8 && shape_[3] >= 8) {
      a.channels = shape_[1], a.height = shape_[2], a.width = shape_[3];
      a.shift = std::max<Index>(1, shape_[3] / 14);
    }
    return a;
  }

  /// Runs n samples; `maps` gets one map for each place, `scores` [n][classes].
  void run(std::span<const float> samples, Index n, std::vector<Map>& maps, std::vector<float>& scores) const {
    maps.resize(shapes_.size());
    for (std::size_t p = 0; p < shapes_.size(); ++p)
      maps[p].resize(n, shapes_[p].height, shapes_[p].width, shapes_[p].channels);
    scores.resize(static_cast<std::size_t>(n * classes_));
    const Index parts = std::min<Index>(n, 2), size = sample_size();  // a fixed number: the result is the same anywhere
    parallel(*pool_, parts, [&](Index i) {
      const Index first = n * i / parts, count = n * (i + 1) / parts - first;
      Shape shape = shape_;
      shape[0] = count;
      const std::vector<Tensor> in{Tensor::of<float>(
          shape, samples.subspan(static_cast<std::size_t>(first * size), static_cast<std::size_t>(count * size)))};
      const std::vector<Tensor> out = model_.run(in);
      for (std::size_t p = 0; p < shapes_.size(); ++p) {
        const Index each = shapes_[p].count();
        std::copy_n(out[p].view().f32(), count * each, maps[p].values.data() + first * each);
      }
      std::copy_n(out.back().view().f32(), count * classes_, scores.data() + first * classes_);
    });
  }

 private:
  // What stands at a place, [N][positions][channels].
  static ValueId channels_last(Graph& g, const Place& p) {
    if (p.shape.positions() == 1) return p.value;
    std::vector<Index> perm{0};
    for (int a = 2; a < p.rank; ++a) perm.push_back(a);
    perm.push_back(1);
    Node n;
    n.op = "Transpose";
    n.name = p.name + ".channels_last";
    n.inputs = {p.value};
    n.outputs = {g.add_value(n.name)};
    n.set("perm", std::move(perm));
    g.nodes.push_back(n);
    return n.outputs[0];
  }
  static Model prepared(const Graph& graph, ValueId answer, std::span<const Place> places, ModelOptions options,
                        Index batch) {
    Graph g = graph;
    std::vector<ValueId> outputs;
    for (const Place& p : places) outputs.push_back(p.shape.tokens ? p.value : channels_last(g, p));
    outputs.push_back(answer);
    options.batch = std::max<Index>(1, batch / 2);
    options.pool = nullptr;
    return Model(with_outputs(std::move(g), outputs), options);
  }

  std::shared_ptr<ThreadPool> pool_;
  Index classes_;
  Model model_;
  std::vector<MapShape> shapes_;
  Shape shape_;
};

/// Counts the full network's answers to the first samples, at most 1,000, and finds out how they may be changed:
/// as `a` says, and mirrored only where the network is blind to mirrors.
inline Augmentation look_at_answers(const Backbone& backbone, std::span<const float> samples, Index step,
                                    Augmentation a, std::vector<Index>& answers) {
  const Index size = backbone.sample_size(), classes = backbone.classes();
  const Index n = std::min<Index>(static_cast<Index>(samples.size()) / size, 1000);
  answers.assign(static_cast<std::size_t>(classes), 0);
  std::vector<Map> maps;
  std::vector<float> scores, mirrored;
  Index same = 0;
  const auto label = [&](const std::vector<float>& of, Index i) {
    return ExitContext::label_of(
        std::span(of).subspan(static_cast<std::size_t>(i * classes), static_cast<std::size_t>(classes)));
  };
  for (Index first = 0; first < n; first += step) {
    const Index count = std::min(step, n - first);
    std::vector<float> x(samples.begin() + static_cast<std::ptrdiff_t>(first * size),
                         samples.begin() + static_cast<std::ptrdiff_t>((first + count) * size));
    backbone.run(x, count, maps, scores);
    for (Index i = 0; i < count; ++i) ++answers[static_cast<std::size_t>(label(scores, i))];
    if (a.height == 0) continue;
    for (Index i = 0; i < count; ++i)
      mirror_image(std::span(x).subspan(static_cast<std::size_t>(i * size), static_cast<std::size_t>(size)), a.width);
    backbone.run(x, count, maps, mirrored);
    for (Index i = 0; i < count; ++i) same += label(scores, i) == label(mirrored, i);
  }
  a.mirror = a.height > 0 && 10 * same >= 9 * n;
  return a;
}

/// The learning rate of step `done` of `total`: a short warm-up, then half a cosine down to zero.
inline float rate_at(float rate, Index done, Index total) noexcept {
  const float at = static_cast<float>(done) / static_cast<float>(total), warm = std::min(1.0f, at / 0.03f + 0.05f);
  return rate * warm * 0.5f * (1 + std::cos(3.14159265f * at));
}

/// How far an average of weights moves to those of step `done`, from 1: it spans about the last ninth of all steps
/// (polynomial-decay averaging: Shamir & Zhang, ICML 2013, section 4). One step alone says little of a head while the
/// rate is high.
inline float share_of_average(Index done) noexcept {
  return 9.0f / (static_cast<float>(done) + 8.0f);
}

/// A head at a place of a backbone.
struct PlacedHead {
  std::size_t place = 0;
  std::unique_ptr<TrainableHead> head;
  int earlier = -1;  ///< the head whose scores it reads, one before it in the list; -1: none
  float threshold = std::numeric_limits<float>::infinity();    ///< of its largest probability, for reach; infinite:
                                                               ///< nobody leaves here
  double best_loss = std::numeric_limits<double>::infinity();  ///< on the held-out part
  TrainableHead::Weights average, best;
  Index steps = 0;              ///< that it learned in
  double behind = 0, cost = 0;  ///< FLOPs behind its place, and its own; what halving weighs against each other
  bool dropped = false;         ///< by halving: it keeps what it learned so far
};

struct TrainOptions {
  Index epochs = 8, batch = 64;
  float rate = 3e-3f;         ///< at the start; falls to zero along a half cosine
  float temperature = 2;      ///< of the distillation
  float label_share = 0.5f;   ///< of the loss, where labels are given
  float least_weight = 0.2f;  ///< of samples that the exits before a head answer already
  Index patience = 4;         ///< epochs without progress on the held-out part after which a head is left alone
  std::vector<Halving> halvings;
  double epsilon = 0.01;  ///< disagreement at which halving compares heads
  std::uint64_t seed = 0;
};

/// Samples to learn from, and samples held out to say when to stop. Labels may be empty.
struct TrainData {
  std::span<const float> samples, held_out;
  std::span<const Index> labels;
};

/// Trains all heads together, from the weights that they have. What is judged is the average of a head's last weights;
/// each head ends with the one that was best on the held-out samples.
/// `progress(done, total)` is called after each batch.
template <class Progress>
void train_heads(const Backbone& backbone, std::vector<PlacedHead>& heads, const TrainData& data,
                 const Augmentation& augmentation, const TrainOptions& options, Progress&& progress) {
  const Index size = backbone.sample_size(), classes = backbone.classes();
  const auto width = static_cast<std::size_t>(size);
  const Index samples = static_cast<Index>(data.samples.size()) / size,
              held = static_cast<Index>(data.held_out.size()) / size;
  OFFRAMP_REQUIRE(samples > 0 && held > 0, "there are no samples to train exit heads on");
  const Index steps = (samples + options.batch - 1) / options.batch, total = steps * options.epochs;
  for (PlacedHead& p : heads) {
    p.best_loss = std::numeric_limits<double>::infinity();
    p.steps = 0;
    p.dropped = false;
    p.average.clear(), p.best.clear();
    p.head->average_into(p.average, 1);
  }
  std::vector<Index> order(static_cast<std::size_t>(samples)), stale(heads.size(), 0);
  std::iota(order.begin(), order.end(), Index{0});
  std::mt19937_64 random(options.seed);
  std::vector<Map> maps;
  std::vector<float> batch, scores;
  Targets targets;
  targets.classes = classes;
  targets.temperature = options.temperature;
  targets.label_share = options.label_share;

  const auto run = [&](std::span<const float> x, Index n, bool training) {
    backbone.run(x, n, maps, scores);
    targets.n = n;
    soften(scores, classes, options.temperature, targets.soft);
    targets.answers.clear();
    for (Index i = 0; i < n; ++i) {
      const auto row = scores.begin() + static_cast<std::ptrdiff_t>(i * classes);
      targets.answers.push_back(std::max_element(row, row + static_cast<std::ptrdiff_t>(classes)) - row);
    }
    parallel(backbone.pool(), static_cast<Index>(heads.size()), [&](Index h) {
      PlacedHead& p = heads[static_cast<std::size_t>(h)];
      if (!p.dropped) p.head->forward_features(maps[p.place], training);
    });
    for (PlacedHead& p : heads) {
      if (p.dropped) continue;
      p.head->forward_scores(p.earlier < 0 ? nullptr : &heads[static_cast<std::size_t>(p.earlier)].head->scores(),
                             training);
    }
  };
  // The chance of reaching each head, from what the heads before it say of this batch.
  const auto reach = [&](Index n) {
    std::vector<std::vector<float>> weights;
    std::vector<float> now(static_cast<std::size_t>(n), 1.0f), p;
    for (const PlacedHead& head : heads) {
      weights.push_back(now);
      if (!std::isfinite(head.threshold)) continue;
      soften(head.head->scores().values, classes, 1.0f, p);
      for (std::size_t i = 0; i < now.size(); ++i) {
        const auto row = p.begin() + static_cast<std::ptrdiff_t>(i * static_cast<std::size_t>(classes));
        if (*std::max_element(row, row + static_cast<std::ptrdiff_t>(classes)) >= head.threshold)
          now[i] = options.least_weight;
      }
    }
    return weights;
  };

  // Looks at the held-out samples: keeps each head's weights where they are the best so far, and returns what each
  // said.
  const auto check = [&] {
    std::vector<double> loss(heads.size(), 0.0);
    std::vector<std::vector<SureAnswer>> answers(heads.size());
    targets.labels.clear();
    for (PlacedHead& p : heads) p.head->swap(p.average);
    for (Index first = 0; first < held; first += options.batch) {
      const Index n = std::min(options.batch, held - first);
      run(data.held_out.subspan(static_cast<std::size_t>(first) * width, static_cast<std::size_t>(n) * width), n,
          false);
      const auto weights = reach(n);
      std::vector<float> unused;
      for (std::size_t h = 0; h < heads.size(); ++h) {
        if (heads[h].dropped) continue;
        const std::vector<float>& said = heads[h].head->scores().values;
        loss[h] +=
            distillation_loss(said, targets, weights[h], unused) * static_cast<double>(n) / static_cast<double>(held);
        add_answers(said, targets, answers[h]);
      }
    }
    for (PlacedHead& p : heads) p.head->swap(p.average);
    for (std::size_t h = 0; h < heads.size(); ++h) {
      if (heads[h].dropped) continue;
      if (loss[h] < heads[h].best_loss) {
        heads[h].best_loss = loss[h];
        heads[h].best = heads[h].average;
        stale[h] = 0;
      } else {
        ++stale[h];
      }
    }
    return answers;
  };
  const auto halve = [&](Index per_place) {
    auto answers = check();
    std::vector<Contender> contenders;
    for (std::size_t h = 0; h < heads.size(); ++h) {
      if (heads[h].dropped) continue;
      const double share = share_alone(std::move(answers[h]), options.epsilon);
      contenders.push_back({h, heads[h].place, share * heads[h].behind - heads[h].cost});
    }
    for (const std::size_t h : losers(std::move(contenders), per_place)) heads[h].dropped = true;
  };

  Index done = 0;
  auto next = options.halvings.begin();
  for (Index epoch = 0; epoch < options.epochs; ++epoch) {
    std::shuffle(order.begin(), order.end(), random);
    for (Index s = 0; s < steps; ++s) {
      const Index first = s * options.batch, n = std::min(options.batch, samples - first);
      if (n < 8 && steps > 1) {  // too few for the statistics of a batch
        ++done;
        continue;
      }
      batch.resize(static_cast<std::size_t>(n) * width);
      targets.labels.clear();
      for (Index i = 0; i < n; ++i) {
        const auto from = static_cast<std::size_t>(order[static_cast<std::size_t>(first + i)]);
        augment(data.samples.subspan(from * width, width),
                std::span(batch).subspan(static_cast<std::size_t>(i) * width, width), augmentation, random);
        if (!data.labels.empty()) targets.labels.push_back(data.labels[from]);
      }
      run(batch, n, true);
      const auto weights = reach(n);
      const float rate = rate_at(options.rate, done, total);
      parallel(backbone.pool(), static_cast<Index>(heads.size()), [&](Index h) {
        const auto u = static_cast<std::size_t>(h);
        PlacedHead& p = heads[u];
        if (p.dropped || stale[u] >= options.patience) return;
        p.head->learn(maps[p.place], targets, weights[u], rate);
        p.head->average_into(p.average, share_of_average(++p.steps));
      });
      progress(++done, total);
      for (; next != options.halvings.end() && static_cast<double>(done) >= next->at * static_cast<double>(total);
           ++next)
        halve(next->per_place);
    }
    check();
  }
  for (PlacedHead& p : heads) {
    if (!p.best.empty()) p.head->swap(p.best);
    p.best.clear(), p.average.clear();
  }
}

}  // namespace offramp::fit
