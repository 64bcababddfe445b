// A program whose units only declare what separate.cpp defines: a network is loaded, run, written and read again, and
// an operator of the program's own runs beside the built-in ones.
#include "offramp/offramp.hpp"

offramp::Index from_the_other_unit();

struct Halve {
  explicit Halve(const offramp::Node&) {}
  offramp::Shape output_shape(std::span<const offramp::TensorView> in) const { return in[0].shape; }
  void forward(std::span<const offramp::TensorView> in, const offramp::TensorView& out) const noexcept {
    for (offramp::Index i = 0; i < out.count(); ++i) out.as<float>()[i] = in[0].as<float>()[i] / 2;
  }
};

int main(int argc, char** argv) {
  using namespace offramp;
  if (argc != 2 || from_the_other_unit() != 6) return 2;
  const Model model = load_onnx(argv[1]);
  const std::vector<float> sample(static_cast<std::size_t>(model.sample_size()), 0.5f);
  auto session = make_session(model);
  const std::string file = save_onnx(model);
  auto again = make_session(load_onnx(std::as_bytes(std::span(file))));
  const Prediction a = session.predict(sample)[0], b = again.predict(sample)[0];
  if (a.label != b.label || a.confidence != b.confidence) return 3;

  ModelOptions options;
  options.operators.add<Halve>("Relu");
  return Model(model.graph(), options).run(std::vector<Tensor>{Tensor(DType::f32, {1, 1, 28, 28})}).size() ==
                 model.outputs().size()
             ? 0
             : 4;
}
