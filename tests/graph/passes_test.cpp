#include "offramp/graph/passes.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "batches.hpp"
#include "graphs.hpp"
#include "offramp/graph/model.hpp"

namespace offramp {
namespace {

std::vector<std::string> operators_of(const Model& m) {
  std::vector<std::string> ops;
  for (const LayerInfo& l : m.layers()) {
    if (l.algorithm != "view") ops.push_back(l.op);
  }
  return ops;
}

void expect_same(const Model& m, const Shape& shape, double tolerance = 1e-5) {
  ASSERT_TRUE(m.has_plan()) << m.why_not();
  const std::vector<Tensor> in{test::random_tensor(shape, 5)};
  const auto fast = m.run(in), plain = m.run_graph(in);
  const auto v = plain[0].values<float>();
  EXPECT_LT(test::relative_error(fast[0].values<float>(), std::vector<double>(v.begin(), v.end())), tolerance);
}

TEST(Passes, ResidualBlockBecomesTwoConvolutions) {
  const Model m(test::residual_network());
  int convolutions = 0;
  for (const std::string& op : operators_of(m)) {
    EXPECT_TRUE(op != "BatchNormalization" && op != "Add" && op != "Relu") << op;
    convolutions += op.starts_with("Conv");
  }
  EXPECT_EQ(convolutions, 8);
}

// The normalization of an image in front of a convolution, in every order of operands, with constants of every shape.
TEST(Passes, ScalesAndShiftsOfAnInputMoveIntoTheConvolution) {
  const std::vector<Index> pads{2, 1, 0, 1};
  for (const Index channels : {1, 3, 4}) {
    test::Builder b;
    b.g.opset = 13;
    const auto per_channel = [&](const Shape& s, unsigned seed) {
      return b.constant(Tensor::of<float>(s, test::random_floats(channels, seed, 0.5f, 2.0f)));
    };
    const auto number = [&](float v) { return b.constant(Tensor::of<float>({}, std::vector<float>{v})); };
    auto x = b.input("x", {dynamic, channels, 7, 6});
    x = b.node("Sub", {x, per_channel({1, channels, 1, 1}, 1)});
    x = b.node("Div", {x, per_channel({channels, 1, 1}, 2)});
    x = b.node("Sub", {number(0.75f), x});
    x = b.node("Mul", {per_channel({1, channels, 1, 1}, 3), x});
    x = b.node("Add", {number(-0.3f), x});
    x = b.node("Conv", {x, b.constant({5, channels, 3, 2}, 4), b.constant({5}, 5)},
               {{"pads", pads}, {"strides", std::vector<Index>{2, 1}}});
    b.output(b.node("Relu", {x}), "y");
    for (const Isa isa : available_isas()) {
      for (const bool bf16 : {false, true}) {
        ModelOptions o;
        o.isa = isa, o.bf16 = bf16;
        const Model m(b.g, o);
        for (const std::string& op : operators_of(m)) EXPECT_TRUE(op == "Conv+Relu" || op == "Transpose") << op;
        expect_same(m, {3, channels, 7, 6});
        // Nominal FLOPs are those of the file: five operators on the input, then convolution, bias and activation.
        const Index outputs = 5 * 4 * 7;
        EXPECT_EQ(m.full_cost().flops, 5 * channels * 42 + outputs * (2 * channels * 6 + 2));
      }
    }
  }
}

TEST(Passes, ScalesAndShiftsThatCannotMoveStay) {
  const std::vector<Index> pads{1, 1, 1, 1};
  const auto network = [&](const std::string& op, Index channels, const Shape& of_constant, bool padded, bool read,
                           float most = 2) {
    test::Builder b;
    b.g.opset = 13;
    auto x = b.input("x", {dynamic, channels, 6, 6});
    x = b.node(op,
               {x, b.constant(Tensor::of<float>(of_constant, test::random_floats(of_constant.count(), 1, 1, most)))});
    auto y = b.node("Conv", {x, b.constant({5, channels, 3, 3}, 4)}, {{"pads", padded ? pads : std::vector<Index>(4)}});
    if (read) y = b.node("Add", {b.node("GlobalAveragePool", {x}), b.node("GlobalAveragePool", {y})});
    b.output(y, "y");
    const Model m(b.g);
    expect_same(m, {2, channels, 6, 6});
    const auto ops = operators_of(m);
    return std::count(ops.begin(), ops.end(), op);
  };
  EXPECT_EQ(network("Sub", 8, {1, 8, 1, 1}, true, false), 1);   // its padding is zeros, wherever it is read
  EXPECT_EQ(network("Sub", 8, {1, 8, 1, 1}, false, false), 0);  // nothing is padded
  EXPECT_EQ(network("Mul", 8, {1, 8, 1, 1}, true, false), 0);   // zeros stay zeros
  EXPECT_EQ(network("Sub", 3, {1, 3, 1, 1}, true, false), 0);
  EXPECT_EQ(network("Sub", 3, {1, 3, 1, 1}, true, false, 1000), 1);  // rounding would be as large as what is left
  EXPECT_EQ(network("Mul", 3, {1, 3, 6, 6}, true, false), 1);        // not one number a channel
  EXPECT_EQ(network("Mul", 6, {6}, true, false), 1);                 // one a column
  EXPECT_EQ(network("Mul", 5, {1, 5, 1, 1}, true, true), 1);         // somebody else reads the product
}

TEST(Passes, GeluInItsExportedForms) {
  for (const bool divide : {true, false}) {
    test::Builder b;
    const auto x = b.input("x", {dynamic, 8});
    const auto number = [&](float v) { return b.constant(Tensor::of<float>({}, std::vector<float>{v})); };
    const auto scaled = divide ? b.node("Div", {x, number(1.41421354f)}) : b.node("Mul", {number(0.70710678f), x});
    const auto one = b.node("Add", {b.node("Erf", {scaled}), number(1)});
    b.output(b.node("Mul", {b.node("Mul", {x, one}), number(0.5f)}), "y");
    const Model m(b.g);
    EXPECT_EQ(operators_of(m)[0], "Gelu");
    expect_same(m, {3, 8});
  }
}

TEST(Passes, SiluAndItsFusionIntoAProduct) {
  test::Builder b;
  const auto y = b.node("Gemm", {b.input("x", {dynamic, 8}), b.constant({8, 6}, 1), b.constant({6}, 2)});
  b.output(b.node("Mul", {y, b.node("Sigmoid", {y})}), "y");
  const Model m(b.g);
  EXPECT_EQ(operators_of(m), (std::vector<std::string>{"Gemm+Silu"}));
  expect_same(m, {3, 8});
}

TEST(Passes, LayerNormInItsExportedForm) {
  test::Builder b;
  b.g.opset = 13;
  const auto x = b.input("x", {dynamic, 5, 8});
  const std::vector<Attribute> last{{"axes", std::vector<Index>{-1}}, {"keepdims", Index{1}}};
  const auto number = [&](float v) { return b.constant(Tensor::of<float>({}, std::vector<float>{v})); };
  const auto centred = b.node("Sub", {x, b.node("ReduceMean", {x}, last)});
  const auto variance = b.node("ReduceMean", {b.node("Pow", {centred, number(2)})}, last);
  const auto normal = b.node("Div", {centred, b.node("Sqrt", {b.node("Add", {variance, number(1e-5f)})})});
  b.output(b.node("Add", {b.node("Mul", {normal, b.constant({8}, 1)}), b.constant({8}, 2)}), "y");
  const Model m(b.g);
  EXPECT_EQ(operators_of(m)[0], "LayerNormalization");
  expect_same(m, {2, 5, 8});
}

TEST(Passes, ValuesThatOthersReadAreNotFusedAway) {
  test::Builder b;
  const auto y = b.node("Conv", {b.input("x", {dynamic, 3, 6, 6}), b.constant({4, 3, 3, 3}, 1)});
  b.output(b.node("Relu", {y}), "a");
  b.output(y, "b");
  const Model m(b.g);
  const std::vector<Tensor> in{test::random_tensor({2, 3, 6, 6}, 1)};
  const auto fast = m.run(in), plain = m.run_graph(in);
  for (std::size_t i = 0; i < 2; ++i) {
    const auto v = plain[i].values<float>();
    EXPECT_LT(test::relative_error(fast[i].values<float>(), std::vector<double>(v.begin(), v.end())), 1e-5);
  }
}

TEST(Passes, AddOfOneValueTwiceStays) {
  test::Builder b;
  const auto y = b.node("Conv", {b.input("x", {dynamic, 3, 6, 6}), b.constant({4, 3, 3, 3}, 1)});
  b.output(b.node("Add", {y, y}), "y");
  expect_same(Model(b.g), {2, 3, 6, 6});
}

// Poolings of 2 x 2 move into a convolution that may go by Winograd's algorithm; whichever it then takes pools.
TEST(Passes, PoolingsMoveIntoConvolutions) {
  const auto network = [](const std::string& pool, std::vector<Attribute> how, Index stride, bool read_twice) {
    test::Builder b;
    b.g.opset = 13;
    const std::vector<Index> pads{1, 1, 1, 1}, strides{stride, stride};
    const auto x = b.input("x", {dynamic, 12, 11, 18});
    auto y =
        b.node("Conv", {x, b.constant({20, 12, 3, 3}, 1), b.constant({20}, 2)}, {{"pads", pads}, {"strides", strides}});
    const auto variance = b.constant(Tensor::of<float>({20}, test::random_floats(20, 6, 0.5f, 2.0f)));
    y = b.node("BatchNormalization", {y, b.constant({20}, 3), b.constant({20}, 4), b.constant({20}, 5), variance});
    y = b.node("Relu", {y});  // after a pass that made new weights
    how.emplace_back("kernel_shape", std::vector<Index>{2, 2});
    b.output(b.node(pool, {y}, how), "y");
    if (read_twice) b.output(b.node("GlobalAveragePool", {y}), "z");
    return b.g;
  };
  const Attribute twos{"strides", std::vector<Index>{2, 2}};
  const auto fused = [&](const Graph& g, const ModelOptions& o = {}) {
    const Model m(g, o);
    for (const Index batch : {1, 3}) expect_same(m, {batch, 12, 11, 18});
    const auto ops = operators_of(m);
    return std::count(ops.begin(), ops.end(), "Conv+Relu+MaxPool") +
           std::count(ops.begin(), ops.end(), "Conv+Relu+AveragePool");
  };
  for (const Isa isa : available_isas()) {
    for (const Index tile : {0, 2, 4, 6}) {
      ModelOptions o;
      o.isa = isa, o.winograd_tile = tile;
      for (const char* pool : {"MaxPool", "AveragePool"}) EXPECT_EQ(fused(network(pool, {twos}, 1, false), o), 1);
    }
  }
  const Attribute ends{"pads", std::vector<Index>{0, 0, 1, 1}}, ceil{"ceil_mode", Index{1}};
  EXPECT_EQ(fused(network("MaxPool", {}, 1, false)), 0);                // overlap
  EXPECT_EQ(fused(network("AveragePool", {twos, ends}, 1, false)), 0);  // a padding
  EXPECT_EQ(fused(network("MaxPool", {twos, ceil}, 1, false)), 0);      // a window that is cut off
  EXPECT_EQ(fused(network("MaxPool", {twos}, 2, false)), 0);            // no convolution for Winograd
  EXPECT_EQ(fused(network("MaxPool", {twos}, 1, true)), 0);             // another reader
}

// Means and maxima of grids are one pass; where one product alone reads them, its weights take their order.
TEST(Passes, PooledGridsAreOnePass) {
  for (const bool is_read_twice : {false, true}) {
    for (const Index transposed : {0, 1}) {
      test::Builder b;
      b.g.opset = 13;
      const auto x = b.node("Conv", {b.input("x", {dynamic, 3, 9, 9}), b.constant({20, 3, 3, 3}, 1)});  // 7 x 7
      std::vector<ValueId> parts;
      const auto pool = [&](const std::string& op, std::vector<Attribute> attributes) {
        parts.push_back(b.node("Flatten", {b.node(op, {x}, std::move(attributes))}));
      };
      const std::vector<Attribute> two{{"kernel_shape", std::vector<Index>{4, 4}},
                                       {"strides", std::vector<Index>{3, 3}}};
      const std::vector<Attribute> three{{"kernel_shape", std::vector<Index>{3, 3}},
                                         {"strides", std::vector<Index>{2, 2}}};
      pool("GlobalAveragePool", {});
      pool("MaxPool", two);
      pool("AveragePool", three);
      pool("GlobalMaxPool", {});
      pool("AveragePool", two);
      const auto joined = b.node("Concat", parts, {{"axis", Index{1}}});
      const Index features = 20 * (1 + 4 + 9 + 1 + 4);
      const Shape weights = transposed ? Shape{30, features} : Shape{features, 30};
      b.output(b.node("Gemm", {joined, b.constant(weights, 2), b.constant({30}, 3)}, {{"transB", transposed}}), "y");
      if (is_read_twice) b.output(joined, "z");
      const Model m(b.g);
      const auto ops = operators_of(m);
      EXPECT_EQ(std::count(ops.begin(), ops.end(), "GridPool"), 1);
      expect_same(m, {3, 3, 9, 9});
    }
  }
}

// A shortcut that halves the image and pads the channels, with steps of either sign, one place cut off, another value.
TEST(Passes, SlicesAndThePaddingBehindThemAreOneCopy) {
  const auto numbers = [](const std::vector<Index>& v) {
    return Tensor::of<Index>({static_cast<Index>(v.size())}, std::span<const Index>(v));
  };
  for (const Index step : {Index{2}, Index{-2}}) {
    for (const bool convolved : {true, false}) {
      test::Builder b;
      ValueId x = b.input("x", {dynamic, 5, 9, 12});
      if (convolved) x = b.node("Conv", {x, b.constant({5, 5, 1, 1}, 3)});
      const auto slice = [&](ValueId v, Index start, Index end, Index axis, Index by) {
        return b.node("Slice", {v, b.constant(numbers({start})), b.constant(numbers({end})),
                                b.constant(numbers({axis})), b.constant(numbers({by}))});
      };
      const ValueId rows = step > 0 ? slice(x, 1, 9, 2, step) : slice(x, -1, -100, 2, step);
      const ValueId columns = slice(rows, 0, 11, 3, 3), half = slice(columns, 1, 4, 3, 2);
      const ValueId value = b.constant(Tensor::of<float>({}, std::vector<float>{0.5f}));
      ValueId y = b.node("Pad", {half, b.constant(numbers({0, 2, 0, 1, 0, 3, 1, 0})), value});
      if (convolved) y = b.node("Conv", {y, b.constant({4, 10, 1, 1}, 4)});
      b.output(y, "y");
      const Model m(b.g);
      const auto ops = operators_of(m);
      EXPECT_EQ(std::count(ops.begin(), ops.end(), "PaddedSlice"), 1);
      EXPECT_EQ(std::count(ops.begin(), ops.end(), "Slice"), 0);
      EXPECT_EQ(std::count(ops.begin(), ops.end(), "Pad"), 0);
      for (const Index batch : {1, 3}) expect_same(m, {batch, 5, 9, 12});
    }
  }
}

// What is taken of the batch is not the same for every batch, and what another node reads stays.
TEST(Passes, SlicesThatCannotBeOneCopyStay) {
  const auto numbers = [](Index v) { return Tensor::of<Index>({1}, std::vector<Index>{v}); };
  test::Builder b;
  const auto x = b.input("x", {dynamic, 6, 8});
  const auto slice = [&](ValueId v, Index start, Index end, Index axis) {
    return b.node("Slice", {v, b.constant(numbers(start)), b.constant(numbers(end)), b.constant(numbers(axis))});
  };
  const auto shared = slice(x, 1, 5, 1), front = slice(shared, 0, 3, 2);
  b.output(b.node("Concat", {shared, front}, {{"axis", Index{2}}}), "y");
  const Model m(b.g);
  const auto ops = operators_of(m);
  EXPECT_EQ(std::count(ops.begin(), ops.end(), "Slice"), 2);
  expect_same(m, {3, 6, 8});
}

TEST(Passes, ChannelsLastThroughWhatStandsBetweenConvolutions) {
  test::Builder b;
  b.g.opset = 13;
  const auto ints = [&](std::vector<Index> v) {
    return b.constant(Tensor::of<Index>({static_cast<Index>(v.size())}, v));
  };
  auto x = b.node("Conv", {b.input("x", {dynamic, 3, 9, 9}), b.constant({8, 3, 3, 3}, 1)});
  const auto scale =
      b.node("Sigmoid", {b.node("Conv", {b.node("GlobalAveragePool", {x}), b.constant({8, 8, 1, 1}, 2)})});
  x = b.node("Mul", {x, scale});  // squeeze and excite
  x = b.node("Add", {x, b.constant({8, 1, 1}, 3)});
  const auto pooled =
      b.node("MaxPool", {x}, {{"kernel_shape", std::vector<Index>{2, 2}}, {"strides", std::vector<Index>{2, 2}}});
  const auto sliced = b.node("Slice", {x, ints({0, 0}), ints({6, 6}), ints({2, 3}), ints({2, 2})});
  x = b.node("Concat", {pooled, sliced}, {{"axis", Index{1}}});
  x = b.node("Pad", {x, ints({0, 2, 1, 0, 0, 1, 0, 1})});
  x = b.node("PRelu", {x, b.constant({19, 1, 1}, 4)});
  x = b.node("ReduceMean", {x}, {{"axes", std::vector<Index>{2, 3}}, {"keepdims", Index{1}}});
  b.output(b.node("Flatten", {x}), "y");
  expect_same(Model(b.g), {3, 3, 9, 9});
}

// A first convolution takes its few channels as they come, whatever its algorithm, padding and residual.
TEST(Passes, FewChannelsAreReadAsPlanes) {
  for (const Index channels : {2, 3, 4, 5}) {
    for (const Index size : {1, 3, 5}) {
      for (const bool bf16 : {false, true}) {
        test::Builder b;
        b.g.opset = 13;
        const auto input = b.input("x", {dynamic, channels, 9, 7});
        const std::vector<Index> pads(4, size / 2);
        auto x =
            b.node("Conv", {input, b.constant({8, channels, size, size}, 1), b.constant({8}, 2)}, {{"pads", pads}});
        auto y = b.node("Conv", {input, b.constant({8, channels, 3, 3}, 3)}, {{"pads", std::vector<Index>(4, 1)}});
        b.output(b.node("Relu", {b.node("Add", {x, y})}), "y");
        ModelOptions options;
        options.bf16 = bf16;
        const Model m(b.g, options);
        Index turned = 0;  // the input, that is: the output is
        for (const LayerInfo& l : m.layers()) turned += l.op == "Transpose" && l.output[1] != 8;
        EXPECT_EQ(turned, channels <= 4 ? 0 : 1);
        if (bf16) {
          const std::vector<Tensor> in{test::random_tensor({3, channels, 9, 7}, 5)};
          const Tensor fast = m.run(in)[0], plain = m.run_graph(in)[0];
          for (Index i = 0; i < plain.count(); ++i)
            ASSERT_NEAR(fast.view().f32()[i], plain.view().f32()[i], 0.2f) << channels << size;
        } else {
          expect_same(m, {3, channels, 9, 7});
        }
      }
    }
  }
}

TEST(Passes, WhoTurnsChannelsToTheBackFindsThemThere) {
  for (const bool is_read_plain : {false, true}) {
    test::Builder b;
    b.g.opset = 13;
    const auto x = b.node("Relu", {b.node("Conv", {b.input("x", {dynamic, 3, 9, 9}), b.constant({8, 3, 3, 3}, 1)})});
    b.output(b.node("Transpose", {x}, {{"perm", std::vector<Index>{0, 2, 3, 1}}}), "last");
    if (is_read_plain) b.output(x, "first");
    const Model model(b.g);
    expect_same(model, {3, 3, 9, 9});
    const auto copies = std::count_if(model.layers().begin(), model.layers().end(), [](const LayerInfo& l) {
      return l.op == "Transpose" && l.name != "x.channels_last";
    });
    EXPECT_EQ(copies, is_read_plain ? 1 : 0);
  }
}

// Attention over x [N, tokens, 16] with two heads of 8, as exporters write it; `form` says how.
struct AttentionGraph : test::Builder {
  ValueId probabilities = no_value;

