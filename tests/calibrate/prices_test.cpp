#include "offramp/calibrate/prices.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "graphs.hpp"

namespace offramp {
namespace {

// A convolution with work for its weights to come beside, and behind it a head that is mostly weights.
Graph convolution_and_head(Index channels) {
  test::Builder b;
  b.g.opset = 13;
  const ValueId x = b.input("input", {dynamic, 16, 16, 16});
  const ValueId y =
      b.node("Conv", {x, b.constant({channels, 16, 3, 3}, 1)}, {{"pads", std::vector<Index>{1, 1, 1, 1}}});
  for (const char* name : {"exit_0", "logits"}) {
    const ValueId pooled = b.node("Flatten", {b.node("GlobalAveragePool", {y})});
    b.output(b.node("Gemm", {pooled, b.constant({10, channels}, 2)}, {{"transB", Index{1}}}), name);
  }
  return b.g;
}

TEST(Prices, CountWeightsThatNoWorkHides) {
  const Model m(convolution_and_head(512));
  const ExitPrices p = modelled_prices(m);
  double stage = 0, head = 0;
  for (const LayerInfo& l : m.layers()) {
    if (l.exit != 0 || l.bytes == 0) continue;
    const auto executed = static_cast<double>(l.cost.executed);
    const double rest = kernel::flops_per_byte * static_cast<double>(l.bytes) + kernel::flops_per_layer;
    if (l.op == "Gemm") {
      EXPECT_EQ(l.weight_bytes, 10 * 512 * 4);
      const double weights = kernel::flops_per_weight_byte() * 10 * 512 * 4;
      EXPECT_LT(executed, weights);
      head += weights + rest;
    } else {
      const bool winograd = l.algorithm.starts_with("winograd");
      EXPECT_EQ(l.transformed > 0, winograd);
      const auto transformed = static_cast<double>(l.transformed);
      (l.is_head ? head : stage) += (executed - transformed) * (winograd ? kernel::winograd_pace : 1) +
                                    transformed * kernel::transformation_pace + rest;
    }
  }
  EXPECT_DOUBLE_EQ(p.stages[0], stage);
  EXPECT_DOUBLE_EQ(p.heads[0], head);
  const ExitPrices cautious = prices_of(m, {}, Objective::modelled);
  EXPECT_EQ(cautious.stages, p.stages);
  EXPECT_DOUBLE_EQ(cautious.heads[0], 1.1 * head);
}

// A head that no exit asks is nobody's, least of all the last stage's.
TEST(Prices, LeaveOutWhatIsNoExit) {
  Graph g = convolution_and_head(64);
  const ExitPrices both = modelled_prices(Model(g));
  g.metadata["offramp.exits"] = "logits";
  const Model alone(std::move(g));
  const ExitPrices p = modelled_prices(alone);
  ASSERT_EQ(p.stages.size(), 1u);
  EXPECT_DOUBLE_EQ(p.stages[0], both.stages[0] + both.stages[1]);
  EXPECT_EQ(std::count_if(alone.layers().begin(), alone.layers().end(),
                          [](const LayerInfo& l) { return l.exit < 0 && l.op == "Gemm"; }),
            1);
}

}  // namespace
}  // namespace offramp
