// Threads that are there already: those of the OpenMP run-time that torch uses. Between two parallel
// loops they spin for a while, so that others beside them would have to share the cores with them.
#pragma once

// As `GOMP_parallel`: calls function(data) on `threads` threads, this one among them, and returns
// when all are done.
typedef void (*Team)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

extern Team learned_optim_team;  // null: the kernels start threads of their own
