/// @file model.hpp
/// A network at run time: prepared once, immutable, shared by any number of sessions and threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "offramp/core/executor.hpp"
#include "offramp/core/tensor.hpp"
#include "offramp/flops/cost.hpp"
#include "offramp/graph/graph.hpp"
#include "offramp/kernel/isa.hpp"
#include "offramp/layer/operation.hpp"
#include "offramp/layer/operators.hpp"

namespace offramp {

/// How a graph is prepared.
struct ModelOptions {
  Isa isa = best_isa();      ///< instruction set of the kernels
  std::vector<Index> shape;  ///< sizes of the input, where the file leaves axes other than the batch open
  Limits limits;
  Operators operators;      ///< built-in, and the user's own
  Index batch = 1;          ///< samples of a usual call, for the choice of algorithms
  Index winograd_tile = 6;  ///< largest tile of Winograd convolutions: 6, 4 or 2; 0: none
  bool bf16 = false;        ///< products in bfloat16 with sums in float32, where the CPU has them
  /// False lets the file's weights go as they are packed, so that they are in memory once: what only runs needs no
  /// more. Such a model is not written, cached or compressed again. A graph without a plan is kept all the same.
  bool keep_graph = true;
  /// How convolutions are done, as `tune_convolutions` (graph/tune.hpp) found by timing; a cost model chooses where
  /// there is none, or where it does not fit.
  std::shared_ptr<const ConvMethods> conv_methods;
  /// Shares the samples of a batch, or the parts of an operation; null: the calling thread does all.
  std::shared_ptr<ThreadPool> pool;
};

/// One exit of a network, in depth order. Costs are of one sample.
struct ExitInfo {
  std::string name;
  Cost stage;  ///< the part of the backbone between the exit before and this one
  Cost head;   ///< the exit head; zero for the last exit, whose head is the backbone's own
  Cost upto;   ///< all stages up to this exit, and its own head
};

/// One prepared layer, for people.
struct LayerInfo {
  std::string name, op, algorithm;
  Shape output;  ///< for one sample, channels second
  Index parameters = 0;
  Cost cost;               ///< of one sample
  Index transformed = 0;   ///< of the FLOPs that are executed, those of Winograd's transformations
  Index bytes = 0;         ///< that one sample reads and writes: inputs, outputs, constants; none where nothing moves
  Index weight_bytes = 0;  ///< of these, the constants
  Index exit = 0;          ///< its stage, or the exit whose head it belongs to; -1: of an output that is no exit
  bool is_head = false;
};

/// A named input or output; the batch axis has size `dynamic`.
struct PortInfo {
  std::string name;
  DType type = DType::none;
  std::vector<Index> sizes;
};

/// A network as a prepared graph. Cheap to copy: copies share everything.
class Model {
 public:
  class State;

  /// Prepares `graph`. Raises an Error that names the node where it cannot be understood.
  explicit Model(Graph graph, const ModelOptions& options = {});

  /// The graph as it was loaded, for writing it again. Raises an Error where `ModelOptions::keep_graph` was false.
  const Graph& graph() const;
  const std::map<std::string, std::string>& metadata() const noexcept;
  Isa isa() const noexcept;

  std::span<const PortInfo> inputs() const noexcept;
  std::span<const PortInfo> outputs() const noexcept;
  std::span<const LayerInfo> layers() const noexcept;
  std::span<const ExitInfo> exits() const noexcept;
  Index parameters() const noexcept;
  /// Everything the file computes, heads included.
  Cost total_cost() const noexcept;

  /// True where a session can run it; else `why_not()` says what stands in the way, and `run` still may.
  bool has_plan() const noexcept;
  const std::string& why_not() const noexcept;
  /// True where samples are run one by one because the graph mixes or fixes the batch axis.
  bool runs_single_samples() const noexcept;
  /// Bytes of working memory of a session of this capacity.
  Index memory_bytes(Index capacity) const;

  /// Computes every output (in the file's order) for the given inputs (in the file's order).
  std::vector<Tensor> run(std::span<const Tensor> inputs) const;
  /// The same node by node, without the prepared plan: any graph, slower. Raises an Error as `graph()` does.
  std::vector<Tensor> run_graph(std::span<const Tensor> inputs) const;

