/// @file isa.hpp
/// Instruction sets: what this CPU has, and which one kernels use.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "offramp/core/config.hpp"

namespace offramp {

/// Instruction sets that kernels are compiled for, slowest first. A later one implies the earlier ones.
enum class Isa : std::uint8_t { baseline, avx2, avx512, avx512_vnni };

constexpr std::string_view name_of(Isa isa) noexcept {
  switch (isa) {
    case Isa::baseline:
      return "baseline";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_vnni:
      return "avx512_vnni";
  }
  return "baseline";
}

/// The best instruction set that this CPU and this build have.
inline Isa best_isa() noexcept {
#if OFFRAMP_X86_TARGETS
  static const Isa best = [] {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::baseline;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!wide) return Isa::avx2;
    return __builtin_cpu_supports("avx512vnni") ? Isa::avx512_vnni : Isa::avx512;
  }();
  return best;
#else
  return Isa::baseline;
#endif
}

/// The instruction sets that can be used here, slowest first.
inline std::span<const Isa> available_isas() noexcept {
  static constexpr std::array all{Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_vnni};
  return std::span(all).first(static_cast<std::size_t>(best_isa()) + 1);
}

}  // namespace offramp
