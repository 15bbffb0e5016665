/* The entry point: reads the bytecode, prepares what depends on shared angles, shares rows out over threads, and turns sums of
 * correlations into the angles' gradient. Independent of instruction set and type. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bytecode.h"
#include "threads.h"

#define VERSION 4
#define CYCLES_PER_THREAD 4e5 /* a thread takes about a tenth of this to start */

extern const lanes_type qpeft_lanes_baseline[2];
#if defined(QPEFT_X86)
extern const lanes_type qpeft_lanes_avx2[2], qpeft_lanes_avx512[2];
#endif

/* 0 baseline, 1 AVX2 with FMA, 2 AVX-512F: NULL where this processor or this build lacks it. */
static const lanes_type *variant(int isa) {
#if defined(QPEFT_X86)
    __builtin_cpu_init();
    if (isa == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? qpeft_lanes_avx2 : NULL;
    if (isa == 2) return __builtin_cpu_supports("avx512f") ? qpeft_lanes_avx512 : NULL;
#endif
    return isa == 0 ? qpeft_lanes_baseline : NULL;
}

int qpeft_supports(int isa) {
    return variant(isa) != NULL;
}

int qpeft_version(void) {
    return VERSION;
}

/* One block of memory waits here between calls, so that small calls do not fault in fresh pages. */
typedef struct {
    size_t bytes;
    char pad[56];
} block_head;
static _Atomic(char *) spare;

char *qpeft_take(size_t bytes) {
    char *base = atomic_exchange(&spare, NULL);
    if (base && ((block_head *)base)->bytes >= bytes) return base + sizeof(block_head);
    free(base);
    base = aligned_alloc(64, (bytes + sizeof(block_head) + 63) / 64 * 64);
    if (!base) return NULL;
    ((block_head *)base)->bytes = bytes;
    return base + sizeof(block_head);
}

void qpeft_give(char *block) {
    char *base = block - sizeof(block_head);
    free(((block_head *)base)->bytes <= 2 << 20 ? atomic_exchange(&spare, base) : base);
}

void qpeft_walsh(double *x, int bits) {
    const size_t size = (size_t)1 << bits;
    if (bits & 1)
        for (size_t i = 0; i < size; i += 2) {
            const double a = x[i], b = x[i + 1];
            x[i] = a + b, x[i + 1] = a - b;
        }
    for (size_t step = bits & 1 ? 2 : 1; step < size; step *= 4) /* two bits at a time: half the loads and stores */
        for (size_t i = 0; i < size; i += 4 * step)
            for (size_t j = i; j < i + step; j++) {
                const double a = x[j] + x[j + step], b = x[j] - x[j + step];
                const double c = x[j + 2 * step] + x[j + 3 * step], d = x[j + 2 * step] - x[j + 3 * step];
                x[j] = a + c, x[j + step] = b + d, x[j + 2 * step] = a - c, x[j + 3 * step] = b - d;
            }
}

static void read_bytecode(bytecode *p, const int32_t *code, const double *numbers) {
    memcpy(p, code, 14 * sizeof(int32_t)); /* the counts, in the struct's order */
    const int32_t *c = code + 14;
    const size_t size = (size_t)1 << p->qubits;
#define INTS(field, count) (p->field = (const void *)c, c += (size_t)(count) * (sizeof *p->field / sizeof *c))
#define REALS(field, count) (p->field = numbers, numbers += (count))
    INTS(gate_index, p->gates);
    INTS(gate_axis, p->gates);
    INTS(term_input, p->terms);
    INTS(segment, p->segments);
    INTS(prefix_begin, p->qubits + 1);
    INTS(segment_begin, p->stages + 1);
    INTS(walsh, p->walshes);
    INTS(walsh_begin, p->stages + 1);
    INTS(phase, p->phases);
    INTS(phase_begin, p->stages + 1);
    INTS(sweep, p->sweeps);
    INTS(sweep_begin, p->stages + 1);
    INTS(diagonal_used, p->stages + 1);
    INTS(readout, p->readouts);
    INTS(permutation, size * (p->stages + 1));
    REALS(gate_scale, p->gates);
    REALS(gate_shift, p->gates);
    REALS(term_scale, p->terms);
    REALS(walsh_weight, p->walshes);
    REALS(phase_weight, 4 * p->phases);
    REALS(readout_weight, p->readouts);
}

/* Gate angles; each unitary as RZ(trailing) RY(turn) RZ(leading); each rotation's shared angle. */
static void evaluate(shared *s, const void *angles, int size) {
    const bytecode *p = s->bytecode;
    for (int g = 0; g < p->gates; g++) {
        const int i = p->gate_index[g];
        const double x = i < 0 ? 0 : size == 4 ? ((const float *)angles)[i] : ((const double *)angles)[i];
        s->values[g] = p->gate_scale[g] * x + p->gate_shift[g];
    }
    for (int k = 0; k < p->segments; k++) {
        const segment *seg = p->segment + k;
        s->rotation[k] = 0;
        if (seg->kind != UNITARY) {
            for (int g = seg->gate; g < seg->gate_end; g++) s->rotation[k] += s->values[g];
            continue;
        }
        double ar = 1, ai = 0, br = 0, bi = 0; /* the product's first column */
        for (int g = seg->gate; g < seg->gate_end; g++) {
            const double c = cos(0.5 * s->values[g]), t = sin(0.5 * s->values[g]);
            const double pr = ar, pi = ai, qr = br, qi = bi;
            if (p->gate_axis[g] == 0) ar = c * pr + t * qi, ai = c * pi - t * qr, br = c * qr + t * pi, bi = c * qi - t * pr;
            else if (p->gate_axis[g] == 1) ar = c * pr - t * qr, ai = c * pi - t * qi, br = c * qr + t * pr, bi = c * qi + t * pi;
            else ar = c * pr + t * pi, ai = c * pi - t * pr, br = c * qr - t * qi, bi = c * qi + t * qr;
        }
        s->rotation[k] = 2 * atan2(hypot(br, bi), hypot(ar, ai));
        const double sum = -2 * atan2(ai, ar), difference = 2 * atan2(bi, br);
        double *z = s->values + p->gates + 2 * seg->derived;
        z[0] = 0.5 * (sum - difference);
        z[1] = 0.5 * (sum + difference);
    }
}

/* The derivative in each gate's angle, from the totals. `diagonal` is scratch of 2^n. */
static void gate_gradients(const shared *s, const double *totals, double *diagonal, double *gradient) {
    const bytecode *p = s->bytecode;
    const size_t size = (size_t)1 << p->qubits;
    for (int st = 0; st < p->stages; st++) {
        const double *d = totals + 3 * (size_t)p->segments + ((size_t)st << p->qubits);
        const int32_t *perm = p->permutation + ((size_t)st << p->qubits);
        if (!p->diagonal_used[st] || p->walsh_begin[st] == p->walsh_begin[st + 1]) continue;
        for (size_t j = 0; j < size; j++) diagonal[j] = d[perm[j]];
        qpeft_walsh(diagonal, p->qubits);
        for (int w = p->walsh_begin[st]; w < p->walsh_begin[st + 1]; w++)
            if (p->walsh[w].value < p->gates) gradient[p->walsh[w].value] -= 2 * p->walsh_weight[w] * diagonal[p->walsh[w].mask];
    }
    int stage = -1;
    for (int k = 0; k < p->segments; k++) {
        const segment *seg = p->segment + k;
        while (stage < p->stages - 1 && k >= p->segment_begin[stage + 1]) stage++;
        double x = totals[3 * k], y = totals[3 * k + 1], z = totals[3 * k + 2];
        if (seg->kind != UNITARY) {
            for (int g = seg->gate; g < seg->gate_end; g++) gradient[g] += y;
            continue;
        }
        if (stage >= 0) { /* measured in front of the trailing Z rotation; Z itself comes from the diagonal */
            const double *d = totals + 3 * (size_t)p->segments + ((size_t)(stage + 1) << p->qubits);
            const double a = s->values[p->gates + 2 * seg->derived + 1], c = cos(a), t = sin(a), old = x;
            x = c * old - t * y;
            y = t * old + c * y;
            z = 0;
            for (size_t j = 0; j < size && p->diagonal_used[stage + 1]; j++) z += j >> seg->bit & 1 ? -d[j] : d[j];
        }
        for (int g = seg->gate_end - 1; g >= seg->gate; g--) {
            const double c = cos(s->values[g]), t = sin(s->values[g]), u = x, v = y, w = z;
            if (p->gate_axis[g] == 0) gradient[g] += u, y = c * v + t * w, z = c * w - t * v;
            else if (p->gate_axis[g] == 1) gradient[g] += v, z = c * w + t * u, x = c * u - t * w;
            else gradient[g] += w, x = c * u + t * v, y = c * v - t * u;
        }
    }
}

typedef struct {
    const lanes_type *type;
    job job;
} task;

/* Tiny amplitudes are zero while the kernel runs: subnormal arithmetic is slow and means nothing here. */
static unsigned long flush_subnormals(void) {
#if defined(QPEFT_X86)
    const unsigned long old = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr((unsigned)old | 0x8040u);
    return old;
#elif defined(__aarch64__)
    unsigned long old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"(old | 1ul << 24));
    return old;
#else
    return 0;
#endif
}

static void restore_subnormals(unsigned long old) {
#if defined(QPEFT_X86)
    __builtin_ia32_ldmxcsr((unsigned)old);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(old));
#else
    (void)old;
#endif
}

