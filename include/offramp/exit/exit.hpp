/// @file exit.hpp
/// An exit of a network written as a C++ type: a place after a stage, with the head that answers there.
#pragma once

#include <type_traits>
#include <utility>

#include "offramp/layer/layer.hpp"

namespace offramp {

/// An exit with its head. Any layer that answers the network's classes is a head.
template <Layer Head>
struct Exit {
  explicit Exit(Head h) : head(std::move(h)) {}
  Head head;
};

template <class T>
struct IsExit : std::false_type {};
template <class Head>
struct IsExit<Exit<Head>> : std::true_type {};

}  // namespace offramp
