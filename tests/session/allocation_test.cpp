// After warm-up `predict` allocates nothing and takes no lock: every way to the heap and every pthread lock is counted.
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>

#include "offramp/onnx/onnx.hpp"
#include "offramp/session/model_session.hpp"
#include "reference.hpp"

namespace {
std::atomic<long> allocations{0};
std::atomic<long> locks{0};
}  // namespace

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define OFFRAMP_COUNTS_ALLOCATIONS 1
void* operator new(std::size_t n) {
  ++allocations;
  if (void* p = std::malloc(n ? n : 1)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t n, std::align_val_t a) {
  ++allocations;
  const auto align = static_cast<std::size_t>(a);
  if (void* p = std::aligned_alloc(align, (n + align) / align * align)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}

// Stands before the one in libc and takes the lock by trying.
extern "C" int pthread_mutex_lock(pthread_mutex_t* m) noexcept {
  ++locks;
  while (const int r = pthread_mutex_trylock(m)) {
    if (r != EBUSY) return r;
  }
  return 0;
}
#else
#define OFFRAMP_COUNTS_ALLOCATIONS 0
#endif

namespace offramp {
namespace {

TEST(Allocation, TheCountersCount) {
#if OFFRAMP_COUNTS_ALLOCATIONS
  const long a = allocations, l = locks;
  delete new int(3);  // NOLINT
  pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&m);
  pthread_mutex_unlock(&m);
  EXPECT_GT(allocations, a);
  EXPECT_GT(locks, l);
#endif
}

TEST(Allocation, PredictAllocatesNothingAndTakesNoLock) {
  const Model m = load_onnx(OFFRAMP_FASHION_MODEL);
  for (const char* policy : {"max-probability:0.9", "entropy:0.3", "ensemble(margin:0.5)", "patience:2",
                             "temperature(1.5;agreement:0.8)", "or(flops:2e7;deadline:0.0005)", "never"}) {
    for (const Index batch : {1, 32}) {
      Session s(m, parse_policy(policy), batch);
      const auto x = test::random_floats(batch * m.sample_size(), 3, 0, 1);
      s.predict(x);
      const long a = allocations, l = locks;
      for (int i = 0; i < 3; ++i) {
        s.predict(x);
        s.predict_full(x);
        s.predict_until(x, std::chrono::steady_clock::now());
      }
      EXPECT_EQ(allocations, a) << policy << " batch " << batch;
      EXPECT_EQ(locks, l) << policy << " batch " << batch;
    }
  }
}

}  // namespace
}  // namespace offramp
