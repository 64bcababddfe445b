/// @file config.hpp
/// Version and every macro of the library. Each can be set by the user before the first include; all translation
/// units of a program must agree.
#pragma once

#define OFFRAMP_VERSION_MAJOR 0
#define OFFRAMP_VERSION_MINOR 1
#define OFFRAMP_VERSION_PATCH 0

/// 1: every forward pass feeds the FLOP counter (the default). 0: the counter is compiled out and reads zero.
#ifndef OFFRAMP_COUNT_FLOPS
#define OFFRAMP_COUNT_FLOPS 1
#endif

/// 1: errors are thrown. 0: OFFRAMP_ON_ERROR is called instead. Follows the compiler's setting.
#ifndef OFFRAMP_EXCEPTIONS
#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
#define OFFRAMP_EXCEPTIONS 1
#else
#define OFFRAMP_EXCEPTIONS 0
#endif
#endif

/// What happens to an offramp::Error where exceptions are off; must not return.
#ifndef OFFRAMP_ON_ERROR
#define OFFRAMP_ON_ERROR(error) (static_cast<void>(error), std::abort())
#endif

/// 1: kernels for AVX2 and AVX-512 are compiled beside the baseline and chosen at run time. 0: the baseline alone.
#ifndef OFFRAMP_X86_TARGETS
#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define OFFRAMP_X86_TARGETS 1
#else
#define OFFRAMP_X86_TARGETS 0
#endif
#endif

/// 1: the product of bytes is compiled for AMX, too, which a process must ask the system for.
#ifndef OFFRAMP_AMX
#if OFFRAMP_X86_TARGETS && defined(__linux__)
#define OFFRAMP_AMX 1
#else
#define OFFRAMP_AMX 0
#endif
#endif

/// 1: what takes longest to compile (kernels, operators, the preparation of a network, ONNX files) is only declared,
/// and one translation unit of the program has it by including offramp/separate.hpp. 0 (the default): headers alone.
#ifndef OFFRAMP_SEPARATE_COMPILATION
#define OFFRAMP_SEPARATE_COMPILATION 0
#endif

// What runs once for each model: small code before fast code.
#if defined(__GNUC__)
#define OFFRAMP_COLD __attribute__((cold))
#else
#define OFFRAMP_COLD
#endif

// In front of the functions that this is about, and whether this translation unit has their definitions.
#if OFFRAMP_SEPARATE_COMPILATION
#define OFFRAMP_SEPARABLE
#ifndef OFFRAMP_HAS_DEFINITIONS
#define OFFRAMP_HAS_DEFINITIONS 0
#endif
#else
#define OFFRAMP_SEPARABLE inline
#define OFFRAMP_HAS_DEFINITIONS 1
#endif
