// Networks in training: what they compute, their gradients, and that they learn.
#include "offramp/fit/network.hpp"

#include <gtest/gtest.h>

#include "graphs.hpp"
#include "offramp/compress/observe.hpp"
#include "offramp/fit/distil.hpp"

namespace offramp::fit {
namespace {

Graph named(Graph g) {
  g = simplified(test::scaled(std::move(g)), {});
  offramp::detail::name_nodes(g);
  return g;
}

// A network that has every operator which can be trained through.
Graph everything() {
  test::Builder b;
  b.g.opset = 13;
  const std::vector<Index> pads{1, 1, 1, 1}, two{2, 2};
  auto x = b.input("input", {dynamic, 3, 9, 8});
  x = b.node("Div", {b.node("Sub", {x, b.constant({1, 3, 1, 1}, 1)}),
                     b.constant(Tensor::of<float>({3, 1, 1}, std::vector<float>{0.5f, 0.8f, 1.2f}))});
  x = b.node("Relu", {b.node("Conv", {x, b.constant({6, 3, 3, 3}, 2), b.constant({6}, 3)}, {{"pads", pads}})});
  const auto gate =
      b.node("Sigmoid", {b.node("Conv", {b.node("GlobalAveragePool", {x}), b.constant({6, 6, 1, 1}, 4)})});
  x = b.node("Mul", {x, gate});
  x = b.node("MaxPool", {x}, {{"kernel_shape", std::vector<Index>{3, 3}}, {"strides", two}, {"pads", pads}});
  const auto wide = b.node("Conv", {x, b.constant({10, 6, 3, 3}, 5), b.constant({10}, 6)}, {{"pads", pads}});
  const auto shortcut =
      b.node("Pad", {x, b.constant(Tensor::of<Index>({8}, std::vector<Index>{0, 2, 0, 0, 0, 2, 0, 0}))});
  x = b.node("Clip", {b.node("Add", {wide, shortcut}), b.constant(Tensor::of<float>({}, std::vector<float>{-0.5f})),
                      b.constant(Tensor::of<float>({}, std::vector<float>{6.0f}))});
  x = b.node("Conv", {x, b.constant({10, 1, 3, 3}, 7), b.constant({10}, 8)},
             {{"pads", pads}, {"group", Index{10}}, {"strides", two}});
  x = b.node("Concat", {x, b.node("HardSwish", {x})}, {{"axis", Index{1}}});
  x = b.node("AveragePool", {x}, {{"kernel_shape", two}, {"pads", std::vector<Index>{0, 0, 1, 1}}});
  x = b.node("Slice", {x, b.constant(Tensor::of<Index>({1}, std::vector<Index>{1})),
                       b.constant(Tensor::of<Index>({1}, std::vector<Index>{3})),
                       b.constant(Tensor::of<Index>({1}, std::vector<Index>{3}))});
  x = b.node("Flatten", {x}, {{"axis", Index{1}}});
  const Inference shapes = infer_batch(b.g, {}, 2);
  const Index width = shapes.views[static_cast<std::size_t>(x)].shape[1];
  x = b.node("Tanh", {b.node("Gemm", {x, b.constant({7, width}, 9), b.constant({7}, 10)}, {{"transB", Index{1}}})});
  b.output(b.node("Add", {b.node("MatMul", {x, b.constant({7, 4}, 11)}), b.constant({4}, 12)}), "logits");
  return b.g;
}

TEST(TrainableNetwork, ComputesWhatTheModelComputes) {
  for (const Graph& plain : {test::residual_network(), everything()}) {
    const Graph g = named(plain);
    const TrainableNetwork network(g, g.outputs.back(), {});
    const Model model(g);
    Pass p = network.make_pass();
    const auto x = test::random_floats(3 * network.sample_size(), 5);
    Shape shape{3};
    for (std::size_t i = 1; i < g[g.inputs[0]].sizes.size(); ++i) shape.push_back(g[g.inputs[0]].sizes[i]);
    const std::vector<Tensor> in{Tensor::of<float>(shape, x)};
    const auto out = model.run(in);
    const auto expected = out.back().values<float>();
    for (std::size_t i = 0; i < 3; ++i) {
      const auto size = static_cast<std::size_t>(network.sample_size()),
                 classes = static_cast<std::size_t>(network.classes());
      const auto scores = network.forward(std::span<const float>(x).subspan(i * size, size), p);
      for (std::size_t c = 0; c < classes; ++c) EXPECT_NEAR(scores[c], expected[i * classes + c], 1e-4f);
    }
  }
}

// How many weights of a parameter were looked at, and of how many the gradient is near the difference quotient.
template <class F>
std::pair<Index, Index> near_differences(TrainableNetwork& network, const Pass& p, std::size_t parameter,
                                         std::size_t looks, F&& projected) {
  auto& value = network.parameters()[parameter].value;
  Index seen = 0, near = 0;
  for (std::size_t i = 0; i < value.size(); i += 1 + value.size() / looks) {
    const float at = value[i];
    constexpr float step = 2e-3f;
    value[i] = at + step;
    const double above = projected();
    value[i] = at - step;
    const double below = projected();
    value[i] = at;
    const double expected = (above - below) / (2 * static_cast<double>(step));
    ++seen;
    near += std::fabs(expected - static_cast<double>(p.parameters[parameter][i])) < 0.02 + 0.03 * std::fabs(expected);
  }
  return {seen, near};
}

TEST(TrainableNetwork, GradientsEqualFiniteDifferences) {
  for (const Graph& plain : {test::residual_network(), everything()}) {
    const Graph g = named(plain);
    TrainableNetwork network(g, g.outputs.back(), {});
    Pass p = network.make_pass();
    const auto x = test::random_floats(network.sample_size(), 5);
    const auto direction = test::random_floats(network.classes(), 6);
    const auto projected = [&] {
      network.pack();
      const auto scores = network.forward(x, p);
      double sum = 0;
      for (std::size_t i = 0; i < scores.size(); ++i)
        sum += static_cast<double>(scores[i]) * static_cast<double>(direction[i]);
      return sum;
    };
    projected();
    network.backward(direction, p);
    // Kinks make single differences wrong: most must agree.
    Index checked = 0, close = 0;
    for (std::size_t k = 0; k < network.parameters().size(); ++k) {
      const auto [here, fits] = near_differences(network, p, k, 25, projected);
      EXPECT_GE(2 * fits, here) << "parameter " << k;
      checked += here, close += fits;
    }
    EXPECT_GE(close, checked * 93 / 100) << close << " of " << checked;
  }
}

// A loss at a value inside: its gradient goes through everything in front and nothing behind.
TEST(TrainableNetwork, GradientsByInnerValuesAreHandedOn) {
  const Graph g = named(test::residual_network());
  TrainableNetwork network(g, g.outputs.back(), {});
  Pass p = network.make_pass();
  const auto x = test::random_floats(network.sample_size(), 5);
  const auto sum = std::find_if(g.nodes.begin(), g.nodes.end(), [](const Node& n) { return n.op == "Add"; });
  ASSERT_NE(sum, g.nodes.end());
  const ValueId v = sum->outputs[0];
  network.forward(x, p);
  const auto weight = test::random_floats(static_cast<Index>(network.value(v, p).size()), 6);
  const std::vector<float> nothing(static_cast<std::size_t>(network.classes()), 0.0f);
  network.backward(nothing, p, [&] {
    for (std::size_t i = 0; i < weight.size(); ++i) network.gradient(v, p)[i] += weight[i];
  });
  const auto projected = [&] {
    network.pack();
    network.forward(x, p);
    double d = 0;
    const auto found = network.value(v, p);
    for (std::size_t i = 0; i < weight.size(); ++i) d += static_cast<double>(found[i] * weight[i]);
    return d;
  };
  Index checked = 0, close = 0;
  for (std::size_t k = 0; k < network.parameters().size(); ++k) {
    const auto [here, fits] = near_differences(network, p, k, 10, projected);
    checked += here, close += fits;
  }
  EXPECT_GE(close, checked * 93 / 100) << close << " of " << checked;
}

TEST(TrainableNetwork, NamesWhatItCannotTrainThrough) {
  test::Builder b;
  b.g.opset = 13;
  auto x = b.input("input", {dynamic, 8});
  x = b.node("Gemm", {x, b.constant({8, 8}, 1), b.constant({8}, 2)});
  b.output(b.node("ReduceProd", {x}, {{"axes", std::vector<Index>{1}}}), "logits");
  const Graph g = named(b.g);
  try {
    const TrainableNetwork network(g, g.outputs.back(), {});
    FAIL() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("ReduceProd"), std::string::npos) << e.what();
  }
}

// A network with disturbed weights finds back to the answers of the one it was made from; threads change nothing.
TEST(Distil, LearnsTheTeachersAnswers) {
  const Graph teacher = named(test::residual_network());
  Graph student = teacher;
  for (Node& n : student.nodes) {
    if (n.op != "Conv") continue;
    const Tensor w = student[n.inputs[1]].constant;
    Tensor changed(DType::f32, w.shape());
    const auto noise = test::random_floats(w.count(), 3, 0.6f, 1.2f);
    for (Index i = 0; i < w.count(); ++i)
      static_cast<float*>(changed.mutable_data())[i] = w.view().f32()[i] * noise[static_cast<std::size_t>(i)];
    n.inputs[1] = student.add_constant(n.name + "_disturbed", changed);
  }
  const auto x = test::random_floats(400 * 192, 8, -1, 2);
  DistilOptions o;
  o.epochs = 4;
  o.rate = 3e-3f;
  o.augment = false;
  std::vector<std::vector<float>> answers;
  for (const int threads : {1, 2}) {
    o.threads = threads;
    Index calls = 0;
    const DistilResult r = distil(student, student.outputs.back(), teacher, teacher.outputs.back(), x, {}, o,
                                  [&](Index, Index) { ++calls; });
    EXPECT_TRUE(r.better);
    EXPECT_EQ(calls, 4 * ((r.trained + o.batch - 1) / o.batch));
    const std::vector<Tensor> in{test::random_tensor({32, 3, 8, 8}, 9)};
    const auto error = [&](const Graph& g) {
      const auto whole = Model(teacher).run(in), found = Model(g).run(in);
      const auto a = whole.back().values<float>(), b = found.back().values<float>();
      double d = 0;
      for (std::size_t i = 0; i < a.size(); ++i) d += static_cast<double>((a[i] - b[i]) * (a[i] - b[i]));
      return d;
    };
    EXPECT_LT(error(r.graph), 0.3 * error(student));
    const auto out = Model(r.graph).run(in);
    const auto v = out.back().values<float>();
    answers.emplace_back(v.begin(), v.end());
  }
  EXPECT_EQ(answers[0], answers[1]);
}

// What stands between the layers comes nearer to the teacher's where it is asked to.
TEST(Distil, HintsBringInnerValuesNearer) {
  const Graph teacher = named(test::residual_network());
  Graph student = teacher;
  for (Node& n : student.nodes) {
    if (n.op != "Conv") continue;
    n.inputs[1] = student.add_constant(n.name + "_changed", test::random_tensor(student[n.inputs[1]].constant.shape(),
                                                                                static_cast<unsigned>(n.inputs[1])));
  }
  const ValueId answer = student.outputs.back();
  const std::vector<Hint> hints = shared_places(student, answer, teacher, 4, {});
  ASSERT_FALSE(hints.empty());
  const auto x = test::random_floats(400 * 192, 8, -1, 2);
  const auto distance = [&](const Graph& g) {
    double d = 0;
    std::vector<Tensor> from, to;
    const std::vector<Tensor> in{test::random_tensor({16, 3, 8, 8}, 9)};
    for (const Hint& h : hints) {
      const std::vector<ValueId> a{h.student}, b{h.teacher.value};
      const Tensor found = Model(with_outputs(g, a)).run(in)[0], goal = Model(with_outputs(teacher, b)).run(in)[0];
      double difference = 0, power = 0;
      for (std::size_t i = 0; i < goal.values<float>().size(); ++i) {
        difference += std::pow(static_cast<double>(found.values<float>()[i] - goal.values<float>()[i]), 2);
        power += std::pow(static_cast<double>(goal.values<float>()[i]), 2);
      }
      d += difference / power;
    }
    return d;
  };
  DistilOptions o;
  o.epochs = 4;
  o.rate = 3e-3f;
  o.augment = false;
  const auto learned = [&](float share) {
    o.hints = share;
    return distil(student, answer, teacher, teacher.outputs.back(), x, {}, o, [](Index, Index) {});
  };
  EXPECT_LT(distance(learned(1).graph), 0.7 * distance(learned(0).graph));
}

}  // namespace
}  // namespace offramp::fit
