/* What the terms of a sum are made of: values of FP32 or, with TERMS_IN_BF16, of BF16.
 *
 * BF16 comes in pairs, which are two terms of a sum. The second is added first, each sum is rounded to
 * FP32, and denormal values count as zero. The instruction VDPBF16PS of AVX-512 does this; the code for
 * CPUs without it gives the same bits, at half the speed of FP32.
 */

#ifndef KOE_TERMS_H
#define KOE_TERMS_H

#include <stdint.h>

#include "lanes.h"

#if defined(TERMS_IN_BF16)

typedef uint16_t value;
typedef ints terms; /* the first of a pair in the lower half of each lane */
enum { TERMS = 2 };

#if defined(__AVX512BF16__)

INLINE void store_values(value *to, lanes from)
{
    *(__m256i_u *)to = (__m256i)_mm512_cvtneps_pbh((__m512)from);
}
INLINE lanes fused_terms(terms a, terms b, lanes c)
{
    return (lanes)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}

#else

INLINE lanes denormals_as_zero(lanes x)
{
    return (lanes)((ints)x & (((ints)x & 0x7f800000) != 0));
}
INLINE void store_values(value *to, lanes from)
{
    typedef uint32_t words __attribute__((vector_size(4 * LANES)));
    words bits = (words)denormals_as_zero(from);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    for (int i = 0; i < LANES; i++)
        to[i] = (value)bits[i];
}
INLINE lanes fused_terms(terms a, terms b, lanes c)
{
    const ints upper = (ints)spread(0) - 0x10000;
    c = denormals_as_zero(fused((lanes)(a & upper), (lanes)(b & upper), c));
    return denormals_as_zero(fused((lanes)(a << 16), (lanes)(b << 16), c));
}

#endif

INLINE terms load_terms(const value *from) { return *(const terms *)from; }
INLINE terms spread_terms(const value *from)
{
    return (terms)spread(*(const float __attribute__((may_alias)) *)from);
}

#else /* FP32 */

typedef float value;
typedef lanes terms;
enum { TERMS = 1 };

INLINE void store_values(value *to, lanes from) { store(to, from); }
INLINE lanes fused_terms(terms a, terms b, lanes c) { return fused(a, b, c); }
INLINE terms load_terms(const value *from) { return load(from); }
INLINE terms spread_terms(const value *from) { return spread(*from); }

#endif

#endif