  static constexpr Index heads = 2, depth = 8, width = heads * depth;
  ValueId ints(std::vector<Index> v) { return constant(Tensor::of<Index>({static_cast<Index>(v.size())}, v)); }
  ValueId number(float v) { return constant(Tensor::of<float>({}, std::vector<float>{v})); }
  ValueId turn(ValueId v, std::vector<Index> perm) { return node("Transpose", {v}, {{"perm", std::move(perm)}}); }
  ValueId attend(ValueId scores, ValueId v) {
    probabilities = node("Softmax", {scores}, {{"axis", Index{-1}}});
    return node("MatMul", {probabilities, v});
  }
  AttentionGraph(const std::string& form, Index tokens) {
    g.opset = 13;
    const auto x = input("x", {dynamic, tokens, width});
    ValueId y = no_value;
    if (form == "tokens first") {  // heads merged with the batch, and q scaled
      const auto all = node("MatMul", {turn(x, {1, 0, 2}), constant({width, 3 * width}, 1)});
      const auto part = [&](Index i, std::vector<Index> perm) {
        const auto s = node("Slice", {all, ints({i * width}), ints({(i + 1) * width}), ints({2})});
        return turn(node("Reshape", {s, ints({tokens, -1, depth})}), std::move(perm));
      };
      const auto q = node("Div", {part(0, {1, 0, 2}), number(2.5f)});
      y = turn(attend(node("MatMul", {q, part(1, {1, 2, 0})}), part(2, {1, 0, 2})), {1, 0, 2});
      y = turn(node("Reshape", {y, ints({tokens, -1, width})}), {1, 0, 2});
    } else {
      const auto part = [&](unsigned seed, std::vector<Index> perm) {
        const auto p = node("MatMul", {x, constant({width, width}, seed)});
        return turn(node("Reshape", {p, ints({0, tokens, heads, depth})}), std::move(perm));
      };
      auto q = part(1, {0, 2, 1, 3}), k = part(2, {0, 2, 3, 1});
      if (form == "both scaled") q = node("Mul", {number(0.6f), q}), k = node("Mul", {k, number(0.7f)});
      auto scores = node("MatMul", {q, k});
      if (form != "both scaled") scores = node("Div", {scores, number(2.0f)});
      if (form == "constant mask") scores = node("Add", {scores, constant({tokens, tokens}, 5)});
      if (form == "mask of keys")
        scores = node(
            "Add",
            {node("Reshape", {node("ReduceMean", {x}, {{"axes", std::vector<Index>{2}}}), ints({-1, 1, 1, tokens})}),
             scores});
      y = node("Reshape", {turn(attend(scores, part(3, {0, 2, 1, 3})), {0, 2, 1, 3}), ints({0, tokens, width})});
    }
    output(y, "y");
  }
};

TEST(Passes, AttentionIsOneNode) {
  for (const std::string form : {"plain", "both scaled", "constant mask", "mask of keys", "tokens first"}) {
    for (const Index tokens : {5, 230}) {
      for (const Index threads : {1, 3}) {
        const AttentionGraph a(form, tokens);
        ModelOptions o;
        if (threads > 1) o.pool = std::make_shared<ThreadPool>(threads);
        const Model m(a.g, o);
        const auto ops = operators_of(m);
        EXPECT_EQ(std::count(ops.begin(), ops.end(), "Attention"), 1) << form;
        EXPECT_EQ(std::count(ops.begin(), ops.end(), "Softmax"), 0) << form;
        EXPECT_EQ(std::count(ops.begin(), ops.end(), "Transpose"), form == "tokens first" ? 2 : 0) << form;
        for (const Index batch : {1, 3}) expect_same(m, {batch, tokens, AttentionGraph::width});
        test::expect_equal_alone(m, test::random_tensor({25, tokens, AttentionGraph::width}, 7));
        EXPECT_EQ(m.total_cost().macs, tokens * 3 * 16 * 16 + 2 * tokens * tokens * 16) << form;
      }
    }
  }
}

TEST(Passes, ScoresThatOthersReadAreNotFusedAway) {
  AttentionGraph a("plain", 5);
  a.output(a.probabilities, "probabilities");
  const Model m(a.g);
  const auto ops = operators_of(m);
  EXPECT_EQ(std::count(ops.begin(), ops.end(), "Attention"), 0);
  expect_same(m, {2, 5, AttentionGraph::width});
}

// The first sample's keys for all samples: their leading axis is 1 whatever the batch.
TEST(Passes, AttentionOfOperandsThatBroadcastStays) {
  test::Builder b;
  b.g.opset = 13;
  const auto x = b.input("x", {dynamic, 6, 8});
  const auto first = b.node("Slice", {x, b.constant(Tensor::of<Index>({1}, std::vector<Index>{0})),
                                      b.constant(Tensor::of<Index>({1}, std::vector<Index>{1})),
                                      b.constant(Tensor::of<Index>({1}, std::vector<Index>{0}))});
  const auto scores = b.node("MatMul", {x, b.node("Transpose", {first}, {{"perm", std::vector<Index>{0, 2, 1}}})});
  b.output(b.node("MatMul", {b.node("Softmax", {scores}, {{"axis", Index{-1}}}), x}), "y");
  const Model m(b.g);
  const auto ops = operators_of(m);
  EXPECT_EQ(std::count(ops.begin(), ops.end(), "Attention"), 0);
  expect_same(m, {4, 6, 8});
}

TEST(Passes, AMaskThatMakesMoreScoresStays) {
  test::Builder b;
  b.g.opset = 13;
  const auto ints = [&](Index v) { return b.constant(Tensor::of<Index>({1}, std::vector<Index>{v})); };
  const auto x = b.input("x", {dynamic, 6, 8});
  const auto first = b.node("Slice", {x, ints(0), ints(1), ints(1)});
  const auto scores = b.node("MatMul", {first, b.node("Transpose", {x}, {{"perm", std::vector<Index>{0, 2, 1}}})});
  const auto masked = b.node("Add", {scores, b.constant({4, 6}, 1)});  // four rows of one
  b.output(b.node("MatMul", {b.node("Softmax", {masked}, {{"axis", Index{-1}}}), x}), "y");
  const Model m(b.g);
  const auto ops = operators_of(m);
  EXPECT_EQ(std::count(ops.begin(), ops.end(), "Attention"), 0);
  expect_same(m, {3, 6, 8});
}

// A user's operators in place of built-in ones: what passes know of those does not hold.
struct PlusOne {
  explicit PlusOne(const Node&) {}
  Shape output_shape(std::span<const TensorView> in) const { return in[0].shape; }
  void forward(std::span<const TensorView> in, const TensorView& out) const noexcept {
    for (Index i = 0; i < out.count(); ++i) out.as<float>()[i] = in[0].f32()[i] + 1;
  }
};

TEST(Passes, OwnOperatorsAreNotTakenForBuiltInOnes) {
  for (const std::string name : {"Relu", "Softmax", "Sigmoid", "GlobalAveragePool"}) {
    ModelOptions o;
    o.operators.add<PlusOne>(name);
    AttentionGraph a("plain", 5);
    test::Builder b;
    b.g.opset = 13;
    auto x = b.node("Relu", {b.node("Conv", {b.input("x", {dynamic, 3, 9, 9}), b.constant({8, 3, 3, 3}, 1)})});
    x = b.node("Mul", {x, b.node("Sigmoid", {x})});
    b.output(b.node("Flatten", {b.node("GlobalAveragePool", {x})}), "y");
    expect_same(Model(a.g, o), {2, 5, AttentionGraph::width});
    expect_same(Model(b.g, o), {2, 3, 9, 9});
  }
}

}  // namespace
}  // namespace offramp
