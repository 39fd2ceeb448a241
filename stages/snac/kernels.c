/* The pointwise half of SNAC's encoder, on rows of `width` channels (a multiple of LANES).
 *
 * Compiled by stages/snac/kernels.py where there is a compiler. Vector types of GCC and clang, no
 * intrinsics, one source for every CPU.
 *
 * `constants` holds rows of `width` floats; the enums below name them.
 */

#include <stddef.h>

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 }; /* AVX2: 15.6 audio-seconds per second, 11.3 with vectors of two registers */
#endif

enum { TAPS = 7, ROWS_AT_ONCE = 32 };

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum { OFFSET, ALPHA, RECIPROCAL, TAP, BIAS = TAP + TAPS, ALPHA_2, RECIPROCAL_2 };

/* x + sin(alpha x)^2 / alpha.
 *
 * sin^2 has the period pi, so the argument is reduced to [-pi/2, pi/2] and the sign is lost in the
 * square. Adding 1.5 * 2^23 rounds to an integer. Pi is the sum of two floats. The polynomial's
 * relative error is 5e-9, a tenth of a float's rounding.
 */
static inline lanes snake(lanes x, lanes alpha, lanes reciprocal)
{
    const float round = 12582912.0f;
    lanes angle = alpha * x;
    lanes turns = (angle * 0.318309886f + round) - round;
    angle = angle - turns * 3.14159274f;
    angle = angle + turns * 8.74227766e-8f;
    lanes square = angle * angle;
    lanes poly = square * 2.60890397e-6f - 1.98111011e-4f;
    poly = poly * square + 8.33308790e-3f;
    poly = poly * square - 1.66666597e-1f;
    lanes sine = angle + angle * square * poly;
    return x + reciprocal * (sine * sine);
}

static inline lanes load(const float *from) { return *(const lanes *)from; }

static inline void store(float *to, lanes value) { *(lanes *)to = value; }

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

/* out[t] = snake(bias + sum over k of tap[k] * x[t + k * dilation]) */
static void convolve_rows(const float *x, const float *constants, float *out, ptrdiff_t rows,
                          ptrdiff_t width, ptrdiff_t dilation)
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
                sum += tap[k] * load(x + i + k * step);
            store(out + i, snake(sum, alpha, reciprocal));
        }
    }
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
            convolve_rows(scratch + convolved * width, constants, out + convolved * width,
                          ready - span - convolved, width, dilation);
            convolved = ready - span;
        }
    }
}
