/* 3x3 convolutions of 4x4 outputs by Winograd's F(4x4, 3x3).
 *
 * 36 products a channel pair instead of 144 (Lavin and Gray 2015, arXiv:1509.09308): `transform` takes
 * patches of 6x6 pixels to 36 points, `products` multiplies every point with a layer's weights,
 * `restore` makes pixels of them. The points of one dimension are 0, two pairs and infinity. FP32 takes
 * 1, -1, 2, -2. BF16 takes 3/4, -3/4, 3/2, -3/2, with which its rounding error is a third as large.
 *
 * Vector types of GCC and clang, one source for every CPU, and the same bits on each (lanes.h).
 * Channels are multiples of 32.
 */

#include "terms.h"

/* The products: 24 accumulators of 32 registers, 12 of 16. */
enum { ACROSS = REGISTERS == 32 ? 4 : 2, TALL = 6 };

enum { TILE = 4, PATCH = 6, POINTS = 36 };

#if defined(TERMS_IN_BF16)
#define NEAR 0.75f
#define FAR 1.5f
#else
#define NEAR 1.0f
#define FAR 2.0f
#endif

/* Values between a point and the next, beyond those of its tiles. Caches place a line by its address:
 * without a gap, all 36 values that a pixel's transform writes would share one set of the first. */
enum { GAP = 16 };

/* Hides a value from the compiler, which would otherwise compute all addresses of a patch before the
 * loop and keep them on the stack: every load and store would then have to load its address first. */
#define OPAQUE(x) __asm__("" : "+r"(x))

INLINE ptrdiff_t point_size(ptrdiff_t tiles, ptrdiff_t channels) { return tiles * channels + GAP; }

/* A layer: transformed weights `points` [36][inputs / TERMS][outputs][TERMS], `bias` [outputs]. */
typedef struct {
    const value *points;
    const float *bias;
    ptrdiff_t inputs, outputs;
} layer;

/* One dimension of a patch to its points. */
INLINE void into(const lanes x[6], lanes y[6])
{
    const lanes minus_near = spread(-NEAR * NEAR), minus_far = spread(-FAR * FAR);
    const lanes minus_both = minus_near + minus_far, product = minus_near * minus_far;
    lanes a = fused(minus_far, x[2], x[4]), b = NEAR * fused(minus_far, x[1], x[3]);
    lanes c = fused(minus_near, x[2], x[4]), d = FAR * fused(minus_near, x[1], x[3]);
    y[0] = fused(product, x[0], fused(minus_both, x[2], x[4]));
    y[1] = a + b; /* sums run beside fused products, on units of their own */
    y[2] = a - b;
    y[3] = c + d;
    y[4] = c - d;
    y[5] = fused(product, x[1], fused(minus_both, x[3], x[5]));
}

/* One dimension of points to the pixels of a tile. */
INLINE void back(const lanes x[6], lanes y[4])
{
    lanes a = x[1] + x[2], b = x[1] - x[2], c = x[3] + x[4], d = x[3] - x[4];
    y[0] = x[0] + a + c;
    y[1] = fused(spread(FAR), d, spread(NEAR) * b);
    y[2] = fused(spread(FAR * FAR), c, spread(NEAR * NEAR) * a);
    y[3] = fused(spread(FAR * FAR * FAR), d, spread(NEAR * NEAR * NEAR) * b) + x[5];
}

/* A patch of 6x6 pixels, whose rows lie `row` values apart, to points that lie `point` apart. */
INLINE void transform(const float *patch, ptrdiff_t row, ptrdiff_t channels, value *to,
                      ptrdiff_t point)
{
    for (ptrdiff_t c = 0; c < channels; c += LANES) {
        lanes half[PATCH][PATCH], line[PATCH];
        ptrdiff_t right = channels, down = row, next = point;
        OPAQUE(right);
        OPAQUE(down);
        OPAQUE(next);
        for (int i = 0; i < PATCH; i++) {
            for (int j = 0; j < PATCH; j++)
                line[j] = load(patch + i * down + j * right + c);
            into(line, half[i]);
        }
        for (int j = 0; j < PATCH; j++) {
            lanes column[PATCH], out[PATCH];
            for (int i = 0; i < PATCH; i++)
                column[i] = half[i][j];
            into(column, out);
            for (int i = 0; i < PATCH; i++)
                store_values(to + (i * PATCH + j) * next + c, out[i]);
        }
    }
}

