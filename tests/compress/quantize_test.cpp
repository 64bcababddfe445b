// Networks in bytes: fast against node by node, and what post-training quantization makes of hard cases.
#include "offramp/compress/quantize.hpp"

#include <gtest/gtest.h>

#include "graphs.hpp"
#include "offramp/calibrate/prices.hpp"
#include "offramp/compress/operator_form.hpp"
#include "offramp/graph/contrib.hpp"
#include "offramp/onnx/onnx.hpp"

namespace offramp {
namespace {

std::vector<float> samples(Index n, Index size, unsigned seed) {
  return test::random_floats(n * size, seed, -1, 2);
}

// The outputs of both ways through a quantized network; a step of a byte somewhere is all they may differ by.
double difference(const Model& m, const Shape& shape) {
  const std::vector<Tensor> in{test::random_tensor(shape, 5)};
  const auto fast = m.run(in), plain = m.run_graph(in);
  double largest = 0, most = 1e-9;
  for (std::size_t i = 0; i < fast.size(); ++i) {
    const auto a = fast[i].values<float>(), b = plain[i].values<float>();
    for (std::size_t k = 0; k < a.size(); ++k) {
      largest = std::max(largest, static_cast<double>(std::fabs(a[k] - b[k])));
      most = std::max(most, static_cast<double>(std::fabs(b[k])));
    }
  }
  return largest / most;
}

Index count_of(const Model& m, const std::string& op) {
  return std::count_if(m.layers().begin(), m.layers().end(), [&](const LayerInfo& l) { return l.op == op; });
}

TEST(Quantize, ResidualNetworkComputesInBytesEndToEnd) {
  const Model model(test::residual_network());
  const auto x = samples(64, 192, 3);
  QuantizeOptions o;
  o.max_disagreement = 1;
  const QuantizeResult r = quantize(model, x, o);
  EXPECT_GE(r.agreement, 0.8);
  for (const Isa isa : available_isas()) {
    ModelOptions options;
    options.isa = isa;
    const Model q(r.graph, options);
    ASSERT_TRUE(q.has_plan()) << q.why_not();
    EXPECT_EQ(q.exit_count(), 3);
    EXPECT_EQ(count_of(q, "IntegerConv"), 8);  // every convolution of the backbone
    EXPECT_EQ(count_of(q, "Add"), 0);
    EXPECT_LT(difference(q, {3, 3, 8, 8}), 0.03) << name_of(isa);
    Cost all;
    for (const LayerInfo& l : q.layers()) all += l.cost;
    EXPECT_GT(all.integer, all.flops * 9 / 10);
  }
  // Written and read again: the same, bit for bit.
  const std::string file = onnx::write(r.graph);
  const Model again = load_onnx(std::as_bytes(std::span<const char>(file)));
  const std::vector<Tensor> in{test::random_tensor({2, 3, 8, 8}, 8)};
  const auto a = Model(r.graph).run(in), b = again.run(in);
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_EQ(std::memcmp(a[i].data(), b[i].data(), a[i].bytes()), 0);
}

// Depthwise, clipped activations, strides, poolings, concatenation, an odd number of channels.
Graph mobile() {
  test::Builder b;
  b.g.opset = 13;
  const std::vector<Index> pads{1, 1, 1, 1}, three{3, 3};
  const auto number = [&](float v) { return b.constant(Tensor::of<float>({}, std::vector<float>{v})); };
  const auto relu6 = [&](ValueId v) { return b.node("Clip", {v, number(0), number(6)}); };
  auto x = b.input("input", {dynamic, 3, 9, 9});
  x = relu6(b.node("Conv", {x, b.constant({18, 3, 3, 3}, 1), b.constant({18}, 2)},
                   {{"kernel_shape", three}, {"pads", pads}}));
  auto y = relu6(b.node("Conv", {x, b.constant({18, 1, 3, 3}, 3), b.constant({18}, 4)},
                        {{"kernel_shape", three}, {"pads", pads}, {"group", Index{18}}}));
  y = b.node("Conv", {y, b.constant({18, 18, 1, 1}, 5)}, {{"kernel_shape", std::vector<Index>{1, 1}}});
  x = b.node("Add", {x, y});
  x = b.node("MaxPool", {x}, {{"kernel_shape", std::vector<Index>{2, 2}}, {"strides", std::vector<Index>{2, 2}}});
  const auto left = b.node("Relu", {b.node("Conv", {x, b.constant({5, 18, 1, 1}, 6)})});
  const auto right = b.node("Relu", {b.node("Conv", {x, b.constant({7, 18, 3, 3}, 7)}, {{"pads", pads}})});
  x = b.node("Concat", {left, right}, {{"axis", Index{1}}});
  x = b.node("Flatten", {b.node("GlobalAveragePool", {x})}, {{"axis", Index{1}}});
  b.output(b.node("Gemm", {x, b.constant({12, 4}, 8), b.constant({4}, 9)}), "logits");
  return b.g;
}

TEST(Quantize, DepthwiseNetworkWithClipsPoolsAndConcatenation) {
  const Model model(mobile());
  for (const RangeChoice range : {RangeChoice::squared_error, RangeChoice::percentile, RangeChoice::extremes}) {
    QuantizeOptions o;
    o.range = range;
    o.max_disagreement = 1;
    const QuantizeResult r = quantize(model, samples(48, 243, 4), o);
    EXPECT_GE(r.agreement, 0.8);
    for (const Isa isa : available_isas()) {
      ModelOptions options;
      options.isa = isa;
      const Model q(r.graph, options);
      EXPECT_EQ(count_of(q, "IntegerConv"), 5);
      EXPECT_EQ(count_of(q, "IntegerDense"), 1);
      EXPECT_LT(difference(q, {2, 3, 9, 9}), 0.05) << name_of(isa);
    }
  }
}

// Convolutional heads on two places of a backbone of three, the first with a Relu, the second with a Clip.
Graph with_heads(const std::vector<int>& heads) {
  test::Builder b;
  b.g.opset = 13;
  const std::vector<Index> pads{1, 1, 1, 1}, two{2, 2};
  auto x = b.input("input", {dynamic, 3, 16, 16});
  Index channels = 3;
  for (int place = 0; place < 3; ++place) {
    x = b.node("Relu", {b.node("Conv", {x, b.constant({16, channels, 3, 3}, 1)}, {{"pads", pads}})});
    channels = 16;
    if (std::count(heads.begin(), heads.end(), place) == 0) continue;
    const auto seed = static_cast<unsigned>(10 * place);
    auto h = b.node("Conv", {x, b.constant({24, 16, 3, 3}, seed + 2), b.constant({24}, seed + 3)},
                    {{"pads", pads}, {"strides", two}});
    h = place == 0 ? b.node("Relu", {h})
                   : b.node("Clip", {h, b.constant(Tensor::of<float>({}, std::vector<float>{-1.0f})),
                                     b.constant(Tensor::of<float>({}, std::vector<float>{3.0f}))});
    h = b.node("Flatten", {b.node("GlobalAveragePool", {h})}, {{"axis", Index{1}}});
    b.output(b.node("Gemm", {h, b.constant({24, 4}, seed + 4), b.constant({4}, seed + 5)}),
             "exit_" + std::to_string(place));
  }
  x = b.node("Flatten", {b.node("GlobalAveragePool", {x})}, {{"axis", Index{1}}});
  b.output(b.node("Gemm", {x, b.constant({16, 4}, 8), b.constant({4}, 9)}), "logits");
  b.g.metadata["offramp.policy"] = "max-probability:0.5,0.5";
  b.g.metadata["offramp.certificate"] = "of heads in float";
  return b.g;
}

TEST(QuantizeHeads, PutsTheirConvolutionsInBytesAndLeavesTheBackbone) {
  const auto x = samples(32, 768, 3);
  const Graph graph = with_heads({0, 1}), bytes = quantize_heads(Model(graph), x);
  const Graph alone = quantize_heads(Model(with_heads({1})), x);
  EXPECT_EQ(bytes.metadata.count("offramp.policy") + bytes.metadata.count("offramp.certificate"), 0U);
  const std::vector<Tensor> in{test::random_tensor({3, 3, 16, 16}, 5)};
  for (const Isa isa : available_isas()) {
    ModelOptions options;
    options.isa = isa;
    const Model f(graph, options), q(bytes, options);
    EXPECT_EQ(count_of(q, "IntegerConv"), 2);
    EXPECT_EQ(count_of(q, "Relu") + count_of(q, "Clip"), 0);  // done by the products
    EXPECT_EQ(q.full_cost().integer, 0);
    EXPECT_LT(difference(q, {3, 3, 16, 16}), 1e-4) << name_of(isa);
    const auto before = f.run(in), after = q.run(in), of_one = Model(alone, options).run(in);
    EXPECT_EQ(std::memcmp(before[2].data(), after[2].data(), before[2].bytes()), 0) << name_of(isa);
    EXPECT_EQ(std::memcmp(after[1].data(), of_one[0].data(), after[1].bytes()), 0) << name_of(isa);
    for (std::size_t k = 0; k < 2; ++k) {
      const auto a = before[k].values<float>(), b = after[k].values<float>();
      float largest = 0;
      for (const float v : a) largest = std::max(largest, std::fabs(v));
      for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 0.02f * largest) << name_of(isa);
      EXPECT_NE(std::memcmp(before[k].data(), after[k].data(), before[k].bytes()), 0);
    }
    const ExitPrices in_float = modelled_prices(f), in_bytes = modelled_prices(q);
    EXPECT_DOUBLE_EQ(in_float.full_price(), in_bytes.full_price());
    for (std::size_t k = 0; k < 2; ++k) {
      const bool cheaper = in_bytes.heads[k] < in_float.heads[k];
      EXPECT_EQ(cheaper, byte_multiply_adds(isa) > 1) << name_of(isa);
    }
  }
}

// A product whose input is rounded by ramps, in ONNX's operators.
struct RampedCase {
  std::vector<Index> x{3, 16, 9, 9}, weights{24, 16, 3, 3}, strides{1, 1}, pads{1, 1, 1, 1}, dilations{1, 1};
  float factor = 60, low = 0, high = 255, flat = 0.5f - 1.0f / 512, slope = 256;
  const char *op = "Conv", *activation = "Relu";
  Index group = 1;
};
Graph ramped(const RampedCase& c) {
  test::Builder b;
  b.g.opset = 13;
  const auto number = [&](float v) { return b.constant(Tensor::of<float>({}, std::vector<float>{v})); };
  std::vector<Index> sizes = c.x;
  sizes[0] = dynamic;
  const Shape weights = Shape(c.weights);
  const auto x = b.input("input", sizes);
  const auto bounded = b.node("Clip", {b.node("Mul", {x, number(c.factor)}), number(c.low), number(c.high)});
  const auto whole = b.node("Round", {bounded}), rest = b.node("Sub", {bounded, whole});
  const auto bent = b.node("Sub", {rest, b.node("Clip", {rest, number(-c.flat), number(c.flat)})});
  const auto steps = b.node("Add", {whole, b.node("Mul", {bent, number(c.slope)})});
  const bool conv = std::string_view(c.op) == "Conv";
  const Index outs = conv ? c.weights[0] : c.weights[1];
  std::vector<std::int8_t> bytes(static_cast<std::size_t>(weights.count()));
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::int8_t>(i * 37 % 255 - 127);
  std::vector<float> scale;
  for (Index i = 0; i < outs; ++i) scale.push_back(1e-4f * static_cast<float>(i + 1));
  const auto w = b.node("DequantizeLinear",
                        {b.constant(Tensor::of<std::int8_t>(weights, bytes)),
                         b.constant(Tensor::of<float>({outs}, scale)), b.constant(Tensor(DType::i8, {outs}))},
                        {{"axis", Index{conv ? 0 : 1}}});
  std::vector<Attribute> attributes;
  if (conv) attributes = {{"strides", c.strides}, {"pads", c.pads}, {"dilations", c.dilations}, {"group", c.group}};
  const auto y = b.node(c.op, {steps, w}, attributes);
  b.output(*c.activation ? b.node(c.activation, {y}) : y, "output");
  return b.g;
}
const RampedCase ramped_cases[] = {
    {},
    {.weights = {17, 16, 3, 3}, .strides = {2, 2}, .activation = ""},
    {.x = {2, 5, 8, 11}, .weights = {40, 5, 5, 3}, .pads = {4, 0, 3, 2}, .dilations = {2, 1}},
    {.x = {2, 70, 6, 6}, .weights = {33, 70, 3, 3}, .strides = {2, 1}},  // channels too many for rows
    {.weights = {16, 16, 1, 1}, .pads = {0, 0, 0, 0}},
    {.x = {2, 12, 40}, .weights = {20, 12, 4}, .strides = {3}, .pads = {2, 1}, .dilations = {1}},
    {.x = {1, 3, 5, 6, 7},
     .weights = {18, 3, 3, 2, 3},
     .strides = {2, 1, 2},
     .pads = {1, 0, 1, 1, 1, 1},
     .dilations = {1, 1, 1}},
    {.x = {5, 130}, .weights = {130, 35}, .op = "MatMul"},
    {.x = {1, 64}, .weights = {64, 16}, .op = "Gemm", .activation = ""},
};

TEST(RampedProducts, AreBytesAndEqualTheirOperators) {
  for (RampedCase c : ramped_cases) {
    for (const auto& [low, flat] : {std::pair{0.0f, 0.5f - 1.0f / 512}, {-37.0f, 0.25f}, {-255.0f, 0.0f}}) {
      c.low = low, c.high = low + 255, c.flat = flat, c.slope = 0.5f / (0.5f - flat);
      const Graph g = ramped(c);
      for (const Isa isa : available_isas()) {
        ModelOptions options;
        options.isa = isa;
        const Model m(g, options);
        EXPECT_EQ(count_of(m, "IntegerConv") + count_of(m, "IntegerDense"), 1) << c.op << Shape(c.weights).text();
        for (const char* op : {"Mul", "Round", "Sub", "Clip", "Relu"}) EXPECT_EQ(count_of(m, op), 0) << op;
        std::vector<Tensor> in{test::random_tensor(Shape(c.x), 5)};
        auto* x = static_cast<float*>(in[0].mutable_data());
        for (Index i = 0; i < in[0].count(); ++i) x[i] *= 5;  // past both ends of the bytes
        x[0] = std::numeric_limits<float>::infinity();
        const auto compare = [&]() -> Index {
          const Tensor fast = m.run(in)[0], plain = m.run_graph(in)[0];
          const auto a = fast.values<float>(), b = plain.values<float>();
          float largest = 0;
          for (const float v : b) largest = std::max(largest, std::isnan(v) ? 0 : std::fabs(v));
          Index lost = 0;
          for (std::size_t i = 0; i < b.size(); ++i) {
            lost += std::isnan(a[i]);
            if (std::isnan(b[i])) continue;  // in float a NaN may reach all of a tile
            EXPECT_NEAR(a[i], b[i], 1e-5f * largest) << name_of(isa) << c.op << Shape(c.weights).text() << i;
          }
          return lost;
        };
        EXPECT_EQ(compare(), 0);
        x[in[0].count() / in[0].shape()[0] - 1] = std::numeric_limits<float>::quiet_NaN();
        EXPECT_GT(compare(), 0);
      }
    }
  }
}

// What rounding by ramps is for: a small change before it stays one behind it, wherever the number lies.
TEST(RampedProducts, SmallChangesStaySmall) {
  RampedCase c;
  const Model m(ramped(c));
  std::vector<Tensor> in{test::random_tensor(Shape(c.x), 5)};
  const std::vector<float> before(in[0].values<float>().begin(), in[0].values<float>().end());
  const Tensor first = m.run(in)[0];
  const float change = 1e-3f;  // of a step
  auto* x = static_cast<float*>(in[0].mutable_data());
  for (std::size_t i = 0; i < before.size(); ++i) x[i] = before[i] + (i % 2 ? change : -change) / c.factor;
  const Tensor second = m.run(in)[0];
  double most = 0, moved = 0;
  for (Index i = 0; i < first.count(); ++i) {
    moved += std::fabs(first.view().f32()[i] - second.view().f32()[i]) > 0;
    most = std::max(
        most, std::fabs(static_cast<double>(first.view().f32()[i]) - static_cast<double>(second.view().f32()[i])));
  }
  const double step = 127 * 1e-4 * 24;  // of the largest weight
  EXPECT_GT(moved, 0);
  EXPECT_LT(most, 0.5 * step) << "a whole step somewhere";
}

TEST(RampedProducts, WhatIsNearlyOneStaysAsItIs) {
  std::vector<RampedCase> all(6);
  all[0].slope = 255, all[1].high = 254, all[2].low = 1, all[2].high = 256, all[3].factor = -60, all[4].flat = 0.5f;
  all[5].group = 2, all[5].weights = {24, 8, 3, 3};
  for (const RampedCase& c : all) {
    const Model m(ramped(c));
    EXPECT_EQ(count_of(m, "IntegerConv"), 0);
    EXPECT_LT(difference(m, Shape(c.x)), 1e-5);
  }
}

// Of three products that read one another the one that saves most: the largest is done by Winograd's algorithm in
// float, which takes no longer than in bytes; the last, of which the stride is 2, is not.
TEST(QuantizeHeads, RoundsOncePerPath) {
  test::Builder b;
  b.g.opset = 13;
  const std::vector<Index> pads{1, 1, 1, 1};
  auto x = b.node("Relu", {b.node("Conv", {b.input("input", {dynamic, 3, 16, 16}), b.constant({16, 3, 3, 3}, 1)},
                                  {{"pads", pads}})});
  const auto pooled = [&](ValueId v, Index channels, unsigned seed) {
    v = b.node("Flatten", {b.node("GlobalAveragePool", {v})}, {{"axis", Index{1}}});
    return b.node("Gemm", {v, b.constant({channels, 4}, seed), b.constant({4}, seed + 1)});
  };
  auto h = b.node("Relu", {b.node("Conv", {x, b.constant({16, 16, 3, 3}, 2)}, {{"pads", pads}})});
  h = b.node("Relu", {b.node("Conv", {h, b.constant({32, 16, 3, 3}, 3)}, {{"pads", pads}})});
  h = b.node("Relu", {b.node("Conv", {h, b.constant({16, 32, 3, 3}, 4)},
                             {{"pads", pads}, {"strides", std::vector<Index>{2, 2}}})});
  b.output(pooled(h, 16, 5), "exit_0");
  for (unsigned i = 0; i < 6; ++i) x = b.node("Conv", {x, b.constant({16, 16, 3, 3}, 10 + i)}, {{"pads", pads}});
  b.output(pooled(x, 16, 7), "logits");
  const Model model(b.g);
  const Graph bytes = quantize_heads(model, samples(32, 768, 3));
  const Model q(bytes);
  ASSERT_EQ(count_of(q, "IntegerConv"), 1);
  for (const LayerInfo& l : q.layers()) {
    if (l.op == "IntegerConv") {
      EXPECT_EQ(l.output, (Shape{1, 16, 8, 8}));
    }
  }
}

TEST(QuantizeHeads, LeavesNetworksWithNothingToGainAsTheyAre) {
  const auto x = samples(16, 192, 3);
  const Model model(test::residual_network());  // its heads are a pooling and a small product
  EXPECT_EQ(onnx::write(quantize_heads(model, x)), onnx::write(model.graph()));
  EXPECT_THROW(quantize_heads(model, std::span<const float>(x).first(100)), Error);
}

TEST(Quantize, KeepsNamedLayersAndThoseThatSufferInFloat) {
  const Model model(test::residual_network());
  const auto x = samples(64, 192, 3);
  QuantizeOptions o;
  o.keep = {"Conv_0"};
  o.max_disagreement = 1;
  const QuantizeResult r = quantize(model, x, o);
  EXPECT_TRUE(
      std::any_of(r.layers.begin(), r.layers.end(), [](const auto& l) { return l.name == "Conv_0" && l.in_float; }));
  EXPECT_EQ(count_of(Model(r.graph), "IntegerConv"), 7);
  o = {};
  o.max_disagreement = 0;  // asks for what bytes cannot give: the worst layers go to float, and agreement only rises
  const QuantizeResult strict = quantize(model, x, o);
  EXPECT_GE(strict.agreement, r.agreement - 0.05);
}

TEST(Quantize, HardDataAreAnErrorOrHarmless) {
  const Model model(test::residual_network());
  auto x = samples(16, 192, 3);
  EXPECT_THROW(quantize(model, std::span<const float>(x).first(100)), Error);
  EXPECT_THROW(quantize(model, {}), Error);
  x[7] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(quantize(model, x), Error);
  x[7] = 1e30f;  // an outlier: every range is as wide as it, and most of the rest is 0; no crash, finite answers
  QuantizeOptions o;
  o.max_disagreement = 1;
  const QuantizeResult wide = quantize(model, x, o);
  const std::vector<Tensor> in{test::random_tensor({1, 3, 8, 8}, 8)};
  for (const Tensor& t : Model(wide.graph).run(in)) {
    for (const float v : t.values<float>()) EXPECT_TRUE(std::isfinite(v));
  }
  // Activations that never change, and filters that are all zero.
  const std::vector<float> same(192 * 8, 0.0f);
  const QuantizeResult constant = quantize(model, same, o);
  EXPECT_EQ(constant.agreement, 1);
  test::Builder b;
  b.g.opset = 13;
  auto v = b.input("input", {dynamic, 2, 4, 4});
  v = b.node("Relu", {b.node("Conv", {v, b.constant(Tensor(DType::f32, {6, 2, 1, 1}))})});
  v = b.node("Flatten", {b.node("GlobalAveragePool", {v})}, {{"axis", Index{1}}});
  b.output(b.node("Gemm", {v, b.constant({6, 3}, 1), b.constant({3}, 2)}), "logits");
  const Model dead(b.g);
  const QuantizeResult zero = quantize(dead, samples(8, 32, 1), o);
  EXPECT_EQ(zero.agreement, 1);
  EXPECT_LT(difference(Model(zero.graph), {2, 2, 4, 4}), 0.03);
}

// The same numbers in both forms, and no operator on floats left that has one on bytes.
TEST(Quantize, WritesTheQOperatorForm) {
  test::Builder b;
  b.g.opset = 13;
  auto v = b.input("input", {dynamic, 4, 8, 8});
  v = b.node("Relu", {b.node("Conv", {v, b.constant({8, 4, 3, 3}, 1), b.constant({8}, 2)})});
  auto d = b.node("Clip", {b.node("Conv", {v, b.constant({8, 1, 3, 3}, 3)},
                                  {{"group", Index{8}}, {"pads", std::vector<Index>{1, 1, 1, 1}}}),
                           b.constant(Tensor::of<float>({}, std::vector<float>{0.0f})),
                           b.constant(Tensor::of<float>({}, std::vector<float>{6.0f}))});
  v = b.node("Concat", {v, b.node("Add", {v, d})}, {{"axis", Index{1}}});
  v = b.node("MaxPool", {v}, {{"kernel_shape", std::vector<Index>{2, 2}}, {"strides", std::vector<Index>{2, 2}}});
  v = b.node("Flatten", {b.node("GlobalAveragePool", {v})}, {{"axis", Index{1}}});
  v = b.node("Relu", {b.node("MatMul", {v, b.constant({16, 12}, 5)})});
  b.output(b.node("Gemm", {v, b.constant({5, 12}, 6), b.constant({5}, 7)}, {{"transB", Index{1}}}), "logits");
  for (const Model& model : {Model(b.g), Model(test::residual_network())}) {
    const Index size = model.sample_size(), channels = model.inputs()[0].sizes[1];
    QuantizeOptions o;
    o.max_disagreement = 1;
    const QuantizeResult r = quantize(model, samples(32, size, 1), o);
    const Graph form = operator_form(r.graph);
    std::map<std::string, int> count;
    for (const Node& n : form.nodes) ++count[n.op];
    EXPECT_GE(count["QLinearConv"], 2);
    EXPECT_EQ(count["QGemm"], 1);
    EXPECT_GE(count["QLinearAdd"], 1);
    const int heads = static_cast<int>(model.exit_count()) - 1;  // these stay in float
    EXPECT_EQ(count["Conv"] + count["Gemm"] + count["MatMul"] + count["Add"] + count["GlobalAveragePool"], 2 * heads);
    EXPECT_LE(count["DequantizeLinear"], 1 + heads);
    const std::string file = onnx::write(form);
    const Model again = load_onnx(std::as_bytes(std::span(file)));
    const std::vector<Tensor> in{test::random_tensor({3, channels, 8, 8}, 8)};
    const auto qdq = Model(r.graph).run(in), qop = again.run(in);
    for (std::size_t e = 0; e < qdq.size(); ++e)
      EXPECT_EQ(std::memcmp(qdq[e].data(), qop[e].data(), qdq[e].bytes()), 0) << e;
  }
}

// What the operators on bytes cannot say stays as it is.
TEST(Quantize, OperatorFormLeavesWhatItCannotSay) {
  test::Builder b;
  b.g.opset = 13;
  const auto scales = b.constant(Tensor::of<float>({2}, std::vector<float>{0.1f, 0.2f}));
  const auto zeros = b.constant(Tensor(DType::u8, {2}));
  const auto scale = b.constant(Tensor::of<float>({}, std::vector<float>{0.1f})),
             zero = b.constant(Tensor(DType::u8, {}));
  const auto x = b.input("input", {dynamic, 2, 3, 3});
  const auto y =
      b.node("DequantizeLinear", {b.node("QuantizeLinear", {x, scales, zeros}), scales, zeros});  // a scale a channel
  const auto z = b.node("DequantizeLinear", {b.node("QuantizeLinear", {x, scale, zero}), scale, zero});
  b.output(b.node("DequantizeLinear", {b.node("QuantizeLinear", {b.node("Add", {y, z}), scale, zero}), scale, zero}),
           "sum");
  const Graph form = operator_form(b.g);
  EXPECT_EQ(std::count_if(form.nodes.begin(), form.nodes.end(), [](const Node& n) { return n.op == "Add"; }), 1);
  EXPECT_EQ(std::count_if(form.nodes.begin(), form.nodes.end(), [](const Node& n) { return !n.domain.empty(); }), 0);
}

// QOperator form, as other quantizers write it: QLinearConv of the standard, QLinearAdd and others of com.microsoft.
TEST(Quantize, RunsTheQOperatorForm) {
  test::Builder b;
  b.g.opset = 13;
  const auto scale = [&](float v) { return b.constant(Tensor::of<float>({}, std::vector<float>{v})); };
  const auto zero = [&](std::uint8_t v) {
    return b.constant(Tensor::of<std::uint8_t>({}, std::vector<std::uint8_t>{v}));
  };
  const auto weights = [&](const Shape& s, unsigned seed) {
    const auto x = test::random_floats(s.count(), seed, -100, 100);
    std::vector<std::int8_t> bytes;
    for (const float v : x) bytes.push_back(static_cast<std::int8_t>(v));
    return b.constant(Tensor::of<std::int8_t>(s, bytes));
  };
  const auto signed_zero = b.constant(Tensor(DType::i8, {}));
  const auto bias = b.constant(Tensor::of<std::int32_t>({6}, std::vector<std::int32_t>{10, -20, 300, 0, 5, -700}));
  const std::vector<Index> pads{1, 1, 1, 1};
  auto x = b.node("QuantizeLinear", {b.input("input", {dynamic, 4, 5, 5}), scale(0.01f), zero(128)});
  auto y = b.node(
      "QLinearConv",
      {x, scale(0.01f), zero(128), weights({6, 4, 3, 3}, 1), scale(0.02f), signed_zero, scale(0.05f), zero(3), bias},
      {{"pads", pads}});
  auto z = b.node("QLinearConv", {y, scale(0.05f), zero(3), weights({6, 6, 1, 1}, 2), scale(0.01f), signed_zero,
                                  scale(0.06f), zero(100)});
  const auto contrib = [&](const std::string& op, std::vector<ValueId> in, std::vector<Attribute> attributes = {}) {
    const ValueId v = b.node(op, std::move(in), std::move(attributes));
    b.g.nodes.back().domain = "com.microsoft";
    return v;
  };
  y = contrib("QLinearAdd", {y, scale(0.05f), zero(3), z, scale(0.06f), zero(100), scale(0.1f), zero(90)});
  y = contrib("QLinearGlobalAveragePool", {y, scale(0.1f), zero(90), scale(0.1f), zero(90)});
  y = b.node("Flatten", {y}, {{"axis", Index{1}}});
  y = contrib("QGemm",
              {y, scale(0.1f), zero(90), weights({3, 6}, 3), scale(0.03f), signed_zero,
               b.constant(Tensor::of<std::int32_t>({3}, std::vector<std::int32_t>{1, 2, 3}))},
              {{"transB", Index{1}}});
  b.output(y, "logits");
  Graph g = b.g;
  expand_contrib(g);
  for (const Isa isa : available_isas()) {
    ModelOptions options;
    options.isa = isa;
    const Model m(g, options);
    ASSERT_TRUE(m.has_plan()) << m.why_not();
    EXPECT_EQ(count_of(m, "IntegerConv"), 2);
    EXPECT_EQ(count_of(m, "IntegerDense"), 1);
    EXPECT_EQ(count_of(m, "DequantizeLinear"), 0);
    EXPECT_LT(difference(m, {3, 4, 5, 5}), 0.05) << name_of(isa);
  }
}

TEST(Quantize, RefusesWhatItCannotQuantize) {
  test::Builder b;
  b.output(b.node("Relu", {b.input("input", {dynamic, 4})}), "y");
  EXPECT_THROW(quantize(Model(b.g), std::vector<float>(8, 1.0f)), Error);
}

}  // namespace
}  // namespace offramp
