// Several networks as one: answers, costs, and what runs.
#include "offramp/route/cascade.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "graphs.hpp"
#include "offramp/calibrate/select.hpp"
#include "offramp/onnx/onnx.hpp"
#include "offramp/policy/max_probability.hpp"
#include "offramp/policy/route.hpp"
#include "offramp/session/session.hpp"

namespace offramp {
namespace {

Graph small_network() {
  test::Builder b;
  b.g.opset = 13;
  auto x = b.input("input", {dynamic, 3, 8, 8});
  x = b.node("Relu", {b.node("Conv", {x, b.constant({4, 3, 3, 3}, 1)})});
  x = b.node("Flatten", {b.node("GlobalAveragePool", {x})}, {{"axis", Index{1}}});
  b.output(b.node("Gemm", {x, b.constant({4, 4}, 2), b.constant({4}, 3)}), "logits");
  return b.g;
}

std::vector<Version> versions() {
  return {{"small", Model(small_network())}, {"large", Model(test::residual_network())}};
}

TEST(Cascade, AnswersAreThoseOfItsVersions) {
  const auto both = versions();
  const Model joined(cascade(both));
  ASSERT_TRUE(joined.has_plan()) << joined.why_not();
  ASSERT_EQ(joined.exit_count(), 4);
  EXPECT_EQ(joined.exits()[0].name, "small/logits");
  EXPECT_EQ(joined.exits()[3].name, "large/logits");
  EXPECT_EQ(joined.full_cost().flops, both[1].model.full_cost().flops);
  const std::vector<Tensor> in{test::random_tensor({3, 3, 8, 8}, 4)};
  const auto out = joined.run(in), small = both[0].model.run(in), large = both[1].model.run(in);
  EXPECT_EQ(std::memcmp(out[0].data(), small[0].data(), out[0].bytes()), 0);
  EXPECT_EQ(std::memcmp(out[3].data(), large[2].data(), out[3].bytes()), 0);
  // The last version alone costs what it costs, and nothing of the first runs for it.
  Session session(joined, MaxProbability{0.0f});
  const auto x = in[0].values<float>().first(192);
  const Prediction full = session.predict_full(x)[0];
  EXPECT_EQ(full.cost.flops, both[1].model.full_cost().flops);
  EXPECT_EQ(full.exit, 3);
  const Prediction early = session.predict(x)[0];
  EXPECT_EQ(early.exit, 0);
  EXPECT_EQ(early.cost.flops, both[0].model.full_cost().flops);
  // Written and read again, the order of its exits stays.
  const std::string file = save_onnx(joined);
  const Model again = load_onnx(std::as_bytes(std::span<const char>(file)));
  EXPECT_EQ(again.exits()[0].name, "small/logits");
  EXPECT_EQ(again.run(in)[3].values<float>()[0], out[3].values<float>()[0]);
}

TEST(Cascade, SessionCountsBothWhereASampleGoesOn) {
  const auto both = versions();
  const Model joined(cascade(both));
  Session session(joined, Never{});
  const auto x = test::random_floats(192, 2);
  const Prediction p = session.predict(x)[0];
  EXPECT_EQ(p.exit, 3);
  EXPECT_GE(p.cost.flops, both[1].model.full_cost().flops);
}

TEST(Cascade, RefusesWhatDoesNotFit) {
  const Model a(small_network());
  EXPECT_THROW(cascade(std::vector<Version>{{"a", a}}), Error);
  EXPECT_THROW(cascade(std::vector<Version>{{"a", a}, {"a", a}}), Error);
  EXPECT_THROW(cascade(std::vector<Version>{{"a", a}, {"b,c", a}}), Error);
  EXPECT_THROW(cascade(std::vector<Version>{{"a", a}, {"b", Model(test::residual_network(5))}}), Error);
}

// Two versions with an exit inside the first.
Model two_with_exits() {
  test::Builder b;
  b.g.opset = 13;
  auto x = b.input("input", {dynamic, 3, 8, 8});
  x = b.node("Relu", {b.node("Conv", {x, b.constant({4, 3, 3, 3}, 1)})});
  const auto head = [&](ValueId from, unsigned seed, const char* name) {
    const auto pooled = b.node("Flatten", {b.node("GlobalAveragePool", {from})}, {{"axis", Index{1}}});
    b.output(b.node("Gemm", {pooled, b.constant({4, 4}, seed), b.constant({4}, seed + 1)}), name);
  };
  head(x, 2, "exit_0");
  x = b.node("Relu", {b.node("Conv", {x, b.constant({4, 4, 3, 3}, 4)})});
  head(x, 5, "logits");
  const std::vector<Version> both{{"small", Model(b.g)}, {"large", Model(test::residual_network())}};
  return Model(cascade(both));
}

// What a route does, sample by sample, from the scores of all exits.
void expect_routed(const Model& m, const RouteRule& rule, float threshold, Index batch) {
  const Index n = 24;
  const auto x = test::random_floats(n * m.sample_size(), 3);
  const ExitScores scores = record_scores(m, x, std::span<const Index>(), [](Index) {});
  const std::vector<float> thresholds(static_cast<std::size_t>(m.exit_count() - 1), threshold);
  const Route policy{rule, MaxProbability{Thresholds(thresholds)}};
  const ExitRecords records = judge(scores, Route{rule, MaxProbability{Thresholds(1.0f)}}, Truth::full_network);
  Session session(m, policy, batch);
  Cost all;
  for (Index first = 0; first < n; first += batch) {
    const Index count = std::min(batch, n - first);
    const auto answers = session.predict(std::span(x).subspan(static_cast<std::size_t>(first * m.sample_size()),
                                                              static_cast<std::size_t>(count * m.sample_size())));
    for (Index i = 0; i < count; ++i) {
      const Prediction& p = answers[static_cast<std::size_t>(i)];
      const Index sample = first + i;
      Cost cost;
      Index exit = 0;
      for (bool done = false; !done;) {
        const bool last = exit + 1 == m.exit_count();
        cost += m.stage_cost(exit) + (last ? Cost{} : m.head_cost(exit));
        const auto row = scores.at(sample, exit);
        float sum = 0;
        for (const float v : row) sum += std::exp(v - row[static_cast<std::size_t>(ExitContext::label_of(row))]);
        const float confidence = 1 / sum;
        done = last || confidence >= threshold;
        if (!done)
          exit =
              rule.may_skip(exit) && confidence < rule.below[static_cast<std::size_t>(exit)] ? rule.target : exit + 1;
      }
      EXPECT_EQ(p.exit, exit) << sample;
      EXPECT_EQ(p.cost.flops, cost.flops) << sample;
      EXPECT_EQ(p.label, ExitContext::label_of(scores.at(sample, exit))) << sample;
      EXPECT_EQ(exit_of(records, thresholds, sample), exit) << sample;
      all += cost;
    }
  }
  EXPECT_EQ(session.counted().flops, all.flops);
  EXPECT_NEAR(apply_thresholds(records, thresholds).mean_flops, static_cast<double>(all.flops) / static_cast<double>(n),
              1e-6 * static_cast<double>(all.flops));
}

// Some samples, all and none go past the rest of the small version, alone and beside others.
TEST(Route, SamplesSkipTheRestOfAVersion) {
  const Model m = two_with_exits();
  ASSERT_EQ(m.exit_count(), 5);
  EXPECT_TRUE(m.can_skip(0, 2));
  EXPECT_FALSE(m.can_skip(0, 3));  // within the large version
  EXPECT_FALSE(m.can_skip(2, 4));
  EXPECT_FALSE(m.can_skip(2, 2));
  EXPECT_FALSE(m.can_skip(0, 5));
  for (const Index batch : {1, 5, 24}) {
    for (const float below : {0.0f, 0.33f, 0.36f, 1.0f}) {
      expect_routed(m, {2, {below}}, 0.4f, batch);
      expect_routed(m, {2, {below}}, 0.9999f, batch);
    }
  }
}

TEST(Route, RefusesWhatTheNetworkDoesNotAllow) {
  const Model m = two_with_exits();
  EXPECT_THROW(Session(m, Route{RouteRule{1, {}}, MaxProbability{0.5f}}).predict({}), Error);
  EXPECT_THROW(Session(m, Route{RouteRule{3, {-INFINITY, 0.5f}}, MaxProbability{0.5f}}), Error);
  EXPECT_THROW(Session(m, Route{RouteRule{2, {0.1f, 0.1f}}, MaxProbability{0.5f}}), Error);
  EXPECT_THROW(Session(m, Route{RouteRule{9, {0.1f}}, MaxProbability{0.5f}}), Error);
  EXPECT_THROW(Session(m, Route{RouteRule{2, {NAN}}, MaxProbability{0.5f}}), Error);
}

// A policy of somebody's own that asks for more than it announces does not get it.
TEST(Route, OnlyAnnouncedSkipsHappen) {
  struct Hasty {
    Index skip_target() const noexcept { return 99; }
    bool may_skip(Index) const noexcept { return false; }
    Verdict operator()(ExitContext&) const noexcept { return {false, 0.5f, true}; }
  };
  const Model m = two_with_exits();
  Session session(m, Hasty{});
  EXPECT_EQ(session.predict(test::random_floats(m.sample_size(), 1))[0].exit, 4);
}

// An exit that is unsure of what only the large version answers: the route is found, pays, and keeps its promise.
TEST(Route, IsChosenWhereItPays) {
  const auto made_up = [](unsigned seed) {
    ExitScores s;
    s.samples = 4000, s.exits = 3, s.classes = 4;
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(0, 1);
    std::normal_distribution<float> noise(0, 0.3f);
    for (Index i = 0; i < s.samples; ++i) {
      const bool hard = uniform(random) < 0.3f;
      for (Index k = 0; k < 3; ++k) {
        const float ease = k == 2 ? 8.0f : hard ? 0.0f : 2.0f + 4.0f * static_cast<float>(k);
        for (Index c = 0; c < 4; ++c) s.scores.push_back(noise(random) + (c == i % 4 ? ease : 0.0f));
      }
    }
    s.stages = {Cost::plain(10), Cost::plain(200), Cost::plain(300)};
    s.heads = {Cost::plain(1), Cost::plain(1), {}};
    s.full = Cost::plain(300);
    return s;
  };
  const ExitScores choose = made_up(1), fresh = made_up(2);
  ExitCalibrationOptions o;
  o.target.epsilon = 0.02;
  o.delta = 0.1;
  o.kinds = {PolicyKind::max_probability};
  const ExitCalibration without = calibrate_exits(choose, fresh, o);
  o.can_skip = [](Index from, Index to) { return from == 0 && to == 2; };
  const ExitCalibration with = calibrate_exits(choose, fresh, o);
  ASSERT_TRUE(without.has_exits && with.has_exits);
  EXPECT_EQ(without.route_saves, 0);
  EXPECT_GT(with.route_saves, 0.1);
  EXPECT_EQ(with.selection.route.target, 2);
  EXPECT_LT(with.outcome.mean_price, without.outcome.mean_price - 0.1 * with.full.mean_price);
  EXPECT_GE(with.outcome.accuracy, 0.98);
  const std::string text = policy_text_of(with.selection, with.thresholds, 4);
  EXPECT_TRUE(text.starts_with("route(2;")) << text;
  EXPECT_EQ(parse_policy(text).skip_target(), 2);
  o.can_skip = [](Index, Index) { return false; };
  EXPECT_EQ(calibrate_exits(choose, fresh, o).route_saves, 0);
}

// A reference that is not the last exit: risks are against its answers.
TEST(Cascade, RecordsAreJudgedByAReference) {
  const Model joined(cascade(versions()));
  const auto x = test::random_floats(20 * 192, 6);
  ExitScores s = record_scores(joined, x, std::span<const Index>(), [](Index) {});
  s.reference.assign(20, 1);
  const ExitRecords r = judge(s, MaxProbability{0.5f}, Truth::full_network);
  EXPECT_EQ(full_outcome(r).accuracy, 1);
  Index right = 0;
  for (Index i = 0; i < 20; ++i) right += r.right_at(i, 3);
  const std::vector<float> off(3, std::numeric_limits<float>::infinity());
  EXPECT_DOUBLE_EQ(apply_thresholds(r, off).accuracy, static_cast<double>(right) / 20);
}

}  // namespace
}  // namespace offramp
