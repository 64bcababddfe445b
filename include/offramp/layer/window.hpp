/// @file window.hpp
/// The sliding window of convolutions and poolings: sizes, strides, padding, over one to three spatial axes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "offramp/core/shape.hpp"
#include "offramp/layer/node.hpp"

namespace offramp {

/// A window over three spatial axes (depth, height, width); missing leading axes have size 1.
struct Window {
  std::array<Index, 3> in{1, 1, 1}, out{1, 1, 1}, kernel{1, 1, 1}, stride{1, 1, 1}, dilation{1, 1, 1}, begin{}, end{};

  Index taps() const noexcept { return kernel[0] * kernel[1] * kernel[2]; }
  Index in_count() const noexcept { return in[0] * in[1] * in[2]; }
  Index out_count() const noexcept { return out[0] * out[1] * out[2]; }
  std::array<Index, 3> padded() const noexcept {
    return {in[0] + begin[0] + end[0], in[1] + begin[1] + end[1], in[2] + begin[2] + end[2]};
  }
  Index padded_count() const noexcept { return padded()[0] * padded()[1] * padded()[2]; }
  bool is_pointwise() const noexcept {
    for (std::size_t i = 0; i < 3; ++i) {
      if (kernel[i] != 1 || stride[i] != 1 || begin[i] != 0 || end[i] != 0) return false;
    }
    return true;
  }

  /// Raises an Error where offsets into an image of so many channels would not fit 32 bits.
  void check_sizes(Index channels) const {
    const std::array<Index, 3> size = padded();
    constexpr Index largest = std::numeric_limits<std::int32_t>::max() / 2;
    OFFRAMP_REQUIRE(checked_product(checked_product(checked_product(size[0], size[1]), size[2]), channels) < largest,
                    "the input of a convolution is larger than 2^30 elements a sample");
    OFFRAMP_REQUIRE(checked_product(out_count(), taps()) < largest / 4,
                    "the windows of a convolution have more than 2^28 elements");
  }

  /// The shape [N, channels, out...] in the order of the input `x`, whose spatial axes this window was resolved for.
  Shape output(const Shape& x, Index channels, bool channels_last) const {
    Shape s;
    s.push_back(x[0]);
    if (!channels_last) s.push_back(channels);
    for (int i = 0; i < x.rank() - 2; ++i) s.push_back(out[static_cast<std::size_t>(3 - (x.rank() - 2) + i)]);
    if (channels_last) s.push_back(channels);
    return s;
  }

  /// For each output pixel and tap the element offset of its input pixel, channels last, or -1 where it is padding.
  /// `rows`: offsets into the padded image, one tap for each row of the window.
  std::vector<std::int32_t> offsets(Index channels, bool rows) const {
    std::vector<std::int32_t> table;
    const std::array<Index, 3> size = rows ? padded() : in;
    const Index across = rows ? 1 : kernel[2];
    table.reserve(static_cast<std::size_t>(out_count() * kernel[0] * kernel[1] * across));
    for (Index z = 0; z < out[0]; ++z) {
      for (Index y = 0; y < out[1]; ++y) {
        for (Index x = 0; x < out[2]; ++x) {
          for (Index kz = 0; kz < kernel[0]; ++kz) {
            for (Index ky = 0; ky < kernel[1]; ++ky) {
              for (Index kx = 0; kx < across; ++kx) {
                const Index d = z * stride[0] + kz * dilation[0] - (rows ? 0 : begin[0]);
                const Index h = y * stride[1] + ky * dilation[1] - (rows ? 0 : begin[1]);
                const Index w = x * stride[2] + kx * dilation[2] - (rows ? 0 : begin[2]);
                const bool inside = d >= 0 && d < size[0] && h >= 0 && h < size[1] && w >= 0 && w < size[2];
                table.push_back(inside ? static_cast<std::int32_t>(((d * size[1] + h) * size[2] + w) * channels) : -1);
              }
            }
          }
        }
      }
    }
    return table;
  }

