/// @file certificate.hpp
/// A statistical guarantee for thresholds: with probability at least 1 - delta over the draw of the calibration data,
/// the risk on data drawn alike is at most epsilon.
///
/// Learn then Test (Angelopoulos, Bates, Candès, Jordan and Lei 2021, sections 2 and 3): each setting of the thresholds
/// has the null hypothesis that its risk is above epsilon; a p-value that is valid for any distribution rejects it; the
/// settings are tested in an order that was fixed before the calibration data were seen, from the safest on, and the
/// first that is not rejected ends the test, so that no correction for many tests is paid. Where several risks are to
/// hold at once (one for each class), the p-value of a setting is the largest of theirs.
///
/// Assumes that calibration data and later data are independent draws from one distribution, and that neither the
/// settings nor their order depend on the calibration data. Where that does not hold, nothing is guaranteed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/calibrate/calibrate.hpp"

namespace offramp {

/// P(Binomial(n, p) <= k), summed, in logarithms where a term would underflow.
inline double binomial_cdf(Index k, Index n, double p) noexcept {
  if (k >= n || p <= 0) return 1;
  if (k < 0 || p >= 1) return 0;
  const auto m = static_cast<double>(n);
  const double log_first = m * std::log1p(-p), odds = p / (1 - p);
  double sum = 0;
  if (log_first > -600) {  // no term underflows to nothing
    double term = std::exp(log_first);
    for (Index i = 0; i <= k; ++i) {
      sum += term;
      term *= (m - static_cast<double>(i)) / (static_cast<double>(i) + 1) * odds;
    }
  } else {
    double log_term = log_first;
    for (Index i = 0; i <= k; ++i) {
      sum += std::exp(log_term);
      log_term += std::log((m - static_cast<double>(i)) / (static_cast<double>(i) + 1) * odds);
    }
  }
  return std::min(1.0, sum);
}

/// P(Binomial(n, p) = k).
inline double binomial_pmf(Index k, Index n, double p) noexcept {
  if (k < 0 || k > n) return 0;
  if (p <= 0 || p >= 1) return k == (p <= 0 ? 0 : n) ? 1 : 0;
  const auto m = static_cast<double>(n), c = static_cast<double>(k);
  return std::exp(std::lgamma(m + 1) - std::lgamma(c + 1) - std::lgamma(m - c + 1) + c * std::log(p) +
                  (m - c) * std::log1p(-p));
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

/// The smallest epsilon whose p-value is at most delta (Clopper and Pearson 1934).
inline double upper_bound(Index errors, Index n, double delta) noexcept {
  double low = 0, high = 1;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (binomial_p_value(errors, n, middle) > delta ? low : high) = middle;
  }
  return high;
}

/// The largest risk below which `errors` or more would be seen with probability delta at most: the other side.
inline double lower_bound(Index errors, Index n, double delta) noexcept {
  double low = 0, high = 1;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (1 - binomial_cdf(errors - 1, n, middle) <= delta ? low : high) = middle;
  }
  return low;
}

