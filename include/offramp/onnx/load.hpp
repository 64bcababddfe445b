/// @file load.hpp
/// From an ONNX file to a model.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/graph/contrib.hpp"
#include "offramp/graph/exits.hpp"
#include "offramp/onnx/onnx.hpp"
#include "offramp/onnx/read.hpp"

namespace offramp {

namespace detail {

/// A graph of operators that the library has, every exit an output.
OFFRAMP_COLD inline Graph understood(Graph g, const Limits& limits) {
  expand_contrib(g);
  flatten_exits(g, limits);
  return g;
}

}  // namespace detail

#if OFFRAMP_HAS_DEFINITIONS
OFFRAMP_SEPARABLE OFFRAMP_COLD Model load_onnx(std::span<const std::byte> bytes, const ModelOptions& options) {
  return Model(detail::understood(onnx::read(bytes, options.limits), options.limits), options);
}

OFFRAMP_SEPARABLE OFFRAMP_COLD Model load_onnx(const std::string& path, const ModelOptions& options) {
  std::vector<std::byte> bytes = onnx::read_file(path);
  try {
    return Model(detail::understood(onnx::read(std::move(bytes), options.limits), options.limits), options);
  } catch (const Error& e) {
    throw e.in_file(path);
  }
}
#endif  // OFFRAMP_HAS_DEFINITIONS

}  // namespace offramp
