/* The convolutions of DNSMOS that windows share, in FP32, by Winograd's F(4x4, 3x3).
 *
 * A 3x3 convolution of 4x4 outputs takes 36 products a channel pair instead of 144 (Lavin and Gray
 * 2015, arXiv:1509.09308, points 0, 1, -1, 2, -2). Images are [rows + pads][columns + pads][channels]
 * with zeros around them, a row of 4x4 tiles is made in blocks whose transforms stay in the cache,
 * and a layer follows the one before it by a row of tiles, while that is still in the cache too.
 *
 * Vector types of GCC and clang: one source for every CPU. Channels are multiples of 2 LANES.
 */

#include <stddef.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16, PANEL = 4, ROWS = 6 }; /* 24 accumulators of 32 registers */
#else
enum { LANES = 8, PANEL = 2, ROWS = 6 }; /* 12 of 16; vectors as long as those of AVX2 */
#endif

enum { TILE = 4, PATCH = 6, POINTS = 36, BLOCK = 24 };
enum { FIRST = 128 }; /* channels of the first layer, which has one input and is not stored */

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

/* An image whose row and column -1 are the first stored; `stored` counts columns with the pads. */
typedef struct {
    float *data;
    ptrdiff_t rows, columns, channels, stored;
} image;

/* A layer: `points` [36][inputs][outputs] transformed weights, `bias` [outputs]. */
typedef struct {
    const float *points, *bias;
    ptrdiff_t inputs, outputs;
} layer;

INLINE lanes load(const float *from) { return *(const lanes *)from; }
INLINE void store(float *to, lanes value) { *(lanes *)to = value; }
INLINE lanes positive(lanes x) { return (lanes)((ints)x & (x > 0)); }
INLINE lanes larger(lanes a, lanes b)
{
    ints first = a > b;
    return (lanes)(((ints)a & first) | ((ints)b & ~first));
}

INLINE float *at(image of, ptrdiff_t row, ptrdiff_t column)
{
    return of.data + ((row + 1) * of.stored + column + 1) * of.channels;
}

INLINE void into(const lanes x[6], lanes y[6])
{
    lanes a = x[4] - 4 * x[2], b = x[3] - 4 * x[1], c = x[4] - x[2], d = 2 * (x[3] - x[1]);
    y[0] = 4 * x[0] - 5 * x[2] + x[4];
    y[1] = a + b;
    y[2] = a - b;
    y[3] = c + d;
    y[4] = c - d;
    y[5] = 4 * x[1] - 5 * x[3] + x[5];
}

INLINE void back(const lanes x[6], lanes y[4])
{
    lanes a = x[1] + x[2], b = x[1] - x[2], c = x[3] + x[4], d = x[3] - x[4];
    y[0] = x[0] + a + c;
    y[1] = b + 2 * d;
    y[2] = a + 4 * c;
    y[3] = b + 8 * d + x[5];
}

/* A patch of 6x6 pixels, `row` values a row and `pixel` a column, to [36][tiles][channels]. */
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

/* [tiles][inputs] times [inputs][outputs], `count` tiles and `panel` vectors of outputs. */
INLINE void multiply(const float *a, const float *b, float *to, ptrdiff_t inputs,
                     ptrdiff_t outputs, const int count, const int panel)
{
    lanes sum[ROWS * PANEL];
    for (int i = 0; i < count * panel; i++)
        sum[i] = (lanes){0};
    for (ptrdiff_t k = 0; k < inputs; k++) {
        lanes right[PANEL];
        for (int j = 0; j < panel; j++)
            right[j] = load(b + k * outputs + j * LANES);
        for (int i = 0; i < count; i++) {
            float left = a[i * inputs + k];
            for (int j = 0; j < panel; j++)
                sum[i * panel + j] += left * right[j];
        }
    }
    for (int i = 0; i < count; i++)
        for (int j = 0; j < panel; j++)
            store(to + i * outputs + j * LANES, sum[i * panel + j]);
}

INLINE void multiply_panel(const float *a, const float *b, float *to, ptrdiff_t tiles,
                           ptrdiff_t inputs, ptrdiff_t outputs, const int panel)
{
    ptrdiff_t t = 0;
    for (; t + ROWS <= tiles; t += ROWS)
        multiply(a + t * inputs, b, to + t * outputs, inputs, outputs, ROWS, panel);
    a += t * inputs;
    to += t * outputs;
    switch (tiles - t) {
    case 5: multiply(a, b, to, inputs, outputs, 5, panel); break;
    case 4: multiply(a, b, to, inputs, outputs, 4, panel); break;
    case 3: multiply(a, b, to, inputs, outputs, 3, panel); break;
    case 2: multiply(a, b, to, inputs, outputs, 2, panel); break;
    case 1: multiply(a, b, to, inputs, outputs, 1, panel); break;
    }
}

static void products(layer of, const float *from, float *to, ptrdiff_t tiles)
{
    for (int p = 0; p < POINTS; p++) {
        const float *a = from + p * tiles * of.inputs, *b = of.points + p * of.inputs * of.outputs;
        float *c = to + p * tiles * of.outputs;
        ptrdiff_t n = 0;
        for (; n + PANEL * LANES <= of.outputs; n += PANEL * LANES)
            multiply_panel(a, b + n, c + n, tiles, of.inputs, of.outputs, PANEL);
        for (; n + 2 * LANES <= of.outputs; n += 2 * LANES)
            multiply_panel(a, b + n, c + n, tiles, of.inputs, of.outputs, 2);
    }
}

