#include "simd_avx512.h"
#include "vec_avx2.h"
#include "vec_avx512.h"

#define LLK_NARROW Vec256
#define LLK_WIDE Vec512
#define LLK_PRODUCTS kProductsAvx512
#define LLK_OPS kOpsAvx512
#include "matmul.inc"

#define LLK_QUANTIZERS kQuantizersAvx512
#include "quantize.inc"

#define LLK_TABLE kTableAvx512
#include "probe.inc"
