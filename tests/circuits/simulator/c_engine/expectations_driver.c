/* Runs the bytecodes of a file (written by test_kernel.py) through the kernel without Python: on every instruction set there is, in
 * float and double, on one thread and three, and compares with the results in the file. For sanitizers, valgrind and emulators. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int qpeft_supports(int isa);
int qpeft_run(int isa, int wide, int adjoint, const int32_t *code, const double *numbers, const void *inputs, const void *angles,
              const void *grad, int64_t rows, void *values, void *grad_inputs, void *grad_angles, int threads, void *kept);

static void *take(FILE *file, size_t size, size_t count) {
    void *block = malloc(size * count + 1);
    if (!block || fread(block, size, count, file) != count) exit(3);
    return block;
}

static void *as(int wide, const double *from, size_t count) {
    const size_t size = wide ? sizeof(double) : sizeof(float);
    void *to = malloc(size * count + 1);
    for (size_t i = 0; i < count; i++) {
        if (wide) ((double *)to)[i] = from[i];
        else ((float *)to)[i] = (float)from[i];
    }
    return to;
}

static double worst(int wide, const void *ours, const double *want, size_t count) {
    double error = 0, scale = 1;
    for (size_t i = 0; i < count; i++) {
        const double d = fabs((wide ? ((const double *)ours)[i] : ((const float *)ours)[i]) - want[i]);
        if (!(d <= error)) error = d;
        if (fabs(want[i]) > scale) scale = fabs(want[i]);
    }
    return error / scale;
}

int main(int count, char **arguments) {
    FILE *file = count > 1 ? fopen(arguments[1], "rb") : NULL;
    if (!file) return 2;
    int32_t h[6];
    int bytecodes = 0, runs = 0, wrong = 0;
    while (fread(h, sizeof *h, 6, file) == 6) {
        const size_t rows = h[2], values = rows * h[5], inputs = rows * h[3], angles = h[4];
        int32_t *code = take(file, sizeof *code, h[0]);
        double *part[8];
        const size_t sizes[] = {h[1], values, inputs, angles, values, inputs, angles}; /* numbers, grad, inputs, angles, results */
        for (int i = 0; i < 7; i++) part[i] = take(file, sizeof(double), sizes[i]);
        for (int isa = 0; isa < 3; isa++)
            for (int wide = 0; wide < 2 && qpeft_supports(isa); wide++)
                for (int threads = 1; threads < 4; threads += 2) {
                    void *grad = as(wide, part[1], values), *x = as(wide, part[2], inputs), *a = as(wide, part[3], angles);
                    void *out = as(wide, part[1], values), *again = as(wide, part[1], values), *grad_x = as(wide, part[2], inputs), *grad_a = as(wide, part[3], angles);
                    int status = qpeft_run(isa, wide, 0, code, part[0], x, a, NULL, rows, out, NULL, NULL, threads, NULL);
                    status |= qpeft_run(isa, wide, 1, code, part[0], x, a, grad, rows, again, grad_x, grad_a, threads, NULL);
                    const double errors[] = {worst(wide, out, part[4], values), worst(wide, grad_x, part[5], inputs),
                                             worst(wide, grad_a, part[6], angles), worst(wide, again, part[4], values)};
                    for (int i = 0; i < 4; i++)
                        if (status || !(errors[i] < (wide ? 1e-10 : 2e-5))) {
                            printf("bytecode %d isa %d wide %d threads %d part %d: %g\n", bytecodes, isa, wide, threads, i, errors[i]);
                            wrong = 1;
                        }
                    free(grad), free(x), free(a), free(out), free(again), free(grad_x), free(grad_a);
                    runs++;
                }
        for (int i = 0; i < 7; i++) free(part[i]);
        free(code);
        bytecodes++;
    }
    printf("%d bytecodes, %d runs\n", bytecodes, runs);
    return wrong;
}
