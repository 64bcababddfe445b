// Batches of more values than the cache holds are walked in parts; nodes that mix samples must see all of them.
#include "offramp/graph/samples.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "batches.hpp"
#include "graphs.hpp"
#include "offramp/graph/model.hpp"

namespace {

using namespace offramp;

constexpr Index batch = 7, width = 400'000;  // 1.6 MB a sample

struct Mixer {
  std::string name;
  std::function<ValueId(test::Builder&, ValueId)> build;
  std::function<float(std::span<const float> x, Index sample, Index i)> expected;
  Index samples = batch;
};

float at(std::span<const float> x, Index sample, Index i) {
  return x[static_cast<std::size_t>(sample * width + i)];
}

Tensor integers(const std::vector<Index>& v) {
  return Tensor::of<Index>({static_cast<Index>(v.size())}, v);
}

TEST(Samples, NodesThatMixThemSeeTheWholeBatch) {
  const std::vector<Mixer> mixers{
      {"CumSum",
       [](test::Builder& b, ValueId x) {
         return b.node("CumSum", {x, b.constant(Tensor::of<Index>({}, std::vector<Index>{0}))});
       },
       [](std::span<const float> x, Index sample, Index i) {
         float sum = 0;
         for (Index s = 0; s <= sample; ++s) sum += std::max(0.0f, at(x, s, i));
         return sum;
       }},
      {"ReduceMax",
       [](test::Builder& b, ValueId x) {
         const ValueId most = b.node("ReduceMax", {x}, {{"axes", std::vector<Index>{0}}, {"keepdims", Index{1}}});
         return b.node("Sub", {x, most});
       },
       [](std::span<const float> x, Index sample, Index i) {
         float most = 0;
         for (Index s = 0; s < batch; ++s) most = std::max(most, at(x, s, i));
         return std::max(0.0f, at(x, sample, i)) - most;
       }},
      {"Concat",
       [](test::Builder& b, ValueId x) {
         return b.node("Concat", {x, x}, {{"axis", Index{0}}});
       },
       [](std::span<const float> x, Index sample, Index i) { return std::max(0.0f, at(x, sample % batch, i)); },
       2 * batch},
      {"Transpose that leaves as rows",
       [](test::Builder& b, ValueId x) {
         x = b.node("Reshape", {x, b.constant(integers({-1, 4, width / 4}))});
         x = b.node("Transpose", {x}, {{"perm", std::vector<Index>{1, 0, 2}}});
         return b.node("Relu", {b.node("Reshape", {x, b.constant(integers({-1, width / 4}))})});
       },
       [](std::span<const float> x, Index sample, Index i) {
         const Index place = sample * width + i, row = place / (width / 4);
         return std::max(0.0f, at(x, row % batch, row / batch * (width / 4) + place % (width / 4)));
       }},
      {"the same, through memory of its own",
       [](test::Builder& b, ValueId x) {
         x = b.node("Reshape", {x, b.constant(integers({-1, 4, width / 4}))});
         x = b.node("Transpose", {x}, {{"perm", std::vector<Index>{1, 0, 2}}});
         x = b.node("Reshape", {x, b.constant(integers({-1, width / 4}))});
         return b.node("Concat", {x, x}, {{"axis", Index{1}}});
       },
       [](std::span<const float> x, Index sample, Index i) {
         const Index place = sample * width + i, row = place / (width / 2);
         return std::max(0.0f, at(x, row % batch, row / batch * (width / 4) + place % (width / 4)));
       },
       2 * batch},
  };
  const Tensor all = test::random_tensor({batch, width}, 5);
  for (const Mixer& mixer : mixers) {
    test::Builder b;
    b.g.opset = 13;
    ValueId x = b.node("Relu", {b.input("input", {dynamic, width})});
    b.output(mixer.build(b, x), "output");
    const Model m(b.g);
    const Tensor out = m.run(std::vector<Tensor>{all})[0];
    ASSERT_EQ(out.count(), mixer.samples * width) << mixer.name;
    for (Index s = 0; s < mixer.samples; ++s) {
      for (Index i = 0; i < width; i += 997) {
        ASSERT_NEAR(out.values<float>()[static_cast<std::size_t>(s * width + i)],
                    mixer.expected(all.values<float>(), s, i), 1e-5f)
            << mixer.name << ", sample " << s << ", element " << i;
      }
    }
  }
}

// As attention does: the batch goes to another axis, is merged with it, and comes back.
TEST(Samples, WhatKeepsThemApartIsWalkedInParts) {
  test::Builder b;
  b.g.opset = 13;
  ValueId x = b.input("input", {dynamic, 4, width / 4});
  x = b.node("Transpose", {x}, {{"perm", std::vector<Index>{1, 0, 2}}});
  x = b.node("Relu", {b.node("Reshape", {x, b.constant(integers({-1, width / 4}))})});
  x = b.node("Reshape", {x, b.constant(integers({4, -1, width / 4}))});
  b.output(b.node("ReduceSum",
                  {b.node("Transpose", {x}, {{"perm", std::vector<Index>{1, 0, 2}}}), b.constant(integers({1, 2}))}),
           "output");
  const Model m(b.g);
  EXPECT_LT(m.memory_bytes(4 * batch), 4 * batch * m.memory_bytes(1) * 2 / 3);
  test::expect_equal_alone(m, test::random_tensor({batch, 4, width / 4}, 6));
}

}  // namespace
