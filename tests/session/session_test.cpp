#include "offramp/session/session.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "graphs.hpp"
#include "offramp/calibrate/calibrate.hpp"
#include "offramp/onnx/onnx.hpp"
#include "offramp/session/model_session.hpp"

namespace offramp {
namespace {

const Model& model() {
  static const Model m(test::residual_network());
  return m;
}

constexpr Index size = 3 * 8 * 8;
std::vector<float> samples(Index n) {
  return test::random_floats(n * size, 77, -2, 2);
}

TEST(Session, BatchWithCompactionEqualsSingleSamples) {
  const auto x = samples(33);
  for (const float t : {0.3f, 0.62f, 0.7f, 0.999f}) {
    Session one(model(), MaxProbability{t}), many(model(), MaxProbability{t}, 33);
    const auto batch = many.predict(x);
    std::vector<Index> per_exit(3, 0);
    for (Index i = 0; i < 33; ++i) {
      const Prediction& p = batch[static_cast<std::size_t>(i)];
      const Prediction q = one.predict(std::span(x).subspan(static_cast<std::size_t>(i * size), size))[0];
      EXPECT_EQ(p.label, q.label);
      EXPECT_EQ(p.exit, q.exit);
      EXPECT_EQ(p.cost, q.cost);
      EXPECT_FLOAT_EQ(p.confidence, q.confidence);
      ++per_exit[static_cast<std::size_t>(p.exit)];
    }
    if (t == 0.7f) {
      for (const Index n : per_exit) EXPECT_GT(n, 0);  // samples leave at every exit
    }
  }
}

TEST(Session, CostsAreThoseOfTheStagesThatRan) {
  const auto x = samples(20);
  Session s(model(), MaxProbability{{0.4f, 0.4f}}, 20);
  Cost sum;
  for (const Prediction& p : s.predict(x)) {
    Cost expected;
    for (Index k = 0; k <= p.exit; ++k) expected += model().stage_cost(k) + (k < 2 ? model().head_cost(k) : Cost{});
    EXPECT_EQ(p.cost, expected);
    EXPECT_EQ(p.full_cost, model().stage_cost(0) + model().stage_cost(1) + model().stage_cost(2));
    sum += p.cost;
  }
  EXPECT_EQ(s.counted(), sum);
  EXPECT_EQ(s.counted_samples(), 20);
  // And the counter that each layer feeds says the same.
  Cost layers;
  for (std::size_t i = 0; i < model().layers().size(); ++i) layers += model().layers()[i].cost * s.state().counts()[i];
  EXPECT_EQ(layers.macs, sum.macs);
  s.reset_counter();
  EXPECT_EQ(s.counted(), Cost{});
}

TEST(Session, NothingBehindAnExitRuns) {
  const auto x = samples(1);
  for (Index exit = 0; exit < 3; ++exit) {
    Session s(model(), Always{exit});
    EXPECT_EQ(s.predict(x)[0].exit, exit);
    for (std::size_t i = 0; i < model().layers().size(); ++i) {
      const LayerInfo& l = model().layers()[i];
      if (l.algorithm == "view") continue;
      const bool needed = l.exit <= exit && (!l.is_head || l.exit == exit);
      EXPECT_EQ(s.state().counts()[i], needed ? 1 : 0) << l.name;
    }
  }
}

// A layer behind the exit that fails when it runs: it is not reached.
struct Failing {
  explicit Failing(const Node&) {}
  Shape output_shape(std::span<const TensorView> in) const { return in[0].shape; }
  void forward(std::span<const TensorView>, const TensorView&) const noexcept { std::abort(); }
};

TEST(Session, ALayerThatWouldFailIsNotReached) {
  test::Builder b;
  const auto x = b.input("x", {dynamic, 4});
  const auto y = b.node("Gemm", {x, b.constant({4, 4}, 1)});
  b.output(b.node("Gemm", {y, b.constant({4, 3}, 2)}), "exit_0");
  b.output(b.node("Gemm", {b.node("Failing", {y}), b.constant({4, 3}, 3)}), "logits");
  ModelOptions options;
  options.operators.add<Failing>("Failing");
  const Model m(b.g, options);
  Session s(m, Always{0});
  EXPECT_EQ(s.predict(test::random_floats(4, 1))[0].exit, 0);
  EXPECT_DEATH(s.predict_full(test::random_floats(4, 1)), "");
}

TEST(Session, FullNetworkRunsNoHead) {
  Session s(model(), MaxProbability{0.0f}, 4);
  for (const Prediction& p : s.predict_full(samples(4))) {
    EXPECT_EQ(p.exit, 2);
    EXPECT_EQ(p.cost, p.full_cost);
  }
}

TEST(Session, ExitsThatThePolicyNeverTakesCostNothing) {
  Session s(model(), MaxProbability{Thresholds({std::numeric_limits<float>::infinity(), 0.0f})});
  const Prediction p = s.predict(samples(1))[0];
  EXPECT_EQ(p.exit, 1);
  EXPECT_EQ(p.cost, model().stage_cost(0) + model().stage_cost(1) + model().head_cost(1));
}

TEST(Session, NonFiniteLogitsNeverLeaveEarlyAndAreReported) {
  const Index batch = 3;
  auto x = samples(batch);
  x[size + 5] = std::numeric_limits<float>::quiet_NaN();
  x[2 * size + 5] = std::numeric_limits<float>::infinity();
  Session s(model(), Always{}, batch);
  const auto p = s.predict(x);
  EXPECT_EQ(p[0].exit, 0);
  EXPECT_TRUE(p[0].finite);
  for (const std::size_t i : {1u, 2u}) {
    EXPECT_EQ(p[i].exit, 2);
    EXPECT_FALSE(p[i].finite);
    EXPECT_TRUE(std::isfinite(p[i].confidence));
  }
}

TEST(Session, AnEnsembleSurvivesAnExitThatWasNotFinite) {
  Graph g = test::residual_network();
  for (Value& v : g.values) {  // the first head's bias
    if (v.constant.type() == DType::f32 && v.constant.shape() == (Shape{4})) {
      v.constant = Tensor::of<float>({4}, std::vector<float>{0, NAN, 0, 0});
      break;
    }
  }
  const Model m(g);
  Session broken(m, Ensemble{Never{}}, 3);
  for (const Prediction& p : broken.predict(samples(3), [] { return false; })) {
    EXPECT_FALSE(p.finite);
    EXPECT_EQ(p.exit, 2);
    for (const float v : p.probabilities) EXPECT_TRUE(std::isfinite(v));
  }
}

TEST(Session, RefusesWhatIsNoBatch) {
  Session s(model(), Never{});
  EXPECT_THROW(s.predict(std::vector<float>()), Error);
  EXPECT_THROW(s.predict(std::vector<float>(size - 1)), Error);
  EXPECT_THROW(s.predict(std::vector<float>(size + 1)), Error);
  EXPECT_NO_THROW(s.predict(std::vector<float>(2 * size)));
}

TEST(Session, RefusesPoliciesThatDoNotFit) {
  EXPECT_THROW(Session(model(), MaxProbability{{0.5f, 0.5f, 0.5f}}), Error);
  EXPECT_THROW(Session(model(), Always{3}), Error);
  EXPECT_THROW(Session(model(), MaxProbability{Thresholds::per_class(std::vector<float>(6, 0.5f), 3)}), Error);
  EXPECT_NO_THROW(Session(model(), MaxProbability{Thresholds::per_class(std::vector<float>(8, 0.5f), 4)}));
}

TEST(Session, ProgressiveStopsWithTheBestAnswerSoFar) {
  const auto x = samples(2);
  Session s(model(), Never{}, 2);
  for (int allowed = 0; allowed < 4; ++allowed) {
    int asked = 0;
    const auto p = s.predict(x, [&] { return asked++ >= allowed; });
    EXPECT_EQ(p[0].exit, std::min(allowed, 2));
    EXPECT_EQ(p[1].stopped, allowed < 2);
    EXPECT_EQ(p[0].probabilities.size(), 4u);
  }
  EXPECT_EQ(s.predict_until(x, std::chrono::steady_clock::now())[0].exit, 0);
  EXPECT_EQ(s.predict_until(x, std::chrono::steady_clock::now() + std::chrono::hours(1))[0].exit, 2);
}

TEST(Session, PatienceLooksAtTheSamplesOwnHistory) {
  const auto x = samples(16);
  Session s(model(), Patience{1}, 16);
  const auto p = s.predict(x);
  for (Index i = 0; i < 16; ++i) {
    const std::vector<Tensor> in{
        Tensor::of<float>({1, 3, 8, 8}, std::span<const float>(x).subspan(static_cast<std::size_t>(i * size), size))};
    const auto out = model().run(in);
    const bool agree = ExitContext::label_of(out[0].values<float>()) == ExitContext::label_of(out[1].values<float>());
    EXPECT_EQ(p[static_cast<std::size_t>(i)].exit, agree ? 1 : 2);
  }
}

TEST(Session, FollowsThePolicyOfTheFile) {
  const std::string file = save_onnx(model(), ExitForm::outputs, {{"offramp.policy", "always:1"}});
  auto s = make_session(load_onnx(std::as_bytes(std::span(file))));
  EXPECT_EQ(s.predict(samples(1))[0].exit, 1);
}

}  // namespace
}  // namespace offramp
