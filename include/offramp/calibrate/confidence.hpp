/// @file confidence.hpp
/// Confidence that ranks: temperatures and gates learned from recorded scores.
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "offramp/calibrate/records.hpp"
#include "offramp/policy/ensemble.hpp"
#include "offramp/policy/gate.hpp"

namespace offramp {

/// For each early exit the temperature whose softmax gives the full network's answers the largest likelihood (Guo et
/// al., ICML 2017, section 4.2); 1 for the last exit. By golden-section search on the logarithm.
inline std::vector<float> fit_temperatures(const ExitScores& all) {
  std::vector<float> found;
  for (Index k = 0; k + 1 < all.exits; ++k) {
    const auto loss = [&](double log_t) {
      const double t = std::exp(log_t);
      double sum = 0;
      for (Index i = 0; i < all.samples; ++i) {
        const auto row = all.at(i, k);
        const auto answer = static_cast<std::size_t>(ExitContext::label_of(all.at(i, all.exits - 1)));
        const auto largest = static_cast<double>(*std::max_element(row.begin(), row.end()));
        double total = 0;
        for (const float s : row) total += std::exp((static_cast<double>(s) - largest) / t);
        sum += std::log(total) - (static_cast<double>(row[answer]) - largest) / t;
      }
      return sum;
    };
    const double shrink = (std::sqrt(5.0) - 1) / 2;
    double low = std::log(0.02), high = std::log(200.0);
    double a = high - shrink * (high - low), b = low + shrink * (high - low), fa = loss(a), fb = loss(b);
    for (int i = 0; i < 40; ++i) {
      if (fa < fb) {
        high = b, b = a, fb = fa;
        a = high - shrink * (high - low);
        fa = loss(a);
      } else {
        low = a, a = b, fa = fb;
        b = low + shrink * (high - low);
        fb = loss(b);
      }
    }
    found.push_back(static_cast<float>(std::exp((low + high) / 2)));
  }
  found.push_back(1.0f);
  return found;
}

/// What a gate is learned with.
struct GateOptions {
  double ridge = 1;          ///< penalty on squared weights
  Index most_offsets = 100;  ///< classes up to which each has an offset
  Index most_means = 32;     ///< classes up to which each has its mean
  bool of_ensemble = false;  ///< the gate stands inside an ensemble
};

namespace detail {

/// Hands a gate's features out instead of judging.
struct GateFeatures {
  static constexpr bool looks_back = true;
  std::vector<std::vector<float>>* rows;  // [sample * exits + exit]
  Verdict operator()(ExitContext& c) const noexcept {
    const auto x = Gate::features(c);
    std::vector<float> row(x.begin(), x.end());
    row.push_back(static_cast<float>(c.label()));
    row.insert(row.end(), c.probabilities.begin(), c.probabilities.end());
    rows->push_back(std::move(row));
    return {false, 0};
  }
};

/// Weights of a logistic regression with a ridge, by Newton's method with halved steps.
inline Eigen::VectorXd fit_logistic(const Eigen::MatrixXd& x, const Eigen::VectorXd& y, const Eigen::VectorXd& ridge) {
  Eigen::VectorXd w = Eigen::VectorXd::Zero(x.cols());
  const auto loss = [&](const Eigen::VectorXd& at) {
    const Eigen::VectorXd z = x * at;
    double sum = 0.5 * ridge.dot(at.cwiseAbs2());
    for (Eigen::Index i = 0; i < z.size(); ++i)  // log(1 + e^z) - y z, without overflow
      sum += std::max(z[i], 0.0) + std::log1p(std::exp(-std::abs(z[i]))) - y[i] * z[i];
    return sum;
  };
  double current = loss(w);
  for (int step = 0; step < 50; ++step) {
    const Eigen::VectorXd p = ((-(x * w).array()).exp() + 1).inverse().matrix();
    const Eigen::VectorXd gradient = x.transpose() * (p - y) + ridge.cwiseProduct(w);
    const Eigen::VectorXd curvature = (p.array() * (1 - p.array())).max(1e-9).matrix();
    Eigen::MatrixXd hessian = x.transpose() * curvature.asDiagonal() * x;
    hessian.diagonal() += ridge;
    const Eigen::VectorXd direction = hessian.ldlt().solve(gradient);
    double length = 1;
    double next = loss(w - direction);
    while (!(next <= current) && length > 1e-6) {
      length /= 2;
      next = loss(w - length * direction);
    }
    if (!(next <= current)) break;
    w -= length * direction;
    if (current - next < 1e-9 * (1 + current)) break;
    current = next;
  }
  return w;
}

}  // namespace detail

/// Learns a gate: at each early exit the chance that its answer is the full network's. The thresholds are left open.
inline Gate fit_gate(const ExitScores& all, const GateOptions& options = {}) {
  OFFRAMP_REQUIRE(all.samples > 0, "there are no data to learn a gate from");
  std::vector<std::vector<float>> rows;
  rows.reserve(static_cast<std::size_t>(all.samples * all.exits));
  const detail::GateFeatures collect{&rows};
  if (options.of_ensemble) {
    judge(all, Ensemble<detail::GateFeatures>{collect, {}}, Truth::full_network);
  } else {
    judge(all, collect, Truth::full_network);
  }
  const auto classes = static_cast<std::size_t>(all.classes), f = Gate::feature_count;
  const bool offsets = all.classes <= options.most_offsets, means = all.classes <= options.most_means;
  Gate gate{{}, Thresholds(std::numeric_limits<float>::infinity())};
  for (Index k = 0; k + 1 < all.exits; ++k) {
    const auto row = [&](Index i) -> const std::vector<float>& {
      return rows[static_cast<std::size_t>(i * all.exits + k)];
    };
    const auto is_right = [&](Index i) {
      return static_cast<Index>(row(i)[f]) == ExitContext::label_of(all.at(i, all.exits - 1));
    };
    // The mean log-probabilities of each class, over the samples that the exit answers rightly.
    std::vector<float> mean(means ? classes * classes : 0, 0.0f);
    std::vector<Index> seen(classes, 0);
    for (Index i = 0; means && i < all.samples; ++i) {
      if (!is_right(i)) continue;
      const auto label = static_cast<std::size_t>(row(i)[f]);
      ++seen[label];
      for (std::size_t c = 0; c < classes; ++c)
        mean[label * classes + c] += std::log(std::max(row(i)[f + 1 + c], 1e-4f));
    }
    for (std::size_t i = 0; i < mean.size(); ++i) mean[i] /= static_cast<float>(std::max<Index>(1, seen[i / classes]));
    const auto n = static_cast<Eigen::Index>(all.samples),
               width = static_cast<Eigen::Index>(f + (offsets ? classes : 0));
    Eigen::MatrixXd x = Eigen::MatrixXd::Zero(n, width);
    Eigen::VectorXd y(n), ridge = Eigen::VectorXd::Constant(width, options.ridge);
    ridge[0] = 1e-6;
    for (Index i = 0; i < all.samples; ++i) {
      const auto at = static_cast<Eigen::Index>(i);
      const auto label = static_cast<std::size_t>(row(i)[f]);
      for (std::size_t c = 0; c < f; ++c) x(at, static_cast<Eigen::Index>(c)) = static_cast<double>(row(i)[c]);
      if (means)
        x(at, static_cast<Eigen::Index>(f - 1)) = static_cast<double>(Gate::distance(
            std::span(row(i)).subspan(f + 1, classes), std::span<const float>(mean).subspan(label * classes, classes)));
      if (offsets) x(at, static_cast<Eigen::Index>(f + label)) = 1;
      y[at] = is_right(i) ? 1 : 0;
    }
    const Eigen::VectorXd w = detail::fit_logistic(x, y, ridge);
    std::vector<float> weights(w.data(), w.data() + w.size());
    if (means) {
      weights.resize(f + classes, 0.0f);
      weights.insert(weights.end(), mean.begin(), mean.end());
    }
    gate.weights.push_back(std::move(weights));
  }
  return gate;
}

}  // namespace offramp
