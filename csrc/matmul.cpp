// Divides products into pieces for the pool.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "kernel_table.h"
#include "pool.h"

namespace {

constexpr int32_t kMaxThreads = 1024;
constexpr int64_t kMaxSize = int64_t{1} << 40;
// Rows multiplied at a time: the sums of a strip of columns stay in the second-level cache.
constexpr int64_t kChunkRows = 960;
// Bytes of weights that a thread takes at a time when rows are few. Its pieces follow each other, so that they are read in
// one stream; the smaller they are, the less the threads wait for each other at the end.
constexpr int64_t kPieceBytes = 128 * 1024;
constexpr int32_t kMaxRanges = 64;

// A strip is so many times wider where rows are many: each pass over the rows then fetches them from the last cache for more
// columns. Rows, columns and sums need room in the second-level cache.
constexpr int kWideStrips = 4;
constexpr int64_t kWideRowsBytes = 96 * 1024, kWideCacheBytes = 1024 * 1024;

int64_t find_cache_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  return sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  return 0;
#endif
}

const Products *products_of(const KernelTable *table, int32_t type) {
  for (int idx = 0; idx < LLK_NUM_TYPES; ++idx) {
    if (table->products[idx].type == type) return &table->products[idx];
  }
  return nullptr;
}

struct Free {
  void operator()(unsigned char *at) const { std::free(at); }
};
using Buffer = std::unique_ptr<unsigned char, Free>;

Buffer allocate(int64_t num_bytes) {
  const size_t rounded = (static_cast<size_t>(num_bytes) + 63) / 64 * 64;
  return Buffer(static_cast<unsigned char *>(std::aligned_alloc(64, rounded)));
}

struct Product {
  const Products *with;
  const FewRowsProduct *few;
  const Ops *ops;
  const uint8_t *weights;
  int64_t row_bytes, num_columns, k;
  const float *x;
  int64_t num_rows;
  const float *bias;
  int32_t activation;
  float *out;
  int64_t out_ld;
  int32_t num_threads;
};

// ---- pieces of columns

// Columns that one thread begins with, and others take over when they are done with theirs.
struct alignas(64) Range {
  std::atomic<int64_t> next;
  int64_t end;
};

template <class Body>
struct Columns {
  const Product *product;
  const Body *body;
  int64_t piece;
  int32_t num_ranges;
  Range ranges[kMaxRanges];
};

template <class Body>
void columns_body(void *context, int32_t thread_idx) {
  auto *columns = static_cast<Columns<Body> *>(context);
  const Product &product = *columns->product;
  for (int32_t i = 0; i < columns->num_ranges; ++i) {
    Range &range = columns->ranges[(thread_idx + i) % columns->num_ranges];
    // Looked at first: a counter that nobody writes to is read by all at once.
    while (range.next.load(std::memory_order_relaxed) < range.end) {
      const int64_t first = range.next.fetch_add(columns->piece);
      if (first >= range.end) break;
      const int64_t left = range.end - first;
      const int64_t num = left < columns->piece ? left : columns->piece;
      (*columns->body)(product.weights + first * product.row_bytes, num, product.out + first);
      product.ops->finish_rows(product.out + first, product.out_ld, product.num_rows, num,
                               product.bias == nullptr ? nullptr : product.bias + first, product.activation);
    }
  }
}

// Calls body(weights of the first column, number of columns, where the first result goes) and finishes what it computed.
template <class Body>
void divide_columns(const Product &product, const Body &body) {
  Columns<Body> columns;
  columns.product = &product;
  columns.body = &body;
  const int64_t even = (product.num_columns + product.num_threads - 1) / product.num_threads;
  const int64_t by_bytes = kPieceBytes / product.row_bytes + 1;
  columns.piece = ((by_bytes < even ? by_bytes : even) + 7) / 8 * 8;  // whole tiles of columns
  const int64_t num_pieces = (product.num_columns + columns.piece - 1) / columns.piece;
  const int32_t num_threads = num_pieces < product.num_threads ? static_cast<int32_t>(num_pieces) : product.num_threads;
  columns.num_ranges = num_threads < kMaxRanges ? num_threads : kMaxRanges;
  for (int32_t i = 0; i < columns.num_ranges; ++i) {
    columns.ranges[i].next.store(num_pieces * i / columns.num_ranges * columns.piece, std::memory_order_relaxed);
    const int64_t end = num_pieces * (i + 1) / columns.num_ranges * columns.piece;
    columns.ranges[i].end = end < product.num_columns ? end : product.num_columns;
  }
  run_on_pool(num_threads, columns_body<Body>, &columns);
}