  /// Adds [in pixel][channel][tap] into [channel][out pixel]: the scatter of a transposed convolution.
  void scatter(const float* columns, Index channels, float* to) const noexcept {
    for (Index z = 0; z < in[0]; ++z) {
      for (Index y = 0; y < in[1]; ++y) {
        for (Index x = 0; x < in[2]; ++x) {
          for (Index c = 0; c < channels; ++c) {
            for (Index kz = 0; kz < kernel[0]; ++kz) {
              for (Index ky = 0; ky < kernel[1]; ++ky) {
                for (Index kx = 0; kx < kernel[2]; ++kx, ++columns) {
                  const Index d = z * stride[0] + kz * dilation[0] - begin[0];
                  const Index h = y * stride[1] + ky * dilation[1] - begin[1];
                  const Index w = x * stride[2] + kx * dilation[2] - begin[2];
                  if (d < 0 || d >= out[0] || h < 0 || h >= out[1] || w < 0 || w >= out[2]) continue;
                  to[c * out_count() + (d * out[1] + h) * out[2] + w] += *columns;
                }
              }
            }
          }
        }
      }
    }
  }
};

/// Along one axis of a window: which taps read an input position, and for which outputs.
class AxisReaders {
 public:
  struct Reader {
    std::int32_t tap, out;
  };
  AxisReaders() = default;
  AxisReaders(const Window& w, std::size_t axis) : first_(static_cast<std::size_t>(w.in[axis] + 1)) {
    const auto each = [&](auto&& f) {
      for (Index tap = 0; tap < w.kernel[axis]; ++tap) {
        for (Index out = 0; out < w.out[axis]; ++out) {
          const Index at = out * w.stride[axis] + tap * w.dilation[axis] - w.begin[axis];
          if (at >= 0 && at < w.in[axis])
            f(static_cast<std::size_t>(at), Reader{static_cast<std::int32_t>(tap), static_cast<std::int32_t>(out)});
        }
      }
    };
    each([&](std::size_t at, Reader) { ++first_[at + 1]; });
    for (std::size_t i = 1; i < first_.size(); ++i) first_[i] += first_[i - 1];
    all_.resize(first_.back());
    std::vector<std::size_t> next = first_;
    each([&](std::size_t at, Reader r) { all_[next[at]++] = r; });
  }
  std::span<const Reader> of(Index position) const noexcept {
    const auto at = static_cast<std::size_t>(position);
    return {all_.data() + first_[at], first_[at + 1] - first_[at]};
  }

 private:
  std::vector<std::size_t> first_;
  std::vector<Reader> all_;
};

/// The window attributes of a node, before its input's size is known.
class WindowAttributes {
 public:
  static constexpr Index largest = Index{1} << 24;  ///< of a kernel, stride, dilation or padding: larger is an error

  explicit WindowAttributes(const Node& node)
      : kernel_(node.integers("kernel_shape")),
        strides_(node.integers("strides")),
        dilations_(node.integers("dilations")),
        pads_(node.integers("pads")),
        auto_pad_(node.text("auto_pad", "NOTSET")),
        ceil_(node.integer("ceil_mode", 0) != 0) {
    OFFRAMP_REQUIRE(auto_pad_ == "NOTSET" || auto_pad_ == "" || auto_pad_ == "VALID" || auto_pad_ == "SAME_UPPER" ||
                        auto_pad_ == "SAME_LOWER",
                    "auto_pad '" + auto_pad_ + "' is unknown");
  }

  /// For an input [N, C, spatial...] (or channels last) and weights [O, I, kernel...].
  Window resolve(const Shape& x, const Shape& weights, bool channels_last) const {
    std::vector<Index> kernel(weights.begin() + 2, weights.end());
    OFFRAMP_REQUIRE(kernel_.empty() || kernel_ == kernel, "kernel_shape does not fit weights " + weights.text());
    return resolve(x, kernel, channels_last);
  }

  /// Elements of the kernel that the attributes state; 0 where they state none.
  Index taps() const noexcept {
    Index n = kernel_.empty() ? 0 : 1;
    for (const Index k : kernel_) n *= k;
    return n;
  }

  Window resolve(const Shape& x, bool channels_last) const { return resolve(x, kernel_, channels_last); }

