/// @file node.hpp
/// Nodes of a run-time graph and their attributes, as ONNX has them.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "offramp/core/tensor.hpp"

namespace offramp {

class Graph;

/// Names a value of one graph; -1 where an optional input or output is absent.
using ValueId = int;
inline constexpr ValueId no_value = -1;

/// One attribute of a node. An attribute of a type the library has no use for keeps the empty alternative.
struct Attribute {
  std::string name;
  std::variant<std::monostate, Index, float, std::string, std::vector<Index>, std::vector<float>,
               std::vector<std::string>, Tensor, std::shared_ptr<Graph>>
      value;
};

/// One operator applied to values.
struct Node {
  std::string name, op, domain;
  std::vector<ValueId> inputs, outputs;
  std::vector<Attribute> attributes;
  std::vector<int> origins;  ///< after preparation: the nodes of the source graph whose work this one does

  const Attribute* find(std::string_view key) const noexcept {
    for (const Attribute& a : attributes) {
      if (a.name == key) return &a;
    }
    return nullptr;
  }

  /// The attribute `key` as a T, or null where there is none; raises an Error where it has another type.
  template <class T>
  const T* get(std::string_view key) const {
    const Attribute* a = find(key);
    if (a == nullptr) return nullptr;
    const T* v = std::get_if<T>(&a->value);
    if (v == nullptr) raise("attribute '" + std::string(key) + "' has an unexpected type");
    return v;
  }
  Index integer(std::string_view key, Index fallback) const {
    const Index* v = get<Index>(key);
    return v ? *v : fallback;
  }
  float real(std::string_view key, float fallback) const {
    const float* v = get<float>(key);
    return v ? *v : fallback;
  }
  std::string text(std::string_view key, std::string fallback) const {
    const std::string* v = get<std::string>(key);
    return v ? *v : std::move(fallback);
  }
  std::vector<Index> integers(std::string_view key, std::vector<Index> fallback = {}) const {
    const std::vector<Index>* v = get<std::vector<Index>>(key);
    return v ? *v : std::move(fallback);
  }
  std::vector<float> reals(std::string_view key, std::vector<float> fallback = {}) const {
    const std::vector<float>* v = get<std::vector<float>>(key);
    return v ? *v : std::move(fallback);
  }

  template <class T>
  void set(std::string_view key, T value) {
    for (Attribute& a : attributes) {
      if (a.name == key) {
        a.value = std::move(value);
        return;
      }
    }
    attributes.push_back({std::string(key), std::move(value)});
  }

  ValueId input(std::size_t i) const noexcept { return i < inputs.size() ? inputs[i] : no_value; }
};

}  // namespace offramp
