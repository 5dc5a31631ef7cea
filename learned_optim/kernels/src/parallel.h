// Runs chunk 0 .. count - 1 of a job on some threads; which thread takes which chunk is open, so a
// job must give the same result whoever runs a chunk.
#pragma once
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "team.h"
#include "vec.h"

namespace {

// Cuts one piece of memory into arrays; with a null base it only measures.
struct Arena {
  char* base;
  size_t used = 0;
  template <typename T>
  T* take(long count) {
    T* at = (T*)(base + used);
    used += (count * sizeof(T) + 63) / 64 * 64;
    return at;
  }
};

// Subnormal results cost over a hundred cycles each and mean nothing here: flushed to zero while
// a kernel runs, as vanishing gates' gradients produce many.
struct FlushSubnormals {
#if defined(__SSE__)
  unsigned before = _mm_getcsr();
  FlushSubnormals() { _mm_setcsr(before | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before); }
#endif
};

struct Job {
  void (*chunk)(void* context, long index, void* scratch);
  void* context;
  long count;
  size_t scratch_bytes;  // for each thread
  long next = 0;
  int failed = 0;
};

inline long claim(Job* job) { return __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED); }

inline void run_chunks(void* argument) {
  Job* job = (Job*)argument;
  long index = claim(job);
  if (index >= job->count) return;
  FlushSubnormals flush;
  void* scratch = nullptr;
  if (posix_memalign(&scratch, 64, job->scratch_bytes)) {
    __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  for (; index < job->count; index = claim(job)) job->chunk(job->context, index, scratch);
  free(scratch);
}

inline void* run_on_thread(void* job) {
  run_chunks(job);
  return nullptr;
}

// A thread that cannot be started is done without.
inline void run_on_own_threads(Job& job, int threads) {
  constexpr int MOST = 256;
  pthread_t others[MOST];
  int started = 0;
  while (started + 1 < threads && started < MOST)
    if (pthread_create(&others[started], nullptr, run_on_thread, &job)) break; else started++;
  run_chunks(&job);
  for (int i = 0; i < started; i++) pthread_join(others[i], nullptr);
}

// 0, or 1 when memory ran out.
inline int run(Job& job, int threads) {
  const int useful = job.count < threads ? (int)job.count : threads;
  if (useful <= 1)
    run_chunks(&job);
  else if (learned_optim_team)  // All of them, as a team of another size would be made anew.
    learned_optim_team(run_chunks, &job, threads, 0);
  else
    run_on_own_threads(job, useful);
  return job.failed;
}

}  // namespace
