// A user's own ONNX operator: a plain type, registered with the loader under its op_type.
#include <cstdio>
#include <vector>

#include "offramp/offramp.hpp"

struct Swing {  // y = x * factor, an operator that no standard has
  float factor;
  explicit Swing(const offramp::Node& node) : factor(node.real("factor", 1)) {}
  offramp::Shape output_shape(std::span<const offramp::TensorView> in) const { return in[0].shape; }
  void forward(std::span<const offramp::TensorView> in, const offramp::TensorView& out) const noexcept {
    for (offramp::Index i = 0; i < in[0].count(); ++i) out.as<float>()[i] = factor * in[0].f32()[i];
  }
};

int main() {
  using namespace offramp;
  Graph g;  // as a file would give it
  g.inputs = {g.add_value("x")};
  g[g.inputs[0]].type = DType::f32;
  g[g.inputs[0]].has_shape = true;
  g[g.inputs[0]].sizes = {dynamic, 3};
  Node n;
  n.op = "Swing";
  n.domain = "my.company";
  n.inputs = g.inputs;
  n.outputs = g.outputs = {g.add_value("y")};
  n.set("factor", 2.5f);
  g.nodes.push_back(n);
  g[g.outputs[0]].type = DType::f32;
  const std::string file = onnx::write(g);

  ModelOptions options;
  options.operators.add<Swing>("Swing");
  const Model model = load_onnx(std::as_bytes(std::span(file)), options);
  const std::vector<Tensor> in{Tensor::of<float>({1, 3}, std::vector<float>{1, 2, 3})};
  const Tensor y = model.run(in)[0];
  std::printf("%g %g %g\n", static_cast<double>(y.values<float>()[0]), static_cast<double>(y.values<float>()[1]),
              static_cast<double>(y.values<float>()[2]));
  return y.values<float>()[2] == 7.5f ? 0 : 1;
}
