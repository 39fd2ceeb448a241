/* Convolutions of DNSMOS on images, and the chain of those that windows share.
 *
 * Images are [rows + pads][columns + pads][channels] with zeros around them, and a row of 4x4 tiles is
 * made in blocks whose transforms stay in the cache. A layer follows the one before it by a row of
 * tiles. Of the widest two images only the rows that are still needed are kept ("rolling" images):
 * whole, they would not fit into the cache.
 */

#ifndef KOE_LAYERS_H
#define KOE_LAYERS_H

#include <string.h>

#include "winograd.h"

enum { BLOCK = 24 }; /* tiles */
enum { FIRST = 128 }; /* channels of the first layer, which has one input and is not stored */

/* An image whose row `top` - 1 and column -1 are the first stored; `stored` counts columns with the
 * pads. */
typedef struct {
    float *data;
    ptrdiff_t rows, columns, channels, stored, top;
} image;

INLINE float *at(image of, ptrdiff_t row, ptrdiff_t column)
{
    return of.data + ((row - of.top + 1) * of.stored + column + 1) * of.channels;
}

static void emit(layer of, const float *from, ptrdiff_t tiles, image to, ptrdiff_t row,
                 ptrdiff_t column, int pooled)
{
    for (ptrdiff_t t = 0; t < tiles; t++, column += TILE)
        for (ptrdiff_t c = 0; c < of.outputs; c += LANES) {
            lanes out[TILE][TILE];
            restore(of, from + t * of.outputs, point_size(tiles, of.outputs), c, out);
            if (pooled) {
                for (int i = 0; i < TILE / 2 && row / 2 + i < to.rows; i++)
                    for (int j = 0; j < TILE / 2 && column / 2 + j < to.columns; j++) {
                        lanes *a = &out[2 * i][2 * j], *b = &out[2 * i + 1][2 * j];
                        store(at(to, row / 2 + i, column / 2 + j) + c,
                              larger(larger(a[0], a[1]), larger(b[0], b[1])));
                    }
            } else {
                for (int i = 0; i < TILE && row + i < to.rows; i++)
                    for (int j = 0; j < TILE && column + j < to.columns; j++)
                        store(at(to, row + i, column + j) + c, out[i][j]);
            }
        }
}

/* Six rows of the first layer around a block: [6][width][FIRST], zero outside the image. */
static void first_rows(image power, const float *weights, ptrdiff_t row, ptrdiff_t column,
                       ptrdiff_t width, float *to)
{
    ptrdiff_t from = column == 0, until = power.columns + 1 - column;
    if (until > width)
        until = width;
    for (ptrdiff_t r = row - 1; r < row - 1 + PATCH; r++, to += width * FIRST) {
        if (r < 0 || r >= power.rows) {
            memset(to, 0, sizeof(float) * FIRST * width);
            continue;
        }
        memset(to, 0, sizeof(float) * FIRST * from);
        memset(to + until * FIRST, 0, sizeof(float) * FIRST * (width - until));
        const float *above = at(power, r - 1, column - 2);
        for (ptrdiff_t c = 0; c < FIRST; c += LANES) {
            lanes kernel[9], bias = load(weights + 9 * FIRST + c);
            for (int k = 0; k < 9; k++)
                kernel[k] = load(weights + k * FIRST + c);
            for (ptrdiff_t x = from; x < until; x++) {
                lanes sum = bias;
                for (int k = 0; k < 9; k++)
                    sum = fused(spread(above[k / 3 * power.stored + x + k % 3]), kernel[k], sum);
                store(to + x * FIRST + c, positive(sum));
            }
        }
    }
}

/* One row of tiles of a layer. With `first`, `from` is the log power, and the first layer is made
 * on the way. */
static void tile_row(layer of, image from, image to, ptrdiff_t row, int pooled, float *scratch,
                     const float *first)
{
    value *points = (value *)scratch;
    float *made = scratch + POINTS * point_size(BLOCK, of.inputs);
    float *fresh = made + POINTS * point_size(BLOCK, of.outputs);
    ptrdiff_t total = (from.columns + TILE - 1) / TILE;
    for (ptrdiff_t t = 0; t < total; t += BLOCK) {
        ptrdiff_t tiles = total - t < BLOCK ? total - t : BLOCK, column = t * TILE;
        ptrdiff_t width = tiles * TILE + 2;
        const float *patch = first ? fresh : at(from, row - 1, column - 1);
        ptrdiff_t stride = (first ? width : from.stored) * of.inputs;
        if (first)
            first_rows(from, first, row, column, width, fresh);
        for (ptrdiff_t k = 0; k < tiles; k++)
            transform(patch + k * TILE * of.inputs, stride, of.inputs, points + k * of.inputs,
                      point_size(tiles, of.inputs));
        products(of, points, made, tiles);
        emit(of, made, tiles, to, row, column, pooled);
    }
}

/* What the five layers after the first write: how it is scaled down, and its channels. */
static const struct {
    int scale, channels, pooled;
} LAYERS[] = {{1, 64, 0}, {1, 64, 0}, {2, 32, 1}, {4, 32, 1}, {4, 32, 0}};

