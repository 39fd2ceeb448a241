/* 3x3 convolutions of 4x4 outputs by Winograd's F(4x4, 3x3), in FP32.
 *
 * 36 products a channel pair instead of 144 (Lavin and Gray 2015, arXiv:1509.09308, points 0, 1, -1,
 * 2, -2): `transform` takes patches of 6x6 pixels to 36 points, `products` multiplies every point
 * with a layer's weights, `restore` makes pixels of them.
 *
 * Vector types of GCC and clang, one source for every CPU, and the same bits on each (lanes.h).
 * Channels are multiples of 32.
 */

#include "lanes.h"

/* The products: 24 accumulators of 32 registers, 12 of 16. */
enum { ACROSS = REGISTERS == 32 ? 4 : 2, TALL = 6 };

enum { TILE = 4, PATCH = 6, POINTS = 36 };

/* Floats between a point and the next, beyond those of its tiles. Caches place a line by its address:
 * without a gap, all 36 values that a pixel's transform writes would share one set of the first. */
enum { GAP = 16 };

INLINE ptrdiff_t point_floats(ptrdiff_t tiles, ptrdiff_t channels) { return tiles * channels + GAP; }

/* A layer: `points` [36][inputs][outputs] transformed weights, `bias` [outputs]. */
typedef struct {
    const float *points, *bias;
    ptrdiff_t inputs, outputs;
} layer;

/* One dimension of a patch to its points. */
INLINE void into(const lanes x[6], lanes y[6])
{
    const lanes four = spread(4), less_four = spread(-4), less_five = spread(-5);
    lanes a = fused(less_four, x[2], x[4]), b = fused(less_four, x[1], x[3]);
    lanes c = x[4] - x[2], d = x[3] - x[1];
    d = d + d;
    y[0] = fused(four, x[0], fused(less_five, x[2], x[4]));
    y[1] = a + b;
    y[2] = a - b;
    y[3] = c + d;
    y[4] = c - d;
    y[5] = fused(four, x[1], fused(less_five, x[3], x[5]));
}

/* One dimension of points to the pixels of a tile. */
INLINE void back(const lanes x[6], lanes y[4])
{
    lanes a = x[1] + x[2], b = x[1] - x[2], c = x[3] + x[4], d = x[3] - x[4];
    y[0] = x[0] + a + c;
    y[1] = fused(spread(2), d, b);
    y[2] = fused(spread(4), c, a);
    y[3] = fused(spread(8), d, b) + x[5];
}

/* A patch of 6x6 pixels, whose rows lie `row` values apart, to points that lie `point` apart. */
INLINE void transform(const float *patch, ptrdiff_t row, ptrdiff_t channels, float *to,
                      ptrdiff_t point)
{
    for (ptrdiff_t c = 0; c < channels; c += LANES) {
        lanes half[PATCH][PATCH], line[PATCH];
        for (int i = 0; i < PATCH; i++) {
            for (int j = 0; j < PATCH; j++)
                line[j] = load(patch + i * row + j * channels + c);
            into(line, half[i]);
        }
        for (int j = 0; j < PATCH; j++) {
            lanes column[PATCH], out[PATCH];
            for (int i = 0; i < PATCH; i++)
                column[i] = half[i][j];
            into(column, out);
            for (int i = 0; i < PATCH; i++)
                store(to + (i * PATCH + j) * point + c, out[i]);
        }
    }
}

/* [tiles][inputs] times [inputs][outputs], `count` tiles and `across` vectors of outputs. */
INLINE void multiply(const float *a, const float *b, float *to, ptrdiff_t inputs,
                     ptrdiff_t outputs, const int count, const int across)
{
    lanes sum[TALL * ACROSS];
    for (int i = 0; i < count * across; i++)
        sum[i] = spread(0);
    for (ptrdiff_t k = 0; k < inputs; k++) {
        lanes right[ACROSS];
        for (int j = 0; j < across; j++)
            right[j] = load(b + k * outputs + j * LANES);
        for (int i = 0; i < count; i++) {
            lanes left = spread(a[i * inputs + k]);
            for (int j = 0; j < across; j++)
                sum[i * across + j] = fused(left, right[j], sum[i * across + j]);
        }
    }
    for (int i = 0; i < count; i++)
        for (int j = 0; j < across; j++)
            store(to + i * outputs + j * LANES, sum[i * across + j]);
}

INLINE void multiply_strip(const float *a, const float *b, float *to, ptrdiff_t tiles,
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

static void products(layer of, const float *from, float *to, ptrdiff_t tiles)
{
    for (int p = 0; p < POINTS; p++) {
        const float *a = from + p * point_floats(tiles, of.inputs);
        const float *b = of.points + p * of.inputs * of.outputs;
        float *c = to + p * point_floats(tiles, of.outputs);
        ptrdiff_t n = 0;
        for (; n + ACROSS * LANES <= of.outputs; n += ACROSS * LANES)
            multiply_strip(a, b + n, c + n, tiles, of.inputs, of.outputs, ACROSS);
        for (; n + 2 * LANES <= of.outputs; n += 2 * LANES)
            multiply_strip(a, b + n, c + n, tiles, of.inputs, of.outputs, 2);
    }
}

/* Products of a tile, `point` floats from one to the next, to 4x4 pixels, biased and rectified. */
INLINE void restore(layer of, const float *from, ptrdiff_t point, ptrdiff_t c, lanes out[4][4])
{
    lanes half[PATCH][TILE];
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
