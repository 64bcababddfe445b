#include "offramp/calibrate/certificate.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace offramp {
namespace {

TEST(Certificate, BinomialTailIsExact) {
  EXPECT_NEAR(binomial_cdf(0, 10, 0.1), std::pow(0.9, 10), 1e-12);
  EXPECT_NEAR(binomial_cdf(2, 4, 0.5), 11.0 / 16, 1e-12);
  EXPECT_EQ(binomial_cdf(4, 4, 0.5), 1);
  // Hoeffding and Bentkus' bound is never below the exact tail.
  for (const Index errors : {0, 3, 10, 40}) {
    EXPECT_GE(hoeffding_bentkus_p_value(static_cast<double>(errors) / 1000, 1000, 0.05),
              binomial_p_value(errors, 1000, 0.05));
  }
  EXPECT_NEAR(binomial_p_value(4, 500, upper_bound(4, 500, 0.1)), 0.1, 1e-6);
  const Index n = samples_needed(0.01, 0.1);
  EXPECT_LE(binomial_p_value(0, n, 0.01), 0.1);
  EXPECT_GT(binomial_p_value(0, n - 1, 0.01), 0.1);
}

// The chance that it is at most delta, summed over all outcomes instead of drawn: never above delta, wherever the null
// hypothesis meets the alternative, and not far below.
TEST(Certificate, PairedPValueIsExact) {
  constexpr Index n = 300, most = 45;
  const double epsilon = 0.02, delta = 0.1;
  std::vector<Index> allowed;  // losses, for each number of wins
  for (Index w = 0, l = -1; w <= most; ++w) {
    while (paired_p_value(l + 1, w, n, epsilon, delta) <= delta) ++l;
    allowed.push_back(l);
  }
  double largest = 0, smallest = 1;
  for (double q = epsilon; q < 0.1; q += 0.001) {
    const double lost = (q + epsilon) / 2, won = (q - epsilon) / 2;
    double below = 0;
    for (Index w = 0; w <= most; ++w)
      below += binomial_pmf(w, n, won) * binomial_cdf(allowed[static_cast<std::size_t>(w)], n - w, lost / (1 - won));
    largest = std::max(largest, below), smallest = std::min(smallest, below);
  }
  EXPECT_LE(largest, delta);
  EXPECT_GT(smallest, delta / 2);
}

// Under the null hypothesis a p-value is at most delta with probability at most delta, whatever the share of pairs that
// changed.
TEST(Certificate, PairedPValueIsValid) {
  std::mt19937_64 random(7);
  for (const double changed : {0.012, 0.03, 0.1}) {
    const double epsilon = 0.01, lost = (changed + epsilon) / 2, won = (changed - epsilon) / 2;
    Index below = 0;
    constexpr Index trials = 2000, n = 800;
    for (Index t = 0; t < trials; ++t) {
      std::uniform_real_distribution<double> u(0, 1);
      Index l = 0, w = 0;
      for (Index i = 0; i < n; ++i) {
        const double x = u(random);
        l += x < lost;
        w += x >= lost && x < lost + won;
      }
      below += paired_p_value(l, w, n, epsilon, 0.1) <= 0.1;
    }
    // Three standard errors of a share of 0.1 among 2,000.
    EXPECT_LE(static_cast<double>(below) / trials, 0.1 + 3 * std::sqrt(0.09 / trials)) << changed;
  }
  EXPECT_EQ(paired_p_value(20, 0, 1000, 0.01, 0.1), 1);
  EXPECT_LT(paired_p_value(2, 2, 2000, 0.01, 0.1), 0.01);
  EXPECT_LE(paired_p_value(4, 1, 1000, paired_upper_bound(4, 1, 1000, 0.1), 0.1), 0.1 + 1e-6);
}

ExitRecords records(Index n, double wrong, unsigned seed) {
  ExitRecords r;
  r.samples = n, r.exits = 2;
  r.stages = {Cost::plain(10), Cost::plain(90)};
  r.heads = {Cost::plain(1), {}};
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> u(0, 1);
  for (Index i = 0; i < n; ++i) {
    const float c = u(random);
    const bool right = static_cast<double>(u(random)) > wrong * 2 * (1 - static_cast<double>(c));
    r.confidence.insert(r.confidence.end(), {c, 1.0f});
    r.right.insert(r.right.end(), {static_cast<std::uint8_t>(right), 1});
    r.full.push_back(1);
    r.classes.push_back(i % 2);
  }
  return r;
}

TEST(Certificate, StopsAtTheFirstSettingThatFails) {
  const ExitRecords chosen = records(3000, 0.1, 1);
  const auto path = threshold_path(chosen);
  ASSERT_GT(path.size(), 10U);
  for (std::size_t i = 1; i < path.size(); ++i) EXPECT_LT(path[i].outcome.mean_price, path[i - 1].outcome.mean_price);
  const auto c = certify_thresholds(records(3000, 0.1, 2), path, {Risk::disagreement, 0.02, 0.1, false});
  ASSERT_TRUE(c.has_exits);
  EXPECT_LE(c.certificate.p_value, 0.1);
  EXPECT_LE(c.certificate.bound, 0.02 + 1e-9);
  EXPECT_NE(text_of(c.certificate).find("at most 0.02"), std::string::npos);
  // Each class must pass where that is asked for: never more than without.
  const auto strict = certify_thresholds(records(3000, 0.1, 2), path, {Risk::disagreement, 0.02, 0.1, true});
  EXPECT_GE(strict.outcome.mean_price, c.outcome.mean_price);
  EXPECT_EQ(strict.certificate.classes, 2);
  // Too few samples for any certificate: no exits, and a reason.
  const auto few = certify_thresholds(records(100, 0.1, 3), path, {Risk::disagreement, 0.01, 0.1, false});
  EXPECT_FALSE(few.has_exits);
  EXPECT_NE(refusal_of({Risk::disagreement, 0.01, 0.1, false}, 100).find("230"), std::string::npos);
  EXPECT_THROW(certify_thresholds(chosen, path, {Risk::disagreement, 0, 0.1, false}), Error);
  EXPECT_THROW(certify_thresholds(chosen, path, {Risk::disagreement, 0.1, 1, false}), Error);
}

// Where exits err apart from the network, a strict setting's first losses would end a walk that begins with it, though
// laxer settings win answers.
TEST(Certificate, BeginsWhereItIsSafest) {
  const std::vector<LossCount> counted{{2000, 0, 0}, {2000, 3, 1}, {2000, 30, 60}, {2000, 60, 52}, {2000, 90, 40}};
  const CertificateOptions drop{Risk::accuracy_drop, 0.002, 0.1, false};
  EXPECT_EQ(safest_of(counted, drop, 3000), 2U);
  EXPECT_GT(forecast_p_value(counted[1], drop, 3000), drop.delta);
  EXPECT_EQ(forecast_certified(counted, drop, 3000), 1U);
  EXPECT_EQ(forecast_certified(std::span(counted).subspan(2), drop, 3000), 1U);
  // Answers that differ never become fewer along a path, and what is safe over all need not be so in each class.
  EXPECT_EQ(safest_of(counted, {Risk::disagreement, 0.002, 0.1, false}, 3000), 0U);
  EXPECT_EQ(safest_of(counted, {Risk::accuracy_drop, 0.002, 0.1, true}, 3000), 0U);
  EXPECT_EQ(safest_of({}, drop, 3000), 0U);

  // The same on records: one early exit, whose surest samples lose answers and whose next ones win twice as many.
  ExitRecords r;
  r.samples = 6000, r.exits = 2;
  r.stages = {Cost::plain(10), Cost::plain(90)};
  r.heads = {Cost::plain(1), {}};
  for (Index i = 0; i < r.samples; ++i) {
    const bool first = i < 600, changed = i % 60 == 0 && i < 3000;
    r.confidence.insert(r.confidence.end(), {1 - static_cast<float>(i) / 6000, 1.0f});
    r.right.insert(r.right.end(),
                   {static_cast<std::uint8_t>(!changed || !first), static_cast<std::uint8_t>(!changed || first)});
    r.full.push_back(r.right.back());
  }
  std::vector<ThresholdSetting> path;
  for (const float t : {0.95f, 0.905f, 0.75f, 0.55f}) path.push_back({{t}, apply_thresholds(r, std::vector{t})});
  const auto counts = losses_along(r, path, Risk::accuracy_drop);
  EXPECT_EQ(counts[1].lost, 10);
  EXPECT_EQ(counts[3].won, 36);
  const CertificateOptions o{Risk::accuracy_drop, 0.001, 0.1, false};
  EXPECT_FALSE(certify_thresholds(r, path, o).has_exits);
  ASSERT_GT(safest_of(counts, o, r.samples), 1U);
  const auto c = certify_from(safest_of(counts, o, r.samples), r, path, o);
  ASSERT_TRUE(c.has_exits);
  EXPECT_EQ(c.thresholds, path[3].thresholds);
  EXPECT_LE(c.certificate.p_value, 0.09);
  EXPECT_EQ(c.certificate.delta, 0.1);
  // A bad start is not the end: the strict ones have a tenth of delta left.
  path = {{{0.985f}, apply_thresholds(r, std::vector{0.985f})}, path[1]};
  const auto lost = losses_along(r, path, Risk::accuracy_drop);
  ASSERT_EQ(lost[0].lost, 2);
  ASSERT_EQ(lost[1].lost, 10);
  const auto chosen = [&](double epsilon) {
    return certify_from(1, r, path, {Risk::accuracy_drop, epsilon, 0.1, false}).thresholds;
  };
  EXPECT_EQ(chosen(0.004), path[1].thresholds);
  EXPECT_EQ(chosen(0.0024), path[0].thresholds);  // 10 lost are too many, 2 are not
  EXPECT_FALSE(has_early_exits(chosen(0.0004)));
}

// Among many draws of the calibration data the true risk is above epsilon in at most a share delta.
TEST(Certificate, HoldsOverRepeatedDraws) {
  const auto path = threshold_path(records(2000, 0.1, 1));
  const ExitRecords truth = records(200000, 0.1, 99);
  constexpr Index trials = 300;
  Index violations = 0;
  double mean = 0;
  for (unsigned t = 0; t < trials; ++t) {
    const auto c = certify_thresholds(records(5000, 0.1, 1000 + t), path, {Risk::disagreement, 0.01, 0.1, false});
    const double risk = 1 - apply_thresholds(truth, c.thresholds).accuracy;
    violations += risk > 0.01;
    mean += risk / trials;
  }
  EXPECT_LE(static_cast<double>(violations) / trials, 0.1 + 3 * std::sqrt(0.09 / trials));
  EXPECT_GE(mean, 0.005);  // no empty caution
}

TEST(Certificate, ConformalControlOfTheExpectation) {
  const auto path = threshold_path(records(2000, 0.1, 1));
  const std::size_t k = control_expected_disagreement(records(4000, 0.1, 5), path, 0.01);
  ASSERT_GT(k, 0U);
  ASSERT_LT(k, path.size());
  EXPECT_LE(1 - apply_thresholds(records(100000, 0.1, 6), path[k - 1].thresholds).accuracy, 0.013);
}

}  // namespace
}  // namespace offramp
