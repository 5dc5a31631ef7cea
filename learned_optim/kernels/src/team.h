// Threads that are there already: those of the OpenMP run-time that torch uses. Between two parallel
// loops they spin for a while, so that others beside them would have to share the cores with them.
#pragma once

struct Team {
  // As `GOMP_parallel`: calls function(data) on `threads` threads, this one among them, and returns
  // when all are done. Null: the kernels start threads of their own.
  void (*run)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
  // As `omp_get_thread_num`: the number of the thread that calls.
  int (*place)();
};

extern Team learned_optim_team;
