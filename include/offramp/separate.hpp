/// @file separate.hpp
/// For one translation unit of a program that is built with OFFRAMP_SEPARATE_COMPILATION: the definitions that its
/// other translation units only declare. That unit is this one line.
///
///     #include <offramp/separate.hpp>
#pragma once

#if !defined(OFFRAMP_SEPARATE_COMPILATION) || !OFFRAMP_SEPARATE_COMPILATION
#error "offramp/separate.hpp is for programs whose translation units all define OFFRAMP_SEPARATE_COMPILATION=1"
#endif
#ifdef OFFRAMP_HAS_DEFINITIONS
#error "offramp/separate.hpp must be the first header of offramp in its translation unit"
#endif
#define OFFRAMP_HAS_DEFINITIONS 1

#include "offramp/graph/model.hpp"
#include "offramp/kernel/dispatch.hpp"
#include "offramp/layer/operators.hpp"
#include "offramp/onnx/onnx.hpp"
