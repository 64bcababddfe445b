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

// One block of a transformer as PyTorch exports it: [N][6][16], two heads of eight, 24 hidden channels. Without
// `dead_head` and `dead_hidden`, what that head and that hidden channel say does not count.
Graph transformer(std::optional<Index> dead_head, std::optional<Index> dead_hidden) {
  test::Builder b;
  b.g.opset = 17;
  const Index tokens = 6, width = 16, heads = 2, hidden = 24;
  const auto list = [&](std::vector<Index> v) {
    return b.constant(Tensor::of<Index>({static_cast<Index>(v.size())}, v));
  };
  unsigned seed = 1;
  const auto weights = [&](Index in, Index out) {
    Tensor w(DType::f32, {in, out});
    const auto v = test::random_floats(in * out, seed++, -0.4f, 0.4f);
    std::copy(v.begin(), v.end(), static_cast<float*>(w.mutable_data()));
    return w;
  };
  const auto silence = [](Tensor& w, Index from, Index rows) {
    std::fill_n(static_cast<float*>(w.mutable_data()) + from * w.shape()[1], rows * w.shape()[1], 0.0f);
  };
  const auto linear = [&](ValueId x, Tensor w) {
    const Index out = w.shape()[1];
    return b.node("Add", {b.constant({out}, seed++), b.node("MatMul", {x, b.constant(std::move(w))})});
  };
  const ValueId x = b.input("input", {dynamic, tokens, width});
  const auto apart = [&](std::vector<Index> perm) {
    const auto split = b.node("Reshape", {linear(x, weights(width, width)), list({0, tokens, heads, width / heads})});
    return b.node("Transpose", {split}, {{"perm", std::move(perm)}});
  };
  const auto q = apart({0, 2, 1, 3}), k = apart({0, 2, 3, 1}), v = apart({0, 2, 1, 3});
  const auto scores = b.node("Div", {b.node("MatMul", {q, k}), b.constant(Tensor::of<float>({}, std::vector{2.8f}))});
  const auto seen = b.node("MatMul", {b.node("Softmax", {scores}, {{"axis", Index{-1}}}), v});
  const auto joined = b.node(
      "Reshape", {b.node("Transpose", {seen}, {{"perm", std::vector<Index>{0, 2, 1, 3}}}), list({-1, tokens, width})});
  Tensor out = weights(width, width), behind = weights(hidden, width);
  if (dead_head) silence(out, *dead_head * width / heads, width / heads);
  if (dead_hidden) silence(behind, *dead_hidden, 1);
  const auto attended = b.node("Add", {x, linear(joined, out)});
  const auto inner = b.node("Tanh", {linear(attended, weights(width, hidden))});
  const auto y = b.node("Add", {attended, linear(inner, behind)});
  const auto mean = b.node("ReduceMean", {y}, {{"axes", std::vector<Index>{1}}, {"keepdims", Index{0}}});
  b.output(b.node("Gemm", {mean, b.constant({width, 3}, 90), b.constant({3}, 91)}), "logits");
  return b.g;
}

TEST(ChannelClasses, HeadsOfAttentionAndHiddenChannelsOfTokens) {
  for (const Index head : {0, 1}) {
    const Graph g = named(transformer(head, 5));
    const Inference shapes = infer_batch(g, {}, 2);
    const ChannelClasses classes(g, shapes);
    ASSERT_EQ(classes.inner_products().size(), 2u);
    const auto& heads = classes.inner_products()[0].classes;
    ASSERT_EQ(heads.size(), 2u);
    EXPECT_EQ(heads, classes.inner_products()[1].classes);
    std::vector<bool> removed(static_cast<std::size_t>(classes.count()), false);
    const auto remove = [&](int c) {
      ASSERT_TRUE(classes.removable(c));
      removed[static_cast<std::size_t>(c)] = true;
    };
    remove(heads[static_cast<std::size_t>(head)]);
    EXPECT_EQ(classes.width(heads[0]), 8);
    for (const auto& p : classes.products()) {
      if (p.out.size() == 24) remove(p.out[5]);
      // Whatever is added to the input keeps its channels.
      const bool ends_in_sum = g.nodes[p.node].inputs[0] != g.inputs[0] && p.out.size() == 16;
      EXPECT_FALSE(ends_in_sum && classes.removable(p.out[0])) << g.nodes[p.node].name;
    }
    const Graph cut = classes.without(removed);
    for (const Node& n : cut.nodes) EXPECT_TRUE(n.op != "Reshape" || n.attributes.empty());
    const Model small(cut), whole(g);
    ASSERT_TRUE(small.has_plan()) << small.why_not();
    // Of two heads one is gone: half of the attention, and half of the products around it.
    EXPECT_LT(static_cast<double>(small.full_cost().flops), 0.75 * static_cast<double>(whole.full_cost().flops));
    for (const Index n : {1, 3}) {
      const std::vector<Tensor> in{test::random_tensor({n, 6, 16}, 4)};
      const auto a = small.run(in)[0], b = whole.run(in)[0];
      const auto v = b.values<float>();
      EXPECT_LT(test::relative_error(a.values<float>(), std::vector<double>(v.begin(), v.end())), 1e-5);
    }
  }
}

