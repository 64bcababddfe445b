// RTNeural's side of small_networks. Built once for each of its backends as a library of its own, with flags that the
// backend likes best.
#include <RTNeural/RTNeural.h>

#include <utility>

#include "small_networks.hpp"

namespace {

namespace shape = small_networks;
using Rows = std::vector<std::vector<float>>;

// Rows of gates in RTNeural's order, [columns][gates * outputs], of [gates][outputs][columns] in ONNX's.
Rows by_gate(const std::vector<float>& w, const std::vector<int>& order, int outputs, int columns) {
  Rows rows(static_cast<std::size_t>(columns));
  for (int c = 0; c < columns; ++c)
    for (const int gate : order)
      for (int o = 0; o < outputs; ++o)
        rows[static_cast<std::size_t>(c)].push_back(w[static_cast<std::size_t>((gate * outputs + o) * columns + c)]);
  return rows;
}

template <class Layer>
struct Of;
template <int In, int Out, bool Tanh>
struct Of<shape::Dense<In, Out, Tanh>> {
  using Type = RTNeural::DenseT<float, In, Out>;
  static void set(Type& layer, unsigned seed) {
    const auto w = shape::numbers(In * Out, seed), b = shape::numbers(Out, seed + 1);
    Rows rows;
    for (int o = 0; o < Out; ++o) rows.emplace_back(w.begin() + o * In, w.begin() + (o + 1) * In);
    layer.setWeights(rows);
    layer.setBias(b.data());
  }
};
template <int In, int Out, int Kernel, int Dilation, bool Tanh>
struct Of<shape::Conv1d<In, Out, Kernel, Dilation, Tanh>> {
  using Type = RTNeural::Conv1DT<float, In, Out, Kernel, Dilation>;
  static void set(Type& layer, unsigned seed) {
    const auto w = shape::numbers(In * Out * Kernel, seed), b = shape::numbers(Out, seed + 1);
    std::vector<Rows> by_output;
    for (int o = 0; o < Out; ++o) {
      Rows rows;
      for (int i = 0; i < In; ++i) {
        const auto from = w.begin() + (o * In + i) * Kernel;
        rows.emplace_back(std::make_reverse_iterator(from + Kernel), std::make_reverse_iterator(from));  // newest first
      }
      by_output.push_back(rows);
    }
    layer.setWeights(by_output);
    layer.setBias(b);
  }
};
template <int In, int Hidden>
struct Of<shape::Gru<In, Hidden>> {
  using Type = RTNeural::GRULayerT<float, In, Hidden>;
  static void set(Type& layer, unsigned seed) {
    const auto b = shape::numbers(6 * Hidden, seed + 2);
    layer.setWVals(by_gate(shape::numbers(3 * Hidden * In, seed), {0, 1, 2}, Hidden, In));
    layer.setUVals(by_gate(shape::numbers(3 * Hidden * Hidden, seed + 1), {0, 1, 2}, Hidden, Hidden));
    layer.setBVals(Rows{{b.begin(), b.begin() + 3 * Hidden}, {b.begin() + 3 * Hidden, b.end()}});
  }
};
template <int In, int Hidden>
struct Of<shape::Lstm<In, Hidden>> {
  using Type = RTNeural::LSTMLayerT<float, In, Hidden>;
  static void set(Type& layer, unsigned seed) {
    auto b = shape::numbers(8 * Hidden, seed + 2);
    for (std::size_t i = 0; i < b.size() / 2; ++i) b[i] += b[b.size() / 2 + i];
    b.resize(b.size() / 2);
    layer.setWVals(by_gate(shape::numbers(4 * Hidden * In, seed), {0, 2, 3, 1}, Hidden, In));
    layer.setUVals(by_gate(shape::numbers(4 * Hidden * Hidden, seed + 1), {0, 2, 3, 1}, Hidden, Hidden));
    layer.setBVals(by_gate(b, {0, 2, 3, 1}, Hidden, 1)[0]);
  }
};

// RTNeural's activations are layers: a list of its layers, with where the networks' own stand among them.
template <class... Done>
struct Chain {
  template <class Layer>
  static constexpr bool tanh = requires {
    requires Layer::tanh;
  };
  template <class Layer>
  using Then =
      std::conditional_t<tanh<Layer>,
                         Chain<Done..., typename Of<Layer>::Type, RTNeural::TanhActivationT<float, Layer::outputs>>,
                         Chain<Done..., typename Of<Layer>::Type>>;
  template <int In, int Out>
  using Model = RTNeural::ModelT<float, In, Out, Done...>;
  static constexpr std::size_t size = sizeof...(Done);
};
template <class Done, class... Layers>
struct Joined {
  using Type = Done;
};
template <class Done, class First, class... Rest>
struct Joined<Done, First, Rest...> : Joined<typename Done::template Then<First>, Rest...> {};

template <class Model, std::size_t At, class First, class... Rest>
void set_layers(Model& model, unsigned seed) {
  Of<First>::set(model.template get<At>(), seed);
  if constexpr (sizeof...(Rest) > 0) set_layers<Model, At + Chain<>::Then<First>::size, Rest...>(model, seed + 10);
}

}  // namespace

extern "C" void OFFRAMP_CONTENDERS(shape::Contenders& all) {
  all = shape::make_contenders([]<class First, class... Rest>(const shape::Network<First, Rest...>&) {
    constexpr int outputs = std::tuple_element_t<sizeof...(Rest), std::tuple<First, Rest...>>::outputs;
    using Model = typename Joined<Chain<>, First, Rest...>::Type::template Model<First::inputs, outputs>;
    auto model = std::make_unique<Model>();
    set_layers<Model, 0, First, Rest...>(*model, 1);
    model->reset();
    auto step = [model = std::move(model)](const float* in) {
      model->forward(in);
      return model->getOutputs();
    };
    return std::unique_ptr<shape::Contender>(
        std::make_unique<shape::SteppingContender<First::inputs, outputs, decltype(step)>>(std::move(step)));
  });
}
