/// @file certificate.hpp
/// A statistical guarantee for thresholds: with probability at least 1 - delta over the draw of the calibration data,
/// the risk on data drawn alike is at most epsilon.
///
/// Learn then Test (Angelopoulos, Bates, Candès, Jordan and Lei 2021, sections 2 and 3): each setting of the thresholds
/// has the null hypothesis that its risk is above epsilon; a p-value that is valid for any distribution rejects it; the
/// settings are tested in an order that was fixed before the calibration data were seen, from the safest on, and the
/// first that is not rejected ends the test, so that no correction for many tests is paid.
///
/// Assumes that calibration data and later data are independent draws from one distribution, and that neither the
/// settings nor their order depend on the calibration data. Where that does not hold, nothing is guaranteed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/calibrate/calibrate.hpp"

namespace offramp {

/// P(Binomial(n, p) <= k), summed in logarithms.
inline double binomial_cdf(Index k, Index n, double p) noexcept {
  if (k >= n || p <= 0) return 1;
  if (k < 0 || p >= 1) return 0;
  const auto m = static_cast<double>(n);
  double log_term = m * std::log1p(-p), sum = 0;
  const double log_odds = std::log(p) - std::log1p(-p);
  for (Index i = 0; i <= k; ++i) {
    sum += std::exp(log_term);
    log_term += std::log((m - static_cast<double>(i)) / (static_cast<double>(i) + 1)) + log_odds;
  }
  return std::min(1.0, sum);
}

/// A p-value for "the risk is above epsilon" from `errors` losses of 1 among n losses of 0 or 1. The binomial tail is
/// exact for such losses, and never above the bound of Hoeffding and Bentkus.
inline double binomial_p_value(Index errors, Index n, double epsilon) noexcept {
  return n > 0 ? binomial_cdf(errors, n, epsilon) : 1.0;
}

/// The same from the mean of n losses anywhere in [0, 1]: Hoeffding's and Bentkus' bounds, the smaller (Bates et al.,
/// "Distribution-free, risk-controlling prediction sets", J. ACM 2021, section 3.1).
inline double hoeffding_bentkus_p_value(double mean, Index n, double epsilon) noexcept {
  if (n <= 0 || mean >= epsilon) return 1;
  const auto part = [](double a, double b) { return a > 0 ? a * std::log(a / b) : 0.0; };
  const double divergence = part(mean, epsilon) + part(1 - mean, 1 - epsilon);
  const double hoeffding = std::exp(-static_cast<double>(n) * divergence);
  const double bentkus =
      std::exp(1.0) * binomial_cdf(static_cast<Index>(std::ceil(mean * static_cast<double>(n) - 1e-9)), n, epsilon);
  return std::min({1.0, hoeffding, bentkus});
}

/// Samples without a single error that a certificate takes at least.
inline Index samples_needed(double epsilon, double delta) noexcept {
  return static_cast<Index>(std::ceil(std::log(delta) / std::log1p(-epsilon)));
}

/// What is guaranteed, and from what.
struct Certificate {
  double epsilon = 0, delta = 0;  ///< risk at most epsilon with probability at least 1 - delta
  Index n = 0, errors = 0;        ///< calibration samples, and those with a loss
  double p_value = 1;
  double bound = 1;  ///< the smallest epsilon that this setting alone would pass with (Clopper and Pearson 1934)
  double risk() const noexcept { return n > 0 ? static_cast<double>(errors) / static_cast<double>(n) : 1; }
};

struct CertifiedThresholds {
  std::vector<float> thresholds;  ///< one for each early exit; all infinite where nothing passed
  Outcome outcome;                ///< on the calibration data
  Certificate certificate;
  bool has_exits = false;  ///< false: the data support no early answer at this epsilon and delta
};

/// The smallest epsilon whose p-value is at most delta.
inline double upper_bound(Index errors, Index n, double delta) noexcept {
  double low = 0, high = 1;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (binomial_p_value(errors, n, middle) > delta ? low : high) = middle;
  }
  return high;
}

/// Walks `settings`, the safest first, over calibration data that neither chose nor ordered them, and returns the last
/// before the first that fails. A loss is an answer that is not right; record without labels, and right means that it
/// agrees with the full network. Raises an Error for epsilon or delta outside (0, 1).
inline CertifiedThresholds certify_thresholds(const ExitRecords& calibration,
                                              std::span<const ThresholdSetting> settings, double epsilon,
                                              double delta) {
  OFFRAMP_REQUIRE(epsilon > 0 && epsilon < 1 && delta > 0 && delta < 1, "epsilon and delta must be between 0 and 1");
  OFFRAMP_REQUIRE(calibration.samples > 0, "there are no data to calibrate on");
  CertifiedThresholds best;
  best.thresholds.assign(static_cast<std::size_t>(calibration.exits - 1), std::numeric_limits<float>::infinity());
  best.outcome = apply_thresholds(calibration, best.thresholds);
  best.certificate = {epsilon, delta, calibration.samples, 0, 1, 1};
  for (const ThresholdSetting& s : settings) {
    const Outcome o = apply_thresholds(calibration, s.thresholds);
    const auto errors = static_cast<Index>(std::llround((1 - o.accuracy) * static_cast<double>(calibration.samples)));
    const double p = binomial_p_value(errors, calibration.samples, epsilon);
    if (p > delta) break;
    best.thresholds = s.thresholds;
    best.outcome = o;
    best.certificate = {epsilon, delta, calibration.samples,
                        errors,  p,     upper_bound(errors, calibration.samples, delta)};
    best.has_exits = std::any_of(s.thresholds.begin(), s.thresholds.end(), [](float t) { return !std::isinf(t); });
  }
  return best;
}

/// The certificate in words, for a report and for a file's metadata (key `offramp.certificate`).
inline std::string text_of(const Certificate& c, const std::string& risk) {
  const auto number = [](double v) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", v);
    return std::string(text);
  };
  return "with probability at least " + number(1 - c.delta) + " over the draw of " + std::to_string(c.n) +
         " calibration samples, " + risk + " is at most " + number(c.epsilon) + " on data drawn alike (" +
         std::to_string(c.errors) + " cases seen, bound " + number(c.bound) +
         "; Learn then Test with exact binomial p-values and fixed-sequence testing)";
}

}  // namespace offramp
