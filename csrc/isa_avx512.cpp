#include "simd_avx512.h"

#define LLK_TABLE kTableAvx512
#include "probe.inc"