// ---- weights in float32

void multiply_floats(const Product &product) {
  divide_columns(product, [&](const uint8_t *weights, int64_t num_columns, float *out) {
    product.ops->multiply_floats(reinterpret_cast<const float *>(weights), num_columns, product.k, product.x,
                                 product.num_rows, out, product.out_ld);
  });
}

// ---- few rows

int32_t multiply_few(const Product &product) {
  const int64_t num_blocks = (product.k + 255) / 256;
  const int64_t packed_bytes = num_blocks * product.few->packed_bytes;
  const Buffer packed = allocate(product.num_rows * packed_bytes);
  if (!packed) return LLK_NO_MEMORY;
  for (int64_t row = 0; row < product.num_rows; ++row) {
    product.few->pack(product.x + row * product.k, product.k, packed.get() + row * packed_bytes);
  }
  divide_columns(product, [&](const uint8_t *weights, int64_t num_columns, float *out) {
    product.few->multiply[product.num_rows - 1](weights, product.row_bytes, num_columns, product.k, packed.get(),
                                                num_blocks, out, product.out_ld);
  });
  return LLK_OK;
}

// ---- many rows

struct ManyContext {
  const Product *product;
  const ManyRowsProduct *with;
  unsigned char *packed;
  unsigned char *packed_out;  // the rows of the next product, in place of a result; or null
  int64_t num_vectors;
  int strip_columns;
  std::atomic<int64_t> next{0};
  std::atomic<bool> is_out_of_memory{false};
};

void pack_body(void *context, int32_t) {
  auto *shared = static_cast<ManyContext *>(context);
  const Product &product = *shared->product;
  const int32_t lanes = shared->with->num_lanes;
  for (int64_t v; (v = shared->next.fetch_add(1)) < shared->num_vectors;) {
    const int64_t left = product.num_rows - v * lanes;
    shared->with->pack(product.x + v * lanes * product.k, product.k, left < lanes ? static_cast<int>(left) : lanes,
                       product.k, shared->num_vectors, shared->packed + v * shared->with->packed_bytes);
  }
}

void many_body(void *context, int32_t) {
  auto *shared = static_cast<ManyContext *>(context);
  const Product &product = *shared->product;
  const int64_t ld = shared->num_vectors * shared->with->num_lanes;
  const int strip = shared->strip_columns;
  const Buffer columns = allocate(int64_t{strip} * LLK_COLUMN_BYTES);
  const Buffer sums_buffer = allocate(strip * ld * static_cast<int64_t>(sizeof(float)));
  if (!columns || !sums_buffer) {
    shared->is_out_of_memory.store(true);
    return;
  }
  auto *sums = reinterpret_cast<float *>(sums_buffer.get());
  // One strip is taken ahead, so that it can be fetched while the one before is multiplied.
  int64_t first = shared->next.fetch_add(strip);
  while (first < product.num_columns) {
    const int64_t ahead = shared->next.fetch_add(strip);
    const int64_t left = product.num_columns - first;
    const int num = left < strip ? static_cast<int>(left) : strip;
    // A last strip that is not whole is left alone: what is fetched must lie in the matrix.
    const uint8_t *next = ahead + num <= product.num_columns ? product.weights + ahead * product.row_bytes : nullptr;
    shared->with->multiply(product.weights + first * product.row_bytes, product.row_bytes, num, product.k,
                           shared->packed, product.num_rows, columns.get(), sums, next);
    const float *bias = product.bias == nullptr ? nullptr : product.bias + first;
    if (shared->packed_out != nullptr) {
      unsigned char *out = shared->packed_out + first / strip * shared->num_vectors * shared->with->packed_bytes;
      shared->with->pack_strip(sums, product.num_rows, bias, product.activation, out);
    } else {
      product.ops->store_strip(sums, ld, product.num_rows, num, product.out + first, product.out_ld, bias,
                               product.activation);
    }
    first = ahead;
  }
}

int64_t count_vectors(const Product &product, const ManyRowsProduct &with) {
  return (product.num_rows + with.num_lanes - 1) / with.num_lanes;
}

// Bytes of k numbers of all rows.
int64_t count_packed_bytes(const Product &product, const ManyRowsProduct &with, int64_t k) {
  return (k + with.block_k - 1) / with.block_k * count_vectors(product, with) * with.packed_bytes;
}

