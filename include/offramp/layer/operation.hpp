/// @file operation.hpp
/// The interface of an operator of a run-time graph, and the row that the operator table holds for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "offramp/core/executor.hpp"
#include "offramp/core/tensor.hpp"
#include "offramp/flops/cost.hpp"
#include "offramp/kernel/kernels.hpp"
#include "offramp/layer/conv_method.hpp"
#include "offramp/layer/node.hpp"

namespace offramp {

/// What an operator needs of an input.
enum class InputUse : std::uint8_t {
  data,       ///< its elements, when it runs
  shape,      ///< its elements, only to know the output's shape
  parameter,  ///< its elements, and they must be known when a graph is prepared
};

/// What an operation is prepared for.
struct PrepareOptions {
  const kernel::Kernels& kernels;
  Index batch = 1;          ///< samples that a call is expected to have
  Index threads = 1;        ///< that such a call is expected to have
  Index winograd_tile = 6;  ///< largest tile of Winograd convolutions: 2, 4 or 6; 0: none
  bool bf16 = false;        ///< products may be done in bfloat16
  /// Of this convolution, if it can be done so; else, and where there is none, a cost model chooses.
  const ConvMethod* conv_method = nullptr;
};

/// What a running operation is given. Outputs have the shapes that `infer` found; absent inputs have type `none`.
struct OperationRun {
  std::span<const TensorView> in;
  std::span<const TensorView> out;
  std::byte* scratch = nullptr;  ///< `scratch_bytes` bytes, aligned
  const kernel::Kernels& kernels;
  ExecutorRef executor{};
  /// Weights that are read next, by a step with too little work to bring them beside it: a network whose weights fill
  /// L2 reads them from L3 each time, and what computes has time to ask for them. Empty where nothing waits.
  std::span<const std::byte> next{};
};

/// One operator with its attributes read and its weights packed. After `prepare` it is immutable and shared by
/// threads.
class Operation {
 public:
  Operation() = default;
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;
  virtual ~Operation() = default;

  /// Sets type and shape of each output. Inputs whose elements are known have `data`. Raises an Error where the inputs
  /// do not fit.
  virtual void infer(std::span<const TensorView> in, std::span<TensorView> out) const = 0;

  /// Called once, before the first `forward`, with the elements of the constant inputs, to pack weights.
  virtual void prepare(std::span<const TensorView> /*in*/, const PrepareOptions& /*options*/) {}

  virtual InputUse use(std::size_t /*input*/) const noexcept { return InputUse::data; }

  /// True where `prepare` copied input `i` in an order of its own, so that `forward` does not read its elements.
  virtual bool has_packed(std::size_t /*input*/) const noexcept { return false; }

  /// Those copies: where `forward` reads its weights. Empty where it reads the inputs themselves.
  virtual std::span<const std::byte> packed() const noexcept { return {}; }

  /// Nominal MACs and FLOPs for these shapes; needs no `prepare`.
  virtual Cost cost(std::span<const TensorView> /*in*/, std::span<const TensorView> /*out*/) const noexcept {
    return {};
  }
  /// FLOPs that the prepared kernel really does.
  virtual Index executed(std::span<const TensorView> in, std::span<const TensorView> out) const noexcept {
    return cost(in, out).flops;
  }

  /// Of these, what transforms an image so that there is less to multiply.
  virtual Index transformed(std::span<const TensorView> /*in*/) const noexcept { return 0; }

  /// What `forward` needs with an executor of so many threads.
  virtual std::size_t scratch_bytes(std::span<const TensorView> /*in*/, std::span<const TensorView> /*out*/,
                                    Index /*threads*/) const noexcept {
    return 0;
  }

  /// Computes the outputs; false where the elements of an input are out of range (an index, say).
  virtual bool forward(const OperationRun& run) const noexcept = 0;

  /// True where the output has the elements of input 0 unchanged, so that no copy is needed.
  virtual bool is_view(std::span<const TensorView> /*in*/, std::span<const TensorView> /*out*/) const noexcept {
    return false;
  }

  /// True where the output may be written over input `i` of the same size.
  virtual bool in_place(std::size_t /*input*/) const noexcept { return false; }

  /// True where the work is done with integers.
  virtual bool is_integer() const noexcept { return false; }

  /// The algorithm chosen, for people.
  virtual std::string algorithm() const { return {}; }
};

/// A row of the operator table: it drives the importer, shape inference, the FLOP count, documentation and tests.
struct OperatorInfo {
  std::string_view name;
  std::string_view group;    ///< heading in docs/operators.md
  std::string_view formula;  ///< nominal FLOPs, in words
  std::unique_ptr<Operation> (*make)(const Node& node, Index opset);
};

/// The output of an operator in `infer`.
inline void set_output(TensorView& out, DType type, const Shape& shape) {
  out.type = type;
  out.shape = shape;
}

/// Raises an Error unless input `i` is there; returns it.
inline const TensorView& required_input(std::span<const TensorView> in, std::size_t i) {
  OFFRAMP_REQUIRE(i < in.size() && in[i].type != DType::none, "input " + std::to_string(i) + " is missing");
  return in[i];
}

/// Input `i`, or null where it is absent.
inline const TensorView* optional_input(std::span<const TensorView> in, std::size_t i) noexcept {
  return i < in.size() && in[i].type != DType::none ? &in[i] : nullptr;
}

inline const TensorView& float_input(std::span<const TensorView> in, std::size_t i) {
  const TensorView& x = required_input(in, i);
  OFFRAMP_REQUIRE(x.type == DType::f32,
                  "input " + std::to_string(i) + ": expected float32, found " + std::string(name_of(x.type)));
  return x;
}

/// An input that must have between `least` and `most` axes.
inline void require_rank(const TensorView& x, int least, int most, std::string_view what) {
  OFFRAMP_REQUIRE(x.shape.rank() >= least && x.shape.rank() <= most,
                  std::string(what) + ": expected " + std::to_string(least) +
                      (most > least ? " to " + std::to_string(most) : std::string()) + " axes, found shape " +
                      x.shape.text());
}

/// The elements of an integer input that must be known; raises an Error where they are not.
inline std::vector<Index> known_integers(const TensorView& x, std::string_view what) {
  OFFRAMP_REQUIRE(x.data != nullptr || x.count() == 0, std::string(what) + " must be known before the network runs");
  OFFRAMP_REQUIRE(x.type == DType::i64 || x.type == DType::i32,
                  std::string(what) + ": expected int64 or int32, found " + std::string(name_of(x.type)));
  std::vector<Index> v(static_cast<std::size_t>(x.count()));
  for (std::size_t i = 0; i < v.size(); ++i)
    v[i] = x.type == DType::i64 ? x.as<std::int64_t>()[i] : x.as<std::int32_t>()[i];
  return v;
}

/// Integers that older opsets give as an attribute and newer ones as an input; `fallback` where neither is there.
inline std::vector<Index> integers_of(const std::vector<Index>* attribute, std::span<const TensorView> in,
                                      std::size_t i, std::string_view what, std::vector<Index> fallback = {}) {
  if (const TensorView* x = optional_input(in, i)) return known_integers(*x, what);
  return attribute ? *attribute : std::move(fallback);
}

}  // namespace offramp
