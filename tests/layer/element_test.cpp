#include "offramp/layer/element.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace offramp {

TEST(Broadcast, FollowsNumpy) {
  EXPECT_EQ(broadcast_shape({2, 1, 4}, {3, 1}), (Shape{2, 3, 4}));
  EXPECT_EQ(broadcast_shape({}, {5}), (Shape{5}));
  EXPECT_EQ(broadcast_shape({0, 1}, {1, 3}), (Shape{0, 3}));
  EXPECT_THROW(broadcast_shape({2}, {3}), Error);
}

// The walk visits each element once, with the operands' own offsets.
TEST(Broadcast, WalkVisitsEveryElement) {
  const Shape cases[][2] = {{{2, 3, 4}, {2, 3, 4}}, {{2, 3, 4}, {4}}, {{2, 3, 4}, {3, 1}},   {{2, 3, 4}, {2, 1, 4}},
                            {{1, 1}, {5, 6}},       {{3}, {}},        {{4, 1, 2}, {1, 3, 1}}};
  for (const auto& operands : cases) {
    const Shape out = broadcast_shape(operands[0], operands[1]);
    const BroadcastWalk walk(out, {&operands[0], &operands[1]});
    Index visited = 0;
    walk.each([&](Index at, const auto& offset) {
      for (Index i = 0; i < walk.inner; ++i, ++visited) {
        for (std::size_t k = 0; k < 2; ++k) {
          const Shape& s = operands[k];
          Index flat = at + i, expected = 0, stride = 1;
          for (int axis = out.rank() - 1; axis >= 0; --axis) {
            const Index p = flat % out[axis];
            flat /= out[axis];
            const int own = axis - (out.rank() - s.rank());
            if (own < 0) continue;
            expected += s[own] == 1 ? 0 : p * stride;
            stride *= s[own];
          }
          ASSERT_EQ(offset[k] + i * walk.step[k], expected);
        }
      }
    });
    EXPECT_EQ(visited, out.count());
  }
}

TEST(Element, ConvertsWithoutUndefinedBehaviour) {
  EXPECT_EQ(integer_of(std::numeric_limits<double>::quiet_NaN()), 0);
  EXPECT_EQ(integer_of(1e300), INT64_MAX);
  EXPECT_EQ(integer_of(-INFINITY), INT64_MIN);
  EXPECT_EQ(integer_of(-2.9), -2);
}

}  // namespace offramp
