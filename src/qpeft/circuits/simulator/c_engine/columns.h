/* Columns of a real circuit's unitary: what columns.py hands to columns.c, and that to each instruction set. */
#ifndef QPEFT_COLUMNS_H
#define QPEFT_COLUMNS_H

#include <stdint.h>

/* A step: gates on single qubits, one run for each bit; amplitudes times a row of `sign`; new[j] = old[j-th of a row of `place`].
 * Bit k of a basis index is qubit n-1-k. */
enum { LOCAL, SIGNS, PERMUTATIONS };
typedef struct {
    int32_t kind, which; /* the number of the first run, or of the row */
} column_step;

/* A gate `constant + cos(t) cosine + sin(t) sine`, t = scale * angle + shift; each part is a real 2 x 2 matrix, row by row. */
typedef struct {
    double scale, shift, parts[3][4];
} column_gate;

typedef struct {
    int32_t qubits, angles, steps, runs, gates, signs, places;
    const column_step *step;
    const int32_t *run_begin;  /* per run, and the end: its gates, first to last */
    const int32_t *gate_index; /* of the angle; -1 for none */
    const int32_t *sign, *place; /* rows of 2^n: 1 or -1; basis indices */
    const column_gate *gate;
} column_bytecode;

/* One column after the other, |first>, |first + 1>, ..: forward, or with `grad` back. */
typedef struct {
    const column_bytecode *bytecode;
    const double (*matrix)[4]; /* per run, orthogonal */
    const unsigned char *learns; /* per run: whether the adjoint wants its total */
    int64_t columns;
    const void *grad; /* (2^n, columns) */
    void *out;        /* likewise, of the forward pass */
    double *totals;   /* per run: lam1 psi0 - lam0 psi1 of its qubit behind it, summed over amplitudes and columns */
    int failed;
} column_job;

typedef struct {
    void (*run)(column_job *j);
} column_type;

#endif
