// Which instruction sets this build holds and this processor runs.
#include "kernel_table.h"

#if defined(__x86_64__) || defined(_M_X64)
#define LLK_X86 1
#include <cpuid.h>
#endif

namespace {

struct Features {
  bool avx2_fma = false, avx_vnni = false, avx512 = false, avx512_vnni = false, avx512_bf16 = false;
};

#if defined(LLK_X86)
bool bit(unsigned word, int index) { return (word >> index) & 1u; }

// Registers the operating system saves on a task switch; an instruction set is usable only when its are.
uint64_t saved_state() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

Features detect() {
  Features found;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return found;  // OSXSAVE
  const bool has_fma_f16c = bit(c, 12) && bit(c, 29);
  const uint64_t state = saved_state();
  const bool saves_ymm = (state & 0x06) == 0x06, saves_zmm = (state & 0xe6) == 0xe6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  found.avx2_fma = saves_ymm && has_fma_f16c && bit(b, 5);
  found.avx512 = saves_zmm && found.avx2_fma && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
  found.avx512_vnni = found.avx512 && bit(c, 11);
  if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    found.avx_vnni = found.avx2_fma && bit(a, 4);
    found.avx512_bf16 = found.avx512_vnni && bit(a, 5);
  }
  return found;
}
#else
Features detect() { return Features(); }
#endif

const char *const kNames[LLK_NUM_ISAS] = {"portable", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16"};

}  // namespace

const KernelTable *table_of(int32_t isa) {
  static const Features features = detect();
  (void)features;  // a build for another processor asks about none of them
  switch (isa) {
    case LLK_ISA_PORTABLE:
      return &kTablePortable;
#if defined(LLK_WITH_AVX2)
    case LLK_ISA_AVX2:
      return features.avx2_fma ? &kTableAvx2 : nullptr;
#endif
#if defined(LLK_WITH_AVX2_VNNI)
    case LLK_ISA_AVX2_VNNI:
      return features.avx_vnni ? &kTableAvx2Vnni : nullptr;
#endif
#if defined(LLK_WITH_AVX512)
    case LLK_ISA_AVX512:
      return features.avx512 ? &kTableAvx512 : nullptr;
#endif
#if defined(LLK_WITH_AVX512_VNNI)
    case LLK_ISA_AVX512_VNNI:
      return features.avx512_vnni ? &kTableAvx512Vnni : nullptr;
#endif
#if defined(LLK_WITH_AVX512_BF16)
    case LLK_ISA_AVX512_BF16:
      return features.avx512_bf16 ? &kTableAvx512Bf16 : nullptr;
#endif
    default:
      return nullptr;
  }
}

extern "C" {

const char *llk_version(void) { return LLK_VERSION; }

int32_t llk_abi_version(void) { return LLK_ABI_VERSION; }

const char *llk_isa_name(int32_t isa) { return isa >= 0 && isa < LLK_NUM_ISAS ? kNames[isa] : nullptr; }

int32_t llk_isa_is_supported(int32_t isa) { return table_of(isa) != nullptr; }

int32_t llk_isa_best(void) {
  int32_t best = LLK_ISA_PORTABLE;
  for (int32_t isa = 0; isa < LLK_NUM_ISAS; ++isa) {
    if (table_of(isa) != nullptr) best = isa;
  }
  return best;
}

}  // extern "C"
