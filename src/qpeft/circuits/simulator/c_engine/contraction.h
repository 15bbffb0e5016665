/* Contractions of small tensors: what contractions.py hands to contraction.c, and that to each instruction set. */
#ifndef QPEFT_CONTRACTION_H
#define QPEFT_CONTRACTION_H

#include <stddef.h>
#include <stdint.h>

/* out[i] = a[table[i]], a permutation; or out[o] (m, n) = a (m, k) times b[o] (k, n) for each o of the batch. */
enum { GATHER, MATMUL };
typedef struct {
    int32_t kind, out, a, b, batch, m, n, k;
    int32_t table; /* of a GATHER: where in `tables` it begins */
} contraction_step;

typedef struct {
    int32_t inputs, buffers, steps, out;
    const int32_t *size; /* of each buffer, in numbers; the inputs come first */
    const contraction_step *step;
    const int32_t *tables;
} contraction_program;

/* `buffer` holds every buffer's place. With `adjoint` also the places of their gradients, zero at first but for that of the result;
 * NULL where none is wanted. `scratch` has room for the largest buffer. */
typedef struct {
    const contraction_program *program;
    double scale; /* of the result */
    void **buffer, **adjoint;
    void *scratch;
} contraction_job;

typedef struct {
    void (*run)(contraction_job *j);
} contraction_type;

#endif
