/// @file distillation.hpp
/// What training aims at and how it steps: the answers of another network, softened (Hinton et al. 2015), and Adam.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "offramp/core/shape.hpp"
#include "offramp/kernel/training.hpp"

namespace offramp::fit {

/// Trainable numbers, their gradient, and what the optimiser remembers of it.
struct Parameter {
  std::vector<float> value, gradient, first_moment, second_moment;
  bool decays = false;

  void resize(Index n) {
    for (auto* v : {&value, &gradient, &first_moment, &second_moment}) v->assign(static_cast<std::size_t>(n), 0.0f);
  }
};

/// Adam with decoupled weight decay (Kingma and Ba, ICLR 2015; Loshchilov and Hutter, ICLR 2019).
struct Adam {
  float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f, weight_decay = 1e-4f;

  /// One step, the `count`-th, counted from 1; the gradient is spent.
  void step(Parameter& p, float rate, std::int64_t count) const noexcept {
    kernel::AdamStep s;
    s.beta1 = beta1, s.beta2 = beta2, s.epsilon = epsilon;
    s.rate = rate / (1 - std::pow(beta1, static_cast<float>(count)));
    s.second_scale = 1 / (1 - std::pow(beta2, static_cast<float>(count)));
    s.shrink = p.decays ? 1 - rate * weight_decay : 1.0f;
    kernel::training_kernels_for(best_isa())
        .adam(s, p.value.data(), p.gradient.data(), p.first_moment.data(), p.second_moment.data(),
              static_cast<Index>(p.value.size()));
  }
};

/// What the heads are to say about a batch.
struct Targets {
  Index n = 0, classes = 0;
  float temperature = 1;       ///< of the distillation (Hinton et al. 2015, section 2)
  std::vector<float> soft;     ///< [n][classes]: the full network's probabilities at that temperature
  std::vector<Index> answers;  ///< [n]: the full network's answers
  std::vector<Index> labels;   ///< empty, or [n]
  float label_share = 0;       ///< of the loss, where there are labels
};

/// Softmax of rows of scores divided by a temperature.
inline void soften(std::span<const float> scores, Index classes, float temperature, std::vector<float>& out) {
  out.resize(scores.size());
  const auto c = static_cast<std::size_t>(classes);
  for (std::size_t r = 0; r < scores.size(); r += c) {
    float largest = scores[r], sum = 0;
    for (std::size_t i = 1; i < c; ++i) largest = std::max(largest, scores[r + i]);
    for (std::size_t i = 0; i < c; ++i) sum += out[r + i] = std::exp((scores[r + i] - largest) / temperature);
    for (std::size_t i = 0; i < c; ++i) out[r + i] /= sum;
  }
}

/// The mean over samples of weight * ((1 - s) T^2 KL(soft || p_T) + s CE(label, p)), and its gradient by the scores.
/// The entropy of the targets is left out of the value.
inline double distillation_loss(std::span<const float> scores, const Targets& t, std::span<const float> weights,
                                std::vector<float>& gradient) {
  const auto c = static_cast<std::size_t>(t.classes);
  const float share = t.labels.empty() ? 0.0f : t.label_share;
  std::vector<float> p_soft, p_hard;
  soften(scores, t.classes, t.temperature, p_soft);
  if (share > 0) soften(scores, t.classes, 1.0f, p_hard);
  gradient.assign(scores.size(), 0.0f);
  double loss = 0, total = 0;
  for (const float w : weights) total += static_cast<double>(w);
  const float scale = total > 0 ? static_cast<float>(1 / total) : 0.0f;
  for (std::size_t n = 0; n < static_cast<std::size_t>(t.n); ++n) {
    const float w = weights[n] * scale;
    for (std::size_t i = 0; i < c; ++i) {
      const std::size_t at = n * c + i;
      gradient[at] += w * (1 - share) * t.temperature * (p_soft[at] - t.soft[at]);
      loss -= static_cast<double>(w * (1 - share) * t.temperature * t.temperature * t.soft[at] *
                                  std::log(std::max(p_soft[at], 1e-30f)));
      if (share > 0) {
        const bool is_label = t.labels[n] == static_cast<Index>(i);
        gradient[at] += w * share * (p_hard[at] - (is_label ? 1.0f : 0.0f));
        if (is_label) loss -= static_cast<double>(w * share * std::log(std::max(p_hard[at], 1e-30f)));
      }
    }
  }
  return loss;
}

}  // namespace offramp::fit
