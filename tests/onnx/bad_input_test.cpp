// Files that are wrong in ways that a mutation rarely finds.
#include <gtest/gtest.h>

#include "graphs.hpp"
#include "offramp/onnx/onnx.hpp"

namespace offramp {
namespace {

std::string message(const std::string& file, const ModelOptions& options = {}) {
  try {
    const Model m = load_onnx(std::as_bytes(std::span(file)), options);
    return m.why_not();
  } catch (const Error& e) {
    return e.what();
  }
}

TEST(BadInput, EmptyAndForeignFiles) {
  EXPECT_NE(message(""), "");
  EXPECT_NE(message("not a protocol buffer at all"), "");
  EXPECT_NE(message(std::string(1000, '\0')), "");
}

TEST(BadInput, EveryTruncationIsAnErrorOrAModel) {
  const std::string file = save_onnx(Model(test::residual_network()));
  for (std::size_t n = 0; n < file.size(); n += n < 600 ? 1 : 97) message(file.substr(0, n));
}

TEST(BadInput, TensorsThatClaimMoreThanTheyHold) {
  Graph g = test::residual_network();
  std::string file = onnx::write(g);
  // dims of the first weight: [8,3,3,3] becomes [8,3,3,127].
  const std::string dims("\x0a\x04\x08\x03\x03\x03", 6);
  const auto at = file.find(dims);
  ASSERT_NE(at, std::string::npos);
  file[at + 5] = 127;
  EXPECT_NE(message(file).find("expected 36576 bytes, found 864"), std::string::npos) << message(file);
}

TEST(BadInput, NewerOpsetsAreRefused) {
  Graph g = test::residual_network();
  g.opset = 99;
  EXPECT_NE(message(onnx::write(g)).find("opset 99"), std::string::npos);
}

TEST(BadInput, HugeShapesStayWithinTheLimits) {
  for (const Index repeats : {Index{1} << 20, Index{1} << 40, std::numeric_limits<Index>::max()}) {
    test::Builder b;
    const auto times = b.constant(Tensor::of<Index>({2}, std::vector<Index>{1, repeats}));
    b.output(b.node("Tile", {b.input("x", {dynamic, 1000}), times}), "y");
    EXPECT_NE(message(onnx::write(b.g)), "");
  }
  test::Builder b;
  const auto shape = b.constant(Tensor::of<Index>({3}, std::vector<Index>{1 << 20, 1 << 20, 1 << 20}));
  b.output(b.node("Add", {b.input("x", {dynamic, 1}), b.node("ConstantOfShape", {shape})}), "y");
  EXPECT_NE(message(onnx::write(b.g)), "");
}

TEST(BadInput, DeepSubgraphsEnd) {
  const bool yes = true;
  auto inner = std::make_shared<Graph>();
  inner->outputs = {inner->add_constant("c", Tensor::of<float>({}, std::vector<float>{1}))};
  for (int i = 0; i < 100; ++i) {
    auto outer = std::make_shared<Graph>();
    Node n;
    n.op = "If";
    n.inputs = {outer->add_constant("t" + std::to_string(i), Tensor::of<bool>({}, std::span(&yes, 1)))};
    n.outputs = outer->outputs = {outer->add_value("o" + std::to_string(i))};
    n.set("then_branch", inner);
    outer->nodes.push_back(n);
    inner = outer;
  }
  EXPECT_NE(message(onnx::write(*inner)).find("nested too deeply"), std::string::npos);
}

TEST(BadInput, NodesNameThemselvesInErrors) {
  Graph g = test::residual_network();
  for (Node& n : g.nodes) {
    if (n.op == "Gemm") n.set("transB", Index{0});
  }
  const std::string m = message(onnx::write(g));
  EXPECT_NE(m.find("Gemm node 'Gemm_"), std::string::npos) << m;
}

}  // namespace
}  // namespace offramp
