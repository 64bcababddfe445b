/// @file offramp.hpp
/// Everything a user needs, in one include.
#pragma once

#include "offramp/calibrate/calibrate.hpp"
#include "offramp/calibrate/certificate.hpp"
#include "offramp/core/config.hpp"
#include "offramp/core/dtype.hpp"
#include "offramp/core/error.hpp"
#include "offramp/core/shape.hpp"
#include "offramp/core/tensor.hpp"
#include "offramp/exit/exit.hpp"
#include "offramp/exit/heads.hpp"
#include "offramp/flops/cost.hpp"
#include "offramp/graph/model.hpp"
#include "offramp/layer/layers.hpp"
#include "offramp/network/network.hpp"
#include "offramp/onnx/onnx.hpp"
#include "offramp/policy/parse.hpp"
#include "offramp/session/model_session.hpp"
#include "offramp/session/session.hpp"
#include "offramp/stream/stream.hpp"
