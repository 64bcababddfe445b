/// @file targets.hpp
/// The steps of a Stream's layers for every instruction set, compiled from one text.
#pragma once

#include <cstddef>
#include <cstring>
#include <tuple>

#include "offramp/kernel/targets.hpp"
#include "offramp/stream/layers.hpp"

#define OFFRAMP_TEXT "offramp/stream/step_text.inc"
#include "offramp/kernel/each_isa.inc"

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