  // ---- what a session needs (the concept EarlyExitNetwork) ----
  Index exit_count() const noexcept;
  Index class_count() const noexcept;
  Index sample_size() const noexcept;
  Index max_batch() const noexcept;
  Cost stage_cost(Index k) const noexcept;
  Cost head_cost(Index k) const noexcept;
  State make_state(Index capacity) const;
  void load(State& s, const float* samples, Index batch) const noexcept;
  bool run_stage(State& s, Index k) const noexcept;
  bool run_head(State& s, Index k) const noexcept;
  /// The last exit alone: in a cascade, without the stages that only early exits need.
  Cost full_cost() const noexcept;
  bool run_full(State& s) const noexcept;
  const float* logits(const State& s, Index k) const noexcept;
  void compact(State& s, Index k, std::span<const Index> kept) const noexcept;

  // ---- what skipping stages needs (the concept SkippableNetwork) ----
  bool can_skip(Index from, Index to) const noexcept;
  void make_places(State& s, Index to, Index places) const;
  void put_aside(State& s, Index to, Index sample, Index place) const noexcept;
  void take_back(State& s, Index to, Index places) const noexcept;

  // ---- what a profiler needs ----
  /// A state for `run_layers`, of any network that has a plan.
  State make_layer_state(Index capacity) const;
  /// Runs all layers, those of heads only if asked to. Calls `watch(i, run)` for `layers()[i]`, perhaps several times
  /// for a batch that goes through in chunks; `watch` calls `run()` and returns what it returned. Where threads share
  /// the samples of a batch it is called for those of one thread, and the others do theirs beside it.
  template <class Watch>
  bool run_layers(State& s, Watch&& watch, bool with_heads = false) const noexcept {
    using W = std::remove_reference_t<Watch>;
    return run_watched(
        s,
        {&watch,
         [](void* w, std::size_t i, const LayerRun& run) noexcept -> bool { return (*static_cast<W*>(w))(i, run); }},
        with_heads);
  }

 private:
  struct Data;
  struct Memory {
    std::vector<Index> offsets;    // of each storage
    std::vector<Index> own;        // of each block: bytes from one thread's part to the next one's
    Index scratch = 0, total = 0;  // where scratch begins, and the end of all
    Index own_scratch = 0;         // bytes from one thread's to the next one's
  };
  // Runs a layer once.
  struct LayerRun {
    const Operation& operation;
    const OperationRun& run;
    bool operator()() const noexcept { return operation.forward(run); }
  };
  // What `run_layers` calls, whatever its type.
  struct WatchRef {
    void* watch;
    bool (*call)(void*, std::size_t, const LayerRun&) noexcept;
    bool operator()(std::size_t i, const LayerRun& run) const noexcept { return call(watch, i, run); }
  };
  bool run_watched(State& s, WatchRef watch, bool with_heads) const noexcept;

  std::shared_ptr<const Data> d_;
};

/// The private scratch of one session over a Model.
class Model::State {
 public:
  Index capacity() const noexcept { return capacity_; }
  Index batch() const noexcept { return batch_; }
  /// Samples that each layer has processed since the counter was reset, in the order of `Model::layers()`.
  std::span<const std::int64_t> counts() const noexcept { return counts_; }
  void reset_counts() noexcept { std::fill(counts_.begin(), counts_.end(), 0); }

 private:
  friend class Model;
  Index capacity_ = 0, batch_ = 0;
  std::shared_ptr<std::byte> memory_;
  Memory plan_;
  std::vector<TensorView> views_;               // thread after thread
  std::vector<std::pair<Index, Index>> bound_;  // the samples [first, first + count) that a thread's block's views show
  std::vector<std::int64_t> counts_;
  std::shared_ptr<std::byte> aside_;  // what samples that skip stages need behind them, storage after storage
  Index places_ = 0;
};

}  // namespace offramp

#if OFFRAMP_HAS_DEFINITIONS
#include "offramp/graph/model_prepare.hpp"
#include "offramp/graph/model_run.hpp"
#endif
