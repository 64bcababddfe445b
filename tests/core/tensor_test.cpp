#include "offramp/core/tensor.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace offramp {

TEST(Tensor, OwnsAlignedZeroedElements) {
  const Tensor t(DType::f32, {3, 5});
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(t.data()) % alignment, 0u);
  for (const float x : t.values<float>()) EXPECT_EQ(x, 0.0f);
  EXPECT_THROW(static_cast<void>(t.values<double>()), Error);
}

TEST(Tensor, SharesOnCopyAndReshapes) {
  const Tensor t = Tensor::of<std::int64_t>({2, 3}, std::vector<std::int64_t>{1, 2, 3, 4, 5, 6});
  const Tensor r = t.reshaped({3, 2});
  EXPECT_EQ(r.data(), t.data());
  EXPECT_EQ(r.shape(), (Shape{3, 2}));
  EXPECT_THROW(t.reshaped({4}), Error);
  EXPECT_THROW(Tensor::of<float>({2}, std::vector<float>{1}), Error);
}

TEST(Tensor, KeepsToItsLimit) {
  EXPECT_THROW(Tensor(DType::f32, {1000}, 3999), Error);
  EXPECT_NO_THROW(Tensor(DType::f32, {1000}, 4000));
  EXPECT_THROW(Tensor(DType::f32, {Index{1} << 62, 4}), Error);
}

TEST(TensorView, IsCheapToCopy) {
  static_assert(std::is_trivially_copyable_v<TensorView>);
}

}  // namespace offramp