static void work(void *argument) {
    task *t = argument;
    const unsigned long mode = flush_subnormals(); /* each thread has its own */
    t->type->run(&t->job);
    restore_subnormals(mode);
}

/* Where the parts of a call's memory lie: those that depend on the shared angles alone, then sums. Returns the whole size. */
enum { PREPARED = 8, PARTS = 11 };
static size_t lay_out(const bytecode *p, int wide, size_t sums, size_t *offset) {
    const size_t number = wide ? sizeof(double) : sizeof(float), size = (size_t)1 << p->qubits, tables = size * p->stages;
    const size_t counts[PARTS] = {sizeof(double) * (p->gates + 2 * p->derived + 1),
                                  sizeof(double) * (p->segments + 1),
                                  sizeof(double) * 3 * (size + 16),
                                  sizeof(int32_t) * tables,
                                  sizeof(uint32_t) * (p->stages + 1),
                                  2 * number * tables,
                                  number * (size_t)(p->segments + 1),
                                  4 * number * (size_t)(p->segments + 1),
                                  sizeof(double) * sums,
                                  sizeof(double) * (p->gates + 1),
                                  sizeof(double) * (p->angles + 1)};
    offset[0] = 0;
    for (int i = 0; i < PARTS; i++) offset[i + 1] = offset[i] + (counts[i] + 63) / 64 * 64;
    return offset[PARTS];
}

