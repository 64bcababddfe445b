/// @file error.hpp
/// The one exception type of the library.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

#include "offramp/core/config.hpp"

namespace offramp {

/// Thrown while a network is loaded, built or given input. The hot path throws nothing.
///
/// `what()` holds everything known: file, node, operator, and what was expected and found.
class Error : public std::runtime_error {
 public:
  explicit Error(std::string detail) : Error(std::move(detail), {}, {}, {}) {}
  Error(std::string detail, std::string node, std::string op, std::string file)
      : std::runtime_error(compose(detail, node, op, file)),
        detail_(std::move(detail)),
        node_(std::move(node)),
        op_(std::move(op)),
        file_(std::move(file)) {}

  /// The same error with a node and its operator named, unless one was named already.
  [[nodiscard]] Error at_node(const std::string& node, const std::string& op) const {
    return op_.empty() ? Error(detail_, node, op, file_) : *this;
  }
  /// The same error with a file named, unless one was named already.
  [[nodiscard]] Error in_file(const std::string& file) const {
    return file_.empty() ? Error(detail_, node_, op_, file) : *this;
  }

  const std::string& detail() const noexcept { return detail_; }
  const std::string& node() const noexcept { return node_; }
  const std::string& op() const noexcept { return op_; }
  const std::string& file() const noexcept { return file_; }

 private:
  static std::string compose(const std::string& detail, const std::string& node, const std::string& op,
                             const std::string& file) {
    std::string s;
    if (!file.empty()) s += file + ": ";
    if (!op.empty()) s += op + (node.empty() ? "" : " node '" + node + "'") + ": ";
    return s + detail;
  }

  std::string detail_, node_, op_, file_;
};

/// Throws `error`, or hands it to OFFRAMP_ON_ERROR where exceptions are off.
[[noreturn]] inline void raise(Error error) {
#if OFFRAMP_EXCEPTIONS
  throw error;
#else
  OFFRAMP_ON_ERROR(error);
  std::abort();
#endif
}

[[noreturn]] inline void raise(std::string detail) {
  raise(Error(std::move(detail)));
}

}  // namespace offramp

/// Raises an Error with a message unless `ok`. A macro, so that the message is put together only where it is needed.
#define OFFRAMP_REQUIRE(ok, ...)                  \
  do {                                            \
    if (!(ok)) [[unlikely]]                       \
      ::offramp::raise(std::string(__VA_ARGS__)); \
  } while (false)
