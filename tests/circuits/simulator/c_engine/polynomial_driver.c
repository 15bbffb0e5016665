/* Runs qpeft_polynomial under sanitizers on arrays of exactly the size it may touch. Values are linear in the coefficients, so
 * sum(grad * values) = sum(coefficients * their gradient), which is checked. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int qpeft_polynomial(int isa, int wide, const int32_t *sizes, const void *coefficients, const void *t, int64_t t_variable,
                     int64_t t_row, const void *grad, int64_t grad_observable, int64_t grad_row, int64_t rows, void *out,
                     void *by_coefficients, int threads);

static const int32_t cases[][7] = {
    {4, 2, 4, 3, 3, 3, 3}, {4, 1, 5, 7, 5, 1, 3}, {2, 1, 9, 9, 9}, {1, 0, 1, 5}, {1, 1, 2, 7}, {2, 1, 3, 1, 1}, {0, 0, 3},
};

static double get(const void *x, int wide, size_t i) {
    return wide ? ((const double *)x)[i] : ((const float *)x)[i];
}

static void *numbers(size_t count, int wide) {
    void *x = malloc(count * (wide ? 8 : 4) + !count);
    for (size_t i = 0; i < count; i++) {
        const double r = 8.0 * rand() / RAND_MAX - 4;
        if (wide) ((double *)x)[i] = r;
        else ((float *)x)[i] = (float)r;
    }
    return x;
}

int main(void) {
    int done = 0;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int wide = 0; wide < 2; wide++)
            for (int64_t rows = 0; rows < 60; rows += 1 + rows / 3, done++) {
                const int32_t *sizes = cases[c];
                const int n = sizes[0], k = sizes[2];
                size_t entries = k;
                for (int q = 0; q < n; q++) entries *= sizes[3 + q];
                void *coefficients = numbers(entries, wide), *t = numbers(n * rows, wide), *grad = numbers(k * rows, wide);
                void *values = numbers(k * rows, wide), *by_t = numbers(n * rows, wide), *by_coefficients = numbers(entries, wide);
                if (qpeft_polynomial(0, wide, sizes, coefficients, t, rows, 1, NULL, 0, 0, rows, values, NULL, 1)) return 1;
                if (qpeft_polynomial(0, wide, sizes, coefficients, t, rows, 1, grad, 1, k, rows, by_t, by_coefficients, 3)) return 1;
                double there = 0, back = 0, scale = 1;
                for (size_t i = 0; i < (size_t)k * rows; i++) {
                    there += get(grad, wide, i) * get(values, wide, i);
                    scale += fabs(get(grad, wide, i) * get(values, wide, i));
                }
                for (size_t i = 0; i < entries; i++) back += get(coefficients, wide, i) * get(by_coefficients, wide, i);
                if (!(fabs(there - back) < (wide ? 1e-12 : 1e-4) * scale)) {
                    printf("case %zu, wide %d, %d rows: %g, %g\n", c, wide, (int)rows, there, back);
                    return 1;
                }
                free(coefficients), free(t), free(grad), free(values), free(by_t), free(by_coefficients);
            }
    printf("%d polynomials\n", done);
    return 0;
}
