// After warm-up `predict` allocates nothing and takes no lock: every way to the heap and every pthread lock is counted.
#include <gtest/gtest.h>
#include <pthread.h>

#include <chrono>

#include "counting_allocator.hpp"
#include "offramp/onnx/onnx.hpp"
#include "offramp/session/model_session.hpp"
#include "reference.hpp"

namespace offramp {
namespace {

TEST(Allocation, TheCountersCount) {
  if (!test::counts_allocations) return;  // a sanitizer has the allocator
  const long a = test::allocations(), l = test::locks();
  ::operator delete(::operator new(3));
  pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&m);
  pthread_mutex_unlock(&m);
  EXPECT_GT(test::allocations(), a);
  EXPECT_GT(test::locks(), l);
}

TEST(Allocation, PredictAllocatesNothingAndTakesNoLock) {
  const Model m = load_onnx(OFFRAMP_FASHION_MODEL);
  for (const char* policy : {"max-probability:0.9", "entropy:0.3", "ensemble(margin:0.5)", "patience:2",
                             "temperature(1.5;agreement:0.8)", "or(flops:2e7;deadline:0.0005)", "never"}) {
    for (const Index batch : {1, 32}) {
      Session s(m, parse_policy(policy), batch);
      const auto x = test::random_floats(batch * m.sample_size(), 3, 0, 1);
      s.predict(x);
      const long a = test::allocations(), l = test::locks();
      for (int i = 0; i < 3; ++i) {
        s.predict(x);
        s.predict_full(x);
        s.predict_until(x, std::chrono::steady_clock::now());
      }
      EXPECT_EQ(test::allocations(), a) << policy << " batch " << batch;
      EXPECT_EQ(test::locks(), l) << policy << " batch " << batch;
    }
  }
}

}  // namespace
}  // namespace offramp