/* [tiles][inputs] times [inputs][outputs], `count` tiles and `across` vectors of outputs. */
INLINE void multiply(const value *a, const value *b, float *to, ptrdiff_t inputs,
                     ptrdiff_t outputs, const int count, const int across)
{
    lanes sum[TALL * ACROSS];
    for (int i = 0; i < count * across; i++)
        sum[i] = spread(0);
    for (ptrdiff_t k = 0; k < inputs; k += TERMS) {
        terms right[ACROSS];
        for (int j = 0; j < across; j++)
            right[j] = load_terms(b + k * outputs + j * LANES * TERMS);
        for (int i = 0; i < count; i++) {
            terms left = spread_terms(a + i * inputs + k);
            for (int j = 0; j < across; j++)
                sum[i * across + j] = fused_terms(left, right[j], sum[i * across + j]);
        }
    }
    for (int i = 0; i < count; i++)
        for (int j = 0; j < across; j++)
            store(to + i * outputs + j * LANES, sum[i * across + j]);
}

INLINE void multiply_strip(const value *a, const value *b, float *to, ptrdiff_t tiles,
                           ptrdiff_t inputs, ptrdiff_t outputs, const int across)
{
    ptrdiff_t t = 0;
    for (; t + TALL <= tiles; t += TALL)
        multiply(a + t * inputs, b, to + t * outputs, inputs, outputs, TALL, across);
    a += t * inputs;
    to += t * outputs;
    switch (tiles - t) {
    case 5: multiply(a, b, to, inputs, outputs, 5, across); break;
    case 4: multiply(a, b, to, inputs, outputs, 4, across); break;
    case 3: multiply(a, b, to, inputs, outputs, 3, across); break;
    case 2: multiply(a, b, to, inputs, outputs, 2, across); break;
    case 1: multiply(a, b, to, inputs, outputs, 1, across); break;
    }
}

static void products(layer of, const value *from, float *to, ptrdiff_t tiles)
{
    for (int p = 0; p < POINTS; p++) {
        const value *a = from + p * point_size(tiles, of.inputs);
        const value *b = of.points + p * of.inputs * of.outputs;
        float *c = to + p * point_size(tiles, of.outputs);
        ptrdiff_t n = 0;
        for (; n + ACROSS * LANES <= of.outputs; n += ACROSS * LANES)
            multiply_strip(a, b + n * TERMS, c + n, tiles, of.inputs, of.outputs, ACROSS);
        for (; n + 2 * LANES <= of.outputs; n += 2 * LANES)
            multiply_strip(a, b + n * TERMS, c + n, tiles, of.inputs, of.outputs, 2);
    }
}

/* Products of a tile, `point` floats from one to the next, to 4x4 pixels, biased and rectified. */
INLINE void restore(layer of, const float *from, ptrdiff_t point, ptrdiff_t c, lanes out[4][4])
{
    lanes half[PATCH][TILE];
    OPAQUE(point);
    for (int i = 0; i < PATCH; i++) {
        lanes line[PATCH];
        for (int j = 0; j < PATCH; j++)
            line[j] = load(from + (i * PATCH + j) * point + c);
        back(line, half[i]);
    }
    lanes bias = load(of.bias + c);
    for (int j = 0; j < TILE; j++) {
        lanes column[PATCH], made[TILE];
        for (int i = 0; i < PATCH; i++)
            column[i] = half[i][j];
        back(column, made);
        for (int i = 0; i < TILE; i++)
            out[i][j] = positive(made[i] + bias);
    }
}