int count_strip_columns(const Product &product, const ManyRowsProduct &with) {
  static const int64_t cache_bytes = find_cache_bytes();
  const bool is_wide = count_vectors(product, with) * with.packed_bytes >= kWideRowsBytes && cache_bytes >= kWideCacheBytes &&
                       product.num_columns >= int64_t{4} * kWideStrips * LLK_STRIP_COLUMNS * product.num_threads;
  return is_wide ? kWideStrips * LLK_STRIP_COLUMNS : LLK_STRIP_COLUMNS;
}

void pack(const Product &product, const ManyRowsProduct &with, unsigned char *packed) {
  ManyContext context;
  context.product = &product;
  context.with = &with;
  context.packed = packed;
  context.num_vectors = count_vectors(product, with);
  run_on_pool(context.num_vectors > 1 ? product.num_threads : 1, pack_body, &context);
}

int32_t multiply_packed(const Product &product, const ManyRowsProduct &with, unsigned char *packed,
                        unsigned char *packed_out) {
  ManyContext context;
  context.product = &product;
  context.with = &with;
  context.packed = packed;
  context.packed_out = packed_out;
  context.num_vectors = count_vectors(product, with);
  context.strip_columns = count_strip_columns(product, with);
  run_on_pool(product.num_threads, many_body, &context);
  return context.is_out_of_memory.load() ? LLK_NO_MEMORY : LLK_OK;
}

int32_t multiply_many(const Product &product, const ManyRowsProduct &with) {
  const Buffer packed = allocate(count_packed_bytes(product, with, product.k));
  if (!packed) return LLK_NO_MEMORY;
  pack(product, with, packed.get());
  return multiply_packed(product, with, packed.get(), nullptr);
}

int32_t multiply(Product product) {
  const int64_t num_rows = product.num_rows;
  for (int64_t first = 0; first < num_rows; first += kChunkRows) {
    product.num_rows = num_rows - first < kChunkRows ? num_rows - first : kChunkRows;
    int32_t status;
    if (product.num_rows <= product.few->max_rows) {
      status = multiply_few(product);
    } else {
      const ManyRowsProduct &narrow = product.with->narrow;
      status = multiply_many(product, product.num_rows <= narrow.num_lanes ? narrow : product.with->wide);
    }
    if (status != LLK_OK) return status;
    product.x += product.num_rows * product.k;
    product.out += product.num_rows * product.out_ld;
  }
  return LLK_OK;
}

// Of as many rows as product has; weights in float32 have no `with`.
int32_t compute(const Product &product) {
  if (product.with != nullptr) return multiply(product);
  multiply_floats(product);
  return LLK_OK;
}

// ---- one product of another's result

bool is_chainable(const Product &first, const Product &second) {
  if (first.with == nullptr || second.with == nullptr || first.num_rows <= first.with->narrow.num_lanes) return false;
  const ManyRowsProduct &with = first.with->wide;
  return with.pack_strip != nullptr && second.with->wide.pack == with.pack &&
         count_strip_columns(first, with) == with.block_k && first.num_columns % with.block_k == 0;
}

// What the first product computes is packed for the second as it is computed, and never stored as floats.
int32_t compute_chain(const Product &first, const Product &second) {
  const ManyRowsProduct &with = first.with->wide;
  const Buffer packed = allocate(count_packed_bytes(first, with, first.k));
  const Buffer between = allocate(count_packed_bytes(first, with, first.num_columns));
  if (!packed || !between) return LLK_NO_MEMORY;
  pack(first, with, packed.get());
  const int32_t status = multiply_packed(first, with, packed.get(), between.get());
  return status != LLK_OK ? status : multiply_packed(second, second.with->wide, between.get(), nullptr);
}

int32_t compute_pair(Product first, Product second) {
  const int64_t num_rows = first.num_rows;
  Buffer between;
  for (int64_t row = 0; row < num_rows; row += kChunkRows) {
    first.num_rows = second.num_rows = num_rows - row < kChunkRows ? num_rows - row : kChunkRows;
    int32_t status;
    if (is_chainable(first, second)) {
      status = compute_chain(first, second);
    } else {
      if (!between) between = allocate(first.num_rows * first.num_columns * static_cast<int64_t>(sizeof(float)));
      if (!between) return LLK_NO_MEMORY;
      first.out = reinterpret_cast<float *>(between.get());
      second.x = first.out;
      status = compute(first);
      if (status == LLK_OK) status = compute(second);
    }
    if (status != LLK_OK) return status;
    first.x += first.num_rows * first.k;
    second.out += first.num_rows * second.out_ld;
  }
  return LLK_OK;
}

