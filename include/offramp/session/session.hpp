/// @file session.hpp
/// Runs an early-exit network: stage, head, policy, answer or go on; a batch shrinks as its samples are answered.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/kernel/dispatch.hpp"
#include "offramp/network/early_exit_network.hpp"
#include "offramp/policy/any_policy.hpp"
#include "offramp/policy/constant.hpp"
#include "offramp/policy/policy.hpp"
#include "offramp/session/prediction.hpp"

namespace offramp {

/// The private scratch of one thread of work over a shared network. Not for two threads at once; make one each.
///
/// After the first call with a batch of a size or larger, a call allocates nothing, locks nothing and, but for wrong
/// arguments, throws nothing.
template <EarlyExitNetwork N, ExitPolicy P = AnyPolicy>
class Session {
 public:
  /// Raises an Error where the policy does not fit the network, or the network cannot be run by a session.
  Session(N network, P policy, Index capacity = 1) : network_(std::move(network)), policy_(std::move(policy)) {
    state_ = std::make_unique<typename N::State>(
        network_.make_state(std::min(std::max<Index>(1, capacity), network_.max_batch())));
    const Index exits = network_.exit_count();
    policy_validate(policy_, exits, network_.class_count());
    for (Index k = 0; k < exits; ++k) {
      const bool last = k + 1 == exits;
      wanted_.push_back(last || policy_wants(policy_, k));
    }
    const Index target = policy_skip_target(policy_);
    for (Index k = 0; k < exits; ++k) {
      may_skip_.push_back(target > 0 && policy_may_skip(policy_, k));
      if (!may_skip_.back()) continue;
      OFFRAMP_REQUIRE(can_skip(k, target), "samples cannot go from exit " + std::to_string(k) + " to exit " +
                                               std::to_string(target) +
                                               ": the network needs there what is computed between");
      skip_target_ = target;
    }
    full_ = full_cost_of(network_);
    every_.assign(static_cast<std::size_t>(exits), 1);
    only_last_.assign(static_cast<std::size_t>(exits), 0);
    only_last_.back() = 1;
    evaluated_.assign(static_cast<std::size_t>(exits), 0);
    reserve(std::max<Index>(1, capacity));
  }

  const N& network() const noexcept { return network_; }
  const P& policy() const noexcept { return policy_; }
  const typename N::State& state() const noexcept { return *state_; }
  typename N::State& state() noexcept { return *state_; }

  /// Answers one sample or a batch: `samples` holds whole samples, one after the other, each in NCHW order. The result
  /// stands until the next call. Raises an Error where the batch is empty or does not hold whole samples.
  std::span<const Prediction> predict(std::span<const float> samples) {
    return run<false>(samples, policy_, wanted_, [] { return false; });
  }

  /// The same, asked between stages whether to stop: `stop()` true ends the call with the best answer so far. The first
  /// exit is always reached, and every exit on the way is evaluated.
  template <std::predicate Stop>
  std::span<const Prediction> predict(std::span<const float> samples, Stop&& stop) {
    return run<false>(samples, policy_, every_, std::forward<Stop>(stop));
  }

  /// The same with a deadline. A stage that has begun is finished.
  std::span<const Prediction> predict_until(std::span<const float> samples,
                                            std::chrono::steady_clock::time_point deadline) {
    return predict(samples, [deadline] { return std::chrono::steady_clock::now() >= deadline; });
  }

  /// The full network, without early exits and without their heads.
  std::span<const Prediction> predict_full(std::span<const float> samples) {
    return run<true>(samples, Never{}, only_last_, [] { return false; });
  }

  /// Room for batches of this size, so that later calls allocate nothing.
  void reserve(Index batch) {
    const Index room = std::min(batch, network_.max_batch());
    if (room > state_->capacity()) *state_ = network_.make_state(room), places_ = 0;
    if constexpr (SkippableNetwork<N>) {
      if (skip_target_ > 0 && room > places_) network_.make_places(*state_, skip_target_, places_ = room);
    }
    const auto n = static_cast<std::size_t>(batch);
    if (predictions_.size() >= n) return;
    const auto classes = static_cast<std::size_t>(network_.class_count()), exits = wanted_.size();
    predictions_.resize(n);
    probabilities_.resize(n * classes);
    history_.resize(n * classes * exits);
    softmax_.resize(n * classes);
    live_.resize(n);
    kept_.resize(n);
    goes_on_.resize(n);
    aside_.resize(n);
    left_out_.resize(n);
  }

  /// What every call since the last reset did, all samples together.
  Cost counted() const noexcept { return counted_; }
  /// Samples answered since the last reset.
  std::int64_t counted_samples() const noexcept { return counted_samples_; }
  void reset_counter() noexcept {
    counted_ = {};
    counted_samples_ = 0;
    if constexpr (requires { state_->reset_counts(); }) state_->reset_counts();
  }

