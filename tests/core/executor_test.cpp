#include "offramp/core/executor.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
#include <vector>

namespace offramp {
namespace {

TEST(ThreadPool, RunsEveryPartOnce) {
  for (const Index threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    const ExecutorRef executor(pool);
    EXPECT_EQ(executor.threads(), threads);
    // Many rounds, each with more parts than the one before: a worker that is late must not meet the next one's number.
    for (int round = 0; round < 20'000; ++round) {
      std::vector<int> hits(static_cast<std::size_t>(round % 37));
      executor.each(static_cast<Index>(hits.size()), [&](Index i) { ++hits[static_cast<std::size_t>(i)]; });
      EXPECT_EQ(std::count(hits.begin(), hits.end(), 1), static_cast<std::ptrdiff_t>(hits.size()));
    }
  }
}

TEST(ThreadPool, WakesAfterSleeping) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<Index> sum{0};
    ExecutorRef(pool).each(100, [&](Index i) { sum += i; });
    EXPECT_EQ(sum, 4950);
  }
}

// A second caller, and a part that calls again, do their own work.
TEST(ThreadPool, ManyCallersAndNestedCalls) {
  ThreadPool pool(3);
  std::vector<std::thread> callers;
  std::atomic<Index> sum{0};
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        ExecutorRef(pool).each(8, [&](Index) { ExecutorRef(pool).each(3, [&](Index i) { sum += i; }); });
      }
    });
  }
  for (std::thread& t : callers) t.join();
  EXPECT_EQ(sum, 4 * 100 * 8 * 3);
}

TEST(ExecutorRef, IsSerialByDefault) {
  Index next = 0;
  ExecutorRef().each(5, [&](Index i) { EXPECT_EQ(i, next++); });
  EXPECT_EQ(next, 5);
}

}  // namespace
}  // namespace offramp