TEST(Prune, TransformersLoseTheHeadThatSaysNothing) {
  const Model model(transformer(1, {}));
  const auto x = test::random_floats(256 * 96, 3, -1, 2);
  PruneOptions o;
  o.share = 0.25;
  o.blocks = false;
  o.granularity = 4;
  const PruneResult r = prune(model, x, o);
  EXPECT_LE(r.flops, 0.75 * r.full_flops);
  EXPECT_GE(r.agreement, 0.98);
  const auto kept = [&](std::size_t i) { return r.layers[i].kept; };
  ASSERT_EQ(r.layers.size(), 7u);  // queries, keys, values, the product behind them, two of tokens, the classes
  for (const std::size_t i : {0u, 1u, 2u}) EXPECT_EQ(kept(i), 8) << r.layers[i].name;
  EXPECT_EQ(kept(3), 16);
  // What is left is fitted, biases of their own included.
  o.share = 0.4;
  const PruneResult fitted = prune(model, x, o);
  o.refit = false;
  const PruneResult plain = prune(model, x, o);
  const std::vector<Tensor> in{test::random_tensor({64, 6, 16}, 9)};
  const Tensor whole = model.run(in)[0];
  const auto error = [&](const Graph& g) {
    const Tensor found = Model(g).run(in)[0];
    double d = 0;
    for (std::size_t i = 0; i < whole.values<float>().size(); ++i) {
      const auto e = static_cast<double>(whole.values<float>()[i] - found.values<float>()[i]);
      d += e * e;
    }
    return d;
  };
  EXPECT_LT(error(fitted.graph), 0.7 * error(plain.graph));
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

// A convolution of four channels to four that keeps the size.
ValueId four_channels(test::Builder& b, ValueId x, Index size, unsigned seed, float scale, float bias) {
  const auto w = test::random_floats(16 * size * size, seed, -scale, scale);
  const Index pad = size / 2;
  return b.node("Conv",
                {x, b.constant(Tensor::of<float>({4, 4, size, size}, w)),
                 b.constant(Tensor::of<float>({4}, std::vector<float>(4, bias)))},
                {{"pads", std::vector<Index>{pad, pad, pad, pad}}});
}
ValueId three_classes(test::Builder& b, ValueId x) {
  x = b.node("Flatten", {b.node("GlobalAveragePool", {x})}, {{"axis", Index{1}}});
  return b.node("Gemm", {x, b.constant({4, 3}, 6)});
}
// The squared error of the answers of a pruned network, as a share of how they spread over samples.
double answers_lost(const Model& whole, const PruneResult& pruned) {
  const std::vector<Tensor> in{test::random_tensor({8, 4, 6, 6}, 8)};
  const Tensor expected = whole.run(in)[0], found = Model(pruned.graph).run(in)[0];
  double error = 0, spread = 0;
  for (std::size_t c = 0; c < 3; ++c) {
    double mean = 0;
    for (std::size_t i = 0; i < 8; ++i) mean += static_cast<double>(expected.values<float>()[i * 3 + c]) / 8;
    for (std::size_t i = 0; i < 8; ++i) {
      const auto said = static_cast<double>(expected.values<float>()[i * 3 + c]);
      error += std::pow(said - static_cast<double>(found.values<float>()[i * 3 + c]), 2);
      spread += std::pow(said - mean, 2);
    }
  }
  return error / spread;
}

// The product in front of a block that goes computes what the block added up to: here the block is an affine map of
// what is always positive, so nothing is lost. What comes behind could not make up for it: its shortcut hands on as it
// is.
TEST(Prune, WhatIsInFrontTakesOverABlock) {
  test::Builder b;
  b.g.opset = 13;
  const auto conv = [&](ValueId x, Index size, unsigned seed, float scale, float bias) {
    return four_channels(b, x, size, seed, scale, bias);
  };
  auto x = b.node("Relu", {conv(b.input("input", {dynamic, 4, 6, 6}), 1, 1, 1.0f, 5.0f)});
  x = b.node("Relu", {b.node("Add", {conv(b.node("Relu", {conv(x, 1, 2, 0.2f, 9.0f)}), 1, 3, 0.1f, 1.0f), x})});
  const auto branch = conv(b.node("Relu", {conv(x, 3, 4, 1.0f, 0.0f)}), 3, 5, 1.0f, 0.0f);
  b.output(three_classes(b, b.node("Relu", {b.node("Add", {branch, x})})), "logits");
  const Model whole(b.g);
  PruneOptions o;
  o.share = 0.05;
  o.ridge = 1e-6;
  const PruneResult r = prune(whole, test::random_floats(200 * whole.sample_size(), 7), o);
  ASSERT_EQ(r.blocks.size(), 1U);
  ASSERT_GT(r.flops, 0.8 * r.full_flops);  // the small one
  EXPECT_LT(answers_lost(whole, r), 1e-3);
}

// Of two blocks of one price the one goes that changes the answers more as long as nothing is fitted, and not at all
// once what stands behind it is: a linear map in front of a convolution.
TEST(Prune, WhatIsBehindMakesUpForABlock) {
  test::Builder b;
  b.g.opset = 13;
  const auto conv = [&](ValueId x, unsigned seed, float scale) { return four_channels(b, x, 1, seed, scale, 0.0f); };
  auto x = b.input("input", {dynamic, 4, 6, 6});
  x = b.node("Add", {conv(conv(x, 1, 2.0f), 2, 2.0f), x});
  x = b.node("Relu", {conv(x, 3, 1.0f)});
  x = b.node("Relu", {b.node("Add", {conv(b.node("Relu", {conv(x, 4, 0.8f)}), 5, 0.8f), x})});
  b.output(three_classes(b, x), "logits");
  const Model whole(b.g);
  PruneOptions o;
  o.share = 0.3;
  o.ridge = 1e-6;
  const PruneResult r = prune(whole, test::random_floats(200 * whole.sample_size(), 7, -1, 1), o);
  ASSERT_EQ(r.blocks.size(), 1U);
  EXPECT_EQ(r.layers[0].kept, 0);
  EXPECT_EQ(r.layers[1].kept, 0);
  EXPECT_LT(answers_lost(whole, r), 1e-3);
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

// Memory of a fit grows with the square of what a product reads: what too wide ones read stays, and so do they.
TEST(Prune, LeavesWhatIsTooWideToFit) {
  test::Builder b;
  b.g.opset = 13;
  const std::vector<Index> pads{1, 1, 1, 1};
  auto x = b.input("input", {dynamic, 3, 4, 4});
  x = b.node("Relu", {b.node("Conv", {x, b.constant({16, 3, 3, 3}, 1), b.constant({16}, 2)}, {{"pads", pads}})});
  x = b.node("Relu", {b.node("Conv", {x, b.constant({16, 16, 3, 3}, 3), b.constant({16}, 4)}, {{"pads", pads}})});
  x = b.node("Flatten", {x}, {{"axis", Index{1}}});
  const ValueId weights = b.constant({256, 5}, 5);
  b.output(b.node("Gemm", {x, weights, b.constant({5}, 6)}), "logits");
  const Model model(b.g);
  const auto data = test::random_floats(64 * 48, 3);
  PruneOptions o;
  o.share = 0.3;
  o.granularity = 1;
  const auto outputs = [](const PruneResult& r) {
    std::vector<Index> kept;
    for (const Node& n : r.graph.nodes) {
      if (n.op == "Conv") kept.push_back(r.graph[n.inputs[1]].constant.shape()[0]);
    }
    return kept;
  };
  EXPECT_LT(outputs(prune(model, data, o))[1], 16);
  o.widest = 200;  // the dense layer reads 256 numbers
  const PruneResult r = prune(model, data, o);
  EXPECT_LT(outputs(r)[0], 16);
  EXPECT_EQ(outputs(r)[1], 16);
  for (const Node& n : r.graph.nodes) {
    if (n.op != "Gemm") continue;
    std::vector<float> left, before;  // perhaps transposed
    for (const float w : r.graph[n.inputs[1]].constant.values<float>()) left.push_back(w);
    for (const float w : b.g[weights].constant.values<float>()) before.push_back(w);
    std::sort(left.begin(), left.end());
    std::sort(before.begin(), before.end());
    EXPECT_EQ(left, before);
  }
  o.widest = 1;
  EXPECT_THROW(prune(model, data, o), Error);
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
  auto huge = x;
  huge[100] = 1e30f;  // its square is no float
  EXPECT_THROW(prune(model, huge, o), Error);
  o.objective = Objective::modelled;
  EXPECT_THROW(prune(model, x, o), Error);
  o.objective = Objective::flops;
  o.distil.epochs = 1;  // the network has exits
  EXPECT_THROW(prune(model, x, o), Error);
}

}  // namespace
}  // namespace offramp
