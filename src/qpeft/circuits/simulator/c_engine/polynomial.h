/* Trigonometric polynomials of many samples (polynomial.py): z_k = a^T C_k b, with the products of the basis functions of the
 * first `cut` variables in a and of the others in b. */
#ifndef QPEFT_POLYNOMIAL_H
#define QPEFT_POLYNOMIAL_H

#include <stdint.h>

typedef struct {
    int32_t variables, cut, observables, adjoint;
    const int32_t *shape;     /* basis functions of each variable: 1, cos t, sin t, cos 2t, .. */
    int32_t left, right;      /* products of each half */
    const void *coefficients; /* (left, right, observables) */
    const void *t, *grad;     /* by [variable] and [observable] times the first stride, plus [row] times the second */
    int64_t t_strides[2], grad_strides[2];
    void *out;      /* (rows, observables); for the adjoint the gradient of t, (rows, variables), or NULL */
    double *totals; /* of the adjoint: the gradient of the coefficients is added up here, or NULL */
    int64_t first, last; /* rows of this job */
    int failed;
} polynomial_job;

/* One instruction set and type: rows that go through at once, bytes of a number. */
typedef struct {
    int rows, size;
    void (*run)(polynomial_job *j);
} polynomial_type;

#endif
