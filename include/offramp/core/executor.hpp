/// @file executor.hpp
/// Who does the parts of one operation, or the samples of a batch: the calling thread alone, or a pool.
#pragma once

#include <atomic>
#include <concepts>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "offramp/core/config.hpp"
#include "offramp/core/shape.hpp"

namespace offramp {

/// A part of the work: `task(context, i)`.
using Task = void (*)(void* context, Index i) noexcept;

/// Runs `task(context, i)` for every i below `parts`, in any order and on any thread, and returns when all are done.
template <class E>
concept Executor = requires(E& e, Index parts, Task task, void* context) {
  { e.threads() }
  noexcept->std::convertible_to<Index>;
  { e.run(parts, task, context) }
  noexcept;
};

/// The calling thread does everything.
struct SerialExecutor {
  Index threads() const noexcept { return 1; }
  void run(Index parts, Task task, void* context) const noexcept {
    for (Index i = 0; i < parts; ++i) task(context, i);
  }
};

/// Any executor, by reference; serial where none was given.
class ExecutorRef {
 public:
  ExecutorRef() = default;
  template <Executor E>
  explicit ExecutorRef(E& e) noexcept
      : executor_(&e),
        run_([](void* x, Index parts, Task task, void* context) noexcept {
          static_cast<E*>(x)->run(parts, task, context);
        }),
        threads_(e.threads()) {}

  Index threads() const noexcept { return threads_; }

  /// Calls f(i) for every i below `parts`.
  template <class F>
  void each(Index parts, F&& f) const noexcept {
    if (executor_ == nullptr || parts < 2) {
      for (Index i = 0; i < parts; ++i) f(i);
      return;
    }
    using Function = std::remove_reference_t<F>;
    run_(
        executor_, parts, [](void* context, Index i) noexcept { (*static_cast<Function*>(context))(i); },
        const_cast<void*>(static_cast<const void*>(std::addressof(f))));
  }

 private:
  void* executor_ = nullptr;
  void (*run_)(void*, Index, Task, void*) noexcept = nullptr;
  Index threads_ = 1;
};

/// Threads that wait for parts of work. One caller at a time has them; a second caller meanwhile does its own work
/// itself, so that many sessions over one pool never use more threads than the pool has, plus their own.
///
/// A call allocates nothing and takes no lock. Written here because the pools at hand allocate a closure for every part
/// and sleep between calls (docs/performance.md has the measurement); an operation lasts microseconds.
class ThreadPool {
 public:
  /// `threads` counts the caller: threads - 1 are started. Raises std::system_error where they cannot be.
  explicit ThreadPool(Index threads) {
    for (Index i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() {
    stop_.store(true, std::memory_order_relaxed);
    ticket_.fetch_add(std::uint64_t{1} << 32, std::memory_order_release);
    ticket_.notify_all();
    for (std::thread& t : workers_) t.join();
  }

  Index threads() const noexcept { return static_cast<Index>(workers_.size()) + 1; }

  void run(Index parts, Task task, void* context) noexcept {
    if (parts < 2 || parts > most_parts || workers_.empty() || busy_.exchange(true, std::memory_order_acquire)) {
      SerialExecutor().run(parts, task, context);
      return;
    }
    task_.store(task, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const std::uint64_t epoch = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(epoch << 32 | static_cast<std::uint64_t>(parts) << 16, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst) > 0) ticket_.notify_all();
    take_parts(epoch, true);
    while (done_.load(std::memory_order_acquire) != parts) pause();
    busy_.store(false, std::memory_order_release);
  }

 private:
  static constexpr Index most_parts = 0xffff;
  static constexpr int spins = 4000;  // about 50 to 100 microseconds before a worker sleeps

  static void pause() noexcept {
#if OFFRAMP_X86_TARGETS
    __builtin_ia32_pause();
#endif
  }

  // Parts of this epoch, until none is left: the caller takes them from the front, workers from the back, so that the
  // same part of one operation after another falls to the same core, whose cache has its data. What is left stands in
  // the ticket itself: beside it, a worker could meet the number of the next epoch before that has begun. Whoever takes
  // a part keeps the epoch from ending, so that the task that was read before still stands.
  void take_parts(std::uint64_t epoch, bool front) noexcept {
    std::uint64_t t = ticket_.load(std::memory_order_acquire);
    while (t >> 32 == epoch) {
      const auto first = static_cast<Index>(t & 0xffffU), end = static_cast<Index>(t >> 16 & 0xffffU);
      if (first >= end) return;
      const Task task = task_.load(std::memory_order_relaxed);
      void* context = context_.load(std::memory_order_relaxed);
      const std::uint64_t taken = front ? t + 1 : t - (std::uint64_t{1} << 16);
      if (!ticket_.compare_exchange_weak(t, taken, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      task(context, front ? first : end - 1);
      done_.fetch_add(1, std::memory_order_release);
      t = ticket_.load(std::memory_order_acquire);
    }
  }

  void work() noexcept {
    std::uint64_t seen = 0;
    while (!stop_.load(std::memory_order_relaxed)) {
      std::uint64_t t = ticket_.load(std::memory_order_acquire);
      for (int i = 0; t >> 32 == seen && i < spins; ++i) {
        pause();
        t = ticket_.load(std::memory_order_acquire);
      }
      if (t >> 32 == seen) {
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        t = ticket_.load(std::memory_order_seq_cst);
        if (t >> 32 == seen) ticket_.wait(t, std::memory_order_acquire);
        asleep_.fetch_sub(1, std::memory_order_relaxed);
        continue;
      }
      seen = t >> 32;
      take_parts(seen, false);
    }
  }

  std::vector<std::thread> workers_;
  std::atomic<bool> stop_{false}, busy_{false};
  std::atomic<int> asleep_{0};
  alignas(64) std::atomic<std::uint64_t> ticket_{0};  // 32 bits the epoch, 16 the end of its parts, 16 the first
  std::atomic<Task> task_{nullptr};
  std::atomic<void*> context_{nullptr};
  alignas(64) std::atomic<Index> done_{0};
};

}  // namespace offramp
