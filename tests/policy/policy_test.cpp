#include "offramp/policy/policy.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>

#include "offramp/policy/parse.hpp"

namespace offramp {
namespace {

// A sample that has been seen at `rows.size()` exits; the context is the last of them.
struct Seen {
  std::vector<float> history, logits, probabilities;
  std::vector<std::uint8_t> evaluated;
  ExitContext context;

  Seen(const std::vector<std::vector<float>>& rows, Index exits) : evaluated(static_cast<std::size_t>(exits), 0) {
    for (std::size_t k = 0; k < rows.size(); ++k) {
      history.insert(history.end(), rows[k].begin(), rows[k].end());
      evaluated[k] = 1;
    }
    probabilities = rows.back();
    for (const float p : probabilities) logits.push_back(std::log(p));
    history.resize(static_cast<std::size_t>(exits) * probabilities.size());
    context.exit = static_cast<Index>(rows.size()) - 1;
    context.exit_count = exits;
    context.logits = logits;
    context.probabilities = probabilities;
    context.history = history;
    context.evaluated = evaluated;
  }
};

Verdict judge(const AnyPolicy& p, std::vector<std::vector<float>> rows, Index exits = 4) {
  Seen s(rows, exits);
  return p(s.context);
}

TEST(Policy, MaxProbability) {
  const MaxProbability p{{0.9f, 0.6f}};
  EXPECT_FALSE(judge(p, {{0.8f, 0.2f}}).leave);
  EXPECT_TRUE(judge(p, {{0.9f, 0.1f}}).leave);
  EXPECT_TRUE(judge(p, {{0.5f, 0.5f}, {0.3f, 0.7f}}).leave);
  EXPECT_FLOAT_EQ(judge(p, {{0.8f, 0.2f}}).confidence, 0.8f);
  EXPECT_FALSE((MaxProbability{Thresholds({INFINITY, 0.5f})}.wants(0)));
  EXPECT_TRUE((MaxProbability{Thresholds({INFINITY, 0.5f})}.wants(1)));
}

TEST(Policy, ThresholdsPerClass) {
  const MaxProbability p{Thresholds::per_class({0.9f, 0.5f, 0.7f, 0.7f}, 2)};
  EXPECT_FALSE(judge(p, {{0.8f, 0.2f}}).leave);
  EXPECT_TRUE(judge(p, {{0.4f, 0.6f}}).leave);
  EXPECT_NO_THROW(p.validate(3, 2));
  EXPECT_THROW(p.validate(3, 5), Error);
  EXPECT_THROW(p.validate(4, 2), Error);
}

TEST(Policy, EntropyAndMargin) {
  EXPECT_NEAR(judge(Entropy{0.1f}, {{0.5f, 0.5f}}).confidence, -std::log(2.0f), 1e-6f);
  EXPECT_FALSE(judge(Entropy{0.1f}, {{0.5f, 0.5f}}).leave);
  EXPECT_TRUE(judge(Entropy{0.1f}, {{1.0f, 0.0f}}).leave);
  EXPECT_TRUE(judge(Margin{0.3f}, {{0.2f, 0.6f, 0.2f}}).leave);
  EXPECT_FALSE(judge(Margin{0.5f}, {{0.2f, 0.6f, 0.2f}}).leave);
}

TEST(Policy, PatienceCountsAgreements) {
  const Patience p{2};
  const std::vector<float> a{0.9f, 0.1f}, b{0.1f, 0.9f};
  EXPECT_FALSE(judge(p, {a, a}).leave);
  EXPECT_TRUE(judge(p, {a, a, a}).leave);
  EXPECT_FALSE(judge(p, {a, b, a}).leave);
  EXPECT_TRUE(judge(p, {b, a, a, a}).leave);
}

TEST(Policy, AgreementOfNeighbours) {
  const Agreement p{0.6f};
  EXPECT_FALSE(judge(p, {{0.9f, 0.1f}}).leave);
  EXPECT_TRUE(judge(p, {{0.7f, 0.3f}, {0.9f, 0.1f}}).leave);
  EXPECT_FALSE(judge(p, {{0.55f, 0.45f}, {0.9f, 0.1f}}).leave);
  EXPECT_FALSE(judge(p, {{0.1f, 0.9f}, {0.9f, 0.1f}}).leave);
}

TEST(Policy, EnsembleIsTheGeometricMean) {
  Seen s({{0.8f, 0.2f}, {0.4f, 0.6f}}, 3);
  const Ensemble p{MaxProbability{0.5f}, std::vector<float>{1, 3, 1}};
  const Verdict v = p(s.context);
  const double x = std::pow(0.8, 0.25) * std::pow(0.4, 0.75), y = std::pow(0.2, 0.25) * std::pow(0.6, 0.75);
  EXPECT_NEAR(static_cast<double>(s.probabilities[0]), x / (x + y), 1e-6);
  EXPECT_FLOAT_EQ(v.confidence, std::max(s.probabilities[0], s.probabilities[1]));
  EXPECT_THROW(p.validate(4, 2), Error);
}

TEST(Policy, LastEnsembleAnswersForAll) {
  const LastEnsemble p{MaxProbability{0.5f}};
  Seen early({{0.8f, 0.2f}, {0.4f, 0.6f}}, 3);
  EXPECT_FLOAT_EQ(p(early.context).confidence, 0.6f);
  EXPECT_FLOAT_EQ(early.probabilities[0], 0.4f);  // an exit before the last speaks for itself
  Seen last({{0.8f, 0.2f}, {0.4f, 0.6f}}, 2);
  EXPECT_TRUE(p(last.context).leave);
  const double x = std::sqrt(0.8 * 0.4), y = std::sqrt(0.2 * 0.6);
  EXPECT_NEAR(static_cast<double>(last.probabilities[0]), x / (x + y), 1e-6);
  EXPECT_EQ(last.context.label(), 0);
}

TEST(Policy, TemperatureComesFirst) {
  Seen s({{0.9f, 0.1f}}, 2);
  const Temperature p{{2.0f}, MaxProbability{0.8f}};
  EXPECT_FALSE(p(s.context).leave);
  EXPECT_NEAR(static_cast<double>(s.probabilities[0]), 3.0 / 4.0, 1e-6);  // sqrt(0.9) : sqrt(0.1)
}

TEST(Policy, GateIsALogisticRegression) {
  const Gate g{{{-2.0f, 1.0f, 0, 0, 0, 0, 0}}, 0.5f};
  const Verdict v = judge(g, {{0.9f, 0.1f}}, 2);  // odds of 9
  EXPECT_NEAR(static_cast<double>(v.confidence), 1 / (1 + std::exp(2 - std::log(9.0))), 1e-6);
  EXPECT_TRUE(v.leave);
  // An offset for each class, then the distance to the mean log-probabilities of the class that was seen.
  const float a = std::log(0.9f), b = std::log(0.1f);
  const Gate far{{{0, 0, 0, 0, 0, 0, -1.0f, 0.5f, 7.0f, a, b - 2, 0, 0}}, 0.5f};
  const double distance = 2 / std::sqrt(2.0);
  EXPECT_NEAR(static_cast<double>(judge(far, {{0.9f, 0.1f}}, 2).confidence), 1 / (1 + std::exp(distance - 0.5)), 1e-6);
  EXPECT_THROW((Gate{{{1, 2, 3}}, 0.5f}.validate(2, 2)), Error);
}

TEST(Policy, BudgetAndDeadline) {
  Seen s({{0.5f, 0.5f}}, 2);
  s.context.spent.flops = 100;
  s.context.next.flops = 50;
  EXPECT_TRUE(FlopBudget{149}(s.context).leave);
  EXPECT_FALSE(FlopBudget{150}(s.context).leave);
  s.context.start = std::chrono::steady_clock::now();
  EXPECT_FALSE(Deadline{std::chrono::hours(1)}(s.context).leave);
  EXPECT_TRUE(Deadline{std::chrono::nanoseconds(0)}(s.context).leave);
}

TEST(Policy, Combinators) {
  const auto yes = Always{}, no = Always{3};
  const std::vector<std::vector<float>> row{{0.6f, 0.4f}};
  EXPECT_FALSE(judge(yes && no, row).leave);
  EXPECT_TRUE(judge(yes || no, row).leave);
  EXPECT_TRUE(judge(!no, row).leave);
  EXPECT_FALSE((yes && no).wants(0));
  EXPECT_TRUE((yes || no).wants(0));
  EXPECT_FALSE(judge(Never{}, row).leave);
}

}  // namespace
}  // namespace offramp
