// One pool of threads for all products of the process.
#pragma once

#include <cstdint>

// Runs body(context, thread_idx) on num_threads threads, the caller being thread 0, and returns when all have ended.
// Falls back to fewer threads, in the end to the caller alone, when the system refuses more or another call has the
// pool: whatever a thread_idx begins with, the others must be able to take over by shared counters.
void run_on_pool(int32_t num_threads, void (*body)(void *context, int32_t thread_idx), void *context);
