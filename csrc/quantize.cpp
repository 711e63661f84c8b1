// llk_quantize: rows divided among the threads.
#include <atomic>

#include "kernel_table.h"
#include "pool.h"

namespace {

constexpr int64_t kMaxSize = int64_t{1} << 40;
constexpr int32_t kMaxThreads = 1024;

struct Work {
  void (*quantize)(const float *x, const float *importance, uint8_t *out);
  const float *x, *importance;
  uint8_t *out;
  int64_t num_rows, k;
  int32_t block_length, block_bytes;
  std::atomic<int64_t> next{0};
};

void quantize_rows(void *context, int32_t) {
  auto *work = static_cast<Work *>(context);
  const int64_t num_blocks = work->k / work->block_length;
  for (int64_t row; (row = work->next.fetch_add(1)) < work->num_rows;) {
    const float *x = work->x + row * work->k;
    uint8_t *out = work->out + row * num_blocks * work->block_bytes;
    for (int64_t block = 0; block < num_blocks; ++block) {
      const int64_t start = block * work->block_length;
      work->quantize(x + start, work->importance == nullptr ? nullptr : work->importance + start,
                     out + block * work->block_bytes);
    }
  }
}

}  // namespace

extern "C" int32_t llk_quantize(int32_t isa, int32_t type, const float *x, int64_t num_rows, int64_t k,
                                const float *importance, void *out, int32_t num_threads) {
  const KernelTable *table = table_of(isa);
  if (table == nullptr) return LLK_UNSUPPORTED;
  Work work;
  if (llk_quant_block(type, &work.block_length, &work.block_bytes) != LLK_OK) return LLK_UNSUPPORTED;
  if (num_rows < 0 || num_rows > kMaxSize || k <= 0 || k > kMaxSize || k % work.block_length || num_threads < 1 ||
      num_threads > kMaxThreads) {
    return LLK_BAD_ARGUMENT;
  }
  work.quantize = nullptr;
  for (int i = 0; i < LLK_NUM_QUANT_TYPES; ++i) {
    if (table->quantizers[i].type == type) work.quantize = table->quantizers[i].quantize;
  }
  if (work.quantize == nullptr) return LLK_UNSUPPORTED;
  work.x = x;
  work.importance = importance;
  work.out = static_cast<uint8_t *>(out);
  work.num_rows = num_rows;
  work.k = k;
  run_on_pool(num_threads, quantize_rows, &work);
  return LLK_OK;
}
