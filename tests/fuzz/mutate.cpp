// Damages a model file at random and loads what comes of it: mutate MODEL.onnx COUNT [SEED]
// Each time there must be an Error or a model that runs; no crash, nothing that takes 5 seconds, and no more memory
// than the stated limits. Bits are flipped, bytes changed, runs removed, copied or cut off, half of the time in the
// structure of the file rather than in its weights.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "offramp/onnx/onnx.hpp"
#include "offramp/session/model_session.hpp"

namespace {

// Time of this process alone: what else the machine does is no hang.
double seconds() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

// Byte ranges that are not tensor data: where structure can be damaged.
std::vector<std::size_t> structure_of(const std::vector<std::byte>& file) {
  std::vector<std::size_t> at;
  std::size_t zeros_like = 0;
  for (std::size_t i = 0; i + 8 < file.size(); ++i) {
    // Text (names, operators) is structure, and so are the bytes around it.
    int letters = 0;
    for (std::size_t k = 0; k < 8; ++k) {
      const auto c = static_cast<unsigned char>(file[i + k]);
      letters += (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '/' || c == '.' ||
                 (c >= '0' && c <= '9');
    }
    zeros_like = letters >= 4 ? 24 : zeros_like > 0 ? zeros_like - 1 : 0;
    if (zeros_like > 0) at.push_back(i);
  }
  return at;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace offramp;
  if (argc < 3) return 2;
  const auto original = onnx::read_file(argv[1]);
  const long count = std::strtol(argv[2], nullptr, 10);
  std::mt19937_64 engine(argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1);
  const auto structure = structure_of(original);
  ModelOptions options;
  options.limits = {Index{1} << 26, Index{1} << 28, 16};
  long loaded = 0, refused = 0, ran = 0;
  double slowest = 0;
  for (long trial = 0; trial < count; ++trial) {
    std::vector<std::byte> file = original;
    const std::size_t changes = 1 + engine() % 4;
    for (std::size_t c = 0; c < changes; ++c) {
      const bool in_structure = !structure.empty() && engine() % 2;
      const std::size_t at =
          (in_structure ? structure[engine() % structure.size()] : engine() % file.size()) % file.size();
      const std::size_t length = std::min<std::size_t>(1 + engine() % 16, file.size() - at);
      switch (engine() % 6) {
        case 0:
          file[at] ^= static_cast<std::byte>(1u << engine() % 8);
          break;
        case 1:
          file[at] = static_cast<std::byte>(engine() % 256);
          break;
        case 2:
          file[at] = static_cast<std::byte>(engine() % 2 ? 0xff : 0x7f);
          break;
        case 3:
          file.erase(file.begin() + static_cast<std::ptrdiff_t>(at),
                     file.begin() + static_cast<std::ptrdiff_t>(at + length));
          break;
        case 4:
          file.insert(file.begin() + static_cast<std::ptrdiff_t>(at), file.begin(),
                      file.begin() + static_cast<std::ptrdiff_t>(length));
          break;
        default:
          if (engine() % 8 == 0) file.resize(at);
          break;
      }
      if (file.empty()) break;
    }
    const double start = seconds();
    try {
      const Model model = load_onnx(std::span<const std::byte>(file), options);
      ++loaded;
      if (model.has_plan() && model.exit_count() > 0 && model.sample_size() < 1 << 20 &&
          model.total_cost().flops < 2000000000) {
        Session session(model, Never{});
        const std::vector<float> x(static_cast<std::size_t>(model.sample_size()), 0.5f);
        if (!x.empty()) {
          const Prediction p = session.predict(x)[0];
          if (p.label < 0 || p.label >= model.class_count()) return 1;
          ++ran;
        }
      }
    } catch (const Error&) {
      ++refused;
    }
    const double taken = seconds() - start;
    slowest = std::max(slowest, taken);
    if (taken > 5) {
      std::printf("mutation %ld took %.1f s\n", trial, taken);
      return 1;
    }
  }
  std::printf("%s: %ld mutations, %ld refused, %ld loaded, %ld of them predicted, slowest %.3f s\n", argv[1], count,
              refused, loaded, ran, slowest);
  return 0;
}
