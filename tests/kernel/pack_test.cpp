#include "offramp/kernel/pack.hpp"

#include <gtest/gtest.h>

#include "reference.hpp"

namespace offramp::kernel {

TEST(Pack, PutsColumnsIntoBlocksOfSixteen) {
  const Index k = 3, n = 21;
  const auto b = test::random_floats(k * n, 1);
  std::vector<float> packed(static_cast<std::size_t>(packed_size(k, n)), 7.0f);
  pack(b.data(), n, 1, k, n, 2.0f, packed.data());
  for (Index j = 0; j < padded_columns(n); ++j) {
    for (Index i = 0; i < k; ++i) {
      const float expected = j < n ? 2.0f * b[static_cast<std::size_t>(i * n + j)] : 0.0f;
      EXPECT_EQ(packed[static_cast<std::size_t>(j / 16 * k * 16 + i * 16 + j % 16)], expected);
    }
  }
}

TEST(Transpose, TransposesAnyShape) {
  for (const auto& [r, c] : {std::pair<Index, Index>{1, 1}, {3, 17}, {16, 16}, {33, 5}, {40, 64}}) {
    const auto x = test::random_floats(r * c, 2);
    std::vector<float> y(x.size());
    transpose(x.data(), r, c, y.data());
    for (Index i = 0; i < r * c; ++i)
      EXPECT_EQ(y[static_cast<std::size_t>(i % c * r + i / c)], x[static_cast<std::size_t>(i)]);
  }
}

}  // namespace offramp::kernel
