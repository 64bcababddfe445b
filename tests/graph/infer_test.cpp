#include "offramp/graph/infer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "graphs.hpp"
#include "offramp/graph/model.hpp"

namespace offramp {
namespace {

struct Bytes : test::Builder {
  Bytes() { g.opset = 13; }

  /// Bytes with a scale, dequantized.
  ValueId floats(const Shape& shape, unsigned seed) {
    std::vector<std::int8_t> v;
    for (const float x : test::random_floats(shape.count(), seed, -100, 100)) v.push_back(static_cast<std::int8_t>(x));
    return node("DequantizeLinear",
                {constant(Tensor::of<std::int8_t>(shape, v)), constant(Tensor::of<float>({}, std::vector{0.01f})),
                 constant(Tensor(DType::i8, {}))});
  }
  Inference infer_two(bool keep_bytes) const {
    static const Operators operators;
    const kernel::Kernels& kernels = kernel::kernels_for(Isa::baseline);
    return infer(g, input_views(g, 2, {}, {}), {operators, kernels, {}, {kernels}, keep_bytes});
  }
};

bool is_known(const Inference& shapes, ValueId v) {
  const auto u = static_cast<std::size_t>(v);
  EXPECT_EQ(shapes.views[u].data != nullptr, !shapes.known[u].empty());
  return shapes.views[u].data != nullptr;
}

TEST(Infer, WeightsOfProductsStayBytes) {
  Bytes b;
  const ValueId x = b.input("x", {dynamic, 4, 5, 5}), w = b.floats({6, 4, 3, 3}, 1), bias = b.floats({6}, 2);
  b.output(b.node("Conv", {x, w, bias}), "y");
  const Inference kept = b.infer_two(true), computed = b.infer_two(false);
  for (const ValueId v : {w, bias}) {
    EXPECT_FALSE(is_known(kept, v));
    EXPECT_TRUE(is_known(computed, v));
    EXPECT_EQ(kept.views[static_cast<std::size_t>(v)].shape, computed.views[static_cast<std::size_t>(v)].shape);
  }
  const Shape y{2, 6, 3, 3};
  EXPECT_EQ(kept.views[static_cast<std::size_t>(b.g.outputs[0])].shape, y);
}

TEST(Infer, BytesThatSomethingElseReadsAreDequantized) {
  Bytes b;
  const ValueId x = b.input("x", {dynamic, 4}), added = b.floats({4}, 1), turned = b.floats({3, 4}, 2),
                left = b.floats({4, 4}, 3), right = b.floats({4, 3}, 4), captured = b.floats({3}, 5),
                output = b.floats({2}, 6), weights = b.floats({4, 4}, 7);
  const ValueId folded = b.node("MatMul", {left, right}), t = b.node("Transpose", {turned});
  auto branch = std::make_shared<Graph>();
  const ValueId inside = branch->add_value("inside"), result = branch->add_value("result");
  branch->captures = {{captured, inside}};
  Node same;
  same.op = "Identity", same.inputs = {inside}, same.outputs = {result};
  branch->nodes = {same}, branch->outputs = {result};
  Tensor yes(DType::boolean, {});
  *static_cast<bool*>(yes.mutable_data()) = true;
  const ValueId chosen = b.node("If", {b.constant(yes)}, {{"then_branch", branch}, {"else_branch", branch}});
  const ValueId y = b.node("MatMul", {b.node("Add", {x, added}), weights});
  b.output(b.node("Add", {b.node("Add", {b.node("MatMul", {y, t}), b.node("MatMul", {y, folded})}), chosen}), "y");
  b.g.outputs.push_back(output);
  const Inference shapes = b.infer_two(true);
  for (const ValueId v : {added, turned, left, right, captured, output, folded, t, chosen})
    EXPECT_TRUE(is_known(shapes, v)) << b.g[v].name;
  EXPECT_FALSE(is_known(shapes, weights));
  const Inference all = b.infer_two(false);
  for (const ValueId v : {folded, t, chosen, output}) {
    const Tensor &p = shapes.known[static_cast<std::size_t>(v)], &q = all.known[static_cast<std::size_t>(v)];
    EXPECT_TRUE(std::equal(p.values<float>().begin(), p.values<float>().end(), q.values<float>().begin()));
  }
}

// Weights in bytes of a layer that is not done with bytes, since its input is none: the same network in floats.
TEST(Infer, AFloatLayerGetsItsBytesAsFloats) {
  Bytes b;
  const ValueId x = b.input("x", {dynamic, 4, 5, 5}), w = b.floats({8, 4, 3, 3}, 1);
  const ValueId y =
      b.node("Flatten", {b.node("Relu", {b.node("Conv", {x, w, b.floats({8}, 2)})})}, {{"axis", Index{1}}});
  b.output(b.node("Gemm", {y, b.floats({72, 3}, 3), b.floats({3}, 4)}), "y");
  const Model m(b.g);
  ASSERT_TRUE(m.has_plan()) << m.why_not();
  for (const LayerInfo& l : m.layers()) EXPECT_NE(l.op, "DequantizeLinear");
  const std::vector<Tensor> in{test::random_tensor({3, 4, 5, 5}, 5)};
  const auto fast = m.run(in), plain = m.run_graph(in);
  const auto v = plain[0].values<float>();
  EXPECT_LT(test::relative_error(fast[0].values<float>(), std::vector<double>(v.begin(), v.end())), 1e-5);
}

}  // namespace
}  // namespace offramp
