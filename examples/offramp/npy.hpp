/// @file npy.hpp
/// numpy's .npy files, version 1 and 2, little endian, C order.
#pragma once

#include <charconv>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "offramp/offramp.hpp"

namespace tool {

inline constexpr std::pair<const char*, offramp::DType> npy_types[] = {
    {"<f4", offramp::DType::f32}, {"<f8", offramp::DType::f64}, {"<f2", offramp::DType::f16},
    {"|u1", offramp::DType::u8},  {"|i1", offramp::DType::i8},  {"<u2", offramp::DType::u16},
    {"<i2", offramp::DType::i16}, {"<u4", offramp::DType::u32}, {"<i4", offramp::DType::i32},
    {"<u8", offramp::DType::u64}, {"<i8", offramp::DType::i64}, {"|b1", offramp::DType::boolean}};

inline offramp::Tensor read_npy(const std::string& path) {
  const auto bytes = offramp::onnx::read_file(path);
  const auto fail = [&](const std::string& what) { offramp::raise(offramp::Error(what, "", "", path)); };
  const auto byte = [&](std::size_t i) { return static_cast<std::size_t>(bytes[i]); };
  if (bytes.size() < 12 || std::memcmp(bytes.data(), "\x93NUMPY", 6) != 0) fail("this is no .npy file");
  const bool wide = byte(6) >= 2;
  const std::size_t first = wide ? 12 : 10;
  const std::size_t length = byte(8) + (byte(9) << 8) + (wide ? (byte(10) << 16) + (byte(11) << 24) : 0);
  if (bytes.size() < first + length) fail("the file is cut off");
  const std::string header(reinterpret_cast<const char*>(bytes.data()) + first, length);
  const auto after = [&](const std::string& key) {
    const auto at = header.find(key);
    if (at == std::string::npos) fail("the header lacks " + key);
    return header.find_first_not_of(" :", at + key.size());
  };
  const auto descr = after("'descr'");
  const auto quote = descr == std::string::npos ? descr : header.find('\'', descr + 1);
  if (quote == std::string::npos || header[descr] != '\'') fail("the header's type is not understood");
  const std::string type = header.substr(descr + 1, quote - descr - 1);
  auto dtype = offramp::DType::none;
  for (const auto& [name, t] : npy_types) dtype = type == name ? t : dtype;
  if (dtype == offramp::DType::none) fail("elements of type '" + type + "' are not supported");
  if (header.compare(after("'fortran_order'"), 5, "False") != 0) fail("Fortran order is not supported");
  const auto open = header.find('(', after("'shape'")), close = header.find(')', open);
  if (open == std::string::npos || close == std::string::npos) fail("the header's shape is not understood");
  offramp::Shape shape;
  for (std::size_t i = open + 1; i < close;) {
    offramp::Index n = 0;
    i = header.find_first_not_of(" ,", i);
    if (i >= close) break;
    const auto [end, error] = std::from_chars(header.data() + i, header.data() + close, n);
    if (error != std::errc() || n < 0) fail("the header's shape is not understood");
    shape.push_back(n);
    i = static_cast<std::size_t>(end - header.data());
  }
  const std::size_t size = bytes.size() - first - length;
  const auto wanted =
      offramp::checked_product(shape.checked_count(), static_cast<offramp::Index>(offramp::size_of(dtype)));
  if (wanted != static_cast<offramp::Index>(size))
    fail("shape " + shape.text() + " needs " + std::to_string(wanted) + " bytes, the file holds " +
         std::to_string(size));
  offramp::Tensor t(dtype, shape);
  if (size > 0) std::memcpy(t.mutable_data(), bytes.data() + first + length, size);
  return t;
}

inline void write_npy(const std::string& path, const offramp::Tensor& t) {
  std::string type;
  for (const auto& [name, d] : npy_types) type = d == t.type() ? name : type;
  OFFRAMP_REQUIRE(!type.empty(),
                  "elements of type " + std::string(offramp::name_of(t.type())) + " cannot be written as .npy");
  std::string shape;
  for (int i = 0; i < t.shape().rank(); ++i)
    shape += std::to_string(t.shape()[i]) + (t.shape().rank() == 1 || i + 1 < t.shape().rank() ? "," : "");
  std::string header = "{'descr': '" + type + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  header.append(63 - (10 + header.size()) % 64, ' ');
  header += '\n';
  std::string bytes("\x93NUMPY\x01\x00", 8);
  bytes += static_cast<char>(header.size() & 0xff);
  bytes += static_cast<char>(header.size() >> 8);
  bytes += header;
  bytes.append(static_cast<const char*>(t.data()), t.bytes());
  offramp::onnx::write_file(path, bytes);
}

}  // namespace tool
