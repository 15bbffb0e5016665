/* A circuit between linear maps: what between_maps.c wants from each instruction set. */
#ifndef QPEFT_BETWEEN_MAPS_H
#define QPEFT_BETWEEN_MAPS_H

/* out (rows, outs) += x (rows, ins) times w transposed, w (outs, ins). */
typedef struct {
    void (*apply)(void *out, const void *x, const void *w, int rows, int outs, int ins);
    void (*multiply)(void *out, const void *x, const void *w, int rows, int outs, int ins); /* the same with w (ins, outs) */
} map_type;

#endif
