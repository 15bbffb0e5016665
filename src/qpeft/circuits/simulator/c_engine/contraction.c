/* The entry point of contractions of small tensors: places for the buffers, and one run forward, or forward and back. */
#include <stdlib.h>
#include <string.h>

#include "contraction.h"
#include "bytecode.h"

#define MAX_BUFFERS 64

TYPES(contraction_type, contraction)

/* Arguments: instruction set, wide (0 float, 1 double), code, result, its gradient (0 for a run forward), a factor of
 * the result (the bits of a double), then the address of every input, then that of every input's gradient (0 where not wanted).
 * With a gradient the forward pass runs a second time and the result is not written. Returns 0, or 1 for want of memory, 2 for an instruction set that is not there. */
int qpeft_contract(const int64_t *arguments) {
    const int wide = (int)arguments[1];
    if (!qpeft_supports((int)arguments[0])) return 2;
    const int32_t *code = (const int32_t *)(intptr_t)arguments[2];
    contraction_program p = {.inputs = code[0], .buffers = code[1], .steps = code[2], .out = code[3], .size = code + 4};
    p.step = (const contraction_step *)(p.size + p.buffers);
    p.tables = (const int32_t *)(p.step + p.steps);
    const size_t number = wide ? sizeof(double) : sizeof(float);
    const int adjoint = arguments[4] != 0;
    size_t inner = 0, largest = 0;
    for (int i = 0; i < p.buffers; i++) {
        const size_t bytes = (p.size[i] * number + 63) / 64 * 64;
        if (i >= p.inputs) inner += bytes;
        if (bytes > largest) largest = bytes;
    }
    char *base = qpeft_take(adjoint ? 2 * inner + largest : inner), *at = base;
    if (!base) return 1;
    void *buffer[MAX_BUFFERS], *gradient[MAX_BUFFERS];
    for (int i = 0; i < p.buffers; i++) {
        const size_t bytes = (p.size[i] * number + 63) / 64 * 64;
        buffer[i] = i < p.inputs ? (void *)(intptr_t)arguments[6 + i] : at;
        gradient[i] = i < p.inputs ? (void *)(intptr_t)(adjoint ? arguments[6 + p.inputs + i] : 0) : at + inner;
        if (i >= p.inputs) at += bytes;
        if (adjoint && gradient[i]) memset(gradient[i], 0, p.size[i] * number);
    }
    if (adjoint) memcpy(gradient[p.out], (const void *)(intptr_t)arguments[4], p.size[p.out] * number);
    else buffer[p.out] = (void *)(intptr_t)arguments[3];
    contraction_job job = {&p, 0, buffer, adjoint ? gradient : NULL, at + inner};
    memcpy(&job.scale, arguments + 5, sizeof job.scale);
    (type_of((int)arguments[0]) + wide)->run(&job);
    qpeft_give(base);
    return 0;
}
