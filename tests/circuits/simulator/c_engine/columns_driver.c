/* Runs qpeft_columns under sanitizers on arrays of exactly the size it may touch: RY on every qubit, a permutation and signs, twice.
 * Columns must be orthonormal, and the gradient must agree with differences. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int qpeft_columns(int isa, int wide, const int32_t *code, const double *numbers, const void *angles, int64_t columns,
                  const void *grad, void *out);

static double get(const void *x, int wide, size_t i) {
    return wide ? ((const double *)x)[i] : ((const float *)x)[i];
}

static void set(void *x, int wide, size_t i, double value) {
    if (wide) ((double *)x)[i] = value;
    else ((float *)x)[i] = (float)value;
}

static void *random_numbers(size_t count, int wide) {
    void *x = malloc(count * (wide ? 8 : 4));
    for (size_t i = 0; i < count; i++) set(x, wide, i, 2.0 * rand() / RAND_MAX - 1);
    return x;
}

int main(void) {
    int done = 0;
    for (int n = 1; n < 9; n++)
        for (int wide = 0; wide < 2; wide++)
            for (int64_t k = 1; k <= 1 << n; k += 1 + k / 2, done++) {
                const int size = 1 << n, gates = 2 * n, steps = 6;
                const size_t length = 7 + 2 * steps + gates + 1 + gates + 2 * (size_t)size;
                int32_t *code = malloc(length * sizeof *code), *c = code;
                double *numbers = calloc(14 * gates, sizeof *numbers);
                const int32_t head[] = {n, gates, steps, gates, gates, 1, 1, 0, 0, 2, 0, 1, 0, 0, n, 2, 0, 1, 0};
                memcpy(c, head, sizeof head), c += 7 + 2 * steps;
                for (int r = 0; r <= gates; r++) *c++ = r;
                for (int g = 0; g < gates; g++) *c++ = g;
                for (int i = 0; i < size; i++) *c++ = i & i >> 1 & 1 ? -1 : 1;
                for (int i = 0; i < size; i++) *c++ = i ^ i >> 1;
                for (int g = 0; g < gates; g++) {
                    double *gate = numbers + 14 * g;
                    gate[0] = 0.5, gate[6] = gate[9] = gate[12] = 1, gate[11] = -1;
                }
                void *angles = random_numbers(gates, wide), *grad = random_numbers(size * k, wide);
                void *out = random_numbers(size * k, wide), *other = random_numbers(size * k, wide), *by = random_numbers(gates, wide);
                if (qpeft_columns(0, wide, code, numbers, angles, k, NULL, out)) return 1;
                if (qpeft_columns(0, wide, code, numbers, angles, k, grad, by)) return 1;
                double worst = 0;
                for (int64_t a = 0; a < k; a++)
                    for (int64_t b = 0; b < k; b++) {
                        double sum = a == b ? -1 : 0;
                        for (int i = 0; i < size; i++) sum += get(out, wide, i * k + a) * get(out, wide, i * k + b);
                        worst = fmax(worst, fabs(sum));
                    }
                for (int g = 0; g < gates; g++) {
                    const double h = wide ? 1e-5 : 1e-2, old = get(angles, wide, g);
                    double there = 0;
                    for (int s = -1; s <= 1; s += 2) {
                        set(angles, wide, g, old + s * h);
                        if (qpeft_columns(0, wide, code, numbers, angles, k, NULL, other)) return 1;
                        for (int64_t i = 0; i < size * k; i++) there += s * get(grad, wide, i) * get(other, wide, i) / (2 * h);
                    }
                    set(angles, wide, g, old);
                    worst = fmax(worst, fabs(there - get(by, wide, g)) * (wide ? 1e-3 : 1e-4));
                }
                if (!(worst < (wide ? 1e-11 : 1e-5))) {
                    printf("%d qubits, wide %d, %d columns: %g\n", n, wide, (int)k, worst);
                    return 1;
                }
                free(code), free(numbers), free(angles), free(grad), free(out), free(other), free(by);
            }
    printf("%d columns\n", done);
    return 0;
}
