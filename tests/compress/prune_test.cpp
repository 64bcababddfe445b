// Channels that belong together, their removal, and the fit of what is left.
#include "offramp/compress/prune.hpp"

#include <gtest/gtest.h>

#include "graphs.hpp"

namespace offramp {
namespace {

Graph named(Graph g) {
  g = simplified(std::move(g), {});
  detail::name_nodes(g);
  return g;
}

TEST(ChannelClasses, ResidualStreamsAreOneAndInnerChannelsAreFree) {
  const Graph g = named(test::residual_network());
  const Inference shapes = infer_batch(g, {}, 2);
  const ChannelClasses classes(g, shapes);
  const auto find = [&](const std::string& op, int which) -> const Node& {
    for (const Node& n : g.nodes) {
      if (n.op == op && which-- == 0) return n;
    }
    throw std::runtime_error("no such node");
  };
  // First convolution and the second one of the first block end in one stream of eight channels.
  EXPECT_EQ(classes.of(find("Conv", 0).outputs[0]), classes.of(find("Conv", 2).outputs[0]));
  EXPECT_NE(classes.of(find("Conv", 0).outputs[0]), classes.of(find("Conv", 1).outputs[0]));
  for (const int c : classes.of(find("Conv", 1).outputs[0])) EXPECT_TRUE(classes.removable(c));
  for (const ValueId v : g.outputs) {
    for (const int c : classes.of(v)) EXPECT_FALSE(classes.removable(c));
  }
  for (const int c : classes.of(g.inputs[0])) EXPECT_FALSE(classes.removable(c));
}

TEST(ChannelClasses, RemovingDeadChannelsChangesNothing) {
  Graph g = named(test::residual_network());
  // Channels 1 and 6 of the second convolution give zero.
  int which = 1;
  ValueId out = no_value;
  for (Node& n : g.nodes) {
    if (n.op != "Conv" || which-- != 0) continue;
    Tensor w(DType::f32, g[n.inputs[1]].constant.shape()), bias(DType::f32, g[n.inputs[2]].constant.shape());
    std::copy_n(g[n.inputs[1]].constant.view().f32(), w.count(), static_cast<float*>(w.mutable_data()));
    std::copy_n(g[n.inputs[2]].constant.view().f32(), bias.count(), static_cast<float*>(bias.mutable_data()));
    const Index each = w.count() / w.shape()[0];
    for (const Index c : {1, 6}) {
      std::fill_n(static_cast<float*>(w.mutable_data()) + c * each, each, 0.0f);
      static_cast<float*>(bias.mutable_data())[c] = -1;
    }
    n.inputs[1] = g.add_constant("dead_weight", w);
    n.inputs[2] = g.add_constant("dead_bias", bias);
    out = n.outputs[0];
  }
  const Inference shapes = infer_batch(g, {}, 2);
  const ChannelClasses classes(g, shapes);
  std::vector<bool> removed(static_cast<std::size_t>(classes.count()), false);
  for (const std::size_t c : {1u, 6u}) removed[static_cast<std::size_t>(classes.of(out)[c])] = true;
  const Model small(classes.without(removed)), whole(g);
  EXPECT_LT(small.full_cost().flops, whole.full_cost().flops);
  const std::vector<Tensor> in{test::random_tensor({2, 3, 8, 8}, 4)};
  const auto a = small.run(in), b = whole.run(in);
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto v = b[i].values<float>();
    EXPECT_LT(test::relative_error(a[i].values<float>(), std::vector<double>(v.begin(), v.end())), 1e-5);
  }
}

// A shortcut that pads channels with zeros, as CIFAR's residual networks have.
TEST(ChannelClasses, PaddedShortcutsAndDepthwiseFollow) {
  test::Builder b;
  b.g.opset = 13;
  auto x = b.input("input", {dynamic, 2, 6, 6});
  const std::vector<Index> pads{1, 1, 1, 1};
  x = b.node("Relu", {b.node("Conv", {x, b.constant({4, 2, 3, 3}, 1), b.constant({4}, 2)}, {{"pads", pads}})});
  const auto wide = b.node("Conv", {x, b.constant({8, 4, 3, 3}, 3), b.constant({8}, 4)}, {{"pads", pads}});
  const auto padded =
      b.node("Pad", {x, b.constant(Tensor::of<Index>({8}, std::vector<Index>{0, 2, 0, 0, 0, 2, 0, 0}))});
  x = b.node("Relu", {b.node("Add", {wide, padded})});
  x = b.node("Conv", {x, b.constant({8, 1, 3, 3}, 5), b.constant({8}, 6)}, {{"pads", pads}, {"group", Index{8}}});
  x = b.node("Flatten", {b.node("GlobalAveragePool", {x})}, {{"axis", Index{1}}});
  b.output(b.node("Gemm", {x, b.constant({8, 3}, 7), b.constant({3}, 8)}), "logits");
  const Graph g = named(b.g);
  const Inference shapes = infer_batch(g, {}, 2);
  const ChannelClasses classes(g, shapes);
  const auto& stream = classes.of(g.nodes[1].outputs[0]);
  // Any channel of the sum may go, one that the padding made and one that came through it.
  for (const std::size_t c : {0u, 3u}) {
    std::vector<bool> removed(static_cast<std::size_t>(classes.count()), false);
    const int gone = classes.of(wide)[c];
    ASSERT_TRUE(classes.removable(gone));
    removed[static_cast<std::size_t>(gone)] = true;
    const Model small(classes.without(removed));
    ASSERT_TRUE(small.has_plan()) << small.why_not();
    const std::vector<Tensor> in{test::random_tensor({2, 2, 6, 6}, 4)};
    EXPECT_EQ(small.run(in)[0].shape(), (Shape{2, 3}));
  }
  EXPECT_EQ(stream.size(), 4u);
}

TEST(Prune, LeastSquaresMakeUpForWhatIsGone) {
  const Model model(test::residual_network());
  const auto x = test::random_floats(256 * 192, 3, -1, 2);
  PruneOptions o;
  o.share = 0.25;
  o.granularity = 1;
  const PruneResult with = prune(model, x, o);
  o.refit = false;
  const PruneResult without = prune(model, x, o);
  EXPECT_LE(with.flops, 0.78 * with.full_flops);
  // The error of the logits on data of its own.
  const std::vector<Tensor> in{test::random_tensor({64, 3, 8, 8}, 9)};
  const auto whole = model.run(in);
  const auto error = [&](const PruneResult& r) {
    const auto a = whole.back().values<float>();
    const auto found = Model(r.graph).run(in);
    const auto b = found.back().values<float>();
    double d = 0;
    for (std::size_t i = 0; i < a.size(); ++i) d += static_cast<double>((a[i] - b[i]) * (a[i] - b[i]));
    return d;
  };
  EXPECT_LT(error(with), 0.5 * error(without));
  EXPECT_GE(with.agreement, without.agreement);
}

TEST(ResidualBlocks, AreFoundWhereTheShortcutIsTheInput) {
  const Graph g = named(test::residual_network());
  const Inference shapes = infer_batch(g, {}, 2);
  const auto blocks = residual_blocks(g, shapes);
  ASSERT_EQ(blocks.size(), 2u);  // the third has a convolution in its shortcut
  const Graph less = without_blocks(g, {blocks[1].name}, shapes);
  EXPECT_EQ(residual_blocks(less, infer_batch(less, {}, 2)).size(), 1u);
  const auto convolutions = [](const Graph& of) {
    return std::count_if(of.nodes.begin(), of.nodes.end(), [](const Node& n) { return n.op == "Conv"; });
  };
  EXPECT_EQ(convolutions(less), convolutions(g) - 2);
  // A branch whose weights are zero adds nothing: without it the answers stay.
  Graph zero = g;
  for (Node& n : zero.nodes) {
    if (n.outputs[0] != blocks[1].sum) continue;
    const ValueId branch = n.inputs[n.inputs[0] == blocks[1].shortcut ? 1 : 0];
    Node& last = zero.nodes[static_cast<std::size_t>(zero.producers()[static_cast<std::size_t>(branch)])];
    for (std::size_t i = 1; i < 3; ++i)
      last.inputs[i] =
          zero.add_constant("zero" + std::to_string(i), Tensor(DType::f32, zero[last.inputs[i]].constant.shape()));
  }
  const std::vector<Tensor> in{test::random_tensor({2, 3, 8, 8}, 4)};
  const auto a = Model(zero).run(in), b = Model(less).run(in);
  const auto expected = a.back().values<float>();
  EXPECT_LT(test::relative_error(b.back().values<float>(), std::vector<double>(expected.begin(), expected.end())),
            1e-5);
}

// A sum that is read elsewhere too, and a branch that somebody else looks into, are left alone.
TEST(ResidualBlocks, WhatIsReadElsewhereStays) {
  test::Builder b;
  b.g.opset = 13;
  auto x = b.input("input", {dynamic, 4});
  x = b.node("Relu", {x});
  const auto inside = b.node("Relu", {b.node("Gemm", {x, b.constant({4, 4}, 1), b.constant({4}, 2)})});
  const auto branch = b.node("Gemm", {inside, b.constant({4, 4}, 3), b.constant({4}, 4)});
  b.output(b.node("Add", {branch, x}), "logits");
  b.output(inside, "inside");
  const Graph g = named(b.g);
  EXPECT_TRUE(residual_blocks(g, infer_batch(g, {}, 2)).empty());
}

// The network without its early exits, which would not learn with it.
Graph without_exits(Graph g) {
  const ValueId answer = g.outputs.back();
  return with_outputs(std::move(g), {answer});
}

TEST(Prune, TakesWholeBlocksAndLearns) {
  const Model model(without_exits(test::scaled(test::residual_network())));
  const auto x = test::random_floats(300 * 192, 3, -1, 2);
  PruneOptions o;
  o.share = 0.5;
  o.granularity = 8;  // no channel of the blocks can go: only whole branches
  const PruneResult fitted = prune(model, x, o);
  EXPECT_FALSE(fitted.blocks.empty());
  EXPECT_LE(fitted.flops, 0.5 * fitted.full_flops);
  EXPECT_TRUE(std::any_of(fitted.layers.begin(), fitted.layers.end(), [](const auto& l) { return l.kept == 0; }));
  o.refit = false;  // to see what learning does alone
  const PruneResult plain = prune(model, x, o);
  o.distil.epochs = 20;
  o.distil.rate = 2e-3f;
  o.distil.mixed = 0;
  Index calls = 0;
  const PruneResult learned = prune(model, x, o, [&](Index, Index) { ++calls; });
  EXPECT_GT(calls, 0);
  EXPECT_LE(learned.flops, 0.5 * learned.full_flops);
  EXPECT_GT(learned.agreement, plain.agreement + 0.1);
}

TEST(Prune, ByLatencyIsFasterHere) {
  const Model model(test::residual_network());
  const auto x = test::random_floats(64 * 192, 3, -1, 2);
  PruneOptions o;
  o.share = 0.2;
  o.objective = Objective::latency;
  o.granularity = 4;
  const PruneResult r = prune(model, x, o);
  EXPECT_GT(r.ms, 0);
  EXPECT_GT(r.full_ms, 0);
  EXPECT_LT(r.flops, r.full_flops);
}

TEST(Prune, BadBudgetsAndDataAreErrors) {
  const Model model(test::residual_network());
  const auto x = test::random_floats(32 * 192, 3);
  PruneOptions o;
  o.share = 0.99;
  EXPECT_THROW(prune(model, x, o), Error);
  o.share = 1.5;
  EXPECT_THROW(prune(model, x, o), Error);
  o.share = 0.2;
  EXPECT_THROW(prune(model, std::span<const float>(x).first(10), o), Error);
  o.distil.epochs = 1;  // the network has exits
  EXPECT_THROW(prune(model, x, o), Error);
}

}  // namespace
}  // namespace offramp
