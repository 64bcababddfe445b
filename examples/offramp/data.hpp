/// @file data.hpp
/// The data sets that the tool reads: SPEC to samples and labels.
#pragma once

#include <zlib.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "npy.hpp"
#include "offramp/offramp.hpp"

namespace tool {

using offramp::Index;

/// Samples in NCHW order with values as the networks expect them, and one label each.
struct Data {
  std::vector<float> samples;
  std::vector<Index> labels;
  Index sample_size = 0;
  Index channels = 0, height = 0, width = 0;  ///< 0 where the samples are no images
  std::vector<std::string> classes;

  Index count() const noexcept { return static_cast<Index>(labels.size()); }
  std::span<const float> sample(Index i) const {
    return std::span(samples).subspan(static_cast<std::size_t>(i * sample_size), static_cast<std::size_t>(sample_size));
  }
};

inline std::vector<std::uint8_t> read_gz(const std::string& path) {
  const gzFile f = gzopen(path.c_str(), "rb");
  if (f == nullptr) offramp::raise(offramp::Error("the file cannot be opened", "", "", path));
  std::vector<std::uint8_t> bytes;
  std::uint8_t block[1 << 16];
  int n = 0;
  while ((n = gzread(f, block, sizeof block)) > 0) {
    bytes.insert(bytes.end(), block, block + n);
    if (bytes.size() > std::size_t{1} << 30) break;
  }
  const bool ok = n == 0;
  gzclose(f);
  if (!ok) offramp::raise(offramp::Error("the file is damaged or too large", "", "", path));
  return bytes;
}

/// An IDX file: magic number, sizes, bytes. Returns the sizes and the offset of the first byte.
inline std::pair<std::vector<Index>, std::size_t> idx_header(const std::vector<std::uint8_t>& b, std::size_t axes,
                                                             const std::string& path) {
  const auto number = [&](std::size_t at) {
    return Index{b[at]} << 24 | Index{b[at + 1]} << 16 | Index{b[at + 2]} << 8 | Index{b[at + 3]};
  };
  const std::size_t header = 4 + 4 * axes;
  if (b.size() < header || number(0) != static_cast<Index>(0x800 + axes))
    offramp::raise(offramp::Error("this is no IDX file of " + std::to_string(axes) + " axes", "", "", path));
  std::vector<Index> sizes;
  Index count = 1;
  for (std::size_t i = 0; i < axes; ++i) {
    sizes.push_back(number(4 + 4 * i));
    count = offramp::checked_product(count, sizes.back());
  }
  if (count != static_cast<Index>(b.size() - header))
    offramp::raise(offramp::Error(
        "the file holds " + std::to_string(b.size() - header) + " bytes, its header says " + std::to_string(count), "",
        "", path));
  return {sizes, header};
}

inline Data read_fashion_mnist(const std::string& folder, const std::string& part) {
  OFFRAMP_REQUIRE(part == "train" || part == "test",
                  "the part of a data set is 'train' or 'test', found '" + part + "'");
  const std::string base = folder + "/" + (part == "train" ? "train" : "t10k");
  const std::string image_path = base + "-images-idx3-ubyte.gz", label_path = base + "-labels-idx1-ubyte.gz";
  const auto images = read_gz(image_path), labels = read_gz(label_path);
  const auto [sizes, first] = idx_header(images, 3, image_path);
  const auto [count, first_label] = idx_header(labels, 1, label_path);
  if (sizes[0] != count[0])
    offramp::raise(
        offramp::Error("there are " + std::to_string(count[0]) + " labels for " + std::to_string(sizes[0]) + " images",
                       "", "", label_path));
  Data d;
  d.channels = 1, d.height = sizes[1], d.width = sizes[2];
  d.sample_size = sizes[1] * sizes[2];
  d.samples.reserve(images.size() - first);
  for (std::size_t i = first; i < images.size(); ++i) d.samples.push_back(static_cast<float>(images[i]) / 255.0f);
  d.labels.assign(labels.begin() + static_cast<std::ptrdiff_t>(first_label), labels.end());
  d.classes = {"T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"};
  return d;
}

inline Data read_cifar10(const std::string& path) {
  const auto bytes = offramp::onnx::read_file(path);
  constexpr std::size_t record = 1 + 3072;
  if (bytes.empty() || bytes.size() % record != 0)
    offramp::raise(offramp::Error("the file does not hold whole records of 3073 bytes", "", "", path));
  Data d;
  d.channels = 3, d.height = d.width = 32;
  d.sample_size = 3072;
  d.samples.reserve(bytes.size() / record * 3072);
  for (std::size_t i = 0; i < bytes.size(); i += record) {
    d.labels.push_back(static_cast<Index>(bytes[i]));
    for (std::size_t k = 1; k < record; ++k) d.samples.push_back(static_cast<float>(bytes[i + k]) / 255.0f);
  }
  d.classes = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"};
  return d;
}

inline Data read_npy_pair(const std::string& samples, const std::string& labels) {
  const offramp::Tensor x = read_npy(samples), y = read_npy(labels);
  if (x.type() != offramp::DType::f32)
    offramp::raise(
        offramp::Error("expected float32 samples, found " + std::string(offramp::name_of(x.type())), "", "", samples));
  if (x.shape().rank() < 1 || x.count() == 0 || y.shape().rank() != 1 || x.shape()[0] != y.count())
    offramp::raise(offramp::Error("samples " + x.shape().text() + " and labels " + y.shape().text() + " do not fit", "",
                                  "", labels));
  Data d;
  d.sample_size = x.count() / x.shape()[0];
  if (x.shape().rank() == 4) d.channels = x.shape()[1], d.height = x.shape()[2], d.width = x.shape()[3];
  const auto v = x.values<float>();
  d.samples.assign(v.begin(), v.end());
  for (Index i = 0; i < y.count(); ++i) {
    const double label = offramp::real_at(y.view(), i);
    if (!(label >= 0) || label != std::floor(label))
      offramp::raise(offramp::Error("label " + std::to_string(i) + " is no class number", "", "", labels));
    d.labels.push_back(static_cast<Index>(label));
  }
  return d;
}

/// `fashion-mnist:DIR[:train|test]`, `cifar10:FILE.bin` or `npy:X.npy,Y.npy`, each with an optional range `[a:b]`.
inline Data read_data(const std::string& spec) {
  std::string s = spec;
  Index from = 0, to = -1;
  if (!s.empty() && s.back() == ']') {
    const auto open = s.rfind('[');
    const auto colon = s.find(':', open == std::string::npos ? 0 : open);
    OFFRAMP_REQUIRE(open != std::string::npos && colon != std::string::npos,
                    "data '" + spec + "': a range is written [a:b]");
    const auto number = [&](std::size_t a, std::size_t b, Index fallback) {
      if (a == b) return fallback;
      Index v = 0;
      const auto [end, error] = std::from_chars(s.data() + a, s.data() + b, v);
      OFFRAMP_REQUIRE(error == std::errc() && end == s.data() + b && v >= 0,
                      "data '" + spec + "': a range is written [a:b]");
      return v;
    };
    from = number(open + 1, colon, 0);
    to = number(colon + 1, s.size() - 1, -1);
    s.resize(open);
  }
  const auto colon = s.find(':');
  const std::string kind = s.substr(0, colon), rest = colon == std::string::npos ? "" : s.substr(colon + 1);
  Data d;
  if (kind == "fashion-mnist") {
    const auto part = rest.rfind(':');
    d = part == std::string::npos ? read_fashion_mnist(rest, "test")
                                  : read_fashion_mnist(rest.substr(0, part), rest.substr(part + 1));
  } else if (kind == "cifar10") {
    d = read_cifar10(rest);
  } else if (kind == "npy") {
    const auto comma = rest.find(',');
    OFFRAMP_REQUIRE(comma != std::string::npos, "data '" + spec + "': expected npy:SAMPLES.npy,LABELS.npy");
    d = read_npy_pair(rest.substr(0, comma), rest.substr(comma + 1));
  } else {
    offramp::raise("data '" + spec +
                   "' is unknown: expected fashion-mnist:DIR[:train|test], cifar10:FILE.bin or npy:X.npy,Y.npy");
  }
  if (to < 0) to = d.count();
  OFFRAMP_REQUIRE(from < to && to <= d.count(),
                  "data '" + spec + "': the range is outside the " + std::to_string(d.count()) + " samples");
  const auto size = d.sample_size;
  d.samples = std::vector<float>(d.samples.begin() + from * size, d.samples.begin() + to * size);
  d.labels = std::vector<Index>(d.labels.begin() + from, d.labels.begin() + to);
  return d;
}

}  // namespace tool
