// The version that is always there: vectors of the compiler, whatever the processor.
#include <string.h>

#include "kernel_table.h"
#include "vec_portable.h"

namespace {

typedef uint64_t Bytes __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));
constexpr int kNumAccumulators = 12;

inline Bytes load_bytes(const unsigned char *at) {
  Bytes value;
  memcpy(&value, at, sizeof value);
  return value;
}
inline Bytes xor_bytes(Bytes a, Bytes b) { return a ^ b; }
inline uint64_t fold_bytes(Bytes a) { return a[0] ^ a[1]; }
inline Floats set_floats(float value) { return Floats{value, value, value, value}; }
// Fused where the baseline of the processor has it (ARM), two instructions elsewhere; the count is the same.
inline Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
inline float first_float(Floats a) { return a[0]; }

}  // namespace

#define LLK_KEEP_LOOPS  // four lanes of plain code gain nothing from unrolling and compile for minutes
#define LLK_NARROW VecPortable
#define LLK_WIDE VecPortable
#define LLK_PRODUCTS kProductsPortable
#define LLK_OPS kOpsPortable
#include "matmul.inc"

#define LLK_QUANTIZERS kQuantizersPortable
#include "quantize.inc"

#define LLK_TABLE kTablePortable
#include "probe.inc"
