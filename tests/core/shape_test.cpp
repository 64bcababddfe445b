#include "offramp/core/shape.hpp"

#include <gtest/gtest.h>

namespace offramp {

TEST(Shape, CountsAndPrints) {
  const Shape s{2, 3, 4};
  EXPECT_EQ(s.rank(), 3);
  EXPECT_EQ(s.count(), 24);
  EXPECT_EQ(s.count(1, 3), 12);
  EXPECT_EQ(Shape().count(), 1);
  EXPECT_EQ(s.text(), "[2,3,4]");
  EXPECT_EQ(Shape().text(), "[]");
  EXPECT_EQ(s, (Shape{2, 3, 4}));
  EXPECT_FALSE(s == (Shape{2, 3}));
}

TEST(Shape, RefusesWhatCannotBe) {
  EXPECT_THROW((Shape{1, -2}.checked_count()), Error);
  EXPECT_THROW((Shape{Index{1} << 40, Index{1} << 40}.checked_count()), Error);
  EXPECT_THROW((Shape{0, Index{1} << 40, Index{1} << 40}.checked_count()), Error);
  EXPECT_EQ((Shape{0, 5}.checked_count()), 0);
  Shape s{1, 1, 1, 1, 1, 1, 1, 1};
  EXPECT_THROW(s.push_back(1), Error);
}

TEST(Shape, NormalizesAxes) {
  EXPECT_EQ(normalize_axis(-1, 4), 3);
  EXPECT_EQ(normalize_axis(2, 4), 2);
  EXPECT_THROW(normalize_axis(4, 4), Error);
  EXPECT_THROW(normalize_axis(-5, 4), Error);
}

TEST(Extents, AreKnownToTheCompiler) {
  static_assert(Extents<3, 32, 32>::count() == 3072);
  static_assert(Extents<3, 32, 32>::size<1> == 32);
  static_assert(!Extents<3, dynamic>::is_static);
  EXPECT_EQ((Extents<3, 4>::shape()), (Shape{3, 4}));
}

}  // namespace offramp
