/* Sharing out tasks over threads: those of the process's OpenMP where `qpeft_use_openmp` was told of it, else new ones. Torch's OpenMP
 * threads wait busily for their next work, and new threads would have to share the cores with them. */
#include <pthread.h>
#include <stdatomic.h>

#include "threads.h"

typedef void openmp_parallel(void (*run)(void *), void *argument, unsigned threads, unsigned flags); /* GOMP_parallel */
static openmp_parallel *openmp;

typedef struct {
    void (*run)(void *);
    char *tasks;
    size_t size;
    int count;
    atomic_int next;
} batch;

/* A thread that comes late finds its task done by another. */
static void take_tasks(void *argument) {
    batch *b = argument;
    for (int i; (i = atomic_fetch_add(&b->next, 1)) < b->count;) b->run(b->tasks + i * b->size);
}

static void *thread(void *argument) {
    take_tasks(argument);
    return NULL;
}

static void forget_openmp(void) {
    openmp = NULL; /* its threads do not survive a fork */
}

void qpeft_use_openmp(openmp_parallel *parallel) {
    if (pthread_atfork(NULL, NULL, forget_openmp) == 0) openmp = parallel;
}

void qpeft_in_parallel(void (*run)(void *), void *tasks, size_t size, int count) {
    batch b = {run, tasks, size, count, 0};
    if (count > 1 && openmp) {
        openmp(take_tasks, &b, (unsigned)count, 0);
        return;
    }
    pthread_t handles[MAX_THREADS];
    int started = 0;
    while (started < count - 1 && pthread_create(handles + started, NULL, thread, &b) == 0) started++;
    take_tasks(&b);
    for (int i = 0; i < started; i++) pthread_join(handles[i], NULL);
}