 private:
  template <bool is_full, class Policy, class Stop>
  std::span<const Prediction> run(std::span<const float> samples, const Policy& policy,
                                  const std::vector<std::uint8_t>& wanted, Stop&& stop) {
    const auto size = static_cast<std::size_t>(network_.sample_size());
    if (samples.empty() || size == 0 || samples.size() % size != 0) {
      raise(samples.empty() ? std::string("the batch is empty")
                            : "expected samples of " + std::to_string(size) + " numbers, found " +
                                  std::to_string(samples.size()) + " numbers");
    }
    const auto batch = static_cast<Index>(samples.size() / size);
    reserve(batch);
    bool ok = true;
    const Index step = std::min(batch, network_.max_batch());
    for (Index i = 0; i < batch; i += step)
      ok = run_batch<is_full>(samples.data() + i * network_.sample_size(), i, std::min(step, batch - i), policy, wanted,
                              stop) &&
           ok;
    if (!ok) raise("an index in the data is out of range");
    return {predictions_.data(), static_cast<std::size_t>(batch)};
  }

  bool can_skip(Index k, Index target) const noexcept {
    if constexpr (SkippableNetwork<N>) {
      return network_.can_skip(k, target);
    } else {
      return false;
    }
  }

  template <bool is_full, class Policy, class Stop>
  bool run_batch(const float* samples, Index first, Index n, const Policy& policy,
                 const std::vector<std::uint8_t>& wanted, Stop&& stop) noexcept {
    const auto start = std::chrono::steady_clock::now();
    const Index exits = network_.exit_count(), classes = network_.class_count();
    const auto width = static_cast<std::size_t>(classes);
    const kernel::Kernels& kernels = kernel::kernels_for(best_isa());
    network_.load(*state_, samples, n);
    for (Index i = 0; i < n; ++i) {
      live_[static_cast<std::size_t>(i)] = first + i;
      Prediction& p = predictions_[static_cast<std::size_t>(first + i)];
      p = {};
      p.full_cost = full_;
      left_out_[static_cast<std::size_t>(first + i)] = {};
    }
    std::fill(evaluated_.begin(), evaluated_.end(), std::uint8_t{0});
    Cost spent;
    Index live = n, aside = 0;  // samples that run, and that wait for the stage of the skip target
    bool answered = false;
    constexpr bool at_once = is_full && requires(const N& x, typename N::State& s) {
      x.run_full(s);
    };
    for (Index k = at_once ? exits - 1 : 0; k < exits && live + aside > 0; ++k) {
      if (answered && stop()) {
        for (Index j = 0; j < live; ++j)
          predictions_[static_cast<std::size_t>(live_[static_cast<std::size_t>(j)])].stopped = true;
        for (Index j = 0; j < aside; ++j)
          predictions_[static_cast<std::size_t>(aside_[static_cast<std::size_t>(j)])].stopped = true;
        break;
      }
      if (aside > 0 && k < skip_target_ && live == 0) continue;
      if (aside > 0 && k == skip_target_) live = join(wanted, spent, live, std::exchange(aside, 0));
      if constexpr (at_once) {
        if (!network_.run_full(*state_)) return false;
      } else {
        if (!network_.run_stage(*state_, k)) return false;
      }
      const Cost stage = at_once ? full_ : network_.stage_cost(k);
      spent += stage;
      count(stage * live);
      const bool last = k + 1 == exits;
      if (!last && !wanted[static_cast<std::size_t>(k)]) continue;
      if (!last) {
        if (!network_.run_head(*state_, k)) return false;
        const Cost head = network_.head_cost(k);
        spent += head;
        count(head * live);
      }
      evaluated_[static_cast<std::size_t>(k)] = 1;
      answered = true;
      const float* logits = network_.logits(*state_, k);
      kernels.softmax(logits, softmax_.data(), live, classes, false);
      const Cost next =
          last ? Cost{} : network_.stage_cost(k + 1) + (k + 2 == exits ? Cost{} : network_.head_cost(k + 1));
      Index kept = 0;
      for (Index j = 0; j < live; ++j) {
        const auto slot = static_cast<std::size_t>(live_[static_cast<std::size_t>(j)]);
        Prediction& p = predictions_[slot];
        const std::span<const float> row(logits + j * classes, width);
        const std::span<float> probabilities(probabilities_.data() + slot * width, width);
        float* history = history_.data() + slot * width * static_cast<std::size_t>(exits);
        const float* fresh = softmax_.data() + j * classes;
        const bool finite = is_finite(row);
        float* own = history + static_cast<std::size_t>(k) * width;
        if (finite) {
          std::copy_n(fresh, width, own);
          std::copy_n(fresh, width, probabilities.data());
        } else {  // says nothing to policies that look back
          std::fill_n(own, width, 1.0f / static_cast<float>(classes));
          if (last) std::copy_n(fresh, width, probabilities.data());
        }
        const Cost own_spent = spent - left_out_[slot];
        ExitContext c{k,          exits,     row,  probabilities, {history, width * static_cast<std::size_t>(exits)},
                      evaluated_, own_spent, next, full_,         start};
        Verdict v;
        if (finite) v = policy(c);
        const bool sure = finite && std::isfinite(v.confidence);
        p.finite = p.finite && sure;
        if (finite && last && !sure) std::copy_n(fresh, width, probabilities.data());
        if (finite || last) {
          p.label = finite ? c.label() : best_finite(row);
          p.confidence = sure ? v.confidence : 0;
          p.probabilities = probabilities;
          p.exit = k;
        }
        p.cost = own_spent;
        const bool leave = last || (sure && v.leave),
                   skip = !leave && v.skip && sure && may_skip_[static_cast<std::size_t>(k)];
        if (skip) {
          for (Index e = k + 1; e < skip_target_; ++e)
            std::copy_n(own, width, history + static_cast<std::size_t>(e) * width);
          left_out_[slot] = spent;
          put_aside(j, aside, live_[static_cast<std::size_t>(j)]);
          ++aside;
        }
        goes_on_[static_cast<std::size_t>(j)] = leave || skip ? 0 : 1;
        kept += leave || skip ? 0 : 1;
      }
      if (kept < live && kept + aside > 0) compact(k, live, kept);
      live = kept;
    }
#if OFFRAMP_COUNT_FLOPS
    counted_samples_ += n;
#endif
    return true;
  }

