/// @file thresholds.hpp
/// A policy's numbers: one for all exits, one for each, or one for each exit and class.
#pragma once

#include <initializer_list>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "offramp/core/error.hpp"
#include "offramp/core/shape.hpp"

namespace offramp {

/// Thresholds of the early exits. The last exit has none: there the network always answers.
class Thresholds {
 public:
  /// One number for every exit.
  Thresholds(float all) : values_{all} {}  // NOLINT(google-explicit-constructor): a number is a threshold
  /// One number for each early exit, in depth order.
  Thresholds(std::initializer_list<float> each) : values_(each) {
    OFFRAMP_REQUIRE(!values_.empty(), "a policy needs a threshold");
  }
  explicit Thresholds(std::vector<float> each) : values_(std::move(each)) {
    OFFRAMP_REQUIRE(!values_.empty(), "a policy needs a threshold");
  }
  /// One number for each early exit and class, [exit][class].
  static Thresholds per_class(std::vector<float> values, Index classes) {
    OFFRAMP_REQUIRE(classes > 0 && !values.empty() && static_cast<Index>(values.size()) % classes == 0,
                    "thresholds for each class do not fill whole exits");
    Thresholds t(std::move(values));
    t.classes_ = classes;
    return t;
  }

  float at(Index exit, Index label) const noexcept {
    const auto row = classes_ == 0 ? exit : exit * classes_ + label;
    return row < static_cast<Index>(values_.size()) ? values_[static_cast<std::size_t>(row)] : values_.back();
  }
  /// Whether `f` holds for the threshold of any class of an exit.
  template <class F>
  bool any(Index exit, F&& f) const noexcept {
    for (Index c = 0; c < (classes_ == 0 ? 1 : classes_); ++c) {
      if (f(at(exit, c))) return true;
    }
    return false;
  }
  const std::vector<float>& values() const noexcept { return values_; }
  Index classes() const noexcept { return classes_; }

  void validate(Index exits, Index classes) const {
    const Index rows =
        classes_ == 0 ? static_cast<Index>(values_.size()) : static_cast<Index>(values_.size()) / classes_;
    OFFRAMP_REQUIRE(classes_ == 0 || classes_ == classes, "the policy has thresholds for " + std::to_string(classes_) +
                                                              " classes, the network has " + std::to_string(classes));
    OFFRAMP_REQUIRE((rows == 1 && classes_ == 0) || rows == exits - 1, "the policy has " + std::to_string(rows) +
                                                                           " thresholds, the network has " +
                                                                           std::to_string(exits - 1) + " early exits");
    for (const float v : values_) OFFRAMP_REQUIRE(v == v, "a threshold is not a number");
  }

 private:
  std::vector<float> values_;
  Index classes_ = 0;
};

}  // namespace offramp
