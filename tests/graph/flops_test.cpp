// The FLOP count against counts made by hand, layer by layer.
#include <gtest/gtest.h>

#include "graphs.hpp"
#include "offramp/graph/model.hpp"

namespace offramp {
namespace {

TEST(Flops, EqualAnIndependentCount) {
  const Model m(test::residual_network());
  // Stem 3 to 8, 3x3, 8x8 pixels; its norm and activation.
  const Index stem = 8 * 64 * 3 * 9, block = 8 * 64 * 8 * 9, outputs = 8 * 64;
  EXPECT_EQ(m.exits()[0].stage.macs, stem);
  EXPECT_EQ(m.exits()[0].stage.flops, 2 * stem + 2 * outputs + outputs);
  // Head: the mean over 64 pixels, then 8 to 4 with bias.
  EXPECT_EQ(m.exits()[0].head.macs, 32);
  EXPECT_EQ(m.exits()[0].head.flops, outputs + 2 * 32 + 4);
  // Two blocks: two convolutions, two norms, two activations, one addition each.
  EXPECT_EQ(m.exits()[1].stage.macs, 4 * block);
  EXPECT_EQ(m.exits()[1].stage.flops, 8 * block + 2 * (4 + 2 + 1) * outputs);
  // Last stage: 8 to 20 with stride 2, 20 to 20, the shortcut, and the classifier.
  const Index last = 20 * 16 * 8 * 9 + 20 * 16 * 20 * 9 + 20 * 16 * 8;
  EXPECT_EQ(m.exits()[2].stage.macs, last + 80);
  EXPECT_EQ(m.exits()[2].stage.flops, 2 * last + 2 * 320 + 320 + 320 + 2 * 80 + 4);
}

TEST(Flops, ExecutedLeavesOutWhatWasFoldedAndCountsPadding) {
  const Model m(test::residual_network());
  const LayerInfo& stem = m.layers()[0].op.starts_with("Conv") ? m.layers()[0] : m.layers()[1];
  ASSERT_TRUE(stem.op.starts_with("Conv+Relu")) << stem.op;
  // Eight output channels take a block of sixteen columns; the norm is gone, the bias it left and the activation
  // remain.
  EXPECT_EQ(stem.cost.executed, 2 * 64 * 16 * 27 + 512 + 512);
}

TEST(Flops, RecurrentLayersCountEveryStep) {
  test::Builder b;
  const auto x = b.input("x", {5, 1, 3});
  Node n;
  n.op = "GRU";
  n.inputs = {x, b.constant({1, 12, 3}, 1), b.constant({1, 12, 4}, 2)};
  n.outputs = {no_value, b.g.add_value("h")};
  n.set("hidden_size", Index{4});
  b.g.nodes.push_back(n);
  b.output(n.outputs[1], "y");
  const Model m(b.g);
  ASSERT_TRUE(m.has_plan()) << m.why_not();
  EXPECT_EQ(m.total_cost().macs, 5 * 12 * (3 + 4));
  EXPECT_EQ(m.total_cost().flops, 2 * 5 * 12 * 7 + 5 * 4 * 8);
}

}  // namespace
}  // namespace offramp
