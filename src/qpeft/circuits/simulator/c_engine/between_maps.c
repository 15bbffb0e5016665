/* The entry point of an adapter with a circuit between linear maps, for a few tokens: one call for the maps and the circuit. */
#include <stdint.h>
#include <string.h>

#include "between_maps.h"
#include "bytecode.h"

TYPES(map_type, maps)

int qpeft_run(int isa, int wide, int adjoint, const int32_t *code, const double *numbers, const void *inputs, const void *angles,
              const void *grad, int64_t rows, void *values, void *grad_inputs, void *grad_angles, int threads, void *kept);

/* out = y + up v, v = Q z + C u, z the circuit's values at inputs u = down x, for each row of x.
 * Arguments: instruction set, wide (0 float, 1 double), code and numbers of the circuit, its angles, down (r, d_in), Q (r, values) and
 * C (r, r) (0: none; one of them is there), up transposed (r, d_out), d_in, r, values, d_out, `kept` of qpeft_run, then
 * x (rows, d_in), rows, out (rows, d_out), y (rows, d_out) (0: zero). Returns 0, or 1 for want of memory, 2 for an instruction set that is not there. */
int qpeft_between_maps(const int64_t *a) {
    const int isa = (int)a[0], wide = (int)a[1], d_in = (int)a[9], r = (int)a[10], n = (int)a[11], d_out = (int)a[12], rows = (int)a[15];
    if (!qpeft_supports(isa)) return 2;
    const map_type *type = type_of(isa) + wide;
    const size_t number = wide ? sizeof(double) : sizeof(float);
    const void *down = (const void *)(intptr_t)a[5], *quantum = (const void *)(intptr_t)a[6], *classical = (const void *)(intptr_t)a[7];
    const size_t bytes = rows * number * (2 * (size_t)r + n);
    double scratch[2048];
    char *u = bytes > sizeof scratch ? qpeft_take(bytes) : (char *)scratch;
    if (!u) return 1;
    char *v = u + rows * number * r, *z = v + rows * number * r;
    memset(u, 0, 2 * rows * number * r);
    type->apply(u, (const void *)(intptr_t)a[14], down, rows, r, d_in);
    const int failed = !quantum ? 0
                                : qpeft_run(isa, wide, 0, (const int32_t *)(intptr_t)a[2], (const double *)(intptr_t)a[3], u,
                                            (const void *)(intptr_t)a[4], NULL, rows, z, NULL, NULL, 1, (void *)(intptr_t)a[13]);
    if (!failed) {
        if (quantum) type->apply(v, z, quantum, rows, r, n);
        if (classical) type->apply(v, u, classical, rows, r, r);
        void *out = (void *)(intptr_t)a[16];
        if (a[17]) memcpy(out, (const void *)(intptr_t)a[17], rows * number * d_out);
        else memset(out, 0, rows * number * d_out);
        type->multiply(out, v, (const void *)(intptr_t)a[8], rows, d_out, r);
    }
    if (u != (char *)scratch) qpeft_give(u);
    return failed;
}
