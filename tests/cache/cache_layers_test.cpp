#include "offramp/cache/cache_layers.hpp"

#include <gtest/gtest.h>

#include "graphs.hpp"
#include "offramp/onnx/onnx.hpp"
#include "offramp/session/model_session.hpp"

namespace offramp {
namespace {

// A wide shallow network whose answer an early linear head can find: the class is the brightest of four quadrants.
Graph teacher() {
  test::Builder b;
  b.g.opset = 13;
  const std::vector<Index> pads{1, 1, 1, 1}, three{3, 3};
  auto x = b.input("input", {dynamic, 1, 12, 12});
  std::vector<float> first(4 * 9, 0.0f);
  for (std::size_t i = 0; i < first.size(); ++i) first[i] = i % 9 == 4 ? 1.0f : 0.0f;
  x = b.node("Relu", {b.node("Conv", {x, b.constant(Tensor::of<float>({4, 1, 3, 3}, first))},
                             {{"kernel_shape", three}, {"pads", pads}})});
  std::vector<float> same(4 * 4 * 9, 0.0f);
  for (std::size_t i = 0; i < 4; ++i) same[(i * 4 + i) * 9 + 4] = 1.0f;
  for (int i = 0; i < 4; ++i)
    x = b.node("Relu", {b.node("Conv", {x, b.constant(Tensor::of<float>({4, 4, 3, 3}, same))},
                               {{"kernel_shape", three}, {"pads", pads}})});
  const auto pooled =
      b.node("AveragePool", {x}, {{"kernel_shape", std::vector<Index>{6, 6}}, {"strides", std::vector<Index>{6, 6}}});
  std::vector<float> pick(4 * 16, 0.0f);
  for (std::size_t c = 0; c < 4; ++c) pick[c * 16 + c] = 60.0f;  // quadrant c of the first channel
  b.output(
      b.node("Gemm", {b.node("Flatten", {pooled}, {{"axis", Index{1}}}), b.constant(Tensor::of<float>({4, 16}, pick))},
             {{"transB", Index{1}}}),
      "logits");
  return b.g;
}

std::vector<float> inputs(Index n, unsigned seed) {
  std::vector<float> x = test::random_floats(n * 144, seed, 0, 1);
  std::mt19937 random(seed);
  for (Index i = 0; i < n; ++i) {
    const auto q = static_cast<Index>(random() % 4);
    for (Index y = q / 2 * 6; y < q / 2 * 6 + 6; ++y) {
      for (Index c = q % 2 * 6; c < q % 2 * 6 + 6; ++c) x[static_cast<std::size_t>(i * 144 + y * 12 + c)] += 0.25f;
    }
  }
  return x;
}

CacheOptions quick() {
  CacheOptions o;
  o.explore.epochs = 15;
  o.refine.epochs = 6;
  o.certificate.epsilon = 0.05;
  return o;
}

TEST(CacheLayers, SavesWorkAndKeepsItsPromise) {
  const Model model(teacher());
  const auto x = inputs(2400, 1), fresh = inputs(2000, 2);
  CacheOptions o = quick();
  const CacheResult r = cache_layers(model, {x, {}, {}, {}, false}, o);
  ASSERT_TRUE(r.has_exits) << r.reason;
  EXPECT_LE(r.calibration.certificate.p_value, 0.1);
  EXPECT_GT(r.tried.size(), 3U);

  // Written, read again, and run: it answers as the full network does, for less.
  const std::string bytes = onnx::write(r.graph);
  const Model cached = load_onnx(std::as_bytes(std::span(bytes)));
  ASSERT_EQ(cached.exit_count(), static_cast<Index>(r.exits.size()) + 1);
  auto session = make_session(cached, 50);
  Session full(model, Never{}, 50);
  Index same = 0;
  double flops = 0, all = 0;
  for (Index i = 0; i < 2000; i += 50) {
    const std::span<const float> batch(fresh.data() + i * 144, 50 * 144);
    const auto a = session.predict(batch);
    const auto b = full.predict_full(batch);
    for (std::size_t k = 0; k < 50; ++k) {
      same += a[k].label == b[k].label;
      flops += static_cast<double>(a[k].cost.flops);
      all += static_cast<double>(a[k].full_cost.flops);
    }
  }
  EXPECT_GE(same, 2000 * 94 / 100);
  EXPECT_LT(flops, 0.9 * all);
  EXPECT_NE(cached.metadata().at("offramp.certificate").find("at most 0.05"), std::string::npos);
}

TEST(CacheLayers, IsTheSameForASeedHoweverManyThreadsAndWhateverLabels) {
  const Model model(teacher());
  const auto x = inputs(1200, 3);
  CacheOptions o = quick();
  o.explore.epochs = 8, o.refine.epochs = 2;
  o.certificate.epsilon = 0.1;
  std::vector<Index> labels(1200, 3);
  const std::string a = onnx::write(cache_layers(model, {x, {}, {}, {}, false}, o).graph);
  o.threads = 2;
  const std::string b = onnx::write(cache_layers(model, {x, labels, {}, {}, false}, o).graph);
  EXPECT_TRUE(a == b);  // the bytes are no text to print
  o.seed = 1;
  const std::string c = onnx::write(cache_layers(model, {x, {}, {}, {}, false}, o).graph);
  EXPECT_FALSE(a == c);
}

TEST(CacheLayers, CountsWhatItIsAskedTo) {
  const Model model(teacher());
  CacheOptions o = quick();
  o.explore.epochs = 8, o.refine.epochs = 2;
  o.certificate.epsilon = 0.2;
  const std::vector<float> x = inputs(1200, 3);
  CacheResult r = cache_layers(model, {x, {}, {}, {}, false}, o);
  ASSERT_TRUE(r.has_exits) << r.reason;
  // Stages that end at exits hold the same layers as the network without.
  EXPECT_DOUBLE_EQ(r.calibration.full.mean_price, modelled_prices(model).stages[0]);
  EXPECT_GT(r.calibration.full.mean_price, static_cast<double>(model.full_cost().executed));
  EXPECT_DOUBLE_EQ(r.calibration.full.mean_flops, static_cast<double>(model.full_cost().flops));
  o.objective = Objective::flops;
  r = cache_layers(model, {x, {}, {}, {}, false}, o);
  ASSERT_TRUE(r.has_exits) << r.reason;
  EXPECT_DOUBLE_EQ(r.calibration.full.mean_price, r.calibration.full.mean_flops);
}

TEST(CacheLayers, SaysWhyThereAreNoExits) {
  const Model model(teacher());
  CacheOptions o = quick();
  o.explore.epochs = 1, o.refine.epochs = 1;
  // One class only.
  std::vector<float> one(600 * 144, 0.1f);
  for (std::size_t i = 0; i < one.size(); i += 144) one[i] = 2.0f + static_cast<float>(i) * 1e-6f;
  const CacheResult same = cache_layers(model, {one, {}, {}, {}, false}, o);
  EXPECT_FALSE(same.has_exits);
  EXPECT_NE(same.reason.find("same answer"), std::string::npos);
  EXPECT_EQ(same.graph.outputs.size(), 1U);
  // A certificate that the data cannot give.
  const auto x = inputs(600, 4);
  o.certificate.epsilon = 0.001;
  const CacheResult strict = cache_layers(model, {x, {}, {}, {}, false}, o);
  EXPECT_FALSE(strict.has_exits);
  EXPECT_FALSE(strict.reason.empty());
}

TEST(CacheLayers, RefusesBadData) {
  const Model model(teacher());
  auto x = inputs(600, 5);
  const CacheOptions o = quick();
  EXPECT_THROW(cache_layers(model, {std::span(x).first(144 * 20), {}, {}, {}, false}, o), Error);  // too few
  EXPECT_THROW(cache_layers(model, {std::span(x).first(1000), {}, {}, {}, false}, o), Error);      // no whole samples
  CacheOptions drop = o;
  drop.certificate.risk = Risk::accuracy_drop;
  EXPECT_THROW(cache_layers(model, {x, {}, {}, {}, false}, drop), Error);  // no labels
  std::vector<Index> labels(600, 9);
  EXPECT_THROW(cache_layers(model, {x, labels, {}, {}, false}, drop), Error);  // outside the classes
  x[1000] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(cache_layers(model, {x, {}, {}, {}, false}, o), Error);
  // No classifier: the output is a map.
  test::Builder b;
  b.output(b.node("Relu", {b.input("input", {dynamic, 1, 12, 12})}), "map");
  b.g[b.g.outputs[0]].type = DType::f32;
  test::Builder two;
  two.output(two.node("Add", {two.input("a", {dynamic, 4}), two.input("b", {dynamic, 4})}), "sum");
  EXPECT_THROW(cache_layers(Model(two.g), {inputs(600, 6), {}, {}, {}, false}, o), Error);
}

}  // namespace
}  // namespace offramp
