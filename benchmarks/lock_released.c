// SPDX-License-Identifier: BSD-3-Clause
// Preloaded before libpython: CPU time that a thread spends while it has given the lock of Python away (bench_lock.py).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

static __thread long long since, released;

static long long now(void) {
  struct timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return 1000000000LL * time.tv_sec + time.tv_nsec;
}

void* PyEval_SaveThread(void) {
  static void* (*save)(void);
  if (!save) save = (void* (*)(void))dlsym(RTLD_NEXT, "PyEval_SaveThread");
  void* state = save();
  since = now();
  return state;
}

void PyEval_RestoreThread(void* state) {
  static void (*restore)(void*);
  if (!restore) restore = (void (*)(void*))dlsym(RTLD_NEXT, "PyEval_RestoreThread");
  released += now() - since;
  restore(state);
}

long long released_ns(void) { return released; }
