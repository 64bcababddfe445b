#include "offramp/network/network.hpp"

#include <gtest/gtest.h>

#include "graphs.hpp"
#include "offramp/calibrate/calibrate.hpp"
#include "offramp/exit/heads.hpp"
#include "offramp/graph/model.hpp"
#include "offramp/policy/max_probability.hpp"
#include "offramp/session/session.hpp"

namespace offramp {
namespace {

static_assert(EarlyExitNetwork<Model>);

// The same network as a type and as a graph gives the same answers: both stand on the same kernels.
TEST(Network, EqualsTheGraphOfTheSameLayers) {
  const auto c1 = test::random_floats(8 * 3 * 9, 1), c2 = test::random_floats(8 * 8 * 9, 2),
             c3 = test::random_floats(8 * 8 * 9, 3);
  const auto h = test::random_floats(4 * 8, 4), f = test::random_floats(4 * 8 * 16, 5), fb = test::random_floats(4, 6);
  const Network net(input<3, 8, 8>, Conv2d<3, 8, 3>(c1, {}), Relu(), Exit(pooled_linear<8, 4>(h, {})),
                    Residual(Chain(Conv2d<8, 8, 3>(c2, {}), Relu(), Conv2d<8, 8, 3>(c3, {}))), MaxPool2d<2>(),
                    Flatten(), Dense<8 * 16, 4>(f, fb));
  static_assert(EarlyExitNetwork<decltype(net)>);
  static_assert(std::same_as<std::remove_const_t<decltype(net)>::Output, Extents<4>>);

  test::Builder b;
  const std::vector<Index> pads{1, 1, 1, 1};
  const auto constant = [&](const Shape& s, const std::vector<float>& v) {
    return b.constant(Tensor::of<float>(s, v));
  };
  auto x = b.node("Relu",
                  {b.node("Conv", {b.input("x", {dynamic, 3, 8, 8}), constant({8, 3, 3, 3}, c1)}, {{"pads", pads}})});
  b.output(b.node("Gemm", {b.node("Flatten", {b.node("GlobalAveragePool", {x})}), constant({4, 8}, h)},
                  {{"transB", Index{1}}}),
           "exit_0");
  const auto y = b.node(
      "Conv",
      {b.node("Relu", {b.node("Conv", {x, constant({8, 8, 3, 3}, c2)}, {{"pads", pads}})}), constant({8, 8, 3, 3}, c3)},
      {{"pads", pads}});
  x = b.node("MaxPool", {b.node("Add", {x, y})},
             {{"kernel_shape", std::vector<Index>{2, 2}}, {"strides", std::vector<Index>{2, 2}}});
  b.output(b.node("Gemm", {b.node("Flatten", {x}), constant({4, 128}, f), constant({4}, fb)}, {{"transB", Index{1}}}),
           "logits");
  const Model model(b.g);
  ASSERT_TRUE(model.has_plan()) << model.why_not();

  for (Index k = 0; k < 2; ++k) {
    EXPECT_EQ(net.stage_cost(k).macs, model.stage_cost(k).macs);
    EXPECT_EQ(net.head_cost(k).macs, model.head_cost(k).macs);
  }
  const auto samples = test::random_floats(9 * 192, 7, -2, 2);
  auto sure =
      record_exits(net, MaxProbability{Thresholds(1.0f)}, samples, {}, [](Index) {}).confidence;  // [sample][exit]
  std::vector<float> first;
  for (std::size_t i = 0; i < sure.size(); i += 2) first.push_back(sure[i]);
  std::nth_element(first.begin(), first.begin() + 4, first.end());
  Session a(net, MaxProbability{first[4] - 1e-4f}, 9);
  Session c(model, MaxProbability{first[4] - 1e-4f}, 9);
  const auto p = a.predict(samples), q = c.predict(samples);
  Index early = 0;
  for (std::size_t i = 0; i < 9; ++i) {
    EXPECT_EQ(p[i].exit, q[i].exit);
    EXPECT_EQ(p[i].label, q[i].label);
    EXPECT_NEAR(p[i].confidence, q[i].confidence, 1e-5);
    early += p[i].exit == 0;
  }
  EXPECT_GT(early, 0);
  EXPECT_LT(early, 9);
}

TEST(Network, CompactionKeepsTheOthersApart) {
  const Network net(input<6>, Dense<6, 8>(test::random_floats(48, 1), {}), Tanh(),
                    Exit(Dense<8, 3>(test::random_floats(24, 2), {})), Dense<8, 8>(test::random_floats(64, 3), {}),
                    Dense<8, 3>(test::random_floats(24, 4), {}));
  const auto x = test::random_floats(40 * 6, 5, -3, 3);
  Session one(net, MaxProbability{0.5f}), many(net, MaxProbability{0.5f}, 40);
  const auto all = many.predict(x);
  for (std::size_t i = 0; i < 40; ++i) {
    const Prediction p = one.predict(std::span(x).subspan(i * 6, 6))[0];
    EXPECT_EQ(p.exit, all[i].exit);
    EXPECT_EQ(p.label, all[i].label);
  }
}

}  // namespace
}  // namespace offramp
