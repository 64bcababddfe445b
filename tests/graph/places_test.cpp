#include "offramp/graph/places.hpp"

#include <gtest/gtest.h>

#include "graphs.hpp"

namespace offramp {
namespace {

TEST(Places, StandBetweenBlocksNotInsideThem) {
  const Graph g = test::residual_network();
  const ValueId answer = g.outputs.back();
  PlaceOptions all;
  all.least_gap = 0;
  all.largest_share = 2;
  all.most = 100;
  const auto places = find_places(g, answer, 4, {}, all);
  ASSERT_GE(places.size(), 4U);
  for (std::size_t i = 1; i < places.size(); ++i) EXPECT_GE(places[i].upto.flops, places[i - 1].upto.flops);
  // Two convolutions run side by side in a block: what they compute carries only a part.
  for (const Place& p : places) {
    const auto producers = g.producers();
    const int node = producers[static_cast<std::size_t>(p.value)];
    if (node < 0) continue;
    const std::string& op = g.nodes[static_cast<std::size_t>(node)].op;
    EXPECT_TRUE(op != "BatchNormalization" || p.shape.height == 8) << p.name;
  }
  // Every way to the answer passes each place: without it the answer depends on nothing.
  EXPECT_GT(places.back().share, 0.9);
}

TEST(Places, AreThinnedByCost) {
  const Graph g = test::residual_network();
  PlaceOptions few;
  few.most = 2;
  EXPECT_LE(find_places(g, g.outputs.back(), 4, {}, few).size(), 2U);
  PlaceOptions wide;
  wide.least_gap = 0.2;
  const auto places = find_places(g, g.outputs.back(), 4, {}, wide);
  for (std::size_t i = 1; i < places.size(); ++i) EXPECT_GE(places[i].share - places[i - 1].share, 0.2);
}

TEST(Places, KnowTokensFromChannels) {
  test::Builder b;
  const ValueId x = b.input("input", {dynamic, 6, 8});
  const ValueId h = b.node("Relu", {b.node("MatMul", {x, b.constant({8, 8}, 1)})});
  const ValueId pooled = b.node("ReduceMean", {h}, {{"axes", std::vector<Index>{1}}, {"keepdims", Index{0}}});
  b.output(b.node("MatMul", {pooled, b.constant({8, 3}, 2)}), "logits");
  PlaceOptions all;
  all.largest_share = 2;
  const auto places = find_places(b.g, b.g.outputs[0], 3, {}, all);
  ASSERT_FALSE(places.empty());
  bool seen = false;
  for (const Place& p : places) {
    if (p.shape.positions() == 6) {
      seen = true;
      EXPECT_TRUE(p.shape.tokens);
      EXPECT_EQ(p.shape.channels, 8);
    }
  }
  EXPECT_TRUE(seen);
}

}  // namespace
}  // namespace offramp
