/// @file counting_allocator.hpp
/// Counts every call of operator new and of pthread_mutex_lock in this program.
#pragma once

namespace test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool counts_allocations = false;
#else
inline constexpr bool counts_allocations = true;
#endif

long allocations();
long locks();

}  // namespace test
