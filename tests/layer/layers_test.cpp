#include "offramp/layer/layers.hpp"

#include <gtest/gtest.h>

#include "offramp/kernel/dispatch.hpp"
#include "reference.hpp"

namespace offramp {
namespace {

// Channels-last data through a layer.
template <Layer L>
std::vector<float> run(L& layer, const Shape& in, const std::vector<float>& x, Index batch) {
  const auto& k = kernel::kernels_for(best_isa());
  const Shape out = layer.bind(in, k);
  std::vector<float> y(static_cast<std::size_t>(batch * out.count())),
      scratch(static_cast<std::size_t>(layer_scratch(layer, batch)));
  layer.forward(x.data(), y.data(), batch, scratch.data(), k);
  return y;
}

TEST(Dense, EqualsTheReference) {
  const auto w = test::random_floats(5 * 7, 1), x = test::random_floats(3 * 7, 2);
  Dense<7, 5> layer(w, {});
  const auto y = run(layer, {7}, x, 3);
  std::vector<float> wt(35);
  kernel::transpose(w.data(), 5, 7, wt.data());
  EXPECT_LT(test::relative_error(y, test::matmul(x, wt, 3, 5, 7)), 1e-6);
  EXPECT_EQ(layer.cost().macs, 35);
  EXPECT_THROW((Dense<7, 5>(w, {1.0f})), Error);
  EXPECT_THROW((Dense<7, 6>(w, {})), Error);
}

TEST(Dense, TakesSizesAtRunTime) {
  Dense<> layer(7, 5, test::random_floats(35, 1), {});
  EXPECT_EQ(layer.bind({7}, kernel::kernels_for(best_isa())), (Shape{5}));
  EXPECT_THROW(layer.bind({8}, kernel::kernels_for(best_isa())), Error);
}

TEST(Flatten, RestoresTheOrderOfTrainedWeights) {
  Flatten layer;  // [h][w][c] to [c][h][w]
  const std::vector<float> x{1, 10, 2, 20, 3, 30, 4, 40};
  EXPECT_EQ(run(layer, {2, 2, 2}, x, 1), (std::vector<float>{1, 2, 3, 4, 10, 20, 30, 40}));
}

TEST(Residual, AddsItsShortcut) {
  Residual block(Activation<kernel::Unary::neg>{});
  EXPECT_EQ(run(block, {4}, {1, 2, 3, 4}, 1), (std::vector<float>{0, 0, 0, 0}));
  Residual projected(Dense<2, 2>({1, 0, 0, 1}, {}), Dense<2, 2>({0, 1, 1, 0}, {}));
  EXPECT_EQ(run(projected, {2}, {3, 5}, 1), (std::vector<float>{8, 8}));
}

TEST(Branch, PutsChannelsSideBySide) {
  Branch branch(Identity(), Activation<kernel::Unary::neg>{});
  EXPECT_EQ(run(branch, {2, 1, 2}, {1, 2, 3, 4}, 1), (std::vector<float>{1, 2, -1, -2, 3, 4, -3, -4}));
}

TEST(Pooling, MaximumAndAverage) {
  MaxPool2d<2> largest;
  AveragePool2d<2> mean;
  GlobalAveragePool all;
  EXPECT_EQ(run(largest, {1, 2, 4}, {1, 5, 2, 0, 3, 4, 9, 1}, 1), (std::vector<float>{5, 9}));
  EXPECT_EQ(run(mean, {1, 2, 4}, {1, 5, 2, 0, 3, 3, 9, 1}, 1), (std::vector<float>{3, 3}));
  EXPECT_EQ(run(all, {2, 1, 2}, {1, 2, 3, 4}, 1), (std::vector<float>{2, 3}));
}

}  // namespace
}  // namespace offramp
