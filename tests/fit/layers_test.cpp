// Gradients of every trainable layer against finite differences, and trained heads against what they are written as.
#include "offramp/fit/layers.hpp"

#include <gtest/gtest.h>

#include <memory>

#include "graphs.hpp"
#include "offramp/exit/designs.hpp"
#include "offramp/fit/head.hpp"
#include "offramp/graph/attach.hpp"
#include "offramp/graph/model.hpp"

namespace offramp::fit {
namespace {

Map random_map(Index n, Index h, Index w, Index c, unsigned seed) {
  Map m;
  m.resize(n, h, w, c);
  m.values = test::random_floats(n * h * w * c, seed);
  return m;
}

// The loss is a random projection of the output, whose gradient is known.
double projected(Layer& layer, const Map& in, const std::vector<float>& direction) {
  Map out;
  layer.forward(in, out, true);
  double sum = 0;
  for (std::size_t i = 0; i < out.values.size(); ++i)
    sum += static_cast<double>(out.values[i]) * static_cast<double>(direction[i]);
  return sum;
}

void check_gradients(Layer& layer, Map in, const std::string& what) {
  Map out;
  layer.forward(in, out, true);
  Map d_out = out;
  d_out.values = test::random_floats(static_cast<Index>(out.values.size()), 77);
  Map d_in, used_up = d_out;
  layer.backward(in, out, used_up, &d_in);
  ASSERT_EQ(d_in.values.size(), in.values.size()) << what;
  constexpr float step = 2e-3f;
  const auto slope = [&](float& x) {
    const float at = x;
    x = at + step;
    const double above = projected(layer, in, d_out.values);
    x = at - step;
    const double below = projected(layer, in, d_out.values);
    x = at;
    return (above - below) / (2 * static_cast<double>(step));
  };
  // Kinks of ReLU and maximum make single differences wrong: most must agree, and none be far off on average.
  Index checked = 0, close = 0;
  const auto compare = [&](double expected, double found) {
    ++checked;
    close += std::fabs(expected - found) < 0.04 + 0.04 * std::fabs(expected);
  };
  for (std::size_t i = 0; i < in.values.size(); i += 1 + in.values.size() / 60)
    compare(slope(in.values[i]), static_cast<double>(d_in.values[i]));
  EXPECT_GE(close, checked * 9 / 10) << what << ": by the input, " << close << " of " << checked;
  std::size_t which = 0;
  for (Parameter* p : layer.parameters()) {
    checked = close = 0;
    const std::vector<float> gradient = p->gradient;
    for (std::size_t i = 0; i < p->value.size(); i += 1 + p->value.size() / 40)
      compare(slope(p->value[i]), static_cast<double>(gradient[i]));
    EXPECT_GE(close, checked * 9 / 10) << what << ": by parameter " << which << ", " << close << " of " << checked;
    ++which;
  }
}

TEST(TrainableLayers, GradientsEqualFiniteDifferences) {
  std::mt19937_64 random(3);
  for (const Index kernel : {1, 3}) {
    ConvLayer layer(5, 7, kernel, random);
    check_gradients(layer, random_map(3, 7, 6, 5, 1), "conv " + std::to_string(kernel));
  }
  DepthwiseLayer depthwise(19, random);
  check_gradients(depthwise, random_map(2, 7, 5, 19, 2), "depthwise");
  DenseLayer linear(21, 10, false, random), hidden(21, 18, true, random);
  check_gradients(linear, random_map(9, 1, 1, 21, 3), "dense");
  check_gradients(hidden, random_map(9, 1, 1, 21, 4), "dense, ReLU");
  AverageLayer means(2);
  check_gradients(means, random_map(2, 6, 8, 5, 5), "means of cells");
  check_gradients(means, random_map(2, 7, 5, 5, 5), "means of cells, smaller ones at the edges");
  PoolLayer average(HeadPool{{1, 2, 3}, true, false, false}), maximum(HeadPool{{1, 2}, false, true, false}),
      token(HeadPool{{1}, true, true, true});
  check_gradients(average, random_map(2, 7, 6, 5, 5), "average");
  check_gradients(maximum, random_map(2, 7, 6, 17, 6), "maximum");
  check_gradients(token, random_map(2, 1, 6, 5, 7), "token");
}

TEST(TrainableLayers, LossGradientEqualsFiniteDifferences) {
  Targets t;
  t.n = 4, t.classes = 5, t.temperature = 2, t.label_share = 0.3f;
  t.labels = {0, 4, 2, 2};
  soften(test::random_floats(20, 8), 5, 2, t.soft);
  const std::vector<float> weights{1, 0.2f, 1, 0.5f};
  std::vector<float> scores = test::random_floats(20, 9, -2, 2), gradient, unused;
  distillation_loss(scores, t, weights, gradient);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const float at = scores[i];
    scores[i] = at + 1e-2f;
    const double above = distillation_loss(scores, t, weights, unused);
    scores[i] = at - 1e-2f;
    const double below = distillation_loss(scores, t, weights, unused);
    scores[i] = at;
    EXPECT_NEAR((above - below) / 2e-2, static_cast<double>(gradient[i]), 1e-4);
  }
}

// A head learns, and what it is written as gives the scores that it had in training's last look.
TEST(TrainableHead, LearnsAndIsWrittenAsItIs) {
  const MapShape shapes[] = {
      {8, 12, 12, false}, {8, 7, 9, false}, {12, 1, 9, true}, {20, 1, 1, false}, {6, 1, 15, false}};
  for (const MapShape& s : shapes) {
    for (const HeadDesign& design : head_designs(s)) {
      TrainableHead head(design, s, 3, 5);
      const Index n = 48;
      const Map in = random_map(n, s.height, s.width, s.channels, 11);
      Targets t;
      t.n = n, t.classes = 3;
      std::vector<float> wanted;
      for (Index i = 0; i < n; ++i) {  // the class is written into the first three channels
        float mean[3] = {};
        for (Index p = 0; p < s.positions(); ++p) {
          for (Index c = 0; c < 3; ++c)
            mean[c] += in.values[static_cast<std::size_t>((i * s.positions() + p) * s.channels + c)];
        }
        t.answers.push_back(std::max_element(mean, mean + 3) - mean);
        for (Index c = 0; c < 3; ++c) wanted.push_back(c == t.answers.back() ? 4.0f : 0.0f);
      }
      soften(wanted, 3, 1, t.soft);
      const std::vector<float> weights(static_cast<std::size_t>(n), 1.0f);
      double first = 0, last = 0;
      for (int step = 0; step < 60; ++step) {
        head.forward_features(in, true);
        head.forward_scores(nullptr, true);
        last = head.learn(in, t, weights, 1e-2f);
        if (step == 0) first = last;
      }
      if (!design.class_means) {
        EXPECT_LT(last, 0.7 * first) << design.name;
      }
      head.forward_features(in, false);
      const Map scores = head.forward_scores(nullptr, false);

      test::Builder b;
      b.g.opset = 13;
      std::vector<Index> sizes{dynamic};
      if (s.tokens) {
        sizes.insert(sizes.end(), {s.width, s.channels});
      } else {
        sizes.push_back(s.channels);
        if (s.positions() > 1 && s.height > 1) sizes.push_back(s.height);
        if (s.positions() > 1) sizes.push_back(s.width);
      }
      const ValueId x = b.input("input", sizes);
      const ValueId out = append_head(b.g, x, head.write(), "head");
      const Model model(with_outputs(b.g, {out}));
      ASSERT_TRUE(model.has_plan()) << model.why_not();
      Shape shape{n};
      for (std::size_t i = 1; i < sizes.size(); ++i) shape.push_back(sizes[i]);
      std::vector<float> plain(in.values.size());
      for (Index i = 0; i < n; ++i) {
        if (s.tokens) {
          std::copy_n(in.values.data() + i * s.count(), s.count(), plain.data() + i * s.count());
        } else {
          kernel::transpose(in.values.data() + i * s.count(), s.positions(), s.channels, plain.data() + i * s.count());
        }
      }
      const std::vector<Tensor> inputs{Tensor::of<float>(shape, plain)};
      for (const auto& results : {model.run(inputs), model.run_graph(inputs)}) {
        const auto values = results[0].values<float>();
        ASSERT_EQ(values.size(), scores.values.size());
        for (std::size_t i = 0; i < values.size(); ++i)
          ASSERT_NEAR(values[i], scores.values[i], 1e-3f * (1 + std::fabs(scores.values[i]))) << design.name;
      }
    }
  }
}

TEST(TrainableHead, AveragesWhatItWasAndGivesWayToIt) {
  const MapShape s{6, 5, 5, false};
  for (const HeadDesign& design : head_designs(s)) {
    TrainableHead head(design, s, 3, 5);
    TrainableHead::Weights average, first, last;
    head.average_into(first, 1);
    head.average_into(average, 1);
    EXPECT_EQ(average, first);
    for (Parameter* p : head.parameters()) {
      for (float& v : p->value) v += 1;
    }
    head.average_into(last, 1);
    head.average_into(average, 0.25f);
    const Map in = random_map(4, 5, 5, 6, 1);
    const auto scores = [&] {
      head.forward_features(in, false);
      return head.forward_scores(nullptr, false).values;
    };
    const auto now = scores();
    const auto kept = average;
    head.swap(average);
    EXPECT_EQ(average, last);
    const bool learns = !design.class_means || !design.convolutions.empty();
    EXPECT_EQ(scores() == now, !learns) << design.name;
    head.swap(average);
    EXPECT_EQ(scores(), now);
    EXPECT_EQ(average, kept);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      for (std::size_t j = 0; j < kept[i].size(); ++j)
        EXPECT_FLOAT_EQ(kept[i][j], first[i][j] + 0.25f * (last[i][j] - first[i][j])) << design.name;
    }
  }
}

TEST(TrainableHead, ReadingAnEarlierExitChangesNothingUntilItLearns) {
  const MapShape s{8, 1, 1, false};
  HeadDesign design;
  design.name = "linear";
  TrainableHead head(design, s, 3, 1);
  const Map in = random_map(5, 1, 1, 8, 2);
  Map earlier = random_map(5, 1, 1, 3, 3);
  head.forward_features(in, false);
  const Map before = head.forward_scores(nullptr, false);
  head.read_earlier();
  head.forward_features(in, false);
  const Map after = head.forward_scores(&earlier, false);
  EXPECT_EQ(before.values, after.values);
  EXPECT_TRUE(head.write().reads_earlier);
}

}  // namespace
}  // namespace offramp::fit
