/// @file onnx.hpp
/// ONNX files to models and back.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/graph/model.hpp"

namespace offramp {

/// A model from the bytes of an ONNX file. Every output is an exit, in order of depth; exits written as nested `If`
/// become outputs. Raises an Error that names the node where the file cannot be understood.
OFFRAMP_SEPARABLE Model load_onnx(std::span<const std::byte> bytes, const ModelOptions& options = {});

/// A model from an ONNX file; errors name the file.
OFFRAMP_SEPARABLE Model load_onnx(const std::string& path, const ModelOptions& options = {});

/// How exits are written.
enum class ExitForm {
  outputs,    ///< one output each: any runtime computes all of them
  nested_if,  ///< one output, later stages in the branches of `If`: any runtime skips them, one sample at a time
};

/// The bytes of an ONNX file that any runtime opens and that gives the model's outputs. `metadata` is added to what the
/// model carries. Nested exits need a policy that can be written as operators (WrittenPolicy), and take one sample at a
/// time; exits that it never takes are left out.
OFFRAMP_SEPARABLE std::string save_onnx(const Model& model, ExitForm form = ExitForm::outputs,
                                        const std::map<std::string, std::string>& metadata = {});

/// The same, to a file.
OFFRAMP_SEPARABLE void save_onnx(const Model& model, const std::string& path, ExitForm form = ExitForm::outputs,
                                 const std::map<std::string, std::string>& metadata = {});

namespace onnx {

/// The graph of an ONNX file given as bytes, as the file states it. Raises an Error on anything that is not a
/// well-formed model.
OFFRAMP_SEPARABLE Graph read(std::span<const std::byte> file, const Limits& limits = {});

/// The same, and the bytes' memory is given back while what they say is read: the weights do not stand in it twice.
OFFRAMP_SEPARABLE Graph read(std::vector<std::byte>&& file, const Limits& limits = {});

/// The bytes of an ONNX file for a graph.
OFFRAMP_SEPARABLE std::string write(const Graph& g);

/// The bytes of a file; raises an Error where it cannot be read.
OFFRAMP_SEPARABLE std::vector<std::byte> read_file(const std::string& path, Index limit = Index{1} << 33);

/// Raises an Error where the file cannot be written.
OFFRAMP_SEPARABLE void write_file(const std::string& path, const std::string& bytes);

}  // namespace onnx

}  // namespace offramp

#if OFFRAMP_HAS_DEFINITIONS
#include "offramp/onnx/load.hpp"
#include "offramp/onnx/save.hpp"
#endif