/// A p-value for "the share of answers that became wrong, less the share that became right, is above epsilon", from n
/// pairs of which `lost` became wrong and `won` became right.
///
/// With D = lost - won and k = lost + won, the statistic is (D - n epsilon) / sqrt(max(k, n epsilon)): how far D lies
/// below what the null hypothesis expects, in standard errors that the pairs themselves tell (the score test of Tango,
/// Statistics in Medicine 1998, with a plainer variance). Its distribution is exact once the share q of pairs that
/// change is known, and hardly depends on q: the p-value is its largest lower tail over a confidence interval for q,
/// plus the chance beta that the interval misses q (Berger and Boos, JASA 1994). The largest is looked for in steps of
/// half a standard error of q. beta is a hundredth of `delta`, the level that the p-value is to be compared with.
inline double paired_p_value(Index lost, Index won, Index n, double epsilon, double delta) noexcept {
  const auto m = static_cast<double>(n);
  const double edge = m * epsilon;
  if (n <= 0 || static_cast<double>(lost - won) >= edge) return 1;
  const auto deviation = [&](Index k) { return std::sqrt(std::max(static_cast<double>(k), edge)); };
  const Index changed = lost + won;
  const double statistic = (static_cast<double>(lost - won) - edge) / deviation(changed);
  // P(statistic is no larger), where P(lost) = (q + epsilon) / 2 and P(won) = (q - epsilon) / 2: over the number k of
  // pairs that change, the chance that at most `most` of them became wrong.
  const auto tail = [&](double q) {
    const double share = (1 + epsilon / q) / 2;  // of the changed pairs that became wrong
    const double spread = 5 * std::sqrt(m * q * (1 - q)) + 6;
    const auto first = static_cast<Index>(std::max(0.0, m * q - spread)),
               last = static_cast<Index>(std::min(m, m * q + spread));
    double p = binomial_pmf(first, n, q), sum = 0, seen = 0;
    Index most = -1;
    double below = 0, at = 0;  // P(lost <= most), P(lost = most) among k
    for (Index k = first; k <= last; ++k) {
      const auto c = static_cast<double>(k);
      // Rounded away from the next number, and never less than for fewer pairs: another win cannot raise the statistic.
      const double limit = (c + edge + statistic * deviation(k)) / 2 + 1e-9;
      const Index next = std::clamp(static_cast<Index>(std::floor(limit)), std::max<Index>(most, -1), k);
      if (most < 0 || share >= 1) {
        most = next;
        below = binomial_cdf(most, k, share), at = most < 0 ? 0 : binomial_pmf(most, k, share);
      } else {
        below = std::max(0.0, below - share * at);
        at *= c * (1 - share) / (c - static_cast<double>(most));
        for (; most < next; below += at) {
          ++most;
          at *= (c - static_cast<double>(most) + 1) / static_cast<double>(most) * share / (1 - share);
        }
      }
      seen += p;
      sum += p * std::min(1.0, below);
      p *= (m - c) / (c + 1) * q / (1 - q);
    }
    return sum + std::max(0.0, 1 - seen);
  };
  const double beta = delta / 100;
  const double high = std::max(epsilon, upper_bound(changed, n, beta / 2));
  const double low = std::max(epsilon, lower_bound(changed, n, beta / 2));
  const double step = std::sqrt(static_cast<double>(changed) + 1) / (2 * m);
  const int steps = static_cast<int>(std::ceil((high - low) / step));
  double worst = tail(std::min(1 - 1e-12, high));
  for (int i = 0; i < steps && worst < 1; ++i) worst = std::max(worst, tail(low + (high - low) * i / steps));
  return std::min(1.0, worst + beta);
}

/// The smallest epsilon whose paired p-value is at most delta.
inline double paired_upper_bound(Index lost, Index won, Index n, double delta) noexcept {
  double low = 0, high = 1;
  for (int i = 0; i < 24; ++i) {
    const double middle = (low + high) / 2;
    (paired_p_value(lost, won, n, middle, delta) > delta ? low : high) = middle;
  }
  return high;
}

/// Samples without a single error that a certificate takes at least.
inline Index samples_needed(double epsilon, double delta) noexcept {
  return static_cast<Index>(std::ceil(std::log(delta) / std::log1p(-epsilon)));
}

/// What must not happen too often.
enum class Risk : std::uint8_t {
  disagreement,   ///< another answer than the full network's
  accuracy_drop,  ///< accuracy of the full network less that of the early exits
};

/// What is guaranteed, and from what.
struct Certificate {
  Risk risk = Risk::disagreement;
  double epsilon = 0, delta = 0;  ///< risk at most epsilon with probability at least 1 - delta
  Index n = 0;                    ///< calibration samples
  Index lost = 0, won = 0;        ///< of them: loss 1; for a drop of accuracy also those with loss -1
  double p_value = 1;
  double bound = 1;          ///< the smallest epsilon that this setting alone would pass with
  Index classes = 0;         ///< the risk holds within each of so many classes; 0: overall
  Index smallest_class = 0;  ///< samples of the rarest class that was tested
  double observed() const noexcept { return n > 0 ? static_cast<double>(lost - won) / static_cast<double>(n) : 1; }
};

struct CertifiedThresholds {
  std::vector<float> thresholds;  ///< all infinite where nothing passed
  Outcome outcome;                ///< on the calibration data
  Certificate certificate;
  bool has_exits = false;  ///< false: the data support no early answer at this epsilon and delta
};

/// How a certificate is asked for.
struct CertificateOptions {
  Risk risk = Risk::disagreement;
  double epsilon = 0.01, delta = 0.1;
  bool per_class = false;  ///< the risk is to hold within each class, by label or by the full network's answer
};

/// How many of n answers became wrong and right.
struct LossCount {
  Index n = 0, lost = 0, won = 0;
};

namespace detail {

/// Losses of one setting, over all and in each class.
struct Losses {
  LossCount all;
  std::vector<LossCount> classes;
};

inline Losses losses_of(const ExitRecords& r, std::span<const float> thresholds, Risk risk, bool per_class) {
  Losses l;
  for (Index i = 0; i < r.samples; ++i) {
    const Index k = exit_of(r, thresholds, i);
    const bool right = r.right_at(i, k), before = risk == Risk::disagreement || r.full_right(i);
    const auto add = [&](LossCount& c) {
      ++c.n;
      c.lost += before && !right;
      c.won += !before && right;
    };
    add(l.all);
    if (!per_class) continue;
    const auto c = static_cast<std::size_t>(r.classes[static_cast<std::size_t>(i)]);
    if (c >= l.classes.size()) l.classes.resize(c + 1);
    add(l.classes[c]);
  }
  return l;
}

inline double p_value_of(const LossCount& c, Risk risk, double epsilon, double delta) noexcept {
  return risk == Risk::disagreement ? binomial_p_value(c.lost, c.n, epsilon)
                                    : paired_p_value(c.lost, c.won, c.n, epsilon, delta);
}

}  // namespace detail

