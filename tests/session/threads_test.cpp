// One model shared by eight threads, each with its own session, gives bitwise the results of one thread.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "graphs.hpp"
#include "offramp/graph/model.hpp"
#include "offramp/policy/max_probability.hpp"
#include "offramp/session/session.hpp"

namespace offramp {
namespace {

struct Answer {
  Index label, exit;
  std::vector<float> probabilities;
  bool operator==(const Answer& o) const {
    return label == o.label && exit == o.exit &&
           std::memcmp(probabilities.data(), o.probabilities.data(), probabilities.size() * sizeof(float)) == 0;
  }
};

TEST(Threads, OneModelEightThreadsBitwiseEqual) {
  const Model model(test::residual_network());
  constexpr Index count = 64, size = 192;
  const auto x = test::random_floats(count * size, 9, -2, 2);
  const auto answers = [&](Index batch) {
    Session s(model, MaxProbability{0.4f}, batch);
    std::vector<Answer> all;
    for (Index i = 0; i < count; i += batch) {
      for (const Prediction& p : s.predict(
               std::span(x).subspan(static_cast<std::size_t>(i * size), static_cast<std::size_t>(batch * size)))) {
        all.push_back({p.label, p.exit, {p.probabilities.begin(), p.probabilities.end()}});
      }
    }
    return all;
  };
  for (const Index batch : {1, 16}) {
    const auto expected = answers(batch);
    std::vector<std::vector<Answer>> found(8);
    {
      std::vector<std::jthread> threads;
      for (auto& f : found)
        threads.emplace_back([&f, &answers, batch] {
          for (int round = 0; round < 3; ++round) f = answers(batch);
        });
    }
    for (const auto& f : found) EXPECT_TRUE(f == expected);
  }
}

// Images large enough for threads to share the copying: the turn to channels last and the first layer's padding.
TEST(Threads, CopiesOfLargeImagesAreSplit) {
  test::Builder b;
  auto x = b.input("input", {dynamic, 3, 131, 133});
  b.output(b.node("Transpose", {x}, {{"perm", std::vector<Index>{0, 3, 1, 2}}}), "turned");
  x = b.node("Conv", {x, b.constant({8, 3, 7, 7}, 1)},
             {{"strides", std::vector<Index>{2, 2}}, {"pads", std::vector<Index>{3, 2, 1, 3}}});
  b.output(b.node("Relu", {x}), "map");
  for (const Index threads : {1, 2, 3}) {
    ModelOptions options;
    if (threads > 1) options.pool = std::make_shared<ThreadPool>(threads);
    const Model m(b.g, options);
    for (const Index batch : {1, 4}) {
      const std::vector<Tensor> in{test::random_tensor({batch, 3, 131, 133}, 5)};
      const auto out = m.run(in), plain = m.run_graph(in);
      const float *from = in[0].view().f32(), *turned = out[0].view().f32();
      for (Index n = 0; n < batch; ++n) {
        for (Index w = 0; w < 133; ++w) {
          for (Index c = 0; c < 3; ++c) {
            for (Index h = 0; h < 131; ++h)
              ASSERT_EQ(*turned++, from[((n * 3 + c) * 131 + h) * 133 + w]) << threads << batch;
          }
        }
      }
      for (Index i = 0; i < out[1].count(); ++i)
        ASSERT_NEAR(out[1].view().f32()[i], plain[1].view().f32()[i], 1e-4f) << threads << batch << i;
    }
  }
}

// Sessions that share a pool of threads for their operations.
TEST(Threads, OnePoolManySessionsBitwiseEqual) {
  ModelOptions options;
  options.pool = std::make_shared<ThreadPool>(3);
  const Model alone(test::residual_network()), shared(test::residual_network(), options);
  const auto x = test::random_floats(16 * 192, 9, -2, 2);
  const auto answers = [&](const Model& m) {
    std::vector<float> all;
    for (const float threshold : {2.0f, 0.4f}) {  // the whole network, and batches that shrink on the way
      Session s(m, MaxProbability{threshold}, 16);
      for (const Prediction& p : s.predict(x)) all.insert(all.end(), p.probabilities.begin(), p.probabilities.end());
    }
    return all;
  };
  const auto expected = answers(alone);
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) EXPECT_EQ(answers(shared), expected);
    });
  }
}

TEST(Threads, LoadingSideBySide) {
  std::vector<std::jthread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([] { EXPECT_EQ(Model(test::residual_network()).exit_count(), 3); });
}

}  // namespace
}  // namespace offramp
