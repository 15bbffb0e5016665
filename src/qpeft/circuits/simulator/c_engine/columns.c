/* The entry point of columns: evaluates the gates, and turns the sums of runs into the angles' gradient. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "columns.h"
#include "bytecode.h"

TYPES(column_type, columns)

static void read_bytecode(column_bytecode *p, const int32_t *code, const double *numbers) {
    memcpy(p, code, 7 * sizeof(int32_t)); /* the counts, in the struct's order */
    code += 7;
    p->step = (const void *)code, code += 2 * (size_t)p->steps;
    p->run_begin = code, code += (size_t)p->runs + 1;
    p->gate_index = code, code += p->gates;
    p->sign = code, code += (size_t)p->signs << p->qubits;
    p->place = code;
    p->gate = (const void *)numbers;
}

/* The matrix of each run, and `slope[g]`: the gate's derivative is slope J behind its run, J = ((0, -1), (1, 0)), since an
 * orthogonal matrix O moves J to det(O) J. */
static void evaluate(const column_bytecode *p, const void *angles, int wide, double (*matrix)[4], double *slope) {
    for (int r = 0; r < p->runs; r++) {
        double *w = matrix[r]; /* the product of the gates from g on */
        w[0] = w[3] = 1, w[1] = w[2] = 0;
        for (int g = p->run_begin[r + 1] - 1; g >= p->run_begin[r]; g--) {
            const column_gate *gate = p->gate + g;
            const int i = p->gate_index[g];
            const double x = i < 0 ? 0 : wide ? ((const double *)angles)[i] : ((const float *)angles)[i];
            const double t = gate->scale * x + gate->shift, c = cos(t), s = sin(t);
            double m[4], by[4];
            for (int e = 0; e < 4; e++) {
                m[e] = gate->parts[0][e] + c * gate->parts[1][e] + s * gate->parts[2][e];
                by[e] = c * gate->parts[2][e] - s * gate->parts[1][e];
            }
            slope[g] = gate->scale * (by[2] * m[0] + by[3] * m[1]) * (w[0] * w[3] - w[1] * w[2]); /* of (dm/dt) m^T, below the diagonal */
            const double next[4] = {w[0] * m[0] + w[1] * m[2], w[0] * m[1] + w[1] * m[3], w[2] * m[0] + w[3] * m[2], w[2] * m[1] + w[3] * m[3]};
            memcpy(w, next, sizeof next);
        }
    }
}

/* The first `columns` columns of a circuit's unitary, (2^n, columns), to `out`; or with `grad`, of that shape, the gradient of
 * their inner product with it, to `out`, one number for each angle. All in float (wide = 0) or double. Returns 0, or 1 for want
 * of memory, 2 for an instruction set that is not there. */
int qpeft_columns(int isa, int wide, const int32_t *code, const double *numbers, const void *angles, int64_t columns,
                  const void *grad, void *out) {
    if (!qpeft_supports(isa)) return 2;
    column_bytecode p;
    read_bytecode(&p, code, numbers);
    const size_t runs = p.runs, gates = p.gates, results = p.angles;
    double *block = calloc(5 * runs + gates + results + 1, sizeof(double) + 1);
    if (!block) return 1;
    double *totals = block + 4 * runs, *slope = totals + runs, *by_angle = slope + gates;
    unsigned char *learns = (unsigned char *)(by_angle + results + 1);
    evaluate(&p, angles, wide, (double (*)[4])block, slope);
    for (int r = 0; r < p.runs; r++)
        for (int g = p.run_begin[r]; g < p.run_begin[r + 1]; g++) learns[r] |= p.gate_index[g] >= 0;
    column_job job = {&p, (const double (*)[4])block, learns, columns, grad, out, totals, 0};
    (type_of(isa) + wide)->run(&job);
    if (grad && !job.failed) {
        for (int r = 0; r < p.runs; r++)
            for (int g = p.run_begin[r]; g < p.run_begin[r + 1]; g++)
                if (p.gate_index[g] >= 0) by_angle[p.gate_index[g]] += slope[g] * totals[r];
        for (int i = 0; i < p.angles; i++) {
            if (wide) ((double *)out)[i] = by_angle[i];
            else ((float *)out)[i] = (float)by_angle[i];
        }
    }
    free(block);
    return job.failed;
}
