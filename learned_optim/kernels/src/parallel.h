// Runs chunk 0 .. count - 1 of a job on some threads; which thread takes which chunk is open, so a
// job must give the same result whoever runs a chunk.
#pragma once
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "team.h"
#include "vec.h"

namespace {

// For `make sanitize`: an array begins as NaN, which shows what is read before it is written, and what
// lies behind it may not be touched.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t APART_FROM_NEXT = 64;
inline void fence(char* at, size_t size, size_t whole) {
  __asan_unpoison_memory_region(at, whole);
  memset(at, 255, whole);
  __asan_poison_memory_region(at + size, whole - size);
}
#else
constexpr size_t APART_FROM_NEXT = 0;
inline void fence(char*, size_t, size_t) {}
#endif

// Cuts one piece of memory into arrays; with a null base it only measures.
struct Arena {
  char* base;
  size_t used = 0;
  template <typename T>
  T* take(long count) {
    const size_t size = count * sizeof(T), whole = (size + 63) / 64 * 64 + APART_FROM_NEXT;
    T* at = (T*)(base + used);
    if (base) fence(base + used, size, whole);
    used += whole;
    return at;
  }
};

#if defined(__SSE__)
constexpr unsigned FLUSH = 0x8040;  // results and operands, MXCSR
INLINE unsigned float_control() { return _mm_getcsr(); }
INLINE void set_float_control(unsigned control) { _mm_setcsr(control); }
#elif defined(__aarch64__)
constexpr uint64_t FLUSH = 1 << 24;  // both, FPCR
INLINE uint64_t float_control() {
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  return control;
}
INLINE void set_float_control(uint64_t control) { asm volatile("msr fpcr, %0" ::"r"(control)); }
#else
constexpr int FLUSH = 0;
INLINE int float_control() { return 0; }
INLINE void set_float_control(int) {}
#endif

// Subnormal results cost over a hundred cycles each and mean nothing here: flushed to zero while
// a kernel runs, as vanishing gates' gradients produce many.
struct FlushSubnormals {
  const decltype(float_control()) before = float_control();
  FlushSubnormals() { set_float_control(before | FLUSH); }
  ~FlushSubnormals() { set_float_control(before); }
};

// Chunks that one thread begins with; others take over what it has not got to.
struct Share {
  long next, end;
  char apart[48];  // a line of the cache for each
};

constexpr int MOST = 64;   // shares
constexpr long TURNS = 8;  // of a thread to get through its share, if nobody helps

struct Job {
  void (*chunk)(void* context, long index, void* scratch);
  void* context;
  long count;
  size_t scratch_bytes;  // for each thread
  int parts = 1, arrived = 0, failed = 0;
  long together = 1;  // chunks in a row that a thread takes at once
  Share shares[MOST] = {};
};

// Neighbours go to one thread, and the same ones at every pass and step: what a core fetches ahead
// of a chunk is the next one, and what it has written last is in its own cache.
inline void deal(Job& job, int threads) {
  job.parts = threads < MOST ? threads : MOST;
  job.together = job.count / (job.parts * TURNS);
  if (job.together < 1) job.together = 1;
  for (int i = 0; i < job.parts; i++)
    job.shares[i] = {job.count * i / job.parts, job.count * (i + 1) / job.parts, {}};
}

inline int first_share(Job* job) {
  const int place = learned_optim_team.place ? learned_optim_team.place()
                                             : __atomic_fetch_add(&job->arrived, 1, __ATOMIC_RELAXED);
  return place % job->parts;
}

// False when there is no memory.
inline bool run_share(Job* job, Share* share, void** scratch) {
  for (;;) {
    const long first = __atomic_fetch_add(&share->next, job->together, __ATOMIC_RELAXED);
    if (first >= share->end) return true;
    if (!*scratch && posix_memalign(scratch, 64, job->scratch_bytes)) return false;
    const long left = share->end - first;
    const long end = first + (left < job->together ? left : job->together);
    for (long index = first; index < end; index++) job->chunk(job->context, index, *scratch);
  }
}

inline void run_chunks(void* argument) {
  Job* job = (Job*)argument;
  FlushSubnormals flush;
  void* scratch = nullptr;
  const int first = first_share(job);
  for (int i = 0; i < job->parts; i++)
    if (!run_share(job, &job->shares[(first + i) % job->parts], &scratch))
      __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
  free(scratch);
}

inline void* run_on_thread(void* job) {
  run_chunks(job);
  return nullptr;
}

// A thread that cannot be started is done without.
inline void run_on_own_threads(Job& job, int threads) {
  constexpr int MOST_THREADS = 256;
  pthread_t others[MOST_THREADS];
  int started = 0;
  while (started + 1 < threads && started < MOST_THREADS)
    if (pthread_create(&others[started], nullptr, run_on_thread, &job)) break; else started++;
  run_chunks(&job);
  for (int i = 0; i < started; i++) pthread_join(others[i], nullptr);
}

// 0, or 1 when memory ran out.
inline int run(Job& job, int threads) {
  const int useful = job.count < threads ? (int)job.count : threads;
  deal(job, useful > 1 ? useful : 1);
  if (useful <= 1)
    run_chunks(&job);
  else if (learned_optim_team.run)  // All of them, as a team of another size would be made anew.
    learned_optim_team.run(run_chunks, &job, threads, 0);
  else
    run_on_own_threads(job, useful);
  return job.failed;
}

}  // namespace
