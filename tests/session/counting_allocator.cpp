#include "counting_allocator.hpp"

#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>

namespace test {
namespace {
std::atomic<long> allocation_count{0}, lock_count{0};
}
long allocations() {
  return allocation_count;
}
long locks() {
  return lock_count;
}
}  // namespace test

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

void* operator new(std::size_t n) {
  ++test::allocation_count;
  if (void* p = std::malloc(n ? n : 1)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t n, std::align_val_t a) {
  ++test::allocation_count;
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
  ++test::lock_count;
  int r = EBUSY;
  while (r == EBUSY) r = pthread_mutex_trylock(m);
  return r;
}

#endif
