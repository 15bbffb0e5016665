/* What the Python compiler (compiler.py) hands to the kernel, and what the kernel's parts hand to each other. */
#ifndef QPEFT_BYTECODE_H
#define QPEFT_BYTECODE_H

#include <stddef.h>
#include <stdint.h>

/* A run of single-qubit gates on one qubit. Bit k of a basis index is qubit n-1-k. Gates and data terms are ranges. */
enum { ROTATION, UNITARY, PHASE }; /* rotation about Y by shared and data angles; shared gates of any axis; data rotation about Z */
typedef struct {
    int32_t bit, kind, gate, gate_end, term, term_end, derived;
} segment;

/* A diagonal gate whose angle is scale * input: phase `weight[v] * input` where the bits (high, low) read v. low < 0: one bit. */
typedef struct {
    int32_t high, low, input;
} data_phase;

typedef struct {
    int32_t value, mask; /* phase += weight * values[value] * (-1)^popcount(mask & j) */
} walsh_term;

typedef struct {
    int32_t bit, count; /* rotations on `count` neighbouring bits, from `bit` upwards, in one sweep over the state */
} sweep;

typedef struct {
    int32_t observable, mask; /* coefficient * string of Z's; in a SINGLE bytecode the string's one bit, or -1 for the identity */
} readout;
enum { STRINGS, SINGLE, PRODUCT }; /* ways to read: any strings; one Z each; any strings of a product state (no stages) */

/* Stage s: permute and multiply by shared phases, then data phases, then rotate. Ranges hold one entry more than there are
 * stages. `permutation` holds (stages + 1) tables: new[j] = old[table[j]]; the last one is applied when reading out. */
typedef struct {
    int32_t qubits, inputs, angles, observables, gates, derived, segments, stages, terms, phases, walshes, sweeps, readouts;
    int32_t way;
    const int32_t *gate_index, *gate_axis, *term_input;
    const segment *segment;
    const int32_t *prefix_begin, *segment_begin; /* per qubit; per stage */
    const walsh_term *walsh;
    const int32_t *walsh_begin;
    const data_phase *phase;
    const int32_t *phase_begin;
    const sweep *sweep;
    const int32_t *sweep_begin;
    const int32_t *diagonal_used; /* (stages + 1): the shared phases or unitaries at this point need the diagonal correlation */
    const readout *readout;
    const int32_t *permutation;
    const double *gate_scale, *gate_shift, *term_scale, *walsh_weight, *phase_weight, *readout_weight;
} bytecode;

/* Everything that depends on the shared angles alone, built once per call. `table`, `half` and `unitary` hold the lanes' type. */
typedef struct {
    const bytecode *bytecode;
    double *values;       /* gates, then (leading, trailing) Z angles of each unitary */
    double *rotation;         /* per segment: the shared angle of a rotation about Y */
    double *scratch;      /* 3 (2^n + 16) */
    int32_t *permutation; /* per stage: with the bit flips of rotations by more than a right angle */
    uint32_t *flip;       /* per stage: the bits so flipped */
    void *table;          /* per stage and basis state: cosine and sine of the phase, times the rotations' cosines */
    void *half;           /* per segment: tangent of half the shared angle */
    void *unitary;        /* per segment: the first column (re, im, re, im) */
} shared;

typedef struct {
    const shared *shared;
    int adjoint;
    const void *inputs, *grad; /* (rows, inputs); (rows, observables), for the adjoint alone */
    void *values, *grad_inputs; /* (rows, observables), NULL where not wanted; (rows, inputs), for the adjoint alone */
    double *totals;            /* sums over samples, see totals_size */
    int64_t rows, first, last; /* rows first to last - 1 are this job's; first is a multiple of the lanes */
    int failed;
} job;

/* One instruction set and type. */
typedef struct {
    int lanes;
    int size; /* bytes of a real number */
    void (*prepare)(shared *s);
    void (*run)(job *j);
} lanes_type;

/* Totals: (X, Y, Z) per segment, then (stages + 1) diagonal correlations of 2^n entries. */
static inline size_t totals_size(const bytecode *p) {
    return 3 * (size_t)p->segments + ((size_t)(p->stages + 1) << p->qubits);
}

/* `type_of(isa)`: what lanes.c makes of `name` for an instruction set that is supported, for float and for double. */
#if defined(QPEFT_X86)
#define TYPES(type, name)                                                                           \
    extern const type qpeft_##name##_baseline[2], qpeft_##name##_avx2[2], qpeft_##name##_avx512[2]; \
    static const type *type_of(int isa) {                                                           \
        return isa == 1 ? qpeft_##name##_avx2 : isa == 2 ? qpeft_##name##_avx512 : qpeft_##name##_baseline; \
    }
#else
#define TYPES(type, name)                          \
    extern const type qpeft_##name##_baseline[2];  \
    static const type *type_of(int isa) {          \
        return (void)isa, qpeft_##name##_baseline; \
    }
#endif

int qpeft_supports(int isa);            /* whether this build and this processor have the set */
void qpeft_walsh(double *x, int bits);  /* all 2^bits signed sums, in place */
char *qpeft_take(size_t bytes);         /* aligned memory, NULL when there is none; one block is kept between calls */
void qpeft_give(char *block);

#endif
