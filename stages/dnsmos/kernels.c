/* The convolutions of DNSMOS that windows share, and what follows them in each window, in FP32. */

#include "layers.h"

/* The floats of the `workspace` of `shared_layers`. */
ptrdiff_t shared_floats(ptrdiff_t rows, ptrdiff_t columns) { return layers_floats(rows, columns); }

/* As `run_layers` has it. */
void shared_layers(const float *power, ptrdiff_t rows, ptrdiff_t columns, const float *first,
                   const float *const *weights, const float *const *biases, float *workspace,
                   float *features)
{
    run_layers(power, rows, columns, first, weights, biases, workspace, features);
}

enum { HEAD_INPUTS = 32, HEAD_OUTPUTS = 64, WIDEST_DENSE = 128 };

/* The floats of the head's `workspace`. */
ptrdiff_t head_floats(ptrdiff_t rows, ptrdiff_t columns)
{
    return framed_floats(rows / 2, columns / 2, HEAD_INPUTS) +
           framed_floats(rows / 2, columns / 2, HEAD_OUTPUTS) +
           block_floats(HEAD_INPUTS, HEAD_OUTPUTS);
}

/* The largest of four neighbours: features [channels][rows][columns] to an image of half of each. */
static void pool(const float *features, ptrdiff_t rows, ptrdiff_t columns, image to)
{
    for (ptrdiff_t c = 0; c < to.channels; c++, features += rows * columns)
        for (ptrdiff_t row = 0; row < to.rows; row++)
            for (ptrdiff_t column = 0; column < to.columns; column++) {
                const float *a = features + 2 * row * columns + 2 * column, *b = a + columns;
                float upper = a[0] > a[1] ? a[0] : a[1], lower = b[0] > b[1] ? b[0] : b[1];
                at(to, row, column)[c] = upper > lower ? upper : lower;
            }
}

/* to = bias + x times weights [inputs][outputs], negative values as zero where `rectified`. */
static void dense(const float *x, const float *weights, const float *bias, ptrdiff_t inputs,
                  ptrdiff_t outputs, int rectified, float *to)
{
    memcpy(to, bias, sizeof(float) * outputs);
    for (ptrdiff_t k = 0; k < inputs; k++)
        for (ptrdiff_t o = 0; o < outputs; o++)
            to[o] = __builtin_fmaf(x[k], weights[k * outputs + o], to[o]);
    for (ptrdiff_t o = 0; rectified && o < outputs; o++)
        to[o] = to[o] > 0 ? to[o] : 0;
}

/* Features [32][rows][columns] of a window to its three raw scores.
 *
 * `weights` and `biases` are those of the last convolution ([36][32][64]) and of the dense layers
 * 64 to 128 to 64 to 3 ([inputs][outputs]).
 */
void window_head(const float *features, ptrdiff_t rows, ptrdiff_t columns,
                 const float *const *weights, const float *const *biases, float *workspace,
                 float *scores)
{
    image pooled = framed(&workspace, rows / 2, columns / 2, HEAD_INPUTS);
    image made = framed(&workspace, rows / 2, columns / 2, HEAD_OUTPUTS);
    layer last = {weights[0], biases[0], HEAD_INPUTS, HEAD_OUTPUTS};
    pool(features, rows, columns, pooled);
    for (ptrdiff_t row = 0; row < pooled.rows; row += TILE)
        tile_row(last, pooled, made, row, 0, workspace, NULL);
    float largest[HEAD_OUTPUTS] = {0}, wide[WIDEST_DENSE], narrow[HEAD_OUTPUTS];
    for (ptrdiff_t row = 0; row < made.rows; row++)
        for (ptrdiff_t column = 0; column < made.columns; column++)
            for (ptrdiff_t c = 0; c < HEAD_OUTPUTS; c += LANES)
                store(largest + c, larger(load(largest + c), load(at(made, row, column) + c)));
    dense(largest, weights[1], biases[1], HEAD_OUTPUTS, WIDEST_DENSE, 1, wide);
    dense(wide, weights[2], biases[2], WIDEST_DENSE, HEAD_OUTPUTS, 1, narrow);
    dense(narrow, weights[3], biases[3], HEAD_OUTPUTS, 3, 0, scores);
}
