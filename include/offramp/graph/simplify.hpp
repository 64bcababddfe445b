/// @file simplify.hpp
/// A network in fewer nodes that any ONNX runtime still reads: what compression begins with.
#pragma once

#include <vector>

#include "offramp/graph/integer_passes.hpp"
#include "offramp/graph/model.hpp"
#include "offramp/graph/passes.hpp"

namespace offramp {

/// Types, shapes and known values for a batch of n.
inline Inference infer_batch(const Graph& g, const ModelOptions& options, Index n) {
  const kernel::Kernels& kernels = kernel::kernels_for(options.isa);
  return infer(g, input_views(g, n, options.shape, options.limits),
               {options.operators, kernels, options.limits, {kernels}});
}

/// The same network with constants folded, identities gone and batch norms inside their convolutions. Raises an Error
/// where the batch axis is not open.
inline Graph simplified(Graph g, const ModelOptions& options) {
  const Inference two = infer_batch(g, options, 2), three = infer_batch(g, options, 3);
  passes::fold_constants(g, two, three);
  passes::remove_identities(g, two);
  g.remove_dead_nodes();
  passes::fold_batch_norms(g);
  g.remove_dead_nodes();
  g.sort();
  return g;
}

}  // namespace offramp
