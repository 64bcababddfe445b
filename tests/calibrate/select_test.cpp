#include "offramp/calibrate/select.hpp"

#include <gtest/gtest.h>

#include <random>

namespace offramp {
namespace {

// Three exits over four classes that grow better with depth; scores are noise plus a bump at the class.
ExitScores made_up(Index n, unsigned seed) {
  ExitScores s;
  s.samples = n, s.exits = 4, s.classes = 4;
  std::mt19937_64 random(seed);
  std::normal_distribution<float> noise(0, 1);
  for (Index i = 0; i < n; ++i) {
    const Index label = static_cast<Index>(random() % 4);
    const float ease = 2 + 2 * noise(random);
    s.labels.push_back(label);
    for (Index k = 0; k < 4; ++k) {
      for (Index c = 0; c < 4; ++c)
        s.scores.push_back(noise(random) + (c == label ? ease + 1.5f * static_cast<float>(k) : 0.0f));
    }
  }
  s.stages = {Cost::plain(10), Cost::plain(20), Cost::plain(30), Cost::plain(40)};
  s.heads = {Cost::plain(1), Cost::plain(500), Cost::plain(1), {}};
  return s;
}

TEST(Select, LeavesOutWhatDoesNotPay) {
  const ExitScores s = made_up(3000, 1);
  SelectionTarget target;
  target.epsilon = 0.03;
  const std::vector<std::size_t> places{0, 1, 2};
  const auto kept = choose_heads(s, places, target);
  EXPECT_EQ(kept, (std::vector<Index>{0, 2}));  // the head of exit 1 costs more than the whole network
  const Selection chosen = choose_policy(s, target);
  EXPECT_EQ(std::count(chosen.exits.begin(), chosen.exits.end(), 1), 0);
  EXPECT_EQ(chosen.tried.size(), 5U);
}

TEST(Select, DifferencesWithinChanceAreNone) {
  std::vector<double> a(1000), b(1000), noise(1000);
  for (std::size_t i = 0; i < a.size(); ++i) {
    a[i] = i % 10 == 0 ? 5 : 0.1;
    b[i] = a[i] + 0.01;
    noise[i] = a[i] + (i % 2 == 0 ? 0.5 : -0.49);  // 0.005 more on average, with a standard error of 0.016
  }
  EXPECT_TRUE(detail::surely_less(a, b));
  EXPECT_FALSE(detail::surely_less(b, a));
  EXPECT_FALSE(detail::surely_less(a, noise));
  EXPECT_FALSE(detail::surely_less(a, a));
  EXPECT_TRUE(detail::surely_less(a, a, true));
  EXPECT_FALSE(detail::surely_less(noise, a, true));
}

// One exit has nothing to look back at: of kinds that say the same, the first stays.
TEST(Select, AnotherConfidenceMustBeBetter) {
  const ExitScores one = keep_exits(made_up(3000, 6), std::vector<Index>{0});
  SelectionTarget target;
  target.epsilon = 0.03;
  const PolicyKind kinds[] = {PolicyKind::max_probability, PolicyKind::ensemble};
  EXPECT_EQ(choose_policy(one, target, kinds).kind, PolicyKind::max_probability);
  const PolicyKind turned[] = {PolicyKind::ensemble, PolicyKind::max_probability};
  EXPECT_EQ(choose_policy(one, target, turned).kind, PolicyKind::ensemble);
}

// Several heads at several places, of random quality and cost.
ExitScores many_heads(Index n, std::mt19937_64& random, std::vector<std::size_t>& place_of) {
  constexpr Index places = 4, heads = 2;
  ExitScores s;
  s.samples = n, s.exits = places * heads + 1, s.classes = 4;
  std::uniform_real_distribution<float> uniform(0, 1);
  std::normal_distribution<float> noise(0, 1);
  std::vector<float> quality;
  for (Index p = 0; p < places; ++p) {
    for (Index h = 0; h < heads; ++h) {
      quality.push_back(static_cast<float>(p) + 2 * uniform(random));
      s.stages.push_back(Cost::plain(h == 0 ? 200 : 0));
      s.heads.push_back(Cost::plain(1 + static_cast<Index>(60 * uniform(random))));
      place_of.push_back(static_cast<std::size_t>(p));
    }
  }
  quality.push_back(6);
  s.stages.push_back(Cost::plain(200));
  s.heads.emplace_back();
  for (Index i = 0; i < n; ++i) {
    const auto label = static_cast<Index>(random() % 4);
    const float ease = 2 * noise(random);
    for (const float q : quality)
      for (Index c = 0; c < 4; ++c) s.scores.push_back(noise(random) + (c == label ? q + ease : 0.0f));
  }
  return s;
}

// One by one, and yet about as good as the best of all sets.
TEST(Select, HeadsAreAboutTheBestSet) {
  std::mt19937_64 random(11);
  SelectionTarget target;
  target.epsilon = 0.02;
  double found = 0, possible = 0;
  for (int trial = 0; trial < 4; ++trial) {
    std::vector<std::size_t> place_of;
    const ExitScores s = many_heads(500, random, place_of);
    const auto value = [&](const std::vector<Index>& kept) {
      return kept.empty() ? 1 : detail::value_at({Confidence{}, keep_exits(s, kept), target}, target, 40).loss;
    };
    double best = 1;
    for (unsigned set = 1; set < 1u << place_of.size(); ++set) {
      std::vector<Index> kept;
      for (Index k = 0; k + 1 < s.exits; ++k)
        if ((set >> k & 1u) != 0) kept.push_back(k);
      best = std::min(best, value(kept));
    }
    const double v = value(choose_heads(s, place_of, target));
    EXPECT_LT(v, best + 0.02);
    found += v, possible += best;
  }
  EXPECT_LT(possible, 0.9 * 4);  // there was something to find
  EXPECT_LT(found, possible + 0.02);
}

// A head that is dear for its FLOPs stays out where another one does nearly as well, if that is asked for.
TEST(Select, HeadsWhosePriceFollowsTheirFlopsArePreferred) {
  ExitScores s = made_up(3000, 2);
  s.stages = {Cost::plain(100), {}, Cost::plain(400), Cost::plain(500)};
  s.heads = {Cost::plain(2), Cost::plain(85), Cost::plain(500), {}};
  s.prices = {{100, 0, 400, 500}, {80, 85, 500, 0}, 0};
  const auto row = [&](Index i, Index k) { return s.scores.begin() + (i * s.exits + k) * s.classes; };
  for (Index i = 0; i < s.samples; ++i) std::copy_n(row(i, 0), s.classes, row(i, 1));  // as good, and a little dearer
  SelectionTarget target;
  target.epsilon = 0.03;
  const std::vector<std::size_t> places{0, 0, 1};
  EXPECT_EQ(choose_heads(s, places, target), (std::vector<Index>{0}));
  target.even = true;
  EXPECT_EQ(choose_heads(s, places, target), (std::vector<Index>{1}));
  // Not where it does much worse.
  s.prices.heads[1] = 220, s.heads[1] = Cost::plain(220);
  EXPECT_EQ(choose_heads(s, places, target), (std::vector<Index>{0}));
}

// What is judged exit by exit may be judged before exits are left out.
TEST(Select, RecordsKeepExitsAsScoresDo) {
  const ExitScores all = made_up(200, 3);
  const std::vector<Index> kept{0, 2};
  const MaxProbability plain{Thresholds(1.0f)};
  const ExitRecords a = keep_exits(judge(all, plain, Truth::labels), kept),
                    b = judge(keep_exits(all, kept), plain, Truth::labels);
  EXPECT_EQ(a.confidence, b.confidence);
  EXPECT_EQ(a.right, b.right);
  EXPECT_EQ(a.full, b.full);
  EXPECT_EQ(a.stages, b.stages);
  EXPECT_EQ(a.heads, b.heads);
  EXPECT_EQ(a.exits, b.exits);
  EXPECT_EQ(full_outcome(a).mean_flops, full_outcome(b).mean_flops);
}

// A cheap head for the easiest samples, and a dear one behind it at the same place for others.
TEST(Select, TwoHeadsShareAPlaceWhereBothPay) {
  ExitScores s = made_up(3000, 2);
  s.stages = {Cost::plain(10), {}, {}, Cost::plain(90)};
  s.heads = {Cost::plain(1), Cost::plain(1), Cost::plain(10), {}};
  SelectionTarget target;
  target.epsilon = 0.03;
  const std::vector<std::size_t> one{0, 0, 0};
  EXPECT_GT(choose_heads(s, one, target).size(), 1U);
  // Not where the dear one says the same.
  const auto row = [&](Index i, Index k) { return s.scores.begin() + (i * s.exits + k) * s.classes; };
  for (Index i = 0; i < s.samples; ++i) {
    std::copy_n(row(i, 0), s.classes, row(i, 1));
    std::copy_n(row(i, 0), s.classes, row(i, 2));
  }
  EXPECT_LE(choose_heads(s, one, target).size(), 1U);
}

TEST(Select, SaysNothingPaysWhereNothingDoes) {
  ExitScores s = made_up(2000, 3);
  s.heads = {Cost::plain(200), Cost::plain(200), Cost::plain(200), {}};
  SelectionTarget target;
  const std::vector<std::size_t> places{0, 1, 2};
  EXPECT_TRUE(choose_heads(s, places, target).empty());
  ExitCalibrationOptions o;
  EXPECT_FALSE(calibrate_exits(s, s, o).has_exits);
}

TEST(Select, CertifiesOnOtherSamples) {
  const ExitScores s = made_up(4000, 4), fresh = made_up(4000, 5);
  ExitCalibrationOptions o;
  o.target.epsilon = 0.03;
  o.delta = 0.1;
  const ExitCalibration r = calibrate_exits(s, fresh, o);
  ASSERT_TRUE(r.has_exits);
  EXPECT_GE(r.outcome.accuracy, 0.97);
  EXPECT_LT(r.outcome.mean_price, r.full.mean_price);
  o.target.epsilon = 1e-4;  // 4,000 samples cannot prove that
  EXPECT_FALSE(calibrate_exits(s, fresh, o).has_exits);
}

// Exits that err apart answer better together at the end; labels tell, and without labels nobody asks.
TEST(Select, LastAnswerIsTheMeanWhereExitsErrApart) {
  ExitScores s = made_up(3000, 9);
  const auto row = [&](Index i, Index k) { return s.scores.begin() + (i * s.exits + k) * s.classes; };
  const auto bump = [&](Index i) { return row(i, 3) + s.labels[static_cast<std::size_t>(i)]; };
  for (Index i = 0; i < s.samples; ++i) {
    std::copy_n(row(i, 2), s.classes, row(i, 3));  // no better than the exit before, and wrong elsewhere
    std::rotate(row(i, 3), row(i, 3) + 1, row(i, 3) + s.classes);
    *bump(i) += 6;
  }
  SelectionTarget target;
  target.risk = Risk::accuracy_drop, target.epsilon = 0.02;
  const ExitScores two = keep_exits(s, std::vector<Index>{2});
  const Selection chosen = choose_policy(two, target);
  ASSERT_FALSE(chosen.exits.empty());
  const ExitRecords own = judge_with({}, two, Truth::labels),
                    joined = judge_with({{}, chosen.gate, true}, two, Truth::labels);
  Index better = 0;
  for (Index i = 0; i < two.samples; ++i) better += joined.right_at(i, 1) - own.right_at(i, 1);
  EXPECT_EQ(chosen.last_ensemble, better > 0);
  EXPECT_GT(better, 0);
  EXPECT_TRUE(policy_text_of(chosen, {0.5f}, 4).starts_with("last-ensemble("));
  // Whoever looks back needs every head, also of an exit that nobody leaves at.
  EXPECT_TRUE(judge_with(chosen, two, Truth::full_network).looks_back);
  target.risk = Risk::disagreement;
  EXPECT_FALSE(choose_policy(two, target).last_ensemble);
}

TEST(Select, ForecastIsWhatMoreSuchSamplesCertify) {
  const ExitScores s = made_up(2000, 4);
  const ExitRecords r = judge(s, MaxProbability{0.5f}, Truth::full_network);
  const auto path = threshold_path(r);
  const CertificateOptions o{Risk::disagreement, 0.03, 0.1, false};
  const auto losses = losses_along(r, path, o.risk);
  const std::size_t same = forecast_certified(losses, o, s.samples);
  ASSERT_GT(same, 0U);
  EXPECT_EQ(path[same - 1].thresholds, certify_thresholds(r, path, o).thresholds);
  EXPECT_GT(forecast_certified(losses, o, 50 * s.samples), same);
  EXPECT_EQ(forecast_certified(losses, {Risk::disagreement, 1e-5, 0.1, false}, 10), 0U);
}

TEST(Confidence, TemperatureIsFoundAgain) {
  ExitScores s = made_up(4000, 6);
  for (Index i = 0; i < s.samples; ++i) {  // the last exit's scores, three times as sharp
    for (Index c = 0; c < 4; ++c)
      s.scores[static_cast<std::size_t>((i * 4 + 1) * 4 + c)] =
          3 * s.scores[static_cast<std::size_t>((i * 4 + 0) * 4 + c)];
  }
  const auto t = fit_temperatures(s);
  EXPECT_NEAR(t[1] / t[0], 3, 0.05);
  EXPECT_EQ(t.back(), 1);
}

TEST(Confidence, GateEstimatesAgreement) {
  const ExitScores s = made_up(6000, 7), fresh = made_up(6000, 8);
  for (const bool of_ensemble : {false, true}) {
    GateOptions o;
    o.of_ensemble = of_ensemble;
    const Gate gate = fit_gate(s, o);
    gate.validate(4, 4);
    const ExitRecords r = of_ensemble ? judge(fresh, Ensemble<Gate>{gate, {}}, Truth::full_network)
                                      : judge(fresh, gate, Truth::full_network);
    for (Index k = 0; k < 3; ++k) {  // of the samples that it gives 0.7 to 0.9, that share agrees
      double said = 0, right = 0, count = 0;
      for (Index i = 0; i < r.samples; ++i) {
        const auto c = static_cast<double>(r.confidence_at(i, k));
        if (c < 0.7 || c > 0.9) continue;
        said += c, right += r.right_at(i, k), ++count;
      }
      if (count > 200) {
        EXPECT_NEAR(said / count, right / count, 0.06) << k;
      }
    }
  }
}

}  // namespace
}  // namespace offramp
