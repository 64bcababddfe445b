/// @file random_weights.hpp
/// Weights for examples that show a shape, not an accuracy.
#pragma once

#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

inline std::vector<float> random_weights(std::size_t count, std::size_t inputs, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, std::sqrt(2.0f / static_cast<float>(inputs)));
  std::vector<float> w(count);
  for (float& x : w) x = normal(engine);
  return w;
}