/// Walks `settings`, the safest first, over calibration data that neither chose nor ordered them, and returns the last
/// before the first that fails. For `Risk::disagreement` the records must be judged by the full network, for
/// `Risk::accuracy_drop` by labels. Raises an Error for epsilon or delta outside (0, 1).
inline CertifiedThresholds certify_thresholds(const ExitRecords& calibration,
                                              std::span<const ThresholdSetting> settings,
                                              const CertificateOptions& options) {
  const double epsilon = options.epsilon, delta = options.delta;
  OFFRAMP_REQUIRE(epsilon > 0 && epsilon < 1 && delta > 0 && delta < 1, "epsilon and delta must be between 0 and 1");
  OFFRAMP_REQUIRE(calibration.samples > 0, "there are no data to calibrate on");
  CertifiedThresholds best;
  best.thresholds.assign(static_cast<std::size_t>((calibration.exits - 1) * calibration.groups),
                         std::numeric_limits<float>::infinity());
  best.outcome = full_outcome(calibration);
  best.certificate.risk = options.risk;
  best.certificate.epsilon = epsilon, best.certificate.delta = delta, best.certificate.n = calibration.samples;
  for (const ThresholdSetting& s : settings) {
    const auto losses = detail::losses_of(calibration, s.thresholds, options.risk, options.per_class);
    double p = detail::p_value_of(losses.all, options.risk, epsilon, delta);
    Index smallest = 0, tested = 0;
    for (const auto& c : losses.classes) {
      if (c.n == 0) continue;
      ++tested;
      smallest = smallest == 0 ? c.n : std::min(smallest, c.n);
      p = std::max(p, detail::p_value_of(c, options.risk, epsilon, delta));
    }
    if (p > delta) break;
    best.thresholds = s.thresholds;
    best.outcome = apply_thresholds(calibration, s.thresholds);
    best.certificate.lost = losses.all.lost, best.certificate.won = losses.all.won, best.certificate.p_value = p;
    best.certificate.classes = tested, best.certificate.smallest_class = smallest;
    best.has_exits = has_early_exits(s.thresholds);
  }
  Certificate& c = best.certificate;
  c.bound =
      c.risk == Risk::disagreement ? upper_bound(c.lost, c.n, delta) : paired_upper_bound(c.lost, c.won, c.n, delta);
  return best;
}

/// The p-value that `samples` further samples would give a setting if they were like those that were counted.
inline double forecast_p_value(const LossCount& counted, const CertificateOptions& options, Index samples) noexcept {
  const double ratio = static_cast<double>(samples) / static_cast<double>(std::max<Index>(1, counted.n));
  const auto scaled = [&](Index n) { return static_cast<Index>(std::llround(static_cast<double>(n) * ratio)); };
  return detail::p_value_of({samples, scaled(counted.lost), scaled(counted.won)}, options.risk, options.epsilon,
                            options.delta);
}

/// Where among settings a certificate from `samples` samples had best begin, by what other samples lost. That is the
/// strictest, unless its walk would probably end at a setting behind which much safer ones lie: for losses of accuracy
/// laxer settings may win answers, as in cascades of networks that err apart. Then it is the safest of those.
inline std::size_t safest_of(std::span<const LossCount> counted, const CertificateOptions& options, Index samples) {
  if (options.risk == Risk::disagreement || options.per_class) return 0;
  const double danger = options.delta / 4, safety = options.delta / 20;
  double least = 1;
  std::size_t safest = 0;
  for (std::size_t i = counted.size(); i-- > 0;) {
    const double p = forecast_p_value(counted[i], options, samples);
    if (p > danger && least <= safety) return safest;
    if (p <= least) least = p, safest = i;
  }
  return 0;
}

/// Walks `settings` from number `first` on with nine tenths of delta; where that one fails at once, from the strictest
/// with the last tenth. Both together are wrong with probability delta at most. With `first` 0, the same as
/// `certify_thresholds`.
inline CertifiedThresholds certify_from(std::size_t first, const ExitRecords& calibration,
                                        std::span<const ThresholdSetting> settings, const CertificateOptions& options) {
  if (first == 0) return certify_thresholds(calibration, settings, options);
  CertificateOptions part = options;
  part.delta = 0.9 * options.delta;
  CertifiedThresholds c = certify_thresholds(calibration, settings.subspan(first), part);
  part.delta = options.delta - part.delta;
  if (!c.has_exits) c = certify_thresholds(calibration, settings, part);
  c.certificate.delta = options.delta;
  return c;
}