// The product of a matrix, less its rows and its result.
int32_t make_product(const KernelTable *table, const llk_matrix &matrix, const float *bias, int32_t activation,
                     int32_t num_threads, Product *product) {
  const bool is_float = matrix.type == LLK_TYPE_F32;
  const Products *products = is_float ? nullptr : products_of(table, matrix.type);
  if (products == nullptr && !is_float) return LLK_UNSUPPORTED;
  const int64_t block_length = is_float ? 1 : products->block_length;
  if (matrix.num_columns < 0 || matrix.num_columns > kMaxSize || matrix.k <= 0 || matrix.k > kMaxSize ||
      matrix.k % block_length || activation < LLK_ACTIVATION_NONE || activation > LLK_ACTIVATION_QUICK_GELU ||
      num_threads < 1 || num_threads > kMaxThreads) {
    return LLK_BAD_ARGUMENT;
  }
  *product = {};
  product->with = products;
  if (!is_float) {
    product->few = matrix.type == LLK_TYPE_BF16 && table->bf16 != nullptr ? table->bf16 : &products->few;
  }
  product->ops = table->ops;
  product->weights = static_cast<const uint8_t *>(matrix.weights);
  product->row_bytes = is_float ? matrix.k * static_cast<int64_t>(sizeof(float)) : matrix.k / block_length * products->block_bytes;
  product->num_columns = matrix.num_columns;
  product->k = matrix.k;
  product->bias = bias;
  product->activation = activation;
  product->num_threads = num_threads;
  return LLK_OK;
}

}  // namespace

extern "C" {

int32_t llk_quant_block(int32_t type, int32_t *block_length, int32_t *block_bytes) {
  const Products *products = products_of(table_of(LLK_ISA_PORTABLE), type);
  if (products == nullptr) return LLK_UNSUPPORTED;
  *block_length = products->block_length;
  *block_bytes = products->block_bytes;
  return LLK_OK;
}

int32_t llk_dequantize(int32_t isa, int32_t type, const void *weights, int64_t num_weights, float *out) {
  const KernelTable *table = table_of(isa);
  if (table == nullptr) return LLK_UNSUPPORTED;
  const Products *products = products_of(table, type);
  if (products == nullptr) return LLK_UNSUPPORTED;
  if (num_weights < 0 || num_weights > kMaxSize || num_weights % products->block_length) return LLK_BAD_ARGUMENT;
  products->dequantize(static_cast<const uint8_t *>(weights), num_weights, out);
  return LLK_OK;
}

int32_t llk_matmul(int32_t isa, int32_t type, const void *weights, int64_t num_columns, int64_t k, const float *x,
                   int64_t num_rows, const float *bias, int32_t activation, float *out, int64_t out_ld,
                   int32_t num_threads) {
  const KernelTable *table = table_of(isa);
  if (table == nullptr) return LLK_UNSUPPORTED;
  Product product;
  const int32_t status = make_product(table, {weights, num_columns, k, type, 0}, bias, activation, num_threads, &product);
  if (status != LLK_OK) return status;
  if (num_rows < 0 || num_rows > kMaxSize || out_ld < num_columns) return LLK_BAD_ARGUMENT;
  if (num_columns == 0 || num_rows == 0) return LLK_OK;
  product.x = x;
  product.num_rows = num_rows;
  product.out = out;
  product.out_ld = out_ld;
  return compute(product);
}

int32_t llk_matmul_pair(int32_t isa, const llk_matrix *first, const float *first_bias, int32_t activation,
                        const llk_matrix *second, const float *second_bias, const float *x, int64_t num_rows, float *out,
                        int32_t num_threads) {
  const KernelTable *table = table_of(isa);
  if (table == nullptr) return LLK_UNSUPPORTED;
  Product one, two;
  int32_t status = make_product(table, *first, first_bias, activation, num_threads, &one);
  if (status == LLK_OK) status = make_product(table, *second, second_bias, LLK_ACTIVATION_NONE, num_threads, &two);
  if (status != LLK_OK) return status;
  if (num_rows < 0 || num_rows > kMaxSize || second->k != first->num_columns) return LLK_BAD_ARGUMENT;
  if (second->num_columns == 0 || num_rows == 0) return LLK_OK;
  one.x = x;
  one.num_rows = num_rows;
  one.out_ld = first->num_columns;
  two.out = out;
  two.out_ld = second->num_columns;
  return compute_pair(one, two);
}

}  // extern "C"
