/// @file operator_table.hpp
/// The operator table: one row for each operator, which the importer, shape inference, the FLOP count,
/// docs/operators.md and the tests all read.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/layer/attention.hpp"
#include "offramp/layer/conv.hpp"
#include "offramp/layer/dense.hpp"
#include "offramp/layer/elementwise.hpp"
#include "offramp/layer/integer.hpp"
#include "offramp/layer/movement.hpp"
#include "offramp/layer/norm.hpp"
#include "offramp/layer/operation.hpp"
#include "offramp/layer/operators.hpp"
#include "offramp/layer/pool.hpp"
#include "offramp/layer/quantize.hpp"
#include "offramp/layer/recurrent.hpp"
#include "offramp/layer/reduce.hpp"
#include "offramp/layer/softmax.hpp"

namespace offramp {

namespace detail {

OFFRAMP_COLD inline std::vector<OperatorInfo> make_operator_table() {
  std::vector<OperatorInfo> t{
      {"Conv", "Convolution", "2 per MAC (outputs x kernel x input channels of the group), 1 per output for a bias",
       &make_operation<ConvOperation>},
      {"ConvTranspose", "Convolution",
       "2 per MAC (inputs x kernel x output channels of the group), 1 per output for a bias",
       &make_operation<ConvTransposeOperation>},
      {"Gemm", "Matrix product", "2 per MAC (M x N x K), 1 per output for C", &make_operation<GemmOperation>},
      {"MatMul", "Matrix product", "2 per MAC (M x N x K)", &make_operation<MatMulOperation>},
      {"BatchNormalization", "Normalisation", "2 per element", &make_operation<BatchNormOperation>},
      {"InstanceNormalization", "Normalisation", "6 per element", &make_operation<InstanceNormOperation>},
      {"LayerNormalization", "Normalisation", "8 per element", &make_operation<LayerNormOperation>},
      {"LRN", "Normalisation", "2 x size + 4 per element", &make_operation<LrnOperation>},
      {"Softmax", "Softmax", "5 per element", &make_operation<SoftmaxOperation>},
      {"LogSoftmax", "Softmax", "5 per element", &make_operation<SoftmaxOperation>},
      {"Hardmax", "Softmax", "5 per element", &make_operation<SoftmaxOperation>},
      {"Clip", "Elementwise", "1 per element", &make_operation<ClipOperation>},
      {"Cast", "Elementwise", "0", &make_operation<CastOperation>},
      {"CastLike", "Elementwise", "0", &make_operation<CastOperation>},
      {"Where", "Elementwise", "0", &make_operation<WhereOperation>},
      {"Not", "Elementwise", "0", &make_operation<TestOperation>},
      {"IsNaN", "Elementwise", "0", &make_operation<TestOperation>},
      {"IsInf", "Elementwise", "0", &make_operation<TestOperation>},
      {"RNN", "Recurrent", "2 per MAC (steps x hidden x (input + hidden)), 1 per gate and state element",
       &make_operation<RecurrentOperation>},
      {"GRU", "Recurrent", "2 per MAC (steps x 3 hidden x (input + hidden)), 8 per state element and step",
       &make_operation<RecurrentOperation>},
      {"LSTM", "Recurrent", "2 per MAC (steps x 4 hidden x (input + hidden)), 9 per state element and step",
       &make_operation<RecurrentOperation>},
      {"ArgMax", "Reduction", "0", &make_operation<ArgOperation>},
      {"ArgMin", "Reduction", "0", &make_operation<ArgOperation>},
      {"CumSum", "Reduction", "1 per element", &make_operation<CumSumOperation>},
      {"TopK", "Reduction", "0", &make_operation<TopKOperation>},
      {"QuantizeLinear", "Quantization", "2 per element", &make_operation<QuantizeLinearOperation>},
      {"DequantizeLinear", "Quantization", "2 per element", &make_operation<DequantizeLinearOperation>},
      {"DynamicQuantizeLinear", "Quantization", "4 per element", &make_operation<DynamicQuantizeLinearOperation>},
      {"QLinearConv", "Quantization", "2 per MAC", &make_operation<PlainIntegerConvOperation>},
      {"ConvInteger", "Quantization", "2 per MAC", &make_operation<PlainIntegerConvOperation>},
      {"QLinearMatMul", "Quantization", "2 per MAC", &make_operation<PlainIntegerMatMulOperation>},
      {"MatMulInteger", "Quantization", "2 per MAC", &make_operation<PlainIntegerMatMulOperation>},
      {"BitShift", "Elementwise", "1 per output", &make_operation<BinaryOperation>},
  };
  for (const char* name : {"MaxPool", "GlobalMaxPool"})
    t.push_back({name, "Pooling", "window - 1 per output", &make_operation<PoolOperation>});
  for (const char* name : {"AveragePool", "GlobalAveragePool"})
    t.push_back({name, "Pooling", "window per output", &make_operation<PoolOperation>});
  for (const char* name : {"LpPool", "GlobalLpPool"})
    t.push_back({name, "Pooling", "2 x window per output", &make_operation<PoolOperation>});
  for (const UnaryFunction& f : unary_functions)
    t.push_back({f.name, "Elementwise", "1 per element", &make_operation<UnaryOperation>});
  for (const BinaryFunction& f : binary_functions) {
    if (f.name == "Max" || f.name == "Min" || f.name == "Fmod" || f.name.starts_with("Shift")) continue;
    t.push_back({f.name, "Elementwise", f.flops ? "1 per output" : "0", &make_operation<BinaryOperation>});
  }
  for (const char* name : {"Sum", "Max", "Min", "Mean"})
    t.push_back({name, "Elementwise", "1 per output and operand after the first", &make_operation<VariadicOperation>});
  for (const Reduction& r : reductions)
    t.push_back({r.name, "Reduction", r.flops == 1 ? "1 per input element" : "2 per input element",
                 &make_operation<ReduceOperation>});
  for (const char* name : {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
    t.push_back({name, "Movement", "0", &make_operation<ViewOperation>});
  for (const char* name : {"Resize", "Upsample"})
    t.push_back({name, "Movement", "0 nearest, 7 per output linear, 31 cubic", &make_operation<ResizeOperation>});
  const auto moves = [&](const char* name, auto make) { t.push_back({name, "Movement", "0", make}); };
  moves("Transpose", &make_operation<TransposeOperation>);
  moves("Concat", &make_operation<ConcatOperation>);
  moves("Split", &make_operation<SplitOperation>);
  moves("Slice", &make_operation<SliceOperation>);
  moves("Gather", &make_operation<GatherOperation>);
  moves("GatherElements", &make_operation<GatherElementsOperation>);
  moves("GatherND", &make_operation<GatherNdOperation>);
  moves("ScatterElements", &make_operation<ScatterOperation>);
  moves("Scatter", &make_operation<ScatterOperation>);
  moves("ScatterND", &make_operation<ScatterOperation>);
  moves("Expand", &make_operation<ExpandOperation>);
  moves("Tile", &make_operation<TileOperation>);
  moves("Shape", &make_operation<ShapeOperation>);
  moves("Size", &make_operation<ShapeOperation>);
  moves("ConstantOfShape", &make_operation<FillOperation>);
  moves("EyeLike", &make_operation<FillOperation>);
  moves("Range", &make_operation<RangeOperation>);
  moves("OneHot", &make_operation<OneHotOperation>);
  moves("Pad", &make_operation<PadOperation>);
  moves("DepthToSpace", &make_operation<SpaceDepthOperation>);
  moves("SpaceToDepth", &make_operation<SpaceDepthOperation>);
  moves("Trilu", &make_operation<TriluOperation>);
  std::ranges::sort(t, {}, &OperatorInfo::name);
  return t;
}

}  // namespace detail

OFFRAMP_SEPARABLE OFFRAMP_COLD std::span<const OperatorInfo> operator_table() {
  static const std::vector<OperatorInfo> table = detail::make_operator_table();
  return table;
}

OFFRAMP_SEPARABLE OFFRAMP_COLD const OperatorInfo* find_operator(std::string_view name) {
  const auto table = operator_table();
  const auto i = std::ranges::lower_bound(table, name, {}, &OperatorInfo::name);
  return i != table.end() && i->name == name ? &*i : nullptr;
}

OFFRAMP_SEPARABLE OFFRAMP_COLD std::unique_ptr<Operation> Operators::make(const Node& node, Index opset) const {
  if (is_own(node)) return own_.at(node.op)(node, opset);
  if (node.domain == fused_domain) {
    if (node.op == "Attention") return std::make_unique<AttentionOperation>(node, opset);
    if (node.op == "GridPool") return std::make_unique<GridPoolOperation>(node, opset);
    if (node.op == "PaddedSlice") return std::make_unique<PadOperation>(node, opset);
    if (node.op == "IntegerConv") return std::make_unique<IntegerConvOperation>(node, opset);
    if (node.op == "IntegerDense") return std::make_unique<IntegerDenseOperation>(node, opset);
    if (node.op == "IntegerAdd") return std::make_unique<IntegerAddOperation>(node, opset);
    if (node.op == "IntegerGlobalPool") return std::make_unique<IntegerGlobalPoolOperation>(node, opset);
  }
  const OperatorInfo* info = is_standard(node) ? find_operator(node.op) : nullptr;
  if (!info) raise(Error("the operator is not supported", node.name, node.op, ""));
  return info->make(node, opset);
}

}  // namespace offramp
