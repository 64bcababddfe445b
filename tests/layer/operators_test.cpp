// The table as a whole; single operators are held against ONNX's own data in the conformance test.
#include "offramp/layer/operators.hpp"

#include <gtest/gtest.h>

#include <set>

#include "graphs.hpp"
#include "offramp/graph/infer.hpp"
#include "offramp/layer/element.hpp"

namespace offramp {
namespace {

TEST(Operators, TableIsSortedUniqueAndComplete) {
  std::set<std::string_view> names;
  std::string_view before;
  for (const OperatorInfo& r : operator_table()) {
    EXPECT_LT(before, r.name);
    before = r.name;
    names.insert(r.name);
    EXPECT_FALSE(r.formula.empty());
    EXPECT_FALSE(r.group.empty());
  }
  for (const char* name : {"Conv",
                           "ConvTranspose",
                           "Gemm",
                           "MatMul",
                           "Relu",
                           "LeakyRelu",
                           "PRelu",
                           "Elu",
                           "Selu",
                           "Celu",
                           "Sigmoid",
                           "HardSigmoid",
                           "HardSwish",
                           "Tanh",
                           "Softplus",
                           "Softsign",
                           "Erf",
                           "Clip",
                           "Softmax",
                           "LogSoftmax",
                           "BatchNormalization",
                           "InstanceNormalization",
                           "LayerNormalization",
                           "LRN",
                           "MaxPool",
                           "AveragePool",
                           "GlobalAveragePool",
                           "GlobalMaxPool",
                           "LpPool",
                           "GlobalLpPool",
                           "ReduceMean",
                           "ArgMax",
                           "ArgMin",
                           "TopK",
                           "Pad",
                           "Concat",
                           "Split",
                           "Slice",
                           "Gather",
                           "Reshape",
                           "Flatten",
                           "Transpose",
                           "Squeeze",
                           "Unsqueeze",
                           "Expand",
                           "Tile",
                           "Shape",
                           "Cast",
                           "ConstantOfShape",
                           "Identity",
                           "Dropout",
                           "Where",
                           "Resize",
                           "DepthToSpace",
                           "SpaceToDepth",
                           "CumSum",
                           "GatherElements",
                           "GatherND",
                           "OneHot",
                           "Range",
                           "RNN",
                           "LSTM",
                           "GRU"}) {
    EXPECT_TRUE(names.contains(name)) << name;
    EXPECT_NE(find_operator(name), nullptr) << name;
  }
  EXPECT_EQ(find_operator("NoSuchThing"), nullptr);
}

TEST(Operators, RefuseByName) {
  Node n;
  n.op = "NoSuchThing";
  n.name = "x1";
  try {
    Operators().make(n, 13);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "NoSuchThing node 'x1': the operator is not supported");
  }
}

// No operator may crash on inputs that it does not expect: it must raise an Error, or compute something.
TEST(Operators, SurviveUnexpectedInputs) {
  const Operators operators;
  const GraphContext context{operators, kernel::kernels_for(best_isa()), {Index{1} << 24, Index{1} << 26, 8}};
  std::mt19937 engine(3);
  const Shape shapes[] = {{}, {1}, {0}, {3}, {2, 3}, {1, 1, 3, 3}, {2, 4, 3, 3}, {0, 2, 3}, {2, 2, 2, 2, 2}};
  int computed = 0, refused = 0;
  for (const OperatorInfo& info : operator_table()) {
    for (int trial = 0; trial < 150; ++trial) {
      test::Builder b;
      b.g.opset = trial % 3 == 0 ? 9 : trial % 3 == 1 ? 13 : 17;
      std::vector<ValueId> in;
      for (std::size_t i = 0; i < 1 + engine() % 5; ++i) {
        const Shape& s = shapes[engine() % std::size(shapes)];
        const DType types[] = {DType::f32, DType::f32, DType::i64, DType::boolean, DType::f64, DType::u8, DType::f16};
        Tensor t(types[engine() % std::size(types)], s);
        for (Index k = 0; k < t.count(); ++k) put_real(t.view(), k, static_cast<double>(engine() % 7) - 2);
        in.push_back(engine() % 9 == 0 ? no_value : b.constant(t));
      }
      std::vector<Attribute> attributes;
      if (engine() % 2) attributes.push_back({"axis", static_cast<Index>(engine() % 9) - 4});
      if (engine() % 3 == 0)
        attributes.push_back({"kernel_shape", std::vector<Index>(engine() % 4, static_cast<Index>(engine() % 4))});
      if (engine() % 4 == 0)
        attributes.push_back({"pads", std::vector<Index>(engine() % 9, static_cast<Index>(engine() % 3))});
      if (engine() % 4 == 0) attributes.push_back({"perm", std::vector<Index>{static_cast<Index>(engine() % 3), 0, 1}});
      attributes.push_back({"to", static_cast<Index>(engine() % 18)});
      attributes.push_back({"blocksize", static_cast<Index>(engine() % 4)});
      attributes.push_back({"size", static_cast<Index>(engine() % 4)});
      const auto out = b.node(std::string(info.name), in, attributes);
      b.g.outputs = {out};
      try {
        evaluate(b.g, {}, context);
        ++computed;
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(computed, 500);
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace offramp
