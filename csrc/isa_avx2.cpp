#include "simd_avx2.h"

#define LLK_TABLE kTableAvx2
#include "probe.inc"
