/// @file dispatch.hpp
/// The choice between the kernels of the instruction sets.
#pragma once

#include "offramp/core/config.hpp"
#include "offramp/kernel/isa.hpp"
#include "offramp/kernel/kernels.hpp"

namespace offramp::kernel {

/// The kernels of `isa`, or of the baseline where this build has none for it.
OFFRAMP_SEPARABLE const Kernels& kernels_for(Isa isa) noexcept;

}  // namespace offramp::kernel

#if OFFRAMP_HAS_DEFINITIONS

#include "offramp/kernel/targets.hpp"

namespace offramp::kernel {

OFFRAMP_SEPARABLE const Kernels& kernels_for(Isa isa) noexcept {
#if OFFRAMP_AMX
  if (isa == Isa::amx) {
    static const IntegerKernels integer = [] {
      IntegerKernels k = avx512_vnni::integer::table_of_kernels;
      k.gemm = &amx::gemm;
      k.reads_tiles = true;
      return k;
    }();
    static const Bf16Kernels bf16 = [] {
      Bf16Kernels k = avx512_bf16::table_of_kernels;
      k.gemm = &amx::bf16_gemm;
      k.has_tiles = true;
      return k;
    }();
    static const Kernels tiles = [] {
      Kernels k = avx512::table();
      k.integer = &integer;
      k.bf16 = &bf16;
      return k;
    }();
    return tiles;
  }
#endif
#if OFFRAMP_X86_TARGETS
  if (isa == Isa::avx512_bf16) {
    static const Kernels bf16 = [] {
      Kernels k = avx512::table();
      k.integer = &avx512_vnni::integer::table_of_kernels;
      k.bf16 = &avx512_bf16::table_of_kernels;
      return k;
    }();
    return bf16;
  }
  if (isa == Isa::avx512_vnni) {
    static const Kernels vnni = [] {
      Kernels k = avx512::table();
      k.integer = &avx512_vnni::integer::table_of_kernels;
      return k;
    }();
    return vnni;
  }
  if (isa == Isa::avx512) return avx512::table();
  if (isa == Isa::avx2) return avx2::table();
#endif
  static_cast<void>(isa);
  return baseline::table();
}

}  // namespace offramp::kernel

#endif  // OFFRAMP_HAS_DEFINITIONS
