// One table of functions per instruction set. No C++ library header here: isa_*.cpp include this file.
#pragma once

#include <stdint.h>

#include "llavakit_kernels.h"

struct KernelTable {
  // XOR of num_bytes, walked in num_streams equal parts at once. base is 64-byte aligned and num_bytes a
  // multiple of num_streams * 256.
  uint64_t (*read_streams)(const unsigned char *base, int64_t num_bytes, int num_streams);
  // Loops by llk_rate: run num_rounds and return something that depends on every round. Null when the
  // instruction set has no such instruction.
  double (*rate_loops[LLK_NUM_RATES])(int64_t num_rounds);
  // Operations of one round, by llk_rate.
  int64_t rate_ops[LLK_NUM_RATES];
};

extern const KernelTable kTablePortable;
extern const KernelTable kTableAvx2;
extern const KernelTable kTableAvx2Vnni;
extern const KernelTable kTableAvx512;
extern const KernelTable kTableAvx512Vnni;
extern const KernelTable kTableAvx512Bf16;

// Null when the build lacks the instruction set or the processor does not run it.
const KernelTable *table_of(int32_t isa);
