// The decoder's layers one after the other: a step of one token is some four hundred short calls, and what lies between
// two of them in another language is time in which the memory stands still.
#include <algorithm>

#include "llavakit_kernels.h"

namespace {

constexpr int64_t kMaxSize = int64_t{1} << 30;
constexpr int64_t kMaxScratch = int64_t{1} << 40;

bool is_count(int64_t value, int64_t most) { return value >= 1 && value <= most; }

bool fits(const llk_matrix &matrix, int64_t num_columns, int64_t k) {
  return matrix.num_columns == num_columns && matrix.k == k;
}

// Every size that memory is divided by.
bool is_valid(const llk_decoder_call &call) {
  if (!is_count(call.num_layers, 4096) || call.num_tokens < 0 || call.num_tokens > kMaxSize ||
      !is_count(call.width, kMaxSize) || !is_count(call.mlp_width, kMaxSize) || !is_count(call.num_heads, 65536) ||
      !is_count(call.num_kv_heads, 65536) || !is_count(call.head_dim, 65536) || call.num_groups < 0) {
    return false;
  }
  int64_t num_grouped = 0;
  for (int64_t i = 0; i < call.num_groups; ++i) {
    const llk_token_group &group = call.groups[i];
    const int64_t left = call.num_tokens - num_grouped;
    if (group.first_token != num_grouped || group.batch < 0 || group.num_queries < 0) return false;
    if (group.batch != 0 && group.num_queries > left / group.batch) return false;  // the product might not fit a number
    num_grouped += group.batch * group.num_queries;
  }
  return num_grouped == call.num_tokens;
}

// Numbers of a token: its normed row, and either all of attention's or both halves of the feed-forward part.
struct Layout {
  int64_t width, queries, keys, mlp;

  explicit Layout(const llk_decoder_call &call)
      : width(call.width),
        queries(call.num_heads * call.head_dim),
        keys(call.num_kv_heads * call.head_dim),
        mlp(call.mlp_width) {}

  int64_t of_token() const { return width + std::max(2 * queries + 3 * keys, 2 * mlp); }
};

class Pass {
 public:
  Pass(int32_t isa, const llk_decoder_call &call, int32_t num_threads)
      : isa_(isa), call_(call), num_threads_(num_threads), layout_(call), normed_(call.scratch) {
    const int64_t num = call.num_tokens;
    float *rest = normed_ + num * layout_.width;
    product_ = rest;
    query_ = product_ + num * layout_.queries;
    key_product_ = query_ + num * layout_.queries;
    key_ = key_product_ + num * layout_.keys;
    value_ = key_ + num * layout_.keys;
    gate_ = rest;
    up_ = gate_ + num * layout_.mlp;
  }

  // After a call that failed nothing more is computed, and its status is the pass's.
  int32_t run() {
    norm(call_.layers[0].attention_norm);
    for (int64_t i = 0; i < call_.num_layers && status_ == LLK_OK; ++i) {
      const llk_decoder_layer &layer = call_.layers[i];
      attend(layer, i);
      multiply(layer.attention_out, product_, normed_);
      add_and_norm(layer.mlp_norm, normed_);
      multiply(layer.gate, normed_, gate_);
      multiply(layer.up, normed_, up_);
      swiglu();
      multiply(layer.down, gate_, normed_);
      const bool is_last = i + 1 == call_.num_layers;
      add_and_norm(is_last ? call_.last_norm : call_.layers[i + 1].attention_norm, is_last ? call_.x : normed_);
    }
    return status_;
  }

 private:
  void then(int32_t status) {
    if (status_ == LLK_OK) status_ = status;
  }

  void norm(const float *weight) {
    then(llk_rms_norm(isa_, call_.x, weight, call_.eps, call_.num_tokens, layout_.width, normed_, num_threads_));
  }

  void add_and_norm(const float *weight, float *out) {
    if (status_ != LLK_OK) return;
    then(llk_add_rms_norm(isa_, call_.x, normed_, weight, call_.eps, call_.num_tokens, layout_.width, out, num_threads_));
  }

  void multiply(const llk_matrix &matrix, const float *x, float *out) {
    if (status_ != LLK_OK) return;
    then(llk_matmul(isa_, matrix.type, matrix.weights, matrix.num_columns, matrix.k, x, call_.num_tokens, nullptr,
                    LLK_ACTIVATION_NONE, out, matrix.num_columns, num_threads_));
  }