  void put_aside(Index sample, Index place, Index slot) noexcept {
    if constexpr (SkippableNetwork<N>) network_.put_aside(*state_, skip_target_, sample, place);
    aside_[static_cast<std::size_t>(place)] = slot;
  }

  // The samples aside run on behind those that went through all stages. What an exit between would have said was said
  // for them when they skipped; what these stages cost is left out.
  Index join(const std::vector<std::uint8_t>& wanted, const Cost& spent, Index live, Index aside) noexcept {
    if constexpr (SkippableNetwork<N>) network_.take_back(*state_, skip_target_, aside);
    std::copy_n(wanted.begin(), skip_target_, evaluated_.begin());
    for (Index j = 0; j < aside; ++j) {
      const Index slot = aside_[static_cast<std::size_t>(j)];
      live_[static_cast<std::size_t>(live + j)] = slot;
      Cost& out = left_out_[static_cast<std::size_t>(slot)];
      out = spent - out;
    }
    return live + aside;
  }

  // Of the live samples only those that go on. The last of them take the places of those that left, so that few move.
  void compact(Index k, Index live, Index kept) noexcept {
    for (Index to = 0; to < kept; ++to) {
      const auto u = static_cast<std::size_t>(to);
      kept_[u] = to;
      if (goes_on_[u]) continue;
      do --live;
      while (!goes_on_[static_cast<std::size_t>(live)]);
      kept_[u] = live;
      live_[u] = live_[static_cast<std::size_t>(live)];
    }
    network_.compact(*state_, k, std::span<const Index>(kept_.data(), static_cast<std::size_t>(kept)));
  }

  static bool is_finite(std::span<const float> row) noexcept {
    float zero = 0;
    for (const float x : row) zero += x * 0;  // an infinity or a NaN makes it a NaN
    return zero == 0;
  }
  static Index best_finite(std::span<const float> row) noexcept {
    Index best = 0;
    float largest = -INFINITY;
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (std::isfinite(row[i]) && row[i] > largest) {
        largest = row[i];
        best = static_cast<Index>(i);
      }
    }
    return best;
  }
  void count(const Cost& c) noexcept {
#if OFFRAMP_COUNT_FLOPS
    counted_ += c;
#else
    static_cast<void>(c);
#endif
  }

  N network_;
  P policy_;
  std::unique_ptr<typename N::State> state_;
  std::vector<std::uint8_t> wanted_, every_, only_last_, evaluated_, goes_on_;
  Cost full_, counted_;
  std::int64_t counted_samples_ = 0;
  std::vector<Prediction> predictions_;
  std::vector<float> probabilities_, history_, softmax_;
  std::vector<Index> live_, kept_, aside_;
  std::vector<std::uint8_t> may_skip_;  // at each exit
  std::vector<Cost> left_out_;          // of each sample, what it skipped; while it waits, what was spent before
  Index skip_target_ = 0, places_ = 0;
};

template <class N, class P>
Session(N, P) -> Session<N, P>;
template <class N, class P>
Session(N, P, Index) -> Session<N, P>;

}  // namespace offramp
