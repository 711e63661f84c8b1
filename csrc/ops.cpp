// Divides what lies between the products into pieces for the pool.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "kernel_table.h"
#include "pool.h"

namespace {

constexpr int64_t kMaxSize = int64_t{1} << 40;
constexpr int32_t kMaxThreads = 1024;
constexpr int64_t kPieceNumbers = 16 * 1024;  // of a piece, so that it fits in the first-level caches

struct Free {
  void operator()(float *at) const { std::free(at); }
};

// Rows are handed out in pieces; Body is called with a first row and a number of rows.
template <class Body>
struct Rows {
  const Body *body;
  int64_t num_rows, piece;
  std::atomic<int64_t> next{0};
};

template <class Body>
void rows_body(void *context, int32_t) {
  auto *rows = static_cast<Rows<Body> *>(context);
  for (int64_t first; (first = rows->next.fetch_add(rows->piece)) < rows->num_rows;) {
    const int64_t left = rows->num_rows - first;
    (*rows->body)(first, left < rows->piece ? left : rows->piece);
  }
}

template <class Body>
void divide(int64_t num_rows, int64_t row_numbers, int32_t num_threads, const Body &body) {
  Rows<Body> rows;
  rows.body = &body;
  rows.num_rows = num_rows;
  rows.piece = kPieceNumbers / row_numbers + 1;
  const int64_t num_pieces = (num_rows + rows.piece - 1) / rows.piece;
  run_on_pool(num_pieces < num_threads ? static_cast<int32_t>(num_pieces) : num_threads, rows_body<Body>, &rows);
}

bool is_size(int64_t value) { return value >= 0 && value <= kMaxSize; }
bool is_count_of_threads(int32_t value) { return value >= 1 && value <= kMaxThreads; }

struct AttentionContext {
  const llk_attention_call *call;
  const Ops *ops;
  int64_t blocks_per_head, queries_per_block, num_items, scratch_floats;
  bool is_in_words;
  std::atomic<int64_t> next{0};
  std::atomic<bool> is_out_of_memory{false};
};

Positions positions_of(const llk_attention_call &call, const uint8_t *base, const int64_t *strides, int64_t row,
                       int64_t kv_head, int64_t number_bytes) {
  Positions positions;
  positions.position_bytes = strides[2] * number_bytes;
  positions.block_bytes = strides[0] * number_bytes;
  if (call.block_table == nullptr) {
    positions.base = base + (row * strides[0] + kv_head * strides[1]) * number_bytes;
    positions.table = nullptr;
    positions.shift = 0;
  } else {
    positions.base = base + kv_head * strides[1] * number_bytes;
    positions.table = call.block_table + row * call.table_stride;
    positions.shift = static_cast<int32_t>(__builtin_ctzll(static_cast<uint64_t>(call.block_size)));
  }
  return positions;
}

// Whether every block that a row's keys lie in is one of the num_blocks there are.
bool has_valid_blocks(const llk_attention_call &call) {
  if (call.block_table == nullptr) return true;
  if (call.block_size < 1 || (call.block_size & (call.block_size - 1)) || call.num_blocks < 1) return false;
  for (int64_t row = 0; row < call.batch; ++row) {
    const int64_t num = (call.num_keys[row] + call.block_size - 1) / call.block_size;
    if (num > call.table_stride) return false;
    for (int64_t i = 0; i < num; ++i) {
      const int32_t block = call.block_table[row * call.table_stride + i];
      if (block < 0 || block >= call.num_blocks) return false;
    }
  }
  return true;
}

bool is_for_words(const llk_attention_call &call, const Ops &ops, int64_t most_keys) {
  return ops.attend_words != nullptr && call.kv_type == LLK_TYPE_F32 && !call.is_causal && call.num_queries > 4 &&
         call.head_dim % 16 == 0 && call.head_dim <= LLK_WORD_HEAD_DIM && most_keys <= LLK_WORD_MAX_KEYS;
}

// Whole heads, so that keys are rounded once; parts of them where there are too few heads for all threads.
int64_t word_queries(const llk_attention_call &call, int32_t num_threads) {
  const int64_t num_heads = call.batch * call.num_heads;
  if (num_heads == 0 || num_heads >= 4 * int64_t{num_threads}) return call.num_queries;
  const int64_t parts = (4 * int64_t{num_threads} + num_heads - 1) / num_heads;
  const int64_t tiles = (call.num_queries + LLK_WORD_QUERIES - 1) / LLK_WORD_QUERIES;
  return (tiles + parts - 1) / parts * LLK_WORD_QUERIES;
}

// Fewer than LLK_QUERY_BLOCK at a time where there would not be enough blocks for all threads.
int64_t block_queries(const llk_attention_call &call, int32_t num_threads) {
  int64_t queries = LLK_QUERY_BLOCK;
  const auto num_items = [&](int64_t at_a_time) {
    return (call.num_queries + at_a_time - 1) / at_a_time * call.batch * call.num_heads;
  };
  while (queries > LLK_MOST_TILE_QUERIES && num_items(queries) < 4 * int64_t{num_threads}) queries /= 2;
  return queries;
}

void attention_body(void *context, int32_t) {
  auto *shared = static_cast<AttentionContext *>(context);
  const llk_attention_call &call = *shared->call;
  const std::unique_ptr<float, Free> scratch(static_cast<float *>(
      std::aligned_alloc(64, (static_cast<size_t>(shared->scratch_floats) * sizeof(float) + 63) / 64 * 64)));
  if (!scratch) {
    shared->is_out_of_memory.store(true);
    return;
  }
  const int64_t group = call.num_heads / call.num_kv_heads;
  const auto *keys = static_cast<const uint8_t *>(call.keys);
  const auto *values = static_cast<const uint8_t *>(call.values);
  // Blocks are not whole bytes a number, so their strides come in bytes.
  const int64_t number_bytes = call.kv_type == LLK_TYPE_F32 ? 4 : call.kv_type == LLK_TYPE_F16 ? 2 : 1;
  for (int64_t item; (item = shared->next.fetch_add(1)) < shared->num_items;) {
    // The last blocks of queries see most keys: they are handed out first, so that no thread ends alone with one.
    const int64_t block = shared->blocks_per_head - 1 - item / (call.batch * call.num_heads);
    const int64_t head_idx = item % (call.batch * call.num_heads);
    const int64_t row = head_idx / call.num_heads, head = head_idx % call.num_heads, kv_head = head / group;
    AttentionHead work;
    work.query = call.query + row * call.query_strides[0] + head * call.query_strides[1];
    work.query_stride = call.query_strides[2];
    work.keys = positions_of(call, keys, call.key_strides, row, kv_head, number_bytes);
    work.values = positions_of(call, values, call.value_strides, row, kv_head, number_bytes);
    work.out = call.out + (row * call.num_queries * call.num_heads + head) * call.head_dim;
    work.out_stride = call.num_heads * call.head_dim;
    work.num_queries = call.num_queries;
    work.num_keys = call.num_keys[row];
    work.head_dim = static_cast<int32_t>(call.head_dim);
    work.is_causal = call.is_causal;
    work.scale = call.scale;
    const int64_t first = block * shared->queries_per_block, left = call.num_queries - first;
    const int64_t count = left < shared->queries_per_block ? left : shared->queries_per_block;
    if (shared->is_in_words) {
      shared->ops->attend_words(work, first, count, scratch.get());
    } else {
      shared->ops->attend[call.kv_type == LLK_TYPE_F32 ? 0 : call.kv_type == LLK_TYPE_F16 ? 1 : 2](
          work, first, static_cast<int>(count), scratch.get());
    }
  }
}

}  // namespace

