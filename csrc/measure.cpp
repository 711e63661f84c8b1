// Threads and clocks around the bodies of probe.inc.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "kernel_table.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kAlign = 64;
constexpr int32_t kMaxThreads = 4096;
constexpr int32_t kMaxStreams = 16;
// A slice of this size takes some 0.1 ms: the clock is read often enough and costs nothing.
constexpr int64_t kSliceBytes = int64_t{4} << 20;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct alignas(kAlign) Tally {
  double units_per_s = 0.0;
  uint64_t witness = 0;  // written so that no compiler may drop the work
};

// Start num_threads copies of work(thread_idx, tally) at the same moment and add up what they report.
template <typename Prepare, typename Work>
int32_t run_threads(int32_t num_threads, const Prepare &prepare, const Work &work, double *total) {
  try {
    std::vector<Tally> tallies(static_cast<size_t>(num_threads));
    std::atomic<int32_t> num_waiting{0};
    std::atomic<bool> may_start{false}, is_cancelled{false};
    const auto body = [&](int32_t idx) {
      prepare(idx);
      num_waiting.fetch_add(1);
      while (!may_start.load(std::memory_order_acquire)) std::this_thread::yield();
      if (!is_cancelled.load()) work(idx, &tallies[static_cast<size_t>(idx)]);
    };
    std::vector<std::thread> threads;
    int32_t status = LLK_OK;
    try {
      threads.reserve(static_cast<size_t>(num_threads));
      for (int32_t idx = 0; idx < num_threads; ++idx) threads.emplace_back(body, idx);
      while (num_waiting.load() < num_threads) std::this_thread::yield();
    } catch (const std::system_error &) {
      is_cancelled.store(true);
      status = LLK_NO_THREAD;
    }
    may_start.store(true, std::memory_order_release);
    for (std::thread &thread : threads) thread.join();
    *total = 0.0;
    for (const Tally &tally : tallies) *total += tally.units_per_s;
    return status;
  } catch (const std::bad_alloc &) {
    return LLK_NO_MEMORY;
  }
}

struct FreeBuffer {
  void operator()(unsigned char *buffer) const { std::free(buffer); }
};

bool is_duration(double seconds) { return seconds > 0.0 && seconds <= 3600.0; }

}  // namespace

extern "C" {

int32_t llk_measure_read(int32_t isa, int64_t num_bytes, int32_t num_threads, int32_t num_streams, double seconds,
                         double *gb_per_s) {
  if (gb_per_s == nullptr || num_threads < 1 || num_threads > kMaxThreads || num_streams < 1 ||
      num_streams > kMaxStreams || !is_duration(seconds) || num_bytes > (int64_t{1} << 46)) {
    return LLK_BAD_ARGUMENT;
  }
  const KernelTable *table = table_of(isa);
  if (table == nullptr) return LLK_UNSUPPORTED;
  // A thread's part is whole slices, a slice whole steps of every stream.
  const int64_t unit_bytes = static_cast<int64_t>(num_streams) * 256;
  const int64_t slice_bytes = kSliceBytes / unit_bytes * unit_bytes;
  const int64_t num_slices = num_bytes / num_threads / slice_bytes;
  if (num_slices < 1) return LLK_BAD_ARGUMENT;
  const int64_t part_bytes = num_slices * ((slice_bytes + kAlign - 1) / kAlign * kAlign);

  const std::unique_ptr<unsigned char, FreeBuffer> buffer(
      static_cast<unsigned char *>(std::aligned_alloc(kAlign, static_cast<size_t>(part_bytes * num_threads))));
  if (!buffer) return LLK_NO_MEMORY;
  const auto part = [&](int32_t idx) { return buffer.get() + idx * part_bytes; };
  // Each thread writes its own part first, so that its pages lie in its own memory node and really exist.
  const auto prepare = [&](int32_t idx) { std::memset(part(idx), idx + 1, static_cast<size_t>(part_bytes)); };
  const auto work = [&](int32_t idx, Tally *tally) {
    const unsigned char *base = part(idx);
    int64_t num_done = 0;
    uint64_t witness = 0;
    const Clock::time_point start = Clock::now();
    double elapsed_s = 0.0;
    do {
      witness ^= table->read_streams(base + num_done % num_slices * slice_bytes, slice_bytes, num_streams);
      ++num_done;
      elapsed_s = seconds_since(start);
    } while (elapsed_s < seconds);
    tally->witness = witness;
    tally->units_per_s = static_cast<double>(num_done * slice_bytes) / elapsed_s * 1e-9;
  };
  return run_threads(num_threads, prepare, work, gb_per_s);
}

int32_t llk_measure_rate(int32_t isa, int32_t rate, int32_t num_threads, double seconds, double *gops) {
  if (gops == nullptr || rate < 0 || rate >= LLK_NUM_RATES || num_threads < 1 || num_threads > kMaxThreads ||
      !is_duration(seconds)) {
    return LLK_BAD_ARGUMENT;
  }
  const KernelTable *table = table_of(isa);
  if (table == nullptr || table->rate_loops[rate] == nullptr) return LLK_UNSUPPORTED;
  const auto loop = table->rate_loops[rate];
  const double ops_per_round = static_cast<double>(table->rate_ops[rate]);
  const auto prepare = [&](int32_t) { loop(1 << 14); };  // wakes the wide units and the clock
  const auto work = [&](int32_t, Tally *tally) {
    constexpr int64_t kRounds = 1 << 14;
    int64_t num_rounds = 0;
    double witness = 0.0;
    const Clock::time_point start = Clock::now();
    double elapsed_s = 0.0;
    do {
      witness += loop(kRounds);
      num_rounds += kRounds;
      elapsed_s = seconds_since(start);
    } while (elapsed_s < seconds);
    std::memcpy(&tally->witness, &witness, sizeof witness);
    tally->units_per_s = static_cast<double>(num_rounds) * ops_per_round / elapsed_s * 1e-9;
  };
  return run_threads(num_threads, prepare, work, gops);
}

}  // extern "C"
