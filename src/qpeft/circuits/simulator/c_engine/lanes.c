/* The kernel for one instruction set: compile with -DVARIANT=name and that set's flags. Samples lie in SIMD lanes: every number
 * of a state is a vector with one entry per sample, so all arithmetic is vertical and a whole group of samples goes through the
 * circuit, and back, in cache. GCC and Clang vector extensions; nothing of Python or torch. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "between_maps.h"
#include "columns.h"
#include "contraction.h"
#include "polynomial.h"
#include "bytecode.h"

#if defined(VECTOR_BYTES) /* wider than the registers, to test the code of other sets */
#elif defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

/* Keep a loaded vector in its register: compilers would rather load it again for each use, and loads are what is scarce. */
#if defined(__AVX512F__) && VECTOR_BYTES == 64
#define HOLD(v) __asm__("" : "+v"(v))
#define HOLD_MANY(v) HOLD(v) /* where that takes more than 16 registers */
#elif defined(__AVX__) && VECTOR_BYTES == 32
#define HOLD(v) __asm__("" : "+x"(v))
#elif defined(__aarch64__) && VECTOR_BYTES == 16
#define HOLD(v) __asm__("" : "+w"(v))
#define HOLD_MANY(v) HOLD(v)
#else
#define HOLD(v) (void)(v)
#endif
#ifndef HOLD_MANY
#define HOLD_MANY(v) (void)(v)
#endif

#define PASTE2(a, b) a##_##b
#define PASTE(a, b) PASTE2(a, b)
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline)) /* of long loops: within another function their registers spill */
#define STORED_BYTES (640 << 10) /* states kept between the forward and the backward sweep of a group; deeper ones are undone */
#define BLOCK_BITS 5             /* of a block of amplitudes that stays in the first cache: 4 KiB with 512-bit vectors */
#define FUSE (VECTOR_BYTES >= 32) /* whether one pass both correlates and rotates, or correlates twice: pays where a vector has 8 floats or more */
#define SPLIT(K, with_x) ((K) < 3 && !(with_x)) /* whether 16 registers hold more sums */
#define PAIR 2                   /* vectors that a polynomial takes at once */
#define FLUSH 32                 /* terms added up in the lanes' type before they go to double */

#define REAL double
#define NAME(x) PASTE(x, f64)
#define LIMIT 1e4
#define ROUND 6755399441055744.0
#define DEGREE 5
#define SMALLEST 1e-150
typedef double vec_f64 __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t mask_f64 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t word_f64 __attribute__((vector_size(VECTOR_BYTES)));
enum { lanes_f64 = VECTOR_BYTES / 8 };
static const double halfpi_f64[] = {0x1.921fb5444p+0, 0x1.68c234c4cp-39, 0x1.98a2e03707345p-77};
static const double sine_f64[] = {-0.16666666666666664599,    0.0083333333333309245621,  -0.00019841269836722417756,
                                  2.755731608381635861e-6,    -2.5051127944014187575e-8, 1.5917848524808261007e-10};
static const double cosine_f64[] = {0.041666666666666665373,   -0.0013888888888887382271, 0.000024801587298743069286,
                                    -2.7557317260008838164e-7, 2.0876143827993132496e-9,  -1.1382456778061305849e-11};
#include "sincos.inc"
#include "group.inc"
#include "polynomial.inc"
#include "columns.inc"
#include "contraction.inc"
#undef REAL
#undef NAME
#undef ROUND
#undef DEGREE
#undef SMALLEST

#define REAL float
#define NAME(x) PASTE(x, f32)
#define ROUND 12582912.0f
#define DEGREE 2
#define SMALLEST 1e-15f
typedef float vec_f32 __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t mask_f32 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t word_f32 __attribute__((vector_size(VECTOR_BYTES)));
enum { lanes_f32 = VECTOR_BYTES / 4 };
static const float halfpi_f32[] = {0x1.92p+0f, 0x1.fbp-12f, 0x1.51p-22f, 0x1.0b4611a6p-34f};
static const float sine_f32[] = {-0.16666664650292082048f, 0.0083327459363804223201f, -0.00019587387068464456456f};
static const float cosine_f32[] = {0.041666664647457377173f, -0.0013888300696903898947f, 0.000024547437210193198834f};
#include "sincos.inc"
#include "group.inc"
#include "polynomial.inc"
#include "columns.inc"
#include "contraction.inc"

const lanes_type PASTE(qpeft_lanes, VARIANT)[2] = {
    {lanes_f32, sizeof(float), prepare_f32, run_f32},
    {lanes_f64, sizeof(double), prepare_f64, run_f64},
};
const polynomial_type PASTE(qpeft_polynomial, VARIANT)[2] = {
    {PAIR * lanes_f32, sizeof(float), polynomial_f32},
    {PAIR * lanes_f64, sizeof(double), polynomial_f64},
};
const column_type PASTE(qpeft_columns, VARIANT)[2] = {{columns_f32}, {columns_f64}};
const contraction_type PASTE(qpeft_contraction, VARIANT)[2] = {{contract_all_f32}, {contract_all_f64}};
const map_type PASTE(qpeft_maps, VARIANT)[2] = {{apply_map_f32, multiply_map_f32}, {apply_map_f64, multiply_map_f64}};
