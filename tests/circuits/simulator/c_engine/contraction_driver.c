/* A contraction of every kind of step against loops, forward and back, without Python. For sanitizers. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

int qpeft_contract(const int64_t *arguments);
int qpeft_supports(int isa);

enum { M = 6, N = 21, K = 5, BATCH = 3, A = M * K, B = BATCH * K * N, OUT = BATCH * M * N };

int main(void) {
    /* inputs 0 = a transposed (K, M), 1 = b (BATCH, K, N); 2 = a (M, K); 3 = a b[o]; 4 = that backwards */
    int32_t code[4 + 5 + 3 * 9 + A + OUT] = {2, 5, 3, 4, A, B, A, OUT, OUT};
    const int32_t steps[3][9] = {{0, 2, 0, 0, 0, 0, 0, 0, 0}, {1, 3, 2, 1, BATCH, M, N, K, 0}, {0, 4, 3, 3, 0, 0, 0, 0, A}};
    memcpy(code + 9, steps, sizeof steps);
    int32_t *table = code + 9 + 27;
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++) table[i * K + k] = k * M + i;
    for (int i = 0; i < OUT; i++) table[A + i] = OUT - 1 - i;
    double a[A], b[B], grad[OUT], out[OUT], to_a[A], to_b[B], want[OUT] = {0}, want_a[A] = {0}, want_b[B] = {0};
    for (int i = 0; i < A; i++) a[i] = sin(i + 1.0);
    for (int i = 0; i < B; i++) b[i] = cos(3.0 * i);
    for (int i = 0; i < OUT; i++) grad[i] = sin(7.0 * i);
    const double scale = -1.5;
    for (int o = 0; o < BATCH; o++)
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++)
                for (int k = 0; k < K; k++) {
                    const int at = OUT - 1 - ((o * M + i) * N + j), pa = k * M + i, pb = (o * K + k) * N + j;
                    want[at] += scale * a[pa] * b[pb];
                    want_a[pa] += scale * grad[at] * b[pb];
                    want_b[pb] += scale * grad[at] * a[pa];
                }
    int wrong = 0, runs = 0;
    for (int isa = 0; isa < 3; isa++) {
        if (!qpeft_supports(isa)) continue;
        int64_t call[10] = {isa, 1, (intptr_t)code, (intptr_t)out, 0, 0, (intptr_t)a, (intptr_t)b, (intptr_t)to_a, (intptr_t)to_b};
        memcpy(call + 5, &scale, sizeof scale);
        wrong |= qpeft_contract(call);
        call[4] = (intptr_t)grad;
        wrong |= qpeft_contract(call);
        for (int i = 0; i < OUT; i++) wrong |= !(fabs(out[i] - want[i]) < 1e-12);
        for (int i = 0; i < A; i++) wrong |= !(fabs(to_a[i] - want_a[i]) < 1e-12);
        for (int i = 0; i < B; i++) wrong |= !(fabs(to_b[i] - want_b[i]) < 1e-12);
        memset(to_b, 0, sizeof to_b);
        call[8] = 0; /* not wanted */
        wrong |= qpeft_contract(call);
        for (int i = 0; i < B; i++) wrong |= !(fabs(to_b[i] - want_b[i]) < 1e-12);
        runs++;
    }
    printf("%d runs, wrong: %d\n", runs, wrong);
    return wrong;
}
