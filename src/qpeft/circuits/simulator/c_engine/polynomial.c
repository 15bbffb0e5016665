/* The entry point of trigonometric polynomials: shares rows out over threads and adds up their sums. */
#include <stdlib.h>
#include <string.h>

#include "polynomial.h"
#include "bytecode.h"
#include "threads.h"

#define WORK_PER_THREAD 4e5 /* multiplications: a thread takes about a tenth of this to start */

TYPES(polynomial_type, polynomial)

typedef struct {
    const polynomial_type *type;
    polynomial_job job;
} task;

static void work(void *argument) {
    task *t = argument;
    t->type->run(&t->job);
}

/* Values, or with `grad` the adjoint: `out` (NULL: not wanted) gets the gradient of t and `by_coefficients` (likewise) that of the
 * coefficients. `t` and `grad` are read with strides, in numbers; all else is dense. All in float (wide = 0) or double. `sizes` are
 * variables, cut, observables and the shape. The result depends on the number of threads but not on their timing. Returns 0, or 1
 * for want of memory, 2 for an instruction set that is not there. */
int qpeft_polynomial(int isa, int wide, const int32_t *sizes, const void *coefficients, const void *t, int64_t t_variable,
                     int64_t t_row, const void *grad, int64_t grad_observable, int64_t grad_row, int64_t rows, void *out,
                     void *by_coefficients, int threads) {
    if (!qpeft_supports(isa)) return 2;
    const polynomial_type *type = type_of(isa) + wide;
    polynomial_job whole = {.variables = sizes[0],
                            .cut = sizes[1],
                            .observables = sizes[2],
                            .adjoint = grad != NULL,
                            .shape = sizes + 3,
                            .left = 1,
                            .right = 1,
                            .coefficients = coefficients,
                            .t = t,
                            .grad = grad,
                            .t_strides = {t_variable, t_row},
                            .grad_strides = {grad_observable, grad_row},
                            .out = out};
    for (int q = 0; q < whole.variables; q++) *(q < whole.cut ? &whole.left : &whole.right) *= whole.shape[q];
    const size_t entries = (size_t)whole.left * whole.right * whole.observables;
    const int64_t groups = (rows + type->rows - 1) / type->rows;
    const double most = (double)groups * entries * (grad ? 3 : 1) / WORK_PER_THREAD;
    if (threads > most) threads = (int)most;
    if (threads > groups) threads = (int)groups;
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    double *totals = by_coefficients ? calloc(entries * threads, sizeof(double)) : NULL;
    if (by_coefficients && !totals) return 1;
    task tasks[MAX_THREADS];
    int failed = 0;
    for (int i = 0; i < threads; i++) {
        const int64_t last = groups * (i + 1) / threads * type->rows;
        tasks[i] = (task){type, whole};
        tasks[i].job.totals = totals ? totals + entries * i : NULL;
        tasks[i].job.first = groups * i / threads * type->rows;
        tasks[i].job.last = last < rows ? last : rows;
    }
    qpeft_in_parallel(work, tasks, sizeof *tasks, threads);
    for (int i = 0; i < threads; i++) failed |= tasks[i].job.failed;
    for (size_t e = 0; totals && e < entries; e++) {
        for (int i = 1; i < threads; i++) totals[e] += totals[entries * i + e];
        if (wide) ((double *)by_coefficients)[e] = totals[e];
        else ((float *)by_coefficients)[e] = (float)totals[e];
    }
    free(totals);
    return failed;
}
