/* SNAC's encoder on rows of `width` channels, a multiple of PANEL.
 *
 * Vector types of GCC and clang, one source for every CPU, and the same bits on each: see lanes.h.
 *
 * `constants` holds rows of `width` floats; the enums below name them.
 */

#include "products.h"
#include "quantizer.h"

enum { TAPS = 7, ROWS_AT_ONCE = 32 };

enum { OFFSET, ALPHA, RECIPROCAL, TAP, BIAS = TAP + TAPS, ALPHA_2, RECIPROCAL_2 };

/* x + sin(alpha x)^2 / alpha.
 *
 * sin^2 has the period pi, so the argument is reduced to [-pi/2, pi/2] and the sign is lost in the
 * square. Adding 1.5 * 2^23 rounds to an integer. Pi is the sum of two floats. The polynomial's
 * relative error is 5e-9, a tenth of a float's rounding.
 */
INLINE lanes snake(lanes x, lanes alpha, lanes reciprocal)
{
    const lanes round = spread(12582912.0f);
    lanes angle = alpha * x;
    lanes turns = fused(angle, spread(0.318309886f), round) - round;
    angle = fused(turns, spread(-3.14159274f), angle);
    angle = fused(turns, spread(8.74227766e-8f), angle);
    lanes square = angle * angle;
    lanes poly = fused(square, spread(2.60890397e-6f), spread(-1.98111011e-4f));
    poly = fused(poly, square, spread(8.33308790e-3f));
    poly = fused(poly, square, spread(-1.66666597e-1f));
    lanes sine = fused(angle * square, poly, angle);
    return fused(reciprocal, sine * sine, x);
}

/* out[t] = snake(x[t] + offset) */
void snake_rows(const float *x, const float *constants, float *out, ptrdiff_t rows, ptrdiff_t width)
{
    for (ptrdiff_t c = 0; c < width; c += LANES) {
        lanes offset = load(constants + OFFSET * width + c);
        lanes alpha = load(constants + ALPHA * width + c);
        lanes reciprocal = load(constants + RECIPROCAL * width + c);
        for (ptrdiff_t i = c; i < rows * width; i += width)
            store(out + i, snake(load(x + i) + offset, alpha, reciprocal));
    }
}

/* out[t] = bias + sum over k of tap[k] * x[t + k * dilation], and with `snaked` snake of that. */
INLINE void convolve(const float *x, const float *constants, float *out, ptrdiff_t rows,
                     ptrdiff_t width, ptrdiff_t dilation, const int snaked)
{
    ptrdiff_t step = dilation * width;
    for (ptrdiff_t c = 0; c < width; c += LANES) {
        lanes tap[TAPS];
        for (int k = 0; k < TAPS; k++)
            tap[k] = load(constants + (TAP + k) * width + c);
        lanes bias = load(constants + BIAS * width + c);
        lanes alpha = load(constants + ALPHA_2 * width + c);
        lanes reciprocal = load(constants + RECIPROCAL_2 * width + c);
        for (ptrdiff_t i = c; i < rows * width; i += width) {
            lanes sum = bias;
            for (int k = 0; k < TAPS; k++)
                sum = fused(tap[k], load(x + i + k * step), sum);
            store(out + i, snaked ? snake(sum, alpha, reciprocal) : sum);
        }
    }
}

/* The last convolution, depthwise: `x` has TAPS - 1 rows more than `out`. */
void depthwise_rows(const float *x, const float *constants, float *out, ptrdiff_t rows,
                    ptrdiff_t width)
{
    convolve(x, constants, out, rows, width, 1, 0);
}

/* The first convolution: `x` of one channel, TAPS - 1 values more than `rows`; `taps` [TAPS][width]. */
void stem_rows(const float *x, const float *taps, float *out, ptrdiff_t rows, ptrdiff_t width)
{
    for (ptrdiff_t c = 0; c < width; c += LANES) {
        lanes tap[TAPS];
        for (int k = 0; k < TAPS; k++)
            tap[k] = load(taps + k * width + c);
        for (ptrdiff_t t = 0; t < rows; t++) {
            lanes sum = spread(x[t]) * tap[0];
            for (int k = 1; k < TAPS; k++)
                sum = fused(spread(x[t + k]), tap[k], sum);
            store(out + t * width + c, sum);
        }
    }
}

/* out += x times `panels`: see products.h. Rows of `x` lie `step` values apart, and may overlap. */
void add_product(const float *x, ptrdiff_t step, const float *panels, float *out, ptrdiff_t rows,
                 ptrdiff_t depth, ptrdiff_t outputs)
{
    matrix left = {(float *)x, step}, to = {out, outputs};
    add_products(left, panels, to, rows, depth, outputs);
}

/* A residual unit up to its 1x1 convolution: snake, depthwise convolution, snake.
 *
 * `x` [rows, width] goes to `scratch` behind `head` rows that the caller has set to zero, before
 * `tail` more; `out` has 6 * dilation rows less than `scratch`. A few rows at a time, so that the
 * convolution reads what the cache still holds.
 */
void unit_rows(const float *x, const float *constants, float *scratch, float *out, ptrdiff_t rows,
               ptrdiff_t width, ptrdiff_t dilation, ptrdiff_t head, ptrdiff_t tail)
{
    ptrdiff_t span = (TAPS - 1) * dilation, made = head, convolved = 0, total = head + rows + tail;
    while (convolved < total - span) {
        ptrdiff_t fresh = made + ROWS_AT_ONCE < head + rows ? ROWS_AT_ONCE : head + rows - made;
        snake_rows(x + (made - head) * width, constants, scratch + made * width, fresh, width);
        made += fresh;
        ptrdiff_t ready = made == head + rows ? total : made;
        if (ready - span > convolved) {
            convolve(scratch + convolved * width, constants, out + convolved * width,
                     ready - span - convolved, width, dilation, 1);
            convolved = ready - span;
        }
    }
}
