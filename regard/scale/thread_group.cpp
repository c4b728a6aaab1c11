#include "regard/scale/thread_group.h"

#include <ATen/ThreadLocalState.h>
#include <ATen/core/grad_mode.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include "regard/base/error.h"
#include "regard/scale/transport.h"

namespace regard::sharding {
namespace {

constexpr const char* kPrefix = "threads/";
constexpr int kGatherTag = -1;
constexpr auto kPatience = std::chrono::minutes(5);  // a member that never comes must not hang a test for hours

/// What the members share: letters from one to another, first in, first out.
class Mailroom {
 public:
  Mailroom(std::string name, int64_t size) : name_(std::move(name)), size_(size) {}
  int64_t size() const { return size_; }

  void post(int64_t from, int64_t to, int tag, at::Tensor letter) {
    const std::lock_guard lock(mutex_);
    letters_[{from, to, tag}].push_back(std::move(letter));
    arrived_.notify_all();
  }

  at::Tensor take(int64_t from, int64_t to, int tag) {
    std::unique_lock lock(mutex_);
    auto& queue = letters_[{from, to, tag}];
    const bool came = arrived_.wait_for(lock, kPatience, [&] { return !queue.empty() || !poison_.empty(); });
    if (!poison_.empty()) fail("thread group", "all members of '" + name_ + "' to reach this point", poison_);
    if (!came) fail("thread group", "member " + std::to_string(from) + " of '" + name_ + "' to send", "nothing");
    at::Tensor letter = std::move(queue.front());
    queue.pop_front();
    return letter;
  }

  void poison(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (poison_.empty()) poison_ = reason;
    arrived_.notify_all();
  }

 private:
  const std::string name_;
  const int64_t size_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<std::tuple<int64_t, int64_t, int>, std::deque<at::Tensor>> letters_;
  std::string poison_;
};

struct Rooms {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Mailroom>> by_name;
};
Rooms& rooms() {
  static Rooms& instance = *new Rooms;
  return instance;
}

std::shared_ptr<Mailroom> room_of(const std::string& name) {
  const std::lock_guard lock(rooms().mutex);
  const auto it = rooms().by_name.find(name);
  if (it == rooms().by_name.end()) fail("thread group", "the name of an open group", "'" + name + "'");
  return it->second;
}

class Delivery final : public Pending {
 public:
  Delivery(std::shared_ptr<Mailroom> room, int64_t from, int64_t to, int tag, at::Tensor received)
      : room_(std::move(room)), from_(from), to_(to), tag_(tag), received_(std::move(received)) {}
  void wait() override {
    const at::NoGradGuard off;
    received_.copy_(room_->take(from_, to_, tag_));
  }

 private:
  std::shared_ptr<Mailroom> room_;
  int64_t from_, to_;
  int tag_;
  at::Tensor received_;
};

class ThreadMember final : public Transport {
 public:
  ThreadMember(std::string name, std::shared_ptr<Mailroom> room, int64_t rank)
      : name_(std::move(name)), room_(std::move(room)), rank_(rank) {}
  std::string name() const override { return name_; }
  int64_t rank() const override { return rank_; }
  int64_t size() const override { return room_->size(); }

  std::unique_ptr<Pending> shift(at::Tensor sent, at::Tensor received, int tag) override {
    room_->post(rank_, next(), tag, std::move(sent));
    return std::make_unique<Delivery>(room_, previous(), rank_, tag, std::move(received));
  }

  std::vector<at::Tensor> all_gather(const at::Tensor& own) override {
    const at::NoGradGuard off;
    const at::Tensor copy = own.detach().clone();
    for (int64_t other = 0; other < size(); ++other)
      if (other != rank_) room_->post(rank_, other, kGatherTag, copy);
    std::vector<at::Tensor> all;
    for (int64_t other = 0; other < size(); ++other)
      all.push_back(other == rank_ ? copy : room_->take(other, rank_, kGatherTag));
    return all;
  }

  void poison(const std::string& reason) override { room_->poison(reason); }

 private:
  std::string name_;
  std::shared_ptr<Mailroom> room_;
  int64_t rank_;
};

}  // namespace

void open_thread_group(const std::string& name, int64_t size) {
  require(size >= 1, "thread group", "at least one member", std::to_string(size));
  require(!name.empty() && name.find_first_of("/:") == std::string::npos, "thread group", "a name without '/' and ':'",
          "'" + name + "'");
  const std::lock_guard lock(rooms().mutex);
  if (!rooms().by_name.emplace(name, std::make_shared<Mailroom>(name, size)).second)
    fail("thread group", "a name that is not in use", "'" + name + "'");
}

void close_thread_group(const std::string& name) {
  const std::lock_guard lock(rooms().mutex);
  rooms().by_name.erase(name);
}

void poison_thread_group(const std::string& name, const std::string& reason) { room_of(name)->poison(reason); }

void run_in_threads(int64_t size, const std::function<void(int64_t, const std::string&)>& body) {
  static std::atomic<int64_t> count{0};
  const std::string name = "run-" + std::to_string(count++);
  open_thread_group(name, size);
  const at::ThreadLocalState state;  // grad mode, autocast and the rest of the caller
  std::mutex mutex;
  std::exception_ptr first;
  const auto member = [&](int64_t rank) {
    try {
      const at::ThreadLocalStateGuard guard(state);
      body(rank, kPrefix + name + "/" + std::to_string(rank));
    } catch (const std::exception& error) {
      {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
      poison_thread_group(name, "member " + std::to_string(rank) + " failed: " + error.what());
    }
  };
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < size; ++rank) threads.emplace_back(member, rank);
  for (auto& thread : threads) thread.join();
  close_thread_group(name);
  if (first) std::rethrow_exception(first);
}

std::shared_ptr<Transport> thread_transport(const std::string& text) {
  const size_t slash = text.rfind('/');
  const std::string name = text.substr(0, slash), rank = slash == std::string::npos ? "" : text.substr(slash + 1);
  constexpr size_t kDigits = 9;
  if (rank.empty() || rank.size() > kDigits || rank.find_first_not_of("0123456789") != std::string::npos)
    fail("thread group", "threads/NAME/RANK", kPrefix + text);
  auto room = room_of(name);
  if (std::stoll(rank) >= room->size())
    fail("thread group", "a rank in [0, " + std::to_string(room->size()) + ")", rank);
  return std::make_shared<ThreadMember>(kPrefix + text, std::move(room), std::stoll(rank));
}

std::shared_ptr<Transport> find_transport(const std::string& name) {
  if (name.rfind(kPrefix, 0) == 0) return thread_transport(name.substr(std::string(kPrefix).size()));
  return process_transport(name);
}

}  // namespace regard::sharding
