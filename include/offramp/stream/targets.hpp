/// @file targets.hpp
/// The steps of a Stream's layers for every instruction set, compiled from one text.
#pragma once

#include <cstddef>
#include <cstring>
#include <tuple>

#include "offramp/kernel/dispatch.hpp"
#include "offramp/stream/layers.hpp"

#define OFFRAMP_TARGET_NAMESPACE baseline
#define OFFRAMP_TARGET_REGISTERS 16
#include "offramp/stream/step_text.inc"
#undef OFFRAMP_TARGET_NAMESPACE
#undef OFFRAMP_TARGET_REGISTERS

#if OFFRAMP_X86_TARGETS
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define OFFRAMP_TARGET_NAMESPACE avx2
#define OFFRAMP_TARGET_REGISTERS 16
#include "offramp/stream/step_text.inc"
#undef OFFRAMP_TARGET_NAMESPACE
#undef OFFRAMP_TARGET_REGISTERS
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define OFFRAMP_TARGET_NAMESPACE avx512
#define OFFRAMP_TARGET_REGISTERS 32
#include "offramp/stream/step_text.inc"
#undef OFFRAMP_TARGET_NAMESPACE
#undef OFFRAMP_TARGET_REGISTERS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // OFFRAMP_X86_TARGETS

namespace offramp::stream::detail {

template <class Layers, class States>
using Run = void (*)(const Layers&, States&, const float*, float*) noexcept;

/// The step of a chain whose widest layer has so many outputs for `isa`, or for the baseline where this build has none
/// for it.
template <class Layers, class States>
Run<Layers, States> run_for(Isa isa, Index widest) noexcept {
#if OFFRAMP_X86_TARGETS
  // Where half of a vector is enough, the narrower ones answer sooner.
  if (isa >= Isa::avx512 && widest > 8) return &kernel::avx512::stream::run<Layers, States>;
  if (isa >= Isa::avx2) return &kernel::avx2::stream::run<Layers, States>;
#endif
  static_cast<void>(isa);
  static_cast<void>(widest);
  return &kernel::baseline::stream::run<Layers, States>;
}

}  // namespace offramp::stream::detail
