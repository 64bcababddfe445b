#include "offramp/calibrate/calibrate.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "graphs.hpp"
#include "offramp/graph/model.hpp"
#include "offramp/policy/max_probability.hpp"
#include "offramp/session/session.hpp"

namespace offramp {
namespace {

// Three exits; the first is right exactly where it is surer than 0.5, the second where it is surer than 0.2.
ExitRecords made_up(Index n) {
  ExitRecords r;
  r.samples = n;
  r.exits = 3;
  r.stages = {Cost::plain(10), Cost::plain(40), Cost::plain(50)};
  r.heads = {Cost::plain(1), Cost::plain(1), {}};
  const auto u = test::random_floats(2 * n, 3, 0, 1);
  for (Index i = 0; i < n; ++i) {
    const float a = u[static_cast<std::size_t>(2 * i)], b = u[static_cast<std::size_t>(2 * i + 1)];
    r.confidence.insert(r.confidence.end(), {a, b, 1.0f});
    r.right.insert(r.right.end(), {static_cast<std::uint8_t>(a > 0.5f), static_cast<std::uint8_t>(b > 0.2f), 1});
  }
  return r;
}

TEST(Calibrate, FindsTheThresholdsThatLoseNothing) {
  const auto r = made_up(4000);
  const Calibration c = calibrate_thresholds(r, {.max_accuracy_drop = 0.0, .budget = {}});
  EXPECT_EQ(c.outcome.accuracy, 1.0);
  EXPECT_NEAR(c.thresholds[0], 0.5f, 0.03f);
  EXPECT_NEAR(c.thresholds[1], 0.2f, 0.03f);
  // Half leave at the first exit, eight tenths of the rest at the second.
  EXPECT_NEAR(c.outcome.mean_flops, 0.5 * 11 + 0.4 * 52 + 0.1 * 102, 1.5);
}

TEST(Calibrate, SwitchesOffExitsThatDoNotPay) {
  auto r = made_up(1000);
  r.heads[0] = Cost::plain(60);  // dearer than what it can save
  const Calibration c = calibrate_thresholds(r, {.max_accuracy_drop = 0.0, .budget = {}});
  EXPECT_TRUE(std::isinf(c.thresholds[0]));
  EXPECT_FALSE(std::isinf(c.thresholds[1]));
}

TEST(Calibrate, AnExitIsInUseWithOneThresholdBelowInfinity) {
  constexpr float off = std::numeric_limits<float>::infinity(), nobody = std::numeric_limits<float>::max();
  const std::vector<float> thresholds{off, off, 0.5f, off, nobody, nobody};
  EXPECT_FALSE(detail::is_in_use(thresholds, 2, 0));
  EXPECT_TRUE(detail::is_in_use(thresholds, 2, 1));
  EXPECT_TRUE(detail::is_in_use(thresholds, 2, 2));   // others look back at it
  EXPECT_FALSE(detail::is_in_use(thresholds, 2, 3));  // the last exit
}

TEST(Calibrate, KeepsToABudgetOrSaysThatItCannot) {
  const auto r = made_up(2000);
  const Calibration c = calibrate_thresholds(r, {.max_accuracy_drop = {}, .budget = 25});
  EXPECT_LE(c.outcome.mean_flops, 25);
  EXPECT_GT(c.outcome.accuracy, 0.75);  // leaving a quarter of the samples early and wrong is the best that 25 buys
  EXPECT_THROW(calibrate_thresholds(r, {.max_accuracy_drop = {}, .budget = 5}), Error);
  EXPECT_THROW(calibrate_thresholds(r, {}), Error);
}

// Between settings that lie far apart stand others, before the first one, too; the last one stays, and the price falls
// all along.
TEST(Calibrate, DenserPathFillsGaps) {
  const auto r = made_up(2000);
  const std::vector<float> off(2, std::numeric_limits<float>::infinity()), strict{0.9f, 0.9f}, lax{0.3f, 0.1f};
  const ThresholdSetting first{off, full_outcome(r)}, second{strict, apply_thresholds(r, strict)},
      last{lax, apply_thresholds(r, lax)};
  for (const std::vector<ThresholdSetting>& path : {std::vector{first, second, last}, std::vector{last}}) {
    const auto dense = denser_path(r, path, 0.01);
    ASSERT_GT(dense.size(), 30u);
    EXPECT_EQ(dense.back().thresholds, lax);
    double before = full_outcome(r).mean_price;
    for (const ThresholdSetting& s : dense) {
      EXPECT_LT(s.outcome.mean_price, before);
      EXPECT_GT(s.outcome.mean_price, before - 4);  // of 100; the gap was 60
      EXPECT_DOUBLE_EQ(s.outcome.mean_price, apply_thresholds(r, s.thresholds).mean_price);
      before = s.outcome.mean_price;
      // No sample lies on a threshold: the last bit of another runtime would decide.
      for (std::size_t k = 0; k < 2; ++k)
        for (Index i = 0; i < r.samples; ++i) ASSERT_NE(r.confidence_at(i, static_cast<Index>(k)), s.thresholds[k]);
    }
  }
}

// What the records predict is what a session then does.
TEST(Calibrate, OutcomeIsWhatASessionDoes) {
  const Model m(test::residual_network());
  const auto x = test::random_floats(200 * 192, 5, -2, 2);
  const auto r = record_exits(m, MaxProbability{Thresholds(1.0f)}, x, {}, [](Index) {});
  for (const float t : {0.35f, 0.5f, 0.7f}) {
    const Outcome o = apply_thresholds(r, std::vector<float>{t, t});
    Session s(m, MaxProbability{t}, 200);
    double flops = 0;
    Index first = 0;
    for (const Prediction& p : s.predict(x)) {
      flops += static_cast<double>(p.cost.flops) / 200;
      first += p.exit == 0;
    }
    EXPECT_NEAR(o.mean_flops, flops, 1e-6 * flops);
    EXPECT_NEAR(o.shares[0], static_cast<double>(first) / 200, 1e-9);
  }
}

}  // namespace
}  // namespace offramp
