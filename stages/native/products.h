/* Products of matrices in FP32: [rows, depth] times [depth, outputs], added to what is there.
 *
 * The right matrix lies in panels of 48 outputs, [outputs / 48][depth][48]. A sum is taken in blocks of
 * BLOCK terms, in order, and each block is added to the output: that is closer to exact than one long
 * sum is, and a block of a panel stays in the first cache while all rows pass. A tile of TALL rows
 * stays in registers.
 */

#ifndef KOE_PRODUCTS_H
#define KOE_PRODUCTS_H

#include "lanes.h"

enum { PANEL = 48, BLOCK = 128 };
enum { ACROSS = 3, TALL = REGISTERS == 32 ? 8 : 4 }; /* 24 of 32 registers, 12 of 16 */

/* Rows that lie `step` floats apart. */
typedef struct {
    float *data;
    ptrdiff_t step;
} matrix;

/* `count` rows, whose first is `row`, times `depth` rows of a panel. */
INLINE void product_tile(const float *a, ptrdiff_t a_step, const float *panel, ptrdiff_t depth,
                         float *to, ptrdiff_t to_step, const int count)
{
    lanes sum[TALL * ACROSS];
    for (int i = 0; i < count * ACROSS; i++)
        sum[i] = spread(0);
    for (ptrdiff_t k = 0; k < depth; k++) {
        lanes right[ACROSS];
        for (int j = 0; j < ACROSS; j++)
            right[j] = load(panel + k * PANEL + j * LANES);
        for (int i = 0; i < count; i++) {
            lanes left = spread(a[i * a_step + k]);
            for (int j = 0; j < ACROSS; j++)
                sum[i * ACROSS + j] = fused(left, right[j], sum[i * ACROSS + j]);
        }
    }
    for (int i = 0; i < count; i++)
        for (int j = 0; j < ACROSS; j++) {
            float *place = to + i * to_step + j * LANES;
            store(place, load(place) + sum[i * ACROSS + j]);
        }
}

/* All rows times `depth` rows of ACROSS vectors of a panel. */
static void product_strip(matrix a, const float *panel, ptrdiff_t depth, matrix to, ptrdiff_t rows)
{
    for (; rows >= TALL; rows -= TALL, a.data += TALL * a.step, to.data += TALL * to.step)
        product_tile(a.data, a.step, panel, depth, to.data, to.step, TALL);
    switch (rows) {
#define REST(n) \
    case n: product_tile(a.data, a.step, panel, depth, to.data, to.step, n); break;
        REST(1) REST(2) REST(3)
#if defined(__AVX512F__) || defined(__aarch64__)
        REST(4) REST(5) REST(6) REST(7)
#endif
#undef REST
    }
}

/* to [rows][outputs] += a [rows][depth] times `panels`; `outputs` are a multiple of PANEL. */
static void add_products(matrix a, const float *panels, matrix to, ptrdiff_t rows, ptrdiff_t depth,
                         ptrdiff_t outputs)
{
    for (ptrdiff_t n = 0; n < outputs; n += PANEL, panels += depth * PANEL)
        for (ptrdiff_t k = 0; k < depth; k += BLOCK)
            for (ptrdiff_t part = 0; part < PANEL; part += ACROSS * LANES) {
                matrix left = {a.data + k, a.step}, out = {to.data + n + part, to.step};
                ptrdiff_t terms = depth - k < BLOCK ? depth - k : BLOCK;
                product_strip(left, panels + k * PANEL + part, terms, out, rows);
            }
}

#endif
