/// @file distil.hpp
/// Trains all weights of a network to answer as another one does, on inputs without labels (Hinton et al. 2015).
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "offramp/fit/network.hpp"
#include "offramp/fit/train.hpp"

namespace offramp::fit {

struct DistilOptions {
  Index epochs = 10, batch = 32;
  float rate = 3e-4f;      ///< at the start; falls to zero along a half cosine
  float temperature = 4;   ///< of the distillation
  double held_out = 0.05;  ///< of the samples: they say whether anything was gained
  bool augment = true;     ///< shift and mirror images
  /// Of the samples, that are a random mixture of two: the teacher's answers to these are targets as good as any
  /// (function matching, Beyer et al. 2022, arXiv 2106.05237, section 3).
  double mixed = 0.3;
  /// Weight of the relative squared error of what stands between the layers, where teacher and student have a value of
  /// the same name and shape (hints: Romero et al., ICLR 2015, arXiv 1412.6550). 0: answers alone.
  float hints = 10;
  std::uint64_t seed = 0;
  int threads = 1;
};

struct DistilResult {
  Graph graph;          ///< the student with the weights that it learned, or as it was
  Index trained = 0;    ///< samples
  double before = 0;    ///< the teacher's softened answers under the student's, on samples held out: mean
  double after = 0;     ///< cross-entropy
  bool better = false;  ///< whether that has fallen; if not, the student is handed back as it was
};

/// Mixes a share of samples, each with the one behind it, by weights drawn evenly.
inline void mix(std::vector<float>& samples, std::size_t width, double share, std::mt19937_64& random) {
  std::uniform_real_distribution<float> draw(0.0f, 1.0f);
  for (std::size_t at = 0; at + 2 * width <= samples.size(); at += width) {
    if (draw(random) >= static_cast<float>(share)) continue;
    const float w = draw(random);
    for (std::size_t i = at; i < at + width; ++i) samples[i] = w * samples[i] + (1 - w) * samples[i + width];
  }
}

/// A value that teacher and student both have.
struct Hint {
  ValueId student = no_value;
  Place teacher;
};

/// Places of the student that the teacher has under the same name and in the same shape.
inline std::vector<Hint> shared_places(const Graph& student, ValueId answer, const Graph& teacher, Index classes,
                                       const ModelOptions& model) {
  std::vector<Hint> hints;
  const Inference shapes = infer_batch(teacher, model, 1), own = infer_batch(student, model, 1);
  for (Place& p : find_places(student, answer, classes, model)) {
    for (std::size_t v = 0; v < teacher.values.size(); ++v) {
      if (teacher.values[v].name != p.name ||
          shapes.views[v].shape != own.views[static_cast<std::size_t>(p.value)].shape)
        continue;
      Hint h{p.value, std::move(p)};
      h.teacher.value = static_cast<ValueId>(v);
      hints.push_back(std::move(h));
      break;
    }
  }
  return hints;
}

/// Trains `student`, a graph from `simplified` whose nodes have names of their own, at its output `answer`, to give the
/// softened answers of `teacher` at its output `teacher_answer`. Both read the same input. The result does not depend
/// on the number of threads. `progress(done, total)` is called after each batch.
template <class Progress>
DistilResult distil(const Graph& student, ValueId answer, const Graph& teacher, ValueId teacher_answer,
                    std::span<const float> samples, const ModelOptions& model, const DistilOptions& options,
                    Progress&& progress) {
  OFFRAMP_REQUIRE(options.epochs > 0 && options.batch > 0, "distillation needs epochs and samples in a batch");
  TrainableNetwork network(student, answer, model);
  const Index size = network.sample_size(), classes = network.classes();
  const auto pool = std::make_shared<ThreadPool>(std::max(1, options.threads));
  std::vector<Hint> hints;
  if (options.hints > 0) hints = shared_places(student, answer, teacher, classes, model);
  std::vector<Place> places;
  for (const Hint& h : hints) places.push_back(h.teacher);
  const Backbone backbone(teacher, teacher_answer, places, classes, model, pool, options.batch);
  OFFRAMP_REQUIRE(backbone.sample_size() == size, "teacher and student read samples of different sizes");
  const Index count = static_cast<Index>(samples.size()) / size;
  const Index held = static_cast<Index>(static_cast<double>(count) * options.held_out), n = count - held;
  OFFRAMP_REQUIRE(n > 0 && held > 0, "there are too few samples to distil with");
  std::vector<Index> unused;
  Augmentation augmentation;
  if (options.augment) {
    // All weights learn, so there is more to overfit than in a head: every sample is changed, and further.
    augmentation = look_at_answers(backbone, samples, options.batch, backbone.augmentation(), unused);
    augmentation.share = 1;
    augmentation.shift += augmentation.shift / 2;
  }

  constexpr Index parts = 4;  // a fixed number: the result is the same on any number of threads
  std::vector<Pass> passes;
  for (Index i = 0; i < parts; ++i) passes.push_back(network.make_pass());
  const auto width = static_cast<std::size_t>(size);
  std::vector<Map> maps;
  std::vector<float> x, scores, soft;
  std::vector<double> losses(static_cast<std::size_t>(parts));
  // Both networks over a batch in x; with `train` the student's gradients are gathered. The mean loss.
  const auto run = [&](Index samples_here, bool train) {
    backbone.run(x, samples_here, maps, scores);
    soften(scores, classes, options.temperature, soft);
    std::vector<float> pull;  // of each hint, for one element of one sample
    for (std::size_t h = 0; train && h < hints.size(); ++h) {
      double power = 0;
      for (const float v : maps[h].values) power += static_cast<double>(v) * static_cast<double>(v);
      const auto all = static_cast<double>(hints.size()) * std::max(power, 1e-20);
      pull.push_back(
          static_cast<float>(2 * static_cast<double>(options.hints * options.temperature * options.temperature) / all));
    }
    parallel(*pool, parts, [&](Index part) {
      Pass& p = passes[static_cast<std::size_t>(part)];
      Targets t;
      t.n = 1, t.classes = classes, t.temperature = options.temperature;
      const std::vector<float> weight{1.0f};
      std::vector<float> d;
      double sum = 0;
      for (Index i = samples_here * part / parts; i < samples_here * (part + 1) / parts; ++i) {
        const auto row = soft.begin() + static_cast<std::ptrdiff_t>(i * classes);
        t.soft.assign(row, row + static_cast<std::ptrdiff_t>(classes));
        const auto said =
            network.forward(std::span<const float>(x).subspan(static_cast<std::size_t>(i) * width, width), p);
        sum += distillation_loss(said, t, weight, d);
        if (!train) continue;
        for (float& g : d) g /= static_cast<float>(samples_here);
        network.backward(d, p, [&] {
          for (std::size_t h = 0; h < hints.size(); ++h) {
            const auto found = network.value(hints[h].student, p);
            const auto gradient = network.gradient(hints[h].student, p);
            const float* goal = maps[h].values.data() + i * static_cast<Index>(found.size());
            for (std::size_t k = 0; k < found.size(); ++k) gradient[k] += pull[h] * (found[k] - goal[k]);
          }
        });
      }
      losses[static_cast<std::size_t>(part)] = sum;
    });
    return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(samples_here);
  };
  const auto held_loss = [&] {
    double sum = 0;
    for (Index first = n; first < count; first += options.batch) {
      const Index here = std::min(options.batch, count - first);
      const auto part =
          samples.subspan(static_cast<std::size_t>(first) * width, static_cast<std::size_t>(here) * width);
      x.assign(part.begin(), part.end());
      sum += run(here, false) * static_cast<double>(here);
    }
    return sum / static_cast<double>(held);
  };

  DistilResult r;
  r.trained = n;
  r.before = held_loss();
  std::vector<Index> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), Index{0});
  std::mt19937_64 random(options.seed);
  const Index steps = (n + options.batch - 1) / options.batch, total = steps * options.epochs;
  Index done = 0;
  for (Index epoch = 0; epoch < options.epochs; ++epoch) {
    std::shuffle(order.begin(), order.end(), random);
    for (Index s = 0; s < steps; ++s) {
      const Index first = s * options.batch, here = std::min(options.batch, n - first);
      x.resize(static_cast<std::size_t>(here) * width);
      for (Index i = 0; i < here; ++i)
        augment(samples.subspan(static_cast<std::size_t>(order[static_cast<std::size_t>(first + i)]) * width, width),
                std::span(x).subspan(static_cast<std::size_t>(i) * width, width), augmentation, random);
      mix(x, width, options.mixed, random);
      run(here, true);
      network.step(passes, rate_at(options.rate, done, total), done + 1);
      progress(++done, total);
    }
  }
  r.after = held_loss();
  r.better = r.after < r.before;
  r.graph = r.better ? network.write(student) : student;
  return r;
}

}  // namespace offramp::fit
