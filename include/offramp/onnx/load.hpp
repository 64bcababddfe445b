/// @file load.hpp
/// From an ONNX file to a model.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/graph/contrib.hpp"
#include "offramp/graph/exits.hpp"
#include "offramp/onnx/onnx.hpp"
#include "offramp/onnx/read.hpp"

namespace offramp {

namespace detail {

inline Graph read_graph(std::span<const std::byte> bytes, const Limits& limits) {
  Graph g = onnx::read(bytes, limits);
  expand_contrib(g);
  flatten_exits(g, limits);
  return g;
}

}  // namespace detail

OFFRAMP_SEPARABLE Model load_onnx(std::span<const std::byte> bytes, const ModelOptions& options) {
  return Model(detail::read_graph(bytes, options.limits), options);
}

OFFRAMP_SEPARABLE Model load_onnx(const std::string& path, const ModelOptions& options) {
  std::vector<std::byte> bytes = onnx::read_file(path);
  try {
    Graph g = detail::read_graph(bytes, options.limits);
    bytes = std::vector<std::byte>();  // as large as the weights, which are about to be packed
    return Model(std::move(g), options);
  } catch (const Error& e) {
    throw e.in_file(path);
  }
}

}  // namespace offramp
