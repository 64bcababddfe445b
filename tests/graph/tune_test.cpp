#include "offramp/graph/tune.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "graphs.hpp"
#include "offramp/kernel/dispatch.hpp"

namespace offramp {
namespace {

// A 3 x 3 convolution that has many methods, a pointwise one that has few, a depthwise one that has one.
Graph three_convolutions(Index channels = 64, Index size = 16) {
  test::Builder b;
  b.g.opset = 13;
  const std::vector<Index> pads{1, 1, 1, 1};
  const ValueId x = b.input("input", {dynamic, channels, size, size});
  ValueId y = b.node("Conv", {x, b.constant({channels, channels, 3, 3}, 1)}, {{"pads", pads}});
  b.g.nodes.back().name = "square";
  y = b.node("Conv", {y, b.constant({channels, 1, 3, 3}, 2)}, {{"pads", pads}, {"group", channels}});
  b.g.nodes.back().name = "depthwise";
  y = b.node("Conv", {y, b.constant({8, channels, 1, 1}, 3)});
  b.g.nodes.back().name = "pointwise";
  b.output(b.node("Flatten", {b.node("GlobalAveragePool", {y})}), "output");
  return b.g;
}

std::string algorithm_of(const Model& m, const std::string& layer) {
  const auto layers = m.layers();
  const auto at = std::find_if(layers.begin(), layers.end(), [&](const LayerInfo& l) { return l.name == layer; });
  return at == layers.end() ? "no such layer" : at->algorithm;
}

TEST(Tune, AModelUsesTheMethodsThatItIsGiven) {
  const Graph g = three_convolutions();
  const Tensor x = test::random_tensor({2, 64, 16, 16}, 7);
  for (const Isa isa : available_isas()) {
    ModelOptions options;
    options.isa = isa;
    const Model usual(g, options);
    const std::vector<Tensor> expected = usual.run({&x, 1});
    for (const ConvMethod& method : all_conv_methods) {
      options.bf16 = method.halves;
      options.conv_methods = std::make_shared<ConvMethods>(ConvMethods{{"square", method}, {"depthwise", method}});
      const Model m(g, options);
      const kernel::Kernels& kernels = kernel::kernels_for(isa);
      const bool has_it = !method.columns && method.m <= kernels.winograd_tile && (!method.halves || kernels.bf16) &&
                          (!method.plain_weights || kernels.winograd_products);
      const std::string text = algorithm_of(m, "square");
      if (has_it) {
        EXPECT_EQ(text.find("winograd F(" + std::to_string(method.m)) != std::string::npos, method.m > 0) << text;
        EXPECT_EQ(text.find("bf16") != std::string::npos, method.halves) << text;
        EXPECT_EQ(text.find("plain") != std::string::npos, method.plain_weights) << text;
      } else {
        EXPECT_EQ(text, algorithm_of(usual, "square"));
      }
      EXPECT_EQ(algorithm_of(m, "depthwise"), "depthwise");
      const std::vector<Tensor> found = m.run({&x, 1});
      const std::span<const float> y(found[0].view().f32(), static_cast<std::size_t>(found[0].count())),
          z(expected[0].view().f32(), y.size());
      const float largest = std::fabs(
          *std::max_element(z.begin(), z.end(), [](float p, float q) { return std::fabs(p) < std::fabs(q); }));
      for (std::size_t i = 0; i < y.size(); ++i)
        EXPECT_NEAR(y[i], z[i], (method.halves ? 0.1f : 1e-5f) * largest) << text;
    }
  }
}

TEST(Tune, WhatDoesNotFitIsLeftToTheCostModel) {
  const Graph g = three_convolutions();
  const Model usual(g);
  for (const ConvMethod& method :
       {ConvMethod{3}, {-2}, {1000}, {6, true}, {2, false, true}, {0, false, true}, {4, false, false, true}}) {
    ModelOptions options;
    options.conv_methods = std::make_shared<ConvMethods>(ConvMethods{{"square", method}, {"no such layer", {}}});
    EXPECT_EQ(algorithm_of(Model(g, options), "square"), algorithm_of(usual, "square"));
  }
  ModelOptions options;
  options.winograd_tile = 2;  // limits what is given, too
  options.conv_methods = std::make_shared<ConvMethods>(ConvMethods{{"square", {6}}});
  EXPECT_EQ(algorithm_of(Model(g, options), "square").find("F(6x6"), std::string::npos);
}

// However little must be gained: of the methods beside the usual one the fastest is found, which the direct product,
// more than twice as slow as the next, is not; what has one method only is not in the result.
TEST(Tune, FindsTheFastestOfTheOthers) {
  const Graph g = three_convolutions();
  TuneOptions how;
  how.seconds = 0.05;
  how.margin = -1000;
  ModelOptions options;
  options.isa = Isa::baseline;
  for (const Index batch : {1, 3}) {
    options.batch = batch;
    options.pool = std::make_shared<ThreadPool>(batch == 1 ? 1 : 2);
    const auto methods = tune_convolutions(g, options, how);
    ASSERT_EQ(methods->size(), 1u);
    EXPECT_GT(methods->at("square").m, 0);
    options.conv_methods = methods;
    const Model m(g, options);
    EXPECT_NE(algorithm_of(m, "square").find("F(" + std::to_string(methods->at("square").m)), std::string::npos);
    options.conv_methods = nullptr;
    EXPECT_NE(algorithm_of(m, "square"), algorithm_of(Model(g, options), "square"));
  }
}

TEST(Tune, NothingIsChosenThatGainsNothing) {
  TuneOptions how;
  how.seconds = 0.01;
  how.margin = 0.9;  // ten times as fast as the cost model's choice
  EXPECT_TRUE(tune_convolutions(three_convolutions(16, 8), {}, how)->empty());
}

}  // namespace
}  // namespace offramp
