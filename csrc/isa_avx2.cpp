#include "simd_avx2.h"
#include "vec_avx2.h"

#define LLK_NARROW Vec256
#define LLK_WIDE Vec256
#define LLK_PRODUCTS kProductsAvx2
#define LLK_OPS kOpsAvx2
#include "matmul.inc"

#define LLK_QUANTIZERS kQuantizersAvx2
#include "quantize.inc"

#define LLK_TABLE kTableAvx2
#include "probe.inc"
