// Versions are swapped while eight threads serve.
#include "offramp/route/serving.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "graphs.hpp"

namespace offramp {
namespace {

// A network whose answer is `answer` whatever the input.
Model constant_network(Index answer) {
  test::Builder b;
  b.g.opset = 13;
  std::vector<float> bias(4, 0.0f);
  bias[static_cast<std::size_t>(answer)] = 9;
  b.output(b.node("Gemm", {b.input("input", {dynamic, 6}), b.constant(Tensor(DType::f32, {6, 4})),
                           b.constant(Tensor::of<float>({4}, bias))}),
           "logits");
  return Model(b.g);
}

TEST(Serving, ThousandSwapsUnderEightThreads) {
  std::vector<Model> models;
  for (Index a = 0; a < 4; ++a) models.push_back(constant_network(a));
  ModelHandle handle(models[0]);
  std::atomic<bool> done{false};
  std::atomic<long> wrong{0}, served{0};
  std::vector<std::jthread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      ServingSession session(handle, 3);
      const std::vector<float> x(18, 0.5f);
      // Every thread serves once at least, and no request goes without an answer.
      do {
        const auto answers = session.predict(x);
        // Version v is models[v % 4]: one version for the whole batch, the one that the session says.
        const auto expected = static_cast<Index>(session.version() % 4);
        bool right = answers.size() == 3;
        for (const Prediction& p : answers) right = right && p.label == expected;
        wrong += !right;
        ++served;
      } while (!done);
    });
  }
  for (std::size_t i = 1; i <= 1000; ++i) {
    handle.replace(models[i % 4]);
    if (i % 50 == 0) std::this_thread::yield();
  }
  done = true;
  threads.clear();
  EXPECT_EQ(wrong, 0);
  EXPECT_GE(served, 8);
  EXPECT_EQ(handle.version(), 1000u);
}

TEST(Serving, ABadReplacementChangesNothing) {
  ModelHandle handle(constant_network(2));
  ServingSession session(handle);
  const std::vector<float> x(6, 0.5f);
  EXPECT_THROW(handle.replace(Model(test::residual_network())), Error);
  EXPECT_EQ(session.predict(x)[0].label, 2);
  EXPECT_EQ(handle.version(), 0u);
}

TEST(Serving, RegistryAddsReplacesAndRemoves) {
  ModelRegistry registry;
  const auto held = registry.put("a", constant_network(1));
  ServingSession session(*held);
  const std::vector<float> x(6, 0.5f);
  EXPECT_EQ(session.predict(x)[0].label, 1);
  EXPECT_EQ(registry.put("a", constant_network(3)), held);
  EXPECT_EQ(session.predict(x)[0].label, 3);
  EXPECT_EQ(registry.names(), std::vector<std::string>{"a"});
  EXPECT_TRUE(registry.remove("a"));
  EXPECT_FALSE(registry.remove("a"));
  EXPECT_EQ(registry.find("a"), nullptr);
  EXPECT_EQ(session.predict(x)[0].label, 3);  // whoever serves keeps what it has
}

// Of versions that several threads put under a new name at once, one makes the handle and each other replaces it.
TEST(Serving, RegistryLosesNoVersion) {
  for (int round = 0; round < 50; ++round) {
    ModelRegistry registry;
    {
      std::vector<std::jthread> threads;
      for (int i = 0; i < 4; ++i) threads.emplace_back([&registry] { registry.put("a", constant_network(1)); });
    }
    ASSERT_EQ(registry.find("a")->version(), 3U);
  }
}

}  // namespace
}  // namespace offramp
