// A message for the fault that a shortened or unreadable mapped file causes.
#include <cstring>

#include "llavakit_kernels.h"

#if defined(__unix__) || defined(__APPLE__)
#include <csignal>
#include <unistd.h>

namespace {

constexpr size_t kMaxMessage = 1024;
char message[kMaxMessage];
size_t message_length = 0;
int exit_status = 0;

void explain(int) {  // only what a signal handler may call
  size_t done = 0;
  while (done < message_length) {
    const ssize_t count = write(STDERR_FILENO, message + done, message_length - done);
    if (count <= 0) break;
    done += static_cast<size_t>(count);
  }
  _exit(exit_status);
}

}  // namespace

extern "C" int32_t llk_explain_bus_errors(const char *text, int32_t status) {
  message_length = strlen(text);
  if (message_length > kMaxMessage) return LLK_BAD_ARGUMENT;
  memcpy(message, text, message_length);
  exit_status = status;
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = explain;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  return sigaction(SIGBUS, &action, nullptr) == 0 ? LLK_OK : LLK_UNSUPPORTED;
}
#else
extern "C" int32_t llk_explain_bus_errors(const char *, int32_t) { return LLK_UNSUPPORTED; }
#endif
