// Full unrolling of the short loops over registers.
#pragma once

#if defined(LLK_KEEP_LOOPS)
#define LLK_UNROLL_ALL
#elif defined(__clang__)
#define LLK_UNROLL_ALL _Pragma("clang loop unroll(full)")
#else
#define LLK_UNROLL_ALL _Pragma("GCC unroll 64")
#endif
