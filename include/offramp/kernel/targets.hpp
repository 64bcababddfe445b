/// @file targets.hpp
/// The vector kernels of every instruction set, compiled from one text.
///
/// The texts (vector_text.inc and, for bytes, integer_text.inc) are included once per instruction set, each time in its
/// own namespace and under function-level target options, so a program built with plain -O2 runs at the speed of the
/// CPU that it meets.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "offramp/core/config.hpp"
#include "offramp/kernel/isa.hpp"
#include "offramp/kernel/kernels.hpp"
#include "offramp/kernel/strips.hpp"
#if OFFRAMP_X86_TARGETS
// g++ 12 takes the deliberately undefined operands of its own intrinsics for mistakes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#define OFFRAMP_TEXT "offramp/kernel/integer_text.inc"
#include "offramp/kernel/each_isa.inc"
#define OFFRAMP_TEXT "offramp/kernel/vector_text.inc"
#include "offramp/kernel/each_isa.inc"

#if OFFRAMP_X86_TARGETS
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif
#define OFFRAMP_TARGET_NAMESPACE avx512_vnni
#define OFFRAMP_TARGET_LANES 16
#define OFFRAMP_TARGET_DOT 2
#include "offramp/kernel/integer_text.inc"
#undef OFFRAMP_TARGET_NAMESPACE
#undef OFFRAMP_TARGET_LANES
#undef OFFRAMP_TARGET_DOT
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif
#include "offramp/kernel/bf16_text.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // OFFRAMP_X86_TARGETS

#if OFFRAMP_AMX
#include "offramp/kernel/amx_text.inc"
#endif