  Window resolve_transposed(const Shape& x, const Shape& weights, const std::vector<Index>& output_padding,
                            const std::vector<Index>& output_shape) const {
    std::vector<Index> kernel(weights.begin() + 2, weights.end());
    Window w = sized(x, kernel, false);
    const std::size_t n = kernel.size();
    OFFRAMP_REQUIRE(output_padding.empty() || output_padding.size() == n, "output_padding has the wrong length");
    OFFRAMP_REQUIRE(output_shape.empty() || output_shape.size() == n || output_shape.size() == n + 2,
                    "output_shape has the wrong length");
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t a = 3 - n + i;
      const Index extra = output_padding.empty() ? 0 : output_padding[i];
      OFFRAMP_REQUIRE(extra >= 0 && extra < largest, "output_padding is out of range");
      const Index full = w.stride[a] * (w.in[a] - 1) + extra + (w.kernel[a] - 1) * w.dilation[a] + 1;
      Index wanted = -1;
      if (!output_shape.empty()) wanted = output_shape[output_shape.size() - n + i];
      if (wanted < 0 && (auto_pad_ == "SAME_UPPER" || auto_pad_ == "SAME_LOWER")) wanted = w.in[a] * w.stride[a];
      if (wanted >= 0) {
        const Index total = std::max<Index>(0, full - wanted);
        w.begin[a] = auto_pad_ == "SAME_UPPER" ? total / 2 : total - total / 2;
        w.end[a] = total - w.begin[a];
        w.out[a] = wanted;
      } else {
        w.out[a] = full - w.begin[a] - w.end[a];
      }
      OFFRAMP_REQUIRE(w.out[a] > 0 && w.out[a] < largest, "the output has no size");
    }
    return w;
  }

 private:
  Window sized(const Shape& x, const std::vector<Index>& kernel, bool channels_last) const {
    const auto n = static_cast<std::size_t>(x.rank() - 2);
    const auto fits = [&](const std::vector<Index>& v, std::size_t size, const char* what) {
      OFFRAMP_REQUIRE(v.empty() || v.size() == size, std::string(what) + " has " + std::to_string(v.size()) +
                                                         " numbers, expected " + std::to_string(size));
    };
    OFFRAMP_REQUIRE(kernel.size() == n,
                    "kernel_shape has " + std::to_string(kernel.size()) + " numbers, expected " + std::to_string(n));
    fits(strides_, n, "strides");
    fits(dilations_, n, "dilations");
    fits(pads_, 2 * n, "pads");
    Window w;
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t a = 3 - n + i;
      w.in[a] = x[static_cast<int>(i) + (channels_last ? 1 : 2)];
      w.kernel[a] = kernel[i];
      if (!strides_.empty()) w.stride[a] = strides_[i];
      if (!dilations_.empty()) w.dilation[a] = dilations_[i];
      if (!pads_.empty()) w.begin[a] = pads_[i], w.end[a] = pads_[i + n];
      for (const Index v : {w.kernel[a], w.stride[a], w.dilation[a]})
        OFFRAMP_REQUIRE(v > 0 && v < largest, "a kernel, stride or dilation is out of range");
      for (const Index v : {w.begin[a], w.end[a]}) OFFRAMP_REQUIRE(v >= 0 && v < largest, "a padding is out of range");
      OFFRAMP_REQUIRE(w.in[a] > 0 && w.in[a] < Index{1} << 40, "an input axis is empty");
    }
    return w;
  }

  Window resolve(const Shape& x, const std::vector<Index>& kernel, bool channels_last) const {
    Window w = sized(x, kernel, channels_last);
    for (std::size_t a = 0; a < 3; ++a) {
      const Index reach = (w.kernel[a] - 1) * w.dilation[a] + 1;
      if (auto_pad_ == "SAME_UPPER" || auto_pad_ == "SAME_LOWER") {
        w.out[a] = (w.in[a] + w.stride[a] - 1) / w.stride[a];
        const Index total = std::max<Index>(0, (w.out[a] - 1) * w.stride[a] + reach - w.in[a]);
        w.begin[a] = auto_pad_ == "SAME_UPPER" ? total / 2 : total - total / 2;
        w.end[a] = total - w.begin[a];
        continue;
      }
      if (auto_pad_ == "VALID") w.begin[a] = w.end[a] = 0;
      const Index room = w.in[a] + w.begin[a] + w.end[a] - reach;
      OFFRAMP_REQUIRE(room >= 0,
                      "a window of " + std::to_string(reach) + " does not fit an input of " + std::to_string(w.in[a]));
      w.out[a] = (room + (ceil_ ? w.stride[a] - 1 : 0)) / w.stride[a] + 1;
      // A window that would start in the padding at the end is left out, as PyTorch and ONNX Runtime do.
      if (ceil_ && (w.out[a] - 1) * w.stride[a] >= w.in[a] + w.begin[a]) --w.out[a];
    }
    return w;
  }

  std::vector<Index> kernel_, strides_, dilations_, pads_;
  std::string auto_pad_;
  bool ceil_;
};

}  // namespace offramp
