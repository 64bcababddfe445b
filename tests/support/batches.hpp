/// @file batches.hpp
/// What a batch answers, and its samples alone.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "offramp/graph/model.hpp"

namespace test {

/// Answers of a whole batch against those of its samples alone.
inline void expect_equal_alone(const offramp::Model& m, const offramp::Tensor& all) {
  using namespace offramp;
  const Tensor together = m.run(std::vector<Tensor>{all})[0];
  const Index batch = all.shape()[0], width = all.count() / batch, classes = together.count() / batch;
  Shape one = all.shape();
  one[0] = 1;
  for (Index i = 0; i < batch; ++i) {
    const auto sample =
        all.values<float>().subspan(static_cast<std::size_t>(i * width), static_cast<std::size_t>(width));
    const Tensor alone = m.run(std::vector<Tensor>{Tensor::of<float>(one, {sample.begin(), sample.end()})})[0];
    for (Index k = 0; k < classes; ++k) {
      EXPECT_EQ(alone.values<float>()[static_cast<std::size_t>(k)],
                together.values<float>()[static_cast<std::size_t>(i * classes + k)]);
    }
  }
}

}  // namespace test
