/// @file model_run.hpp
/// Running a prepared network: states, stages and heads, compaction.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/graph/infer.hpp"
#include "offramp/graph/model_data.hpp"
#include "offramp/kernel/dispatch.hpp"

namespace offramp {

OFFRAMP_SEPARABLE const Graph& Model::graph() const {
  OFFRAMP_REQUIRE(d_->has_graph, "the network was prepared without keeping its graph (ModelOptions::keep_graph)");
  return d_->source;
}
OFFRAMP_SEPARABLE const std::map<std::string, std::string>& Model::metadata() const noexcept {
  return d_->source.metadata;
}
OFFRAMP_SEPARABLE Isa Model::isa() const noexcept {
  return d_->options.isa;
}
OFFRAMP_SEPARABLE std::span<const PortInfo> Model::inputs() const noexcept {
  return d_->inputs;
}
OFFRAMP_SEPARABLE std::span<const PortInfo> Model::outputs() const noexcept {
  return d_->outputs;
}
OFFRAMP_SEPARABLE std::span<const LayerInfo> Model::layers() const noexcept {
  return d_->layers;
}
OFFRAMP_SEPARABLE std::span<const ExitInfo> Model::exits() const noexcept {
  return d_->exits;
}
OFFRAMP_SEPARABLE Index Model::parameters() const noexcept {
  return d_->parameters;
}
OFFRAMP_SEPARABLE Cost Model::total_cost() const noexcept {
  return d_->total;
}
OFFRAMP_SEPARABLE bool Model::has_plan() const noexcept {
  return d_->why_not.empty();
}
OFFRAMP_SEPARABLE const std::string& Model::why_not() const noexcept {
  return d_->why_not;
}
OFFRAMP_SEPARABLE bool Model::runs_single_samples() const noexcept {
  return d_->single;
}
OFFRAMP_SEPARABLE Index Model::memory_bytes(Index capacity) const {
  return Data::plan_memory(*d_, d_->single ? 1 : capacity).total;
}
OFFRAMP_SEPARABLE Index Model::exit_count() const noexcept {
  return static_cast<Index>(d_->exits.size());
}
OFFRAMP_SEPARABLE Index Model::class_count() const noexcept {
  return d_->classes;
}
OFFRAMP_SEPARABLE Index Model::sample_size() const noexcept {
  return d_->sample_size;
}
OFFRAMP_SEPARABLE Index Model::max_batch() const noexcept {
  return d_->single ? 1 : std::numeric_limits<std::int32_t>::max();
}
OFFRAMP_SEPARABLE Cost Model::stage_cost(Index k) const noexcept {
  return d_->exits[static_cast<std::size_t>(k)].stage;
}
OFFRAMP_SEPARABLE Cost Model::head_cost(Index k) const noexcept {
  return d_->exits[static_cast<std::size_t>(k)].head;
}
OFFRAMP_SEPARABLE Cost Model::full_cost() const noexcept {
  return d_->full;
}
OFFRAMP_SEPARABLE std::vector<Tensor> Model::run_graph(std::span<const Tensor> inputs) const {
  const auto& o = d_->options;
  return evaluate(graph(), inputs, {o.operators, kernel::kernels_for(o.isa), o.limits});
}

OFFRAMP_SEPARABLE Model::State Model::make_state(Index capacity) const {
  const Data& d = *d_;
  OFFRAMP_REQUIRE(has_plan(), why_not());
  OFFRAMP_REQUIRE(capacity > 0, "a session needs room for at least one sample");
  OFFRAMP_REQUIRE(!d.exits.empty(), d.why_no_exits);
  return Data::state_of(d, d.single ? 1 : capacity);
}

OFFRAMP_SEPARABLE Model::State Model::make_layer_state(Index capacity) const {
  OFFRAMP_REQUIRE(has_plan(), why_not());
  OFFRAMP_REQUIRE(capacity > 0, "a state needs room for at least one sample");
  return Data::state_of(*d_, d_->single ? 1 : capacity);
}

OFFRAMP_SEPARABLE Model::State Model::Data::state_of(const Data& d, Index capacity) {
  State s;
  s.capacity_ = capacity;
  s.plan_ = plan_memory(d, capacity);
  OFFRAMP_REQUIRE(s.plan_.total <= d.options.limits.memory_bytes,
                  "a batch of " + std::to_string(capacity) + " needs " + std::to_string(s.plan_.total) +
                      " bytes, the limit is " + std::to_string(d.options.limits.memory_bytes));
  s.memory_ = allocate_aligned(static_cast<std::size_t>(s.plan_.total));
  s.views_.resize(d.view_count * static_cast<std::size_t>(d.threads()));
  s.bound_.assign(d.blocks.size() * static_cast<std::size_t>(d.threads()), {-1, -1});
  s.counts_.assign(d.steps.size(), 0);
  s.batch_ = capacity;
  return s;
}

OFFRAMP_SEPARABLE void Model::Data::bind(const Data& d, State& s, std::size_t block, Index thread, Index first,
                                         Index count) noexcept {
  const auto t = static_cast<std::size_t>(thread);
  auto& bound = s.bound_[t * d.blocks.size() + block];
  if (bound == std::pair(first, count)) return;
  bound = {first, count};
  for (std::size_t i = d.blocks[block].begin; i < d.blocks[block].end; ++i) {
    const Step& step = d.steps[i];
    std::size_t at = t * d.view_count + step.first_view;
    const auto set = [&](ValueId v) {
      TensorView& x = s.views_[at++];
      if (v == no_value) return;
      const ValueInfo& info = d.values[static_cast<std::size_t>(v)];
      x.type = info.type;
      x.shape = info.at(count);
      if (info.storage < 0) {  // kernels do not write through inputs; a view has one kind of pointer
        x.data = const_cast<void*>(info.constant);
        return;
      }
      const auto u = static_cast<std::size_t>(info.storage);
      const Index from = d.storages[u].block >= 0 ? thread * s.plan_.own[block] : first > 0 ? first * info.bytes(1) : 0;
      x.data = s.memory_.get() + s.plan_.offsets[u] + from;
    };
    for (const ValueId v : step.in) set(v);
    for (const ValueId v : step.out) set(v);
  }
}

OFFRAMP_SEPARABLE void Model::load(State& s, const float* samples, Index batch) const noexcept {
  s.batch_ = batch;
  const Data::ValueInfo& input = d_->values[static_cast<std::size_t>(d_->prepared.inputs[0])];
  std::memcpy(s.memory_.get() + s.plan_.offsets[static_cast<std::size_t>(input.storage)], samples,
              static_cast<std::size_t>(batch * d_->sample_size) * sizeof(float));
}

// These samples through all steps of a block, with the memory of this thread.
OFFRAMP_SEPARABLE bool Model::Data::run_block(const Data& d, State& s, std::size_t k, bool is_full, Index thread,
                                              kernel::Range samples, Index chunk, ExecutorRef executor,
                                              WatchRef watch) noexcept {
  const kernel::Kernels& kernels = kernel::kernels_for(d.options.isa);
  const TensorView* views = s.views_.data() + static_cast<std::size_t>(thread) * d.view_count;
  std::byte* scratch = s.memory_.get() + s.plan_.scratch + thread * s.plan_.own_scratch;
  bool ok = true;
  for (Index first = samples.first; first < samples.last; first += chunk) {
    bind(d, s, k, thread, first, std::min(chunk, samples.last - first));
    for (std::size_t i = d.blocks[k].begin; i < d.blocks[k].end; ++i) {
      const Step& step = d.steps[i];
      if (!step.runs(is_full)) continue;
      const std::span<const TensorView> all(views + step.first_view, step.in.size() + step.out.size());
      const OperationRun run{all.first(step.in.size()), all.subspan(step.in.size()), scratch, kernels, executor,
                             step.next[is_full ? 1 : 0]};
      ok = watch(i, LayerRun{*step.op, run}) && ok;
    }
  }
  return ok;
}

OFFRAMP_SEPARABLE bool Model::Data::run_segment(const Data& d, State& s, Segment segment, bool is_full,
                                                WatchRef watch) noexcept {
  const ExecutorRef executor = d.options.pool ? ExecutorRef(*d.options.pool) : ExecutorRef();
  std::atomic<bool> ok = true;
  const auto note = [&](bool good) {
    if (!good) ok.store(false, std::memory_order_relaxed);
  };
  for (std::size_t k = 0; k < d.blocks.size(); ++k) {
    const Block& block = d.blocks[k];
    if (block.begin < segment.begin || block.end > segment.end) continue;
    Index first = 0;
    if (block.shares(s.batch_)) {
      const Index each = s.batch_ / block.threads, chunk = block.chunk(s.batch_);
      executor.each(block.threads, [&](Index t) {
        const kernel::Range own{t * each, (t + 1) * each};
        note(run_block(d, s, k, is_full, t, own, chunk, ExecutorRef(), t == 0 ? watch : nobody));
      });
      first = each * block.threads;
    }
    note(run_block(d, s, k, is_full, 0, {first, s.batch_}, block.chunk(s.batch_ - first), executor, watch));
#if OFFRAMP_COUNT_FLOPS
    for (std::size_t i = block.begin; i < block.end; ++i) {
      if (d.steps[i].runs(is_full)) s.counts_[i] += s.batch_;
    }
#endif
  }
  return ok.load(std::memory_order_relaxed);
}

OFFRAMP_SEPARABLE bool Model::run_watched(State& s, WatchRef watch, bool with_heads) const noexcept {
  bool ok = true;
  const std::size_t end = d_->stages.empty() ? 0 : d_->heads.back().end;
  for (std::size_t k = 0; k < d_->stages.size(); ++k) {
    ok = Data::run_segment(*d_, s, d_->stages[k], true, watch) && ok;
    if (with_heads) ok = Data::run_segment(*d_, s, d_->heads[k], false, watch) && ok;
  }
  return Data::run_segment(*d_, s, {end, d_->steps.size()}, false, watch) && ok;
}

OFFRAMP_SEPARABLE bool Model::run_stage(State& s, Index k) const noexcept {
  return Data::run_segment(*d_, s, d_->stages[static_cast<std::size_t>(k)]);
}
OFFRAMP_SEPARABLE bool Model::run_head(State& s, Index k) const noexcept {
  return Data::run_segment(*d_, s, d_->heads[static_cast<std::size_t>(k)]);
}

OFFRAMP_SEPARABLE bool Model::run_full(State& s) const noexcept {
  bool ok = true;
  for (const Data::Segment& stage : d_->stages) ok = Data::run_segment(*d_, s, stage, true) && ok;
  return ok;
}

OFFRAMP_SEPARABLE const float* Model::logits(const State& s, Index k) const noexcept {
  const Data::ValueInfo& info = d_->values[static_cast<std::size_t>(d_->exit_values[static_cast<std::size_t>(k)])];
  return reinterpret_cast<const float*>(s.memory_.get() + s.plan_.offsets[static_cast<std::size_t>(info.storage)]);
}

OFFRAMP_SEPARABLE void Model::compact(State& s, Index k, std::span<const Index> kept) const noexcept {
  for (const int i : d_->crossing[static_cast<std::size_t>(k)]) {
    const std::size_t row = d_->row_bytes(i);
    std::byte* base = s.memory_.get() + s.plan_.offsets[static_cast<std::size_t>(i)];
    for (std::size_t to = 0; to < kept.size(); ++to) {
      const auto from = static_cast<std::size_t>(kept[to]);
      if (from != to) std::memcpy(base + to * row, base + from * row, row);
    }
  }
  s.batch_ = static_cast<Index>(kept.size());
}

OFFRAMP_SEPARABLE bool Model::can_skip(Index from, Index to) const noexcept {
  if (from < 0 || from >= to || to >= exit_count()) return false;
  const auto& needed = d_->crossing[static_cast<std::size_t>(to - 1)];
  const std::size_t end = d_->heads[static_cast<std::size_t>(to - 1)].end;
  for (std::size_t i = d_->heads[static_cast<std::size_t>(from)].end; i < end; ++i) {
    if (d_->steps[i].is_view) continue;
    for (const ValueId v : d_->steps[i].out) {
      if (v != no_value &&
          std::count(needed.begin(), needed.end(), d_->values[static_cast<std::size_t>(v)].storage) > 0)
        return false;
    }
  }
  return true;
}

OFFRAMP_SEPARABLE void Model::make_places(State& s, Index to, Index places) const {
  std::size_t row = 0;
  for (const int i : d_->crossing[static_cast<std::size_t>(to - 1)]) row += d_->row_bytes(i);
  s.aside_ = allocate_aligned(row * static_cast<std::size_t>(places));
  s.places_ = places;
}

OFFRAMP_SEPARABLE void Model::put_aside(State& s, Index to, Index sample, Index place) const noexcept {
  std::byte* at = s.aside_.get();
  for (const int i : d_->crossing[static_cast<std::size_t>(to - 1)]) {
    const std::size_t row = d_->row_bytes(i);
    std::memcpy(at + static_cast<std::size_t>(place) * row,
                s.memory_.get() + s.plan_.offsets[static_cast<std::size_t>(i)] + static_cast<std::size_t>(sample) * row,
                row);
    at += static_cast<std::size_t>(s.places_) * row;
  }
}

OFFRAMP_SEPARABLE void Model::take_back(State& s, Index to, Index places) const noexcept {
  const std::byte* at = s.aside_.get();
  for (const int i : d_->crossing[static_cast<std::size_t>(to - 1)]) {
    const std::size_t row = d_->row_bytes(i);
    std::memcpy(
        s.memory_.get() + s.plan_.offsets[static_cast<std::size_t>(i)] + static_cast<std::size_t>(s.batch_) * row, at,
        static_cast<std::size_t>(places) * row);
    at += static_cast<std::size_t>(s.places_) * row;
  }
  s.batch_ += places;
}

OFFRAMP_SEPARABLE std::vector<Tensor> Model::run(std::span<const Tensor> inputs) const {
  const Data& d = *d_;
  OFFRAMP_REQUIRE(inputs.size() == d.inputs.size(),
                  "expected " + std::to_string(d.inputs.size()) + " inputs, found " + std::to_string(inputs.size()));
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const PortInfo& p = d.inputs[i];
    OFFRAMP_REQUIRE(inputs[i].type() == p.type, "input '" + p.name + "': expected " + std::string(name_of(p.type)) +
                                                    ", found " + std::string(name_of(inputs[i].type())));
  }
  if (!has_plan()) return run_graph(inputs);
  const auto input_shape = [&](std::size_t i, Index n) {
    return d.values[static_cast<std::size_t>(d.prepared.inputs[i])].at(n);
  };
  Index n = 1;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].shape().rank() > 0) {
      n = inputs[i].shape()[0];
      break;
    }
  }
  // Sample by sample where the batch is not open but every input and output has one sample in front.
  bool split = d.single && n != 1;
  for (std::size_t i = 0; split && i < inputs.size(); ++i)
    split = input_shape(i, 1).rank() > 0 && input_shape(i, 1)[0] == 1 && inputs[i].shape().rank() > 0 &&
            inputs[i].shape()[0] == n;
  for (const ValueId v : d.output_values)
    split =
        split && d.values[static_cast<std::size_t>(v)].rank > 0 && d.values[static_cast<std::size_t>(v)].at(1)[0] == 1;
  OFFRAMP_REQUIRE(n > 0 || !split, "the batch is empty");
  const Index runs = split ? n : 1;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    Shape expected = input_shape(i, d.single ? 1 : n);
    if (split) expected[0] = n;
    OFFRAMP_REQUIRE(inputs[i].shape() == expected, "input '" + d.inputs[i].name + "': expected shape " +
                                                       expected.text() + ", found " + inputs[i].shape().text());
  }
  const Index each = d.single ? 1 : n;
  OFFRAMP_REQUIRE(each > 0, "the batch is empty");
  State s = Data::state_of(d, each);
  std::vector<Tensor> results;
  for (const ValueId v : d.output_values) {
    const Data::ValueInfo& info = d.values[static_cast<std::size_t>(v)];
    Shape shape = info.at(each);
    if (split) shape[0] = n;
    results.emplace_back(info.type, shape, d.options.limits.memory_bytes);
  }
  for (Index r = 0; r < runs; ++r) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const Data::ValueInfo& info = d.values[static_cast<std::size_t>(d.prepared.inputs[i])];
      const std::size_t bytes = inputs[i].bytes() / static_cast<std::size_t>(runs);
      if (bytes > 0)
        std::memcpy(s.memory_.get() + s.plan_.offsets[static_cast<std::size_t>(info.storage)],
                    static_cast<const std::byte*>(inputs[i].data()) + static_cast<std::size_t>(r) * bytes, bytes);
    }
    OFFRAMP_REQUIRE(Data::run_segment(d, s, {0, d.steps.size()}), "an index in the data is out of range");
    for (std::size_t i = 0; i < results.size(); ++i) {
      const Data::ValueInfo& info = d.values[static_cast<std::size_t>(d.output_values[i])];
      const std::size_t bytes = results[i].bytes() / static_cast<std::size_t>(runs);
      const void* from =
          info.storage < 0 ? info.constant : s.memory_.get() + s.plan_.offsets[static_cast<std::size_t>(info.storage)];
      if (bytes > 0)
        std::memcpy(static_cast<std::byte*>(results[i].mutable_data()) + static_cast<std::size_t>(r) * bytes, from,
                    bytes);
    }
  }
  return results;
}

}  // namespace offramp
