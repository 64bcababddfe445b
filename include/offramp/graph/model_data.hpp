/// @file model_data.hpp
/// What a prepared network consists of.

// First of all, and in front of the guard: where this file is what somebody includes first, model.hpp includes it again
// at its end, and there what it defines is needed.
#include "offramp/graph/model.hpp"

#ifndef OFFRAMP_GRAPH_MODEL_DATA_HPP
#define OFFRAMP_GRAPH_MODEL_DATA_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/graph/samples.hpp"
#include "offramp/kernel/split.hpp"

namespace offramp {

struct Model::Data {
  // A size that grows with the batch: fixed + each * n.
  struct Affine {
    Index fixed = 0, each = 0;
    Index at(Index n) const noexcept { return fixed + each * n; }
    bool operator==(const Affine&) const = default;
  };
  struct ValueInfo {
    DType type = DType::none;
    int rank = 0;
    std::array<Affine, Shape::max_rank> sizes{};
    int storage = -1;  // values that share memory share a storage
    Index hidden = 1;  // `BatchAxis::hidden`
    const void* constant = nullptr;
    Shape at(Index n) const noexcept {
      Shape s;
      for (int i = 0; i < rank; ++i) s.push_back(sizes[static_cast<std::size_t>(i)].at(n));
      return s;
    }
    Index bytes(Index n) const noexcept { return at(n).count() * static_cast<Index>(size_of(type)); }
  };
  struct Step {
    std::size_t node = 0;  // of the prepared graph
    std::unique_ptr<Operation> op;
    std::vector<ValueId> in, out;
    Index exit = 0;
    bool is_head = false, is_view = false, for_last = true;
    bool apart = false;                              // computes each sample from that sample alone
    std::array<std::span<const std::byte>, 2> next;  // OperationRun's, with exits and for the last one alone
    std::size_t first_view = 0;                      // of its operands in a state
    // `is_full`: for the last exit alone.
    bool runs(bool is_full) const noexcept { return !is_view && (!is_full || for_last); }
  };
  struct Segment {
    std::size_t begin = 0, end = 0;
  };
  // Steps of one segment. Threads share the samples of a batch, each going through all of the steps with its own: they
  // meet at the end, and a core reads what it has written itself. Fewer samples than threads go one after another, and
  // threads share each operation. Many samples go in chunks, so that what the steps compute stays in cache.
  struct Block {
    std::size_t begin = 0, end = 0;
    Index threads = 1;
    Index sample_bytes = 0;  // the most that one of the steps reads and writes for a sample; where `near`, with scratch
    Index least = 1;         // samples that a thread must have to read all weights for them
    bool near = false;       // chunks for L2, not L3
    bool whole = false;      // where samples are mixed, or a value that leaves is not one row for each of them

    bool shares(Index n) const noexcept { return threads > 1 && !whole && n >= threads * least; }
    Index chunk(Index n) const noexcept {
      if (whole) return n;
      const Index each = shares(n) ? threads : 1,
                  cache = near ? near_bytes * threads / each : std::max(far_bytes / each, near_bytes);
      return std::max<Index>(1, std::min(cache / std::max<Index>(1, sample_bytes), n / each));
    }
    // Of any number of samples up to n.
    Index most(Index n) const noexcept { return shares(n) ? std::max(chunk(n), chunk(threads * least - 1)) : chunk(n); }
  };
  // Of values, for a chunk: a quarter of a usual L3; where weights are so few that reading them again for every chunk
  // costs less, what each thread keeps in its L2.
  static constexpr Index far_bytes = 8 << 20, near_bytes = 512 << 10, few_weights = near_bytes / 24;
  struct Storage {
    std::vector<ValueId> values;
    std::size_t first = 0, last = 0;  // steps between which it must be kept
    int block = -1;                   // the block that alone uses it: it holds a chunk; -1: the batch
  };

  Data() = default;
  // What was loaded, without what was planned.
  explicit Data(Data&& other) noexcept
      : source(std::move(other.source)),
        options(std::move(other.options)),
        parameters(other.parameters),
        inputs(std::move(other.inputs)),
        outputs(std::move(other.outputs)) {}

  Graph source;
  ModelOptions options;
  bool single = false, has_graph = true;
  Index parameters = 0;
  std::vector<PortInfo> inputs, outputs;
  Graph prepared;  // owns the constants
  std::string why_not, why_no_exits;
  Index classes = 0, sample_size = 0;
  Cost total, full;
  std::vector<ExitInfo> exits;
  std::vector<LayerInfo> layers;
  std::vector<Step> steps;
  std::vector<Segment> stages, heads;
  std::vector<Block> blocks;  // of all steps, in order
  std::vector<ValueInfo> values;
  std::vector<Storage> storages;
  std::vector<ValueId> exit_values, output_values;
  std::vector<std::vector<int>> crossing;  // storages that live on behind exit k
  std::size_t view_count = 0;

  // Bytes of a sample in a storage whose values are one row for each.
  std::size_t row_bytes(int storage) const noexcept {
    const ValueId v = storages[static_cast<std::size_t>(storage)].values[0];
    return static_cast<std::size_t>(values[static_cast<std::size_t>(v)].bytes(1));
  }
  Index threads() const noexcept { return options.pool ? options.pool->threads() : 1; }
  static std::shared_ptr<const Data> build(Graph graph, const ModelOptions& options);
  static void plan(Data& d);
  static void rewrite(Data& d, const Inference& two, const Inference& three, const GraphContext& context);
  static std::vector<TensorView> views_of(std::span<const ValueId> values, const Inference& shapes);
  static void arrange(Data& d);
  static void pack(Data& d, const Inference& two, const Inference& three, const GraphContext& context);
  static void look_ahead(Data& d);
  static void add_costs(Data& d);
  static void assign_storage(Data& d);
  static void cut_blocks(Data& d);
  static void drop_unread(Data& d);
  static BatchAxis batch_axis(const Data& d, ValueId v) noexcept;
  static bool is_rows(const Data& d, ValueId v) noexcept;
  struct Piece {
    Index bytes = 0;
    std::size_t first = 0, last = 0;
  };
  static Index place(std::span<const Piece> pieces, std::span<Index> offsets);
  static Index scratch_of(const Data& d, const Step& s, Index samples, Index threads);
  static Memory plan_memory(const Data& d, Index n);
  static State state_of(const Data& d, Index capacity);
  static void bind(const Data& d, State& s, std::size_t block, Index thread, Index first, Index count) noexcept;
  static constexpr WatchRef nobody{nullptr, [](void*, std::size_t, const LayerRun& run) noexcept { return run(); }};
  static bool run_block(const Data& d, State& s, std::size_t k, bool is_full, Index thread, kernel::Range samples,
                        Index chunk, ExecutorRef executor, WatchRef watch) noexcept;
  // `is_full`: the last exit's own steps alone.
  static bool run_segment(const Data& d, State& s, Segment segment, bool is_full = false,
                          WatchRef watch = nobody) noexcept;
};

}  // namespace offramp

#endif  // OFFRAMP_GRAPH_MODEL_DATA_HPP