enum { NUM_LAYERS = sizeof LAYERS / sizeof *LAYERS, WIDEST = (BLOCK * TILE + 2) * PATCH * FIRST };
enum { STAGGERED = 3 }; /* the first layers, which run a row of tiles apart on rolling images */
enum { ROLLING_ROWS = 2 * TILE + 1 }; /* those of a patch, and of the next row of tiles */

static ptrdiff_t padded(ptrdiff_t count) { return (count + TILE - 1) / TILE * TILE + 2; }

static ptrdiff_t framed_floats(ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t channels)
{
    return padded(rows) * padded(columns) * channels;
}

/* Take an image from `memory` whose pads are zero; its inside is not set. */
static image framed(float **memory, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t channels)
{
    image made = {*memory, rows, columns, channels, padded(columns), 0};
    *memory += framed_floats(rows, columns, channels);
    memset(at(made, -1, -1), 0, sizeof(float) * made.stored * channels);
    for (ptrdiff_t row = 0; row < padded(rows) - 1; row++) {
        ptrdiff_t from = row < rows ? columns : -1;
        memset(at(made, row, -1), 0, sizeof(float) * channels);
        memset(at(made, row, from), 0, sizeof(float) * channels * (made.stored - 1 - from));
    }
    return made;
}

static ptrdiff_t rolling_floats(ptrdiff_t columns, ptrdiff_t channels)
{
    return ROLLING_ROWS * padded(columns) * channels;
}

/* Take an image from `memory` of which ROLLING_ROWS rows are stored, all of them zero. */
static image rolling(float **memory, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t channels)
{
    image made = {*memory, rows, columns, channels, padded(columns), 0};
    memset(*memory, 0, sizeof(float) * rolling_floats(columns, channels));
    *memory += rolling_floats(columns, channels);
    return made;
}

/* Forget as many rows as a tile has, and make room for the same number, which are zero. */
static void roll(image *of)
{
    ptrdiff_t row = of->stored * of->channels, kept = (ROLLING_ROWS - TILE) * row;
    memmove(of->data, of->data + TILE * row, sizeof(float) * kept);
    memset(of->data + kept, 0, sizeof(float) * TILE * row);
    of->top += TILE;
}

/* The floats of the tiles of a block, for layers of at most so many channels. */
static ptrdiff_t block_floats(ptrdiff_t inputs, ptrdiff_t outputs)
{
    return POINTS * (point_size(BLOCK, inputs) + point_size(BLOCK, outputs));
}

/* The floats of the `workspace` of `run_layers`. */
static ptrdiff_t layers_floats(ptrdiff_t rows, ptrdiff_t columns)
{
    ptrdiff_t total = framed_floats(rows, columns, 1) + block_floats(FIRST, 64) + WIDEST;
    for (int n = 0; n < NUM_LAYERS; n++) {
        ptrdiff_t scale = LAYERS[n].scale, channels = LAYERS[n].channels;
        total += n + 1 < STAGGERED ? rolling_floats(columns / scale, channels)
                                 : framed_floats(rows / scale, columns / scale, channels);
    }
    return total;
}

/* Log power [rows][columns] to features [32][rows / 4][columns / 4].
 *
 * `first` [10][128]: kernel and bias of the first convolution; `weights[n]` and
 * `biases[n]` those of the next five, as `layer` takes them.
 */
static void run_layers(const float *power, ptrdiff_t rows, ptrdiff_t columns, const float *first,
                       const value *const *weights, const float *const *biases, float *workspace,
                       float *features)
{
    image images[NUM_LAYERS + 1]; /* layer n reads the n-th and writes the next */
    layer layers[NUM_LAYERS];
    images[0] = framed(&workspace, rows, columns, 1);
    for (ptrdiff_t row = 0; row < rows; row++)
        memcpy(at(images[0], row, 0), power + row * columns, sizeof(float) * columns);
    for (int n = 0; n < NUM_LAYERS; n++) {
        ptrdiff_t channels = LAYERS[n].channels, scale = LAYERS[n].scale;
        images[n + 1] = (n + 1 < STAGGERED ? rolling : framed)(&workspace, rows / scale,
                                                             columns / scale, channels);
        layers[n] = (layer){weights[n], biases[n], n ? layers[n - 1].outputs : FIRST, channels};
    }
    ptrdiff_t tiles = (rows + TILE - 1) / TILE;
    for (ptrdiff_t r = 0; r < tiles + STAGGERED - 1; r++)
        for (int n = 0; n < STAGGERED; n++) {
            if (n > r || r - n >= tiles)
                continue;
            tile_row(layers[n], images[n], images[n + 1], (r - n) * TILE, LAYERS[n].pooled,
                     workspace, n ? NULL : first);
            if (n)
                roll(&images[n]);
        }
    for (int n = STAGGERED; n < NUM_LAYERS; n++)
        for (ptrdiff_t row = 0; row < images[n].rows; row += TILE)
            tile_row(layers[n], images[n], images[n + 1], row, LAYERS[n].pooled, workspace, NULL);
    image last = images[NUM_LAYERS];
    for (ptrdiff_t c = 0; c < last.channels; c++)
        for (ptrdiff_t row = 0; row < last.rows; row++)
            for (ptrdiff_t column = 0; column < last.columns; column++)
                *features++ = at(last, row, column)[c];
}

#endif
