// A decode step dispatches hundreds of short products one after another, so workers stay awake for a moment after each
// of them before they sleep: waking a thread takes longer than many a product.
//
// Nobody waits for a worker that has not begun: beside other programs a worker may be kept from its processor for
// milliseconds, a hundred times as long as the product takes without it.
#include "pool.h"

#include <unistd.h>

#include "llavakit_kernels.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kAwake = std::chrono::microseconds(100);
// Looks at a counter, some tens of nanoseconds each, before the processor is offered to whom is waited for.
constexpr int kPatience = 2048;

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

class Pool {
 public:
  void run(int32_t num_threads, void (*body)(void *, int32_t), void *context) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return body(context, 0);  // another caller has the workers
    const int32_t num_workers = grow(num_threads - 1);
    if (num_workers <= 0) return body(context, 0);
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      body_ = body;
      context_ = context;
      num_ended_.store(0, std::memory_order_relaxed);
      tickets_.store(num_workers, std::memory_order_release);
      round_.fetch_add(1, std::memory_order_release);
    }
    if (num_asleep_.load() > 0) wake_.notify_all();
    body(context, 0);
    const int32_t num_left = tickets_.exchange(0, std::memory_order_acq_rel);
    const int32_t num_begun = num_workers - (num_left > 0 ? num_left : 0);
    for (int i = 0; num_ended_.load(std::memory_order_acquire) < num_begun; ++i) {
      if (i < kPatience) relax();
      else std::this_thread::yield();
    }
  }

 private:
  int32_t grow(int32_t num_wanted) {
    while (static_cast<int32_t>(workers_.size()) < num_wanted) {
      try {
        workers_.emplace_back([this, seen = round_.load()] { work(seen); });
      } catch (const std::system_error &) {
        break;
      } catch (const std::bad_alloc &) {
        break;
      }
    }
    const auto num_workers = static_cast<int32_t>(workers_.size());
    return num_workers < num_wanted ? num_workers : num_wanted;
  }

  void work(uint64_t seen) {
    for (;;) {
      const Clock::time_point sleepy = Clock::now() + kAwake;
      while (round_.load(std::memory_order_acquire) == seen) {
        for (int i = 0; i < 32 && round_.load(std::memory_order_relaxed) == seen; ++i) relax();
        if (Clock::now() < sleepy) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        num_asleep_.fetch_add(1);
        wake_.wait(lock, [this, seen] { return round_.load(std::memory_order_acquire) != seen; });
        num_asleep_.fetch_sub(1);
      }
      seen = round_.load(std::memory_order_acquire);
      // Whoever has a ticket keeps its round from being replaced. It may be of a later round than the one just seen.
      const int32_t ticket = tickets_.fetch_sub(1, std::memory_order_acq_rel);
      if (ticket <= 0) continue;
      body_(context_, ticket);
      num_ended_.fetch_add(1, std::memory_order_release);
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int32_t> num_asleep_{0};
  std::atomic<int32_t> tickets_{0};  // of workers that may still begin; below zero for those who came too late
  std::atomic<int32_t> num_ended_{0};
  void (*body_)(void *, int32_t) = nullptr;
  void *context_ = nullptr;
};

// The team of another library, and the process it belongs to.
std::atomic<llk_team> team{nullptr};
std::atomic<pid_t> team_owner{0};

struct TeamCall {
  void (*body)(void *, int32_t);
  void *context;
  std::atomic<int32_t> next_idx{0};
};

void team_body(void *data) {
  auto *call = static_cast<TeamCall *>(data);
  call->body(call->context, call->next_idx.fetch_add(1));
}

}  // namespace

extern "C" void llk_set_team(llk_team parallel) {
  team_owner.store(getpid());
  team.store(parallel);
}

void run_on_pool(int32_t num_threads, void (*body)(void *context, int32_t thread_idx), void *context) {
  if (num_threads <= 1) return body(context, 0);
  if (const llk_team parallel = team.load(); parallel != nullptr && team_owner.load() == getpid()) {
    TeamCall call;
    call.body = body;
    call.context = context;
    return parallel(team_body, &call, static_cast<unsigned>(num_threads), 0);
  }
  // Never destroyed: workers may outlive static destructors. A child of fork() has none of its parent's threads and
  // gets a pool of its own.
  static std::atomic<Pool *> pool{nullptr};
  static std::atomic<pid_t> owner{0};
  const pid_t self = getpid();
  if (owner.load() != self) {
    static std::mutex making;
    const std::lock_guard<std::mutex> guard(making);
    if (owner.load() != self) {
      pool.store(new Pool);
      owner.store(self);
    }
  }
  pool.load()->run(num_threads, body, context);
}
