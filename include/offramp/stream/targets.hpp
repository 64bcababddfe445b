/// @file targets.hpp
/// The steps of a Stream's layers for every instruction set, compiled from one text.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <tuple>

#include "offramp/kernel/targets.hpp"
#include "offramp/stream/layers.hpp"

#define OFFRAMP_TEXT "offramp/stream/step_text.inc"
#include "offramp/kernel/each_isa.inc"

namespace offramp::stream::detail {

/// A chain of layers compiled for an instruction set: one sample, and any number of them.
template <class Layers, class States>
struct Runs {
  void (*step)(const Layers&, States&, const float*, float*) noexcept;
  void (*steps)(const Layers&, States&, const float*, Index, float*) noexcept;
};

/// The chain whose widest layer has so many outputs for `isa`, or for the baseline where this build has none for it.
template <class Layers, class States>
Runs<Layers, States> runs_for(Isa isa, Index widest) noexcept {
#if OFFRAMP_X86_TARGETS
  // Where half of a vector is enough, the narrower ones answer sooner.
  if (isa >= Isa::avx512 && widest > 8)
    return {&kernel::avx512::stream::step<Layers, States>, &kernel::avx512::stream::steps<Layers, States>};
  if (isa >= Isa::avx2)
    return {&kernel::avx2::stream::step<Layers, States>, &kernel::avx2::stream::steps<Layers, States>};
#endif
  static_cast<void>(isa);
  static_cast<void>(widest);
  return {&kernel::baseline::stream::step<Layers, States>, &kernel::baseline::stream::steps<Layers, States>};
}

}  // namespace offramp::stream::detail
