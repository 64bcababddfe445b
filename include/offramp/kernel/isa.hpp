/// @file isa.hpp
/// Instruction sets: what this CPU has, and which one kernels use.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "offramp/core/config.hpp"

#if OFFRAMP_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace offramp {

/// Instruction sets that kernels are compiled for, slowest first. A later one implies the earlier ones.
enum class Isa : std::uint8_t { baseline, avx2, avx512, avx512_vnni, avx512_bf16, amx };

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
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::amx:
      return "amx";
  }
  return "baseline";
}

namespace detail {

/// Whether the CPU has tiles of bytes and the system lets this process use them, which it must ask for.
inline bool has_amx() noexcept {
#if OFFRAMP_AMX
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned tile = 1u << 24, int8 = 1u << 25, bf16 = 1u << 22;
  constexpr long request_permission = 0x1023, tile_data = 18;
  return (d & tile) && (d & int8) && (d & bf16) && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace detail

/// The best instruction set that this CPU and this build have.
inline Isa best_isa() noexcept {
#if OFFRAMP_X86_TARGETS
  static const Isa best = [] {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::baseline;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!wide) return Isa::avx2;
    if (!__builtin_cpu_supports("avx512vnni")) return Isa::avx512;
    if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512_vnni;
    return detail::has_amx() ? Isa::amx : Isa::avx512_bf16;
  }();
  return best;
#else
  return Isa::baseline;
#endif
}

namespace detail {

/// AMD's Zen 5, which alone of AMD's has VP2INTERSECT.
inline bool is_zen5() noexcept {
#if OFFRAMP_X86_TARGETS
  return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512vp2intersect");
#else
  return false;
#endif
}

}  // namespace detail

/// Multiply-adds of floats that a core starts in a cycle, by the vectors' lanes: what the cost models reckon with.
/// AMD's Zen 4 does a vector of 16 in two halves; Zen 5 does not.
inline double multiply_adds_per_cycle(std::int64_t lanes) noexcept {
#if OFFRAMP_X86_TARGETS
  if (lanes == 16) return __builtin_cpu_is("amd") && !detail::is_zen5() ? 16 : 32;
  if (lanes == 8) return 16;
#endif
  return lanes < 8 ? 6 : static_cast<double>(2 * lanes);
}

/// The same of pairs of bfloat16 with AVX-512: Zen 5 starts two vectors in a cycle, others one.
inline double bf16_multiply_adds_per_cycle() noexcept {
  return detail::is_zen5() ? 64 : 32;
}

/// Multiply-adds of bytes in the time of one of floats: `vpdpbusd` does four in a lane. Without it bytes are widened
/// first, which costs what smaller numbers gain.
constexpr int byte_multiply_adds(Isa isa) noexcept {
  return isa >= Isa::avx512_vnni ? 4 : 1;
}

/// The instruction sets that can be used here, slowest first.
inline std::span<const Isa> available_isas() noexcept {
  static constexpr std::array all{Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx};
  return std::span(all).first(static_cast<std::size_t>(best_isa()) + 1);
}

}  // namespace offramp