/* Bytes of memory that a caller gives to qpeft_run as `kept`, at a multiple of 64. */
int64_t qpeft_kept_bytes(int wide, const int32_t *code, const double *numbers) {
    bytecode p;
    size_t offset[PARTS + 1];
    read_bytecode(&p, code, numbers);
    return (int64_t)lay_out(&p, wide, 0, offset) + 64;
}

/* `values` gets (rows, observables), unless it is NULL. The adjoint also writes the gradient of (grad * values).sum() in the inputs,
 * `grad_inputs`, and in the angles, `grad_angles`. All are float (wide = 0) or double. A sample whose row of `grad` is zero adds
 * nothing to them, even where its inputs are not finite. The result depends on the number of threads but not on their timing. `kept`,
 * if not NULL and without the adjoint, holds what depends on the angles for further calls; its first number is 0 before the first.
 * Returns 0, or 1 for want of memory, 2 for an instruction set that is not there. */
int qpeft_run(int isa, int wide, int adjoint, const int32_t *code, const double *numbers, const void *inputs, const void *angles,
              const void *grad, int64_t rows, void *values, void *grad_inputs, void *grad_angles, int threads, void *kept) {
    const lanes_type *type = variant(isa);
    if (!type) return 2;
    type += wide;
    bytecode p;
    read_bytecode(&p, code, numbers);
    const size_t size = (size_t)1 << p.qubits, sums = adjoint ? totals_size(&p) : 0;
    const int64_t groups = (rows + type->lanes - 1) / type->lanes;
    const double cycles = (double)groups * size * (10 + 20.0 * p.stages) * (adjoint ? 3 : 1); /* roughly */
    if (threads > cycles / CYCLES_PER_THREAD) threads = (int)(cycles / CYCLES_PER_THREAD);
    if (threads > groups) threads = (int)groups;
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    size_t offset[PARTS + 1];
    const size_t bytes = lay_out(&p, wide, sums * threads, offset);
    char *base = kept ? (char *)kept + 64 : aligned_alloc(64, bytes);
    if (!base) return 1;
    shared s = {&p,
                (double *)(base + offset[0]),
                (double *)(base + offset[1]),
                (double *)(base + offset[2]),
                (int32_t *)(base + offset[3]),
                (uint32_t *)(base + offset[4]),
                base + offset[5],
                base + offset[6],
                base + offset[7]};
    double *totals = (double *)(base + offset[8]), *gradient = (double *)(base + offset[9]);
    double *by_angle = (double *)(base + offset[10]);
    memset(totals, 0, bytes - offset[PREPARED]);
    const unsigned long mode = flush_subnormals();
    if (!kept || *(int64_t *)kept == 0) {
        evaluate(&s, angles, type->size);
        type->prepare(&s);
        if (kept) *(int64_t *)kept = 1;
    }
    task tasks[MAX_THREADS];
    int failed = 0;
    for (int t = 0; t < threads; t++) {
        const int64_t first = groups * t / threads * type->lanes, last = groups * (t + 1) / threads * type->lanes;
        tasks[t] = (task){type, {&s, adjoint, inputs, grad, values, grad_inputs, totals + sums * t, rows, first, last < rows ? last : rows, 0}};
    }
    qpeft_in_parallel(work, tasks, sizeof *tasks, threads);
    for (int t = 0; t < threads; t++) failed |= tasks[t].job.failed;
    if (adjoint && !failed) {
        for (int t = 1; t < threads; t++)
            for (size_t i = 0; i < sums; i++) totals[i] += totals[sums * t + i];
        gate_gradients(&s, totals, s.scratch, gradient);
        for (int g = 0; g < p.gates; g++)
            if (p.gate_index[g] >= 0) by_angle[p.gate_index[g]] += p.gate_scale[g] * gradient[g];
        for (int i = 0; i < p.angles; i++) {
            if (wide) ((double *)grad_angles)[i] = by_angle[i];
            else ((float *)grad_angles)[i] = (float)by_angle[i];
        }
    }
    restore_subnormals(mode);
    if (!kept) free(base);
    return failed;
}

/* The same from its thirteen arguments in one array: to Python a call with one argument costs a fifth of one with thirteen. */
int qpeft_call(const int64_t *a) {
    return qpeft_run((int)a[0], (int)a[1], (int)a[2], (const int32_t *)(intptr_t)a[3], (const double *)(intptr_t)a[4],
                     (const void *)(intptr_t)a[5], (const void *)(intptr_t)a[6], (const void *)(intptr_t)a[7], a[8],
                     (void *)(intptr_t)a[9], (void *)(intptr_t)a[10], (void *)(intptr_t)a[11], (int)a[12], NULL);
}