/* Products [36][tiles][outputs] of tile `t` of a block to 4x4 pixels, biased and rectified. */
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

static void emit(layer of, const float *from, ptrdiff_t tiles, image to, ptrdiff_t row,
                 ptrdiff_t column, int pooled)
{
    for (ptrdiff_t t = 0; t < tiles; t++, column += TILE)
        for (ptrdiff_t c = 0; c < of.outputs; c += LANES) {
            lanes out[TILE][TILE];
            restore(of, from + t * of.outputs, tiles * of.outputs, c, out);
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
                    sum += above[k / 3 * power.stored + x + k % 3] * kernel[k];
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
    float *points = scratch, *made = points + POINTS * BLOCK * of.inputs;
    float *fresh = made + POINTS * BLOCK * of.outputs;
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
                      tiles * of.inputs);
        products(of, points, made, tiles);
        emit(of, made, tiles, to, row, column, pooled);
    }
}

/* What the five layers after the first write: how they are scaled down, and their channels. */
static const struct {
    int scale, channels, pooled;
} LAYERS[] = {{1, 64, 0}, {1, 64, 0}, {2, 32, 1}, {4, 32, 1}, {4, 32, 0}};

enum { NUM_LAYERS = sizeof LAYERS / sizeof *LAYERS, WIDEST = (BLOCK * TILE + 2) * PATCH * FIRST };

static ptrdiff_t padded(ptrdiff_t count) { return (count + TILE - 1) / TILE * TILE + 2; }

/* An image in `memory` whose pads are zero; its inside is not set. */
static image framed(float *memory, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t channels)
{
    image made = {memory, rows, columns, channels, padded(columns)};
    size_t line = sizeof(float) * made.stored * channels;
    memset(at(made, -1, -1), 0, line);
    for (ptrdiff_t row = 0; row < padded(rows) - 1; row++) {
        ptrdiff_t from = row < rows ? columns : -1;
        memset(at(made, row, -1), 0, sizeof(float) * channels);
        memset(at(made, row, from), 0, sizeof(float) * channels * (made.stored - 1 - from));
    }
    return made;
}

/* The floats of `workspace`. */
ptrdiff_t workspace_floats(ptrdiff_t rows, ptrdiff_t columns)
{
    ptrdiff_t total = padded(rows) * padded(columns) + POINTS * BLOCK * (FIRST + 64) + WIDEST;
    for (int n = 0; n < NUM_LAYERS; n++)
        total += padded(rows / LAYERS[n].scale) * padded(columns / LAYERS[n].scale) *
                 LAYERS[n].channels;
    return total;
}

/* Log power [rows][columns] to features [32][rows / 4][columns / 4].
 *
 * `first` [10][128]: kernel and bias of the first convolution; `weights[n]` [36][inputs][outputs]
 * and `biases[n]` those of the next five.
 */
void shared_layers(const float *power, ptrdiff_t rows, ptrdiff_t columns, const float *first,
                   const float *const *weights, const float *const *biases, float *workspace,
                   float *features)
{
    image input = framed(workspace, rows, columns, 1);
    float *free = workspace + padded(rows) * padded(columns);
    for (ptrdiff_t row = 0; row < rows; row++)
        memcpy(at(input, row, 0), power + row * columns, sizeof(float) * columns);
    image images[NUM_LAYERS];
    layer layers[NUM_LAYERS];
    ptrdiff_t inputs = FIRST;
    for (int n = 0; n < NUM_LAYERS; n++) {
        ptrdiff_t channels = LAYERS[n].channels, scale = LAYERS[n].scale;
        images[n] = framed(free, rows / scale, columns / scale, channels);
        free += padded(rows / scale) * padded(columns / scale) * channels;
        layers[n] = (layer){weights[n], biases[n], inputs, channels};
        inputs = channels;
    }
    ptrdiff_t tiles = (rows + TILE - 1) / TILE;
    for (ptrdiff_t r = 0; r < tiles + 2; r++) {
        if (r < tiles)
            tile_row(layers[0], input, images[0], r * TILE, 0, free, first);
        if (r >= 1 && r - 1 < tiles)
            tile_row(layers[1], images[0], images[1], (r - 1) * TILE, 0, free, NULL);
        if (r >= 2)
            tile_row(layers[2], images[1], images[2], (r - 2) * TILE, 1, free, NULL);
    }
    for (int n = 3; n < NUM_LAYERS; n++)
        for (ptrdiff_t row = 0; row < images[n - 1].rows; row += TILE)
            tile_row(layers[n], images[n - 1], images[n], row, LAYERS[n].pooled, free, NULL);
    image last = images[NUM_LAYERS - 1];
    for (ptrdiff_t c = 0; c < last.channels; c++)
        for (ptrdiff_t row = 0; row < last.rows; row++)
            for (ptrdiff_t column = 0; column < last.columns; column++)
                *features++ = at(last, row, column)[c];
}
