// Several networks as one: answers, costs, and what runs.
#include "offramp/route/cascade.hpp"

#include <gtest/gtest.h>

#include "graphs.hpp"
#include "offramp/calibrate/select.hpp"
#include "offramp/onnx/onnx.hpp"
#include "offramp/policy/max_probability.hpp"
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
