/// @file training.hpp
/// The kernels that only training needs, for every instruction set. Programs that run networks do not compile them.
#pragma once

#include "offramp/kernel/targets.hpp"

namespace offramp::kernel {

/// One step of Adam (Kingma and Ba, ICLR 2015) with decoupled weight decay.
struct AdamStep {
  float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f;
  float rate = 0;          ///< over the correction of the first moment's bias
  float second_scale = 1;  ///< one over that of the second moment's
  float shrink = 1;        ///< of the value, by decay
};

/// A batch norm of the columns of a matrix, a number a column: mean and one over the standard deviation of the batch,
/// and what was learned.
struct BatchNorm {
  const float *mean = nullptr, *inverse = nullptr, *scale = nullptr, *shift = nullptr;
  bool relu = false;
};

/// The kernels of one instruction set, as `Kernels` has them.
struct TrainingKernels {
  /// c[i][j] += sum over rows r of a[r * lda + i] b[r * ldb + j], for i below k and j below n: the gradient of a matrix
  /// product's right side. c is [k][n].
  void (*outer)(const float* a, Index lda, const float* b, Index ldb, Index rows, Index k, Index n, float* c) noexcept;
  /// Mean and variance of each column of `rows` rows of n.
  void (*moments)(const float* in, Index rows, Index n, float* mean, float* variance) noexcept;
  /// out = (in - mean) inverse scale + shift, at least 0 with `relu`.
  void (*batch_norm)(const BatchNorm&, const float* in, float* out, Index rows, Index n) noexcept;
  /// The gradients by shift and scale: the sums of g, and of g (in - mean) inverse, where g is d_out where `batch_norm`
  /// gave what is not held at 0.
  void (*batch_norm_sums)(const BatchNorm&, const float* in, const float* d_out, Index rows, Index n, float* sum,
                          float* dot) noexcept;
  /// In the place of d_out, the gradient by `in`, whose own mean and variance the norm goes by.
  void (*batch_norm_gradient)(const BatchNorm&, const float* in, float* d_out, Index rows, Index n, const float* sum,
                              const float* dot) noexcept;
  /// d_in[i] += d_out[i] where in[i] is above 0.
  void (*relu_gradient)(const float* in, const float* d_out, float* d_in, Index n) noexcept;
  /// Of a depthwise convolution of one image: adds the gradient by the weights and, unless null, that by the input.
  void (*depthwise_gradient)(const Depthwise&, const float* d_out, float* d_weights, float* d_in) noexcept;
  /// Of the maximum of a rectangle of pixels, channels last, rows `row_step` floats apart: d_in += d_out at the first
  /// pixel that holds `largest`.
  void (*largest_gradient)(const float* in, Index row_step, Index rows, Index columns, Index channels,
                           const float* largest, const float* d_out, float* d_in) noexcept;
  /// Moves n values and both moments; the gradient is zero afterwards.
  void (*adam)(const AdamStep&, float* value, float* gradient, float* first, float* second, Index n) noexcept;
};

}  // namespace offramp::kernel

#define OFFRAMP_TEXT "offramp/kernel/training_text.inc"
#include "offramp/kernel/each_isa.inc"

namespace offramp::kernel {

/// The kernels of `isa`, or of the nearest one that has its own.
inline const TrainingKernels& training_kernels_for(Isa isa) noexcept {
#if OFFRAMP_X86_TARGETS
  if (isa >= Isa::avx512) return avx512::training_table;
  if (isa == Isa::avx2) return avx2::training_table;
#endif
  static_cast<void>(isa);
  return baseline::training_table;
}

}  // namespace offramp::kernel