extern "C" {

int32_t llk_swiglu(int32_t isa, const float *gate, const float *up, int64_t count, float *out, int32_t num_threads) {
  const KernelTable *table = table_of(isa);
  if (table == nullptr) return LLK_UNSUPPORTED;
  if (!is_size(count) || !is_count_of_threads(num_threads)) return LLK_BAD_ARGUMENT;
  constexpr int64_t kRow = 1024;
  divide((count + kRow - 1) / kRow, kRow, num_threads, [=](int64_t first, int64_t num) {
    const int64_t start = first * kRow, end = (first + num) * kRow < count ? (first + num) * kRow : count;
    table->ops->swiglu(gate + start, up + start, end - start, out + start);
  });
  return LLK_OK;
}

int32_t llk_rms_norm(int32_t isa, const float *x, const float *weight, float eps, int64_t num_rows, int64_t width,
                     float *out, int32_t num_threads) {
  const KernelTable *table = table_of(isa);
  if (table == nullptr) return LLK_UNSUPPORTED;
  if (!is_size(num_rows) || !is_size(width) || width == 0 || !is_count_of_threads(num_threads)) return LLK_BAD_ARGUMENT;
  divide(num_rows, width, num_threads, [=](int64_t first, int64_t num) {
    for (int64_t row = first; row < first + num; ++row) {
      table->ops->rms_norm(x + row * width, weight, eps, width, out + row * width);
    }
  });
  return LLK_OK;
}

int32_t llk_add_rms_norm(int32_t isa, float *x, const float *added, const float *weight, float eps, int64_t num_rows,
                         int64_t width, float *out, int32_t num_threads) {
  const KernelTable *table = table_of(isa);
  if (table == nullptr) return LLK_UNSUPPORTED;
  if (!is_size(num_rows) || !is_size(width) || width == 0 || !is_count_of_threads(num_threads)) return LLK_BAD_ARGUMENT;
  divide(num_rows, width, num_threads, [=](int64_t first, int64_t num) {
    for (int64_t at = first * width; at < (first + num) * width; at += width) {
      table->ops->add(x + at, added + at, width);
      table->ops->rms_norm(x + at, weight, eps, width, out + at);
    }
  });
  return LLK_OK;
}

int32_t llk_rotary(int32_t isa, const float *x, const float *cosines, const float *sines, int64_t num_positions,
                   int64_t num_heads, int64_t head_dim, int32_t is_interleaved, float *out, int32_t num_threads) {
  const KernelTable *table = table_of(isa);
  if (table == nullptr) return LLK_UNSUPPORTED;
  if (!is_size(num_positions) || num_heads < 1 || num_heads > 65536 || head_dim < 2 || head_dim > 65536 ||
      head_dim % 2 || (is_interleaved && x == out) || !is_count_of_threads(num_threads)) {
    return LLK_BAD_ARGUMENT;
  }
  divide(num_positions, num_heads * head_dim, num_threads, [=](int64_t first, int64_t num) {
    for (int64_t position = first; position < first + num; ++position) {
      for (int64_t head = 0; head < num_heads; ++head) {
        const int64_t at = (position * num_heads + head) * head_dim;
        table->ops->rotate_head(x + at, cosines + position * (head_dim / 2), sines + position * (head_dim / 2),
                                static_cast<int>(head_dim), is_interleaved, out + at);
      }
    }
  });
  return LLK_OK;
}

int32_t llk_round_blocks(int32_t isa, const float *x, int64_t num_blocks, void *out, int32_t num_threads) {
  const KernelTable *table = table_of(isa);
  if (table == nullptr) return LLK_UNSUPPORTED;
  if (!is_size(num_blocks) || !is_count_of_threads(num_threads)) return LLK_BAD_ARGUMENT;
  divide(num_blocks, 32, num_threads, [=](int64_t first, int64_t num) {
    table->ops->round_blocks(x + first * 32, num, static_cast<uint8_t *>(out) + first * 34);
  });
  return LLK_OK;
}

int32_t llk_store_positions(int32_t isa, const float *x, int64_t num_rows, int64_t num_heads, int64_t head_dim,
                            int32_t kv_type, const int64_t *slots, int64_t head_stride, void *out, int32_t num_threads) {
  const KernelTable *table = table_of(isa);
  const bool is_blocks = kv_type == LLK_TYPE_Q8_0;
  if (table == nullptr || (kv_type != LLK_TYPE_F32 && kv_type != LLK_TYPE_F16 && !is_blocks)) return LLK_UNSUPPORTED;
  if (!is_size(num_rows) || num_heads < 1 || num_heads > 65536 || head_dim < 1 || head_dim > 65536 ||
      (is_blocks && head_dim % 32) || !is_count_of_threads(num_threads)) {
    return LLK_BAD_ARGUMENT;
  }
  const int64_t number_bytes = kv_type == LLK_TYPE_F32 ? 4 : kv_type == LLK_TYPE_F16 ? 2 : 1;
  divide(num_rows, num_heads * head_dim, num_threads, [=](int64_t first, int64_t num) {
    for (int64_t row = first; row < first + num; ++row) {
      for (int64_t head = 0; head < num_heads; ++head) {
        const float *from = x + (row * num_heads + head) * head_dim;
        uint8_t *to = static_cast<uint8_t *>(out) + (slots[row] + head * head_stride) * number_bytes;
        if (is_blocks) {
          table->ops->round_blocks(from, head_dim / 32, to);
        } else if (kv_type == LLK_TYPE_F16) {
          table->ops->round_halves(from, head_dim, to);
        } else {
          std::memcpy(to, from, static_cast<size_t>(head_dim) * sizeof(float));
        }
      }
    }
  });
  return LLK_OK;
}

int32_t llk_attention(int32_t isa, const llk_attention_call *call, int32_t num_threads) {
  const KernelTable *table = table_of(isa);
  const bool is_blocks = call->kv_type == LLK_TYPE_Q8_0;
  if (table == nullptr || (call->kv_type != LLK_TYPE_F32 && call->kv_type != LLK_TYPE_F16 && !is_blocks)) {
    return LLK_UNSUPPORTED;
  }
  constexpr int64_t kMaxKeys = int64_t{1} << 24;  // counted in float
  if (call->batch < 0 || call->batch > kMaxKeys || call->num_heads < 1 || call->num_heads > 65536 ||
      call->num_kv_heads < 1 || call->num_heads % call->num_kv_heads || call->head_dim < 1 || call->head_dim > 65536 ||
      (is_blocks && call->head_dim % 32) ||
      call->num_queries < 0 || call->num_queries > kMaxKeys || !is_count_of_threads(num_threads)) {
    return LLK_BAD_ARGUMENT;
  }
  int64_t most_keys = 0;
  for (int64_t row = 0; row < call->batch; ++row) {
    const int64_t num = call->num_keys[row];
    if (num < 1 || num > kMaxKeys || (call->is_causal && num < call->num_queries)) return LLK_BAD_ARGUMENT;
    if (num > most_keys) most_keys = num;
  }
  if (!has_valid_blocks(*call)) return LLK_BAD_ARGUMENT;
  AttentionContext context;
  context.call = call;
  context.ops = table->ops;
  context.is_in_words = is_for_words(*call, *table->ops, most_keys);
  context.queries_per_block = context.is_in_words ? word_queries(*call, num_threads) : block_queries(*call, num_threads);
  context.blocks_per_head = (call->num_queries + context.queries_per_block - 1) / context.queries_per_block;
  context.num_items = context.blocks_per_head * call->batch * call->num_heads;
  context.scratch_floats =
      context.is_in_words ? word_attention_floats(most_keys) : attention_floats(call->head_dim, most_keys);
  if (context.num_items == 0) return LLK_OK;
  run_on_pool(context.num_items < num_threads ? static_cast<int32_t>(context.num_items) : num_threads, attention_body,
              &context);
  return context.is_out_of_memory.load() ? LLK_NO_MEMORY : LLK_OK;
}

}  // extern "C"
