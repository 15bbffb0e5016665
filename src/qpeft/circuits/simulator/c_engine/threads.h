#ifndef QPEFT_THREADS_H
#define QPEFT_THREADS_H

#include <stddef.h>

#define MAX_THREADS 64

/* Calls `run` on each of `count` tasks of `size` bytes, at most MAX_THREADS, on as many threads where there are so many. */
void qpeft_in_parallel(void (*run)(void *), void *tasks, size_t size, int count);

#endif
