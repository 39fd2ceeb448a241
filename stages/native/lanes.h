/* Vectors of floats that give the same bits on every instruction set.
 *
 * Each lane is one output, so a sum runs over the same terms in the same order however wide a vector
 * is. Products are added by `fused` where it says so and nowhere else: the flags of build.py keep the
 * compiler from fusing by itself. Channels are multiples of 48, which all widths divide.
 */

#ifndef KOE_LANES_H
#define KOE_LANES_H

#include <stddef.h>

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16, REGISTERS = 32 };
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
enum { LANES = 8, REGISTERS = 16 };
#elif defined(__aarch64__)
#include <arm_neon.h>
enum { LANES = 4, REGISTERS = 32 };
#else
enum { LANES = 4, REGISTERS = 16 };
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE lanes load(const float *from) { return *(const lanes *)from; }
INLINE void store(float *to, lanes value) { *(lanes *)to = value; }

/* `value` in every lane, and a * b + c rounded once. */
#if defined(__AVX512F__)
INLINE lanes spread(float value) { return (lanes)_mm512_set1_ps(value); }
INLINE lanes fused(lanes a, lanes b, lanes c)
{
    return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#elif defined(__AVX2__) && defined(__FMA__)
INLINE lanes spread(float value) { return (lanes)_mm256_set1_ps(value); }
INLINE lanes fused(lanes a, lanes b, lanes c)
{
    return (lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#elif defined(__aarch64__)
INLINE lanes spread(float value) { return (lanes)vdupq_n_f32(value); }
INLINE lanes fused(lanes a, lanes b, lanes c)
{
    return (lanes)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else /* the same bits without such instructions, slowly */
INLINE lanes spread(float value) { return (lanes){value, value, value, value}; }
INLINE lanes fused(lanes a, lanes b, lanes c)
{
    for (int i = 0; i < LANES; i++)
        c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
}
#endif

INLINE lanes larger(lanes a, lanes b)
{
    ints first = a > b;
    return (lanes)(((ints)a & first) | ((ints)b & ~first));
}
INLINE lanes positive(lanes x) { return (lanes)((ints)x & (x > 0)); }

#endif