  void swiglu() {
    if (status_ != LLK_OK) return;
    then(llk_swiglu(isa_, gate_, up_, call_.num_tokens * layout_.mlp, gate_, num_threads_));
  }

  void rotate(const llk_matrix &matrix, const float *x, int64_t num_heads, float *out) {
    if (status_ != LLK_OK) return;
    then(llk_rotary(isa_, x, call_.cosines, call_.sines, call_.num_tokens, num_heads, call_.head_dim,
                    matrix.is_interleaved, out, num_threads_));
  }

  void store(const float *x, void *store) {
    if (status_ != LLK_OK) return;
    then(llk_store_positions(isa_, x, call_.num_tokens, call_.num_kv_heads, call_.head_dim, call_.kv_type, call_.slots,
                             call_.kv_strides[1], store, num_threads_));
  }

  // From the normed rows to what the heads found, in product_.
  void attend(const llk_decoder_layer &layer, int64_t layer_idx) {
    void *keys = static_cast<uint8_t *>(call_.keys) + layer_idx * call_.layer_bytes;
    void *values = static_cast<uint8_t *>(call_.values) + layer_idx * call_.layer_bytes;
    multiply(layer.query, normed_, product_);
    multiply(layer.key, normed_, key_product_);
    multiply(layer.value, normed_, value_);
    rotate(layer.query, product_, call_.num_heads, query_);
    rotate(layer.key, key_product_, call_.num_kv_heads, key_);
    store(key_, keys);
    store(value_, values);
    for (int64_t i = 0; i < call_.num_groups && status_ == LLK_OK; ++i) attend_group(call_.groups[i], keys, values);
  }

  void attend_group(const llk_token_group &group, const void *keys, const void *values) {
    llk_attention_call attention = {};
    attention.query = query_ + group.first_token * layout_.queries;
    attention.out = product_ + group.first_token * layout_.queries;
    attention.keys = keys;
    attention.values = values;
    attention.query_strides[0] = group.num_queries * layout_.queries;
    attention.query_strides[1] = call_.head_dim;
    attention.query_strides[2] = layout_.queries;
    std::copy_n(call_.kv_strides, 3, attention.key_strides);
    std::copy_n(call_.kv_strides, 3, attention.value_strides);
    attention.num_keys = group.num_keys;
    attention.batch = group.batch;
    attention.num_queries = group.num_queries;
    attention.num_heads = call_.num_heads;
    attention.num_kv_heads = call_.num_kv_heads;
    attention.head_dim = call_.head_dim;
    attention.kv_type = call_.kv_type;
    attention.is_causal = 1;
    attention.scale = static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(call_.head_dim)));
    attention.block_table = group.block_table;
    attention.table_stride = group.table_stride;
    attention.block_size = call_.block_size;
    attention.num_blocks = call_.num_blocks;
    then(llk_attention(isa_, &attention, num_threads_));
  }

  const int32_t isa_;
  const llk_decoder_call &call_;
  const int32_t num_threads_;
  const Layout layout_;
  float *normed_, *product_, *query_, *key_product_, *key_, *value_, *gate_, *up_;
  int32_t status_ = LLK_OK;
};

bool have_shapes(const llk_decoder_call &call) {
  const Layout layout(call);
  return std::all_of(call.layers, call.layers + call.num_layers, [&](const llk_decoder_layer &layer) {
    return fits(layer.query, layout.queries, layout.width) && fits(layer.key, layout.keys, layout.width) &&
           fits(layer.value, layout.keys, layout.width) && fits(layer.attention_out, layout.width, layout.queries) &&
           fits(layer.gate, layout.mlp, layout.width) && fits(layer.up, layout.mlp, layout.width) &&
           fits(layer.down, layout.width, layout.mlp);
  });
}

}  // namespace

extern "C" {

int64_t llk_decoder_scratch(const llk_decoder_call *call) {
  if (!is_valid(*call)) return -1;
  const int64_t of_token = Layout(*call).of_token();
  return call->num_tokens <= kMaxScratch / of_token ? call->num_tokens * of_token : -1;
}

int32_t llk_decode(int32_t isa, const llk_decoder_call *call, int32_t num_threads) {
  if (llk_decoder_scratch(call) < 0 || !have_shapes(*call)) return LLK_BAD_ARGUMENT;
  return call->num_tokens == 0 ? LLK_OK : Pass(isa, *call, num_threads).run();
}

}  // extern "C"