/// What each of these settings loses on records, which may have found the settings.
inline std::vector<LossCount> losses_along(const ExitRecords& records, std::span<const ThresholdSetting> settings,
                                           Risk risk) {
  std::vector<LossCount> counts;
  for (const ThresholdSetting& s : settings)
    counts.push_back(detail::losses_of(records, s.thresholds, risk, false).all);
  return counts;
}

/// How many settings, from the first on, `samples` further samples would certify if they were like those that were
/// counted: a forecast, to compare networks by before the samples that certify are looked at.
inline std::size_t forecast_certified(std::span<const LossCount> counted, const CertificateOptions& options,
                                      Index samples) {
  std::size_t passed = 0;
  while (passed < counted.size() && forecast_p_value(counted[passed], options, samples) <= options.delta) ++passed;
  return passed;
}

/// What can be said of one setting that was chosen without these data: the smallest disagreement that they rule out
/// exceeding, at this delta.
inline CertifiedThresholds certified_alone(const ExitRecords& calibration, const std::vector<float>& thresholds,
                                           double delta) {
  CertifiedThresholds c;
  c.thresholds = thresholds;
  c.outcome = apply_thresholds(calibration, thresholds);
  c.has_exits = has_early_exits(thresholds);
  const auto losses = detail::losses_of(calibration, thresholds, Risk::disagreement, false);
  c.certificate.delta = delta, c.certificate.n = losses.all.n, c.certificate.lost = losses.all.lost;
  c.certificate.bound = c.certificate.epsilon = upper_bound(losses.all.lost, losses.all.n, delta);
  c.certificate.p_value = delta;
  return c;
}

/// Conformal risk control (Angelopoulos, Bates, Fisch, Lei and Schuster, ICLR 2024, section 2): the last of `settings`,
/// the safest first, whose expected disagreement over calibration data and one more sample is at most epsilon. Losses
/// are made monotone along the settings, as the method asks for. Returns how many settings are admissible; none: 0.
inline std::size_t control_expected_disagreement(const ExitRecords& calibration,
                                                 std::span<const ThresholdSetting> settings, double epsilon) {
  OFFRAMP_REQUIRE(epsilon > 0 && epsilon < 1, "epsilon must be between 0 and 1");
  std::vector<std::uint8_t> lost(static_cast<std::size_t>(calibration.samples), 0);
  std::size_t admissible = 0;
  for (const ThresholdSetting& s : settings) {
    Index errors = 0;
    for (Index i = 0; i < calibration.samples; ++i) {
      const Index k = exit_of(calibration, s.thresholds, i);
      auto& own = lost[static_cast<std::size_t>(i)];
      own = own || !calibration.right_at(i, k);
      errors += own;
    }
    if (static_cast<double>(errors + 1) > epsilon * static_cast<double>(calibration.samples + 1)) break;
    ++admissible;
  }
  return admissible;
}

/// The certificate in words, for a report and for a file's metadata (key `offramp.certificate`).
inline std::string text_of(const Certificate& c) {
  const auto number = [](double v) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", v);
    return std::string(text);
  };
  const bool drop = c.risk == Risk::accuracy_drop;
  std::string s = "with probability at least " + number(1 - c.delta) + " over the draw of " + std::to_string(c.n) +
                  " calibration samples, the " +
                  (drop ? "loss of accuracy against" : "share of answers that differ from those of") +
                  " the full network is at most " + number(c.epsilon);
  if (c.classes > 0) s += " over all and within each of " + std::to_string(c.classes) + " classes";
  s += " on data drawn alike (";
  s += drop ? std::to_string(c.lost) + " answers lost and " + std::to_string(c.won) + " won"
            : std::to_string(c.lost) + " cases";
  return s + " seen, bound " + number(c.bound) + ", p-value " + number(c.p_value) +
         "; Learn then Test with fixed-sequence testing and " +
         (drop ? "exact paired p-values)" : "exact binomial p-values)");
}

/// Why there is no certificate, and what it would take.
inline std::string refusal_of(const CertificateOptions& o, Index n) {
  const Index needed = samples_needed(o.epsilon, o.delta);
  return "these " + std::to_string(n) + " calibration samples support no early answer at epsilon " +
         std::to_string(o.epsilon) + " and delta " + std::to_string(o.delta) +
         (n < needed ? ": without a single error it takes at least " + std::to_string(needed) : std::string());
}

}  // namespace offramp
