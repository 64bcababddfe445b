/// @file serving.hpp
/// Versions of a network that are replaced while others serve.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offramp/session/model_session.hpp"

namespace offramp {

/// Holds the version that is served. Any thread may replace it at any time; who serves goes on with the version that it
/// has until its next call.
class ModelHandle {
 public:
  explicit ModelHandle(Model model) : ModelHandle(model, policy_of(model)) {}
  ModelHandle(Model model, AnyPolicy policy)
      : current_(std::make_shared<const Served>(Served{std::move(model), std::move(policy)})) {}
  ModelHandle(const ModelHandle&) = delete;
  ModelHandle& operator=(const ModelHandle&) = delete;

  /// Serves `model` from now on. Raises an Error, and serves on what it did, where it takes other samples or has other
  /// classes, or the policy does not fit.
  void replace(Model model) {
    AnyPolicy policy = policy_of(model);
    replace(std::move(model), std::move(policy));
  }
  void replace(Model model, AnyPolicy policy) {
    OFFRAMP_REQUIRE(model.has_plan() && model.exit_count() > 0, "the network is no classifier with one float32 input");
    policy_validate(policy, model.exit_count(), model.class_count());
    auto next = std::make_shared<const Served>(Served{std::move(model), std::move(policy)});
    std::shared_ptr<const Served> old;  // freed after the lock
    const std::lock_guard lock(mutex_);
    OFFRAMP_REQUIRE(next->model.sample_size() == current_->model.sample_size() &&
                        next->model.class_count() == current_->model.class_count(),
                    "the new version takes other samples or has other classes than the one that is served");
    old = std::exchange(current_, std::move(next));
    version_.fetch_add(1, std::memory_order_release);
  }

  /// Counts replacements, from 0.
  std::uint64_t version() const noexcept { return version_.load(std::memory_order_acquire); }
  Model model() const {
    const std::lock_guard lock(mutex_);
    return current_->model;
  }

 private:
  friend class ServingSession;
  struct Served {
    Model model;
    AnyPolicy policy;
  };
  std::pair<std::shared_ptr<const Served>, std::uint64_t> get() const {
    const std::lock_guard lock(mutex_);
    return {current_, version_.load(std::memory_order_relaxed)};
  }

  mutable std::mutex mutex_;
  std::shared_ptr<const Served> current_;
  std::atomic<std::uint64_t> version_{0};
};

/// One thread's session over what a handle serves. A call looks at one atomic number; only where the version has
/// changed it makes a new session, which allocates. The handle must outlive it.
class ServingSession {
 public:
  explicit ServingSession(const ModelHandle& handle, Index capacity = 1) : handle_(&handle), capacity_(capacity) {
    refresh();
  }

  /// As Session::predict, by one version from the first sample to the last.
  std::span<const Prediction> predict(std::span<const float> samples) {
    if (handle_->version() != version_) refresh();
    return session_->predict(samples);
  }
  /// The version that the last call was served by.
  std::uint64_t version() const noexcept { return version_; }
  const Model& model() const noexcept { return session_->network(); }

 private:
  void refresh() {
    const auto [served, version] = handle_->get();
    session_.emplace(served->model, served->policy, capacity_);
    version_ = version;
  }

  const ModelHandle* handle_;
  Index capacity_;
  std::uint64_t version_ = 0;
  std::optional<Session<Model>> session_;
};

/// Named handles: versions are added, replaced and removed while others are served. Handles stay valid for whoever
/// holds them, also after their removal.
class ModelRegistry {
 public:
  /// Adds a version or replaces the one of that name.
  std::shared_ptr<ModelHandle> put(const std::string& name, Model model) {
    auto held = std::make_shared<ModelHandle>(model);
    {
      const std::lock_guard lock(mutex_);
      const auto [at, is_new] = handles_.try_emplace(name, held);
      if (is_new) return held;
      held = at->second;
    }
    held->replace(std::move(model));
    return held;
  }
  /// The handle of a name, or null.
  std::shared_ptr<ModelHandle> find(const std::string& name) const {
    const std::lock_guard lock(mutex_);
    const auto i = handles_.find(name);
    return i == handles_.end() ? nullptr : i->second;
  }
  /// False where there is none of that name.
  bool remove(const std::string& name) {
    const std::lock_guard lock(mutex_);
    return handles_.erase(name) > 0;
  }
  std::vector<std::string> names() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> all;
    for (const auto& [name, handle] : handles_) all.push_back(name);
    return all;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<ModelHandle>> handles_;
};

}  // namespace offramp
