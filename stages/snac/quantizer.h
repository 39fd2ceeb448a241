/* SNAC's residual quantizer in FP64, which costs nothing here and leaves no rounding to compete with.
 *
 * Each sum runs over its terms in order, product and addition rounded apart (see lanes.h), with the
 * outputs in the inner loop.
 */

#include <math.h>
#include <stddef.h>

/* One level, for how many rows it chooses one entry, and its parts. */
typedef struct {
    ptrdiff_t width, points, entries, stride;
    const double *into, *into_bias; /* [width][points] */
    const double *out, *out_bias;   /* [points][width] */
    const double *codebook;         /* [entries][points] */
    const double *normalised;       /* [points][entries] */
    const double *halves;           /* half the square of a normalised entry's length: [entries] */
} level;

/* The mean of `stride` rows, projected and normalised. */
static void project(level of, const double *rows, double *point)
{
    for (ptrdiff_t d = 0; d < of.points; d++)
        point[d] = of.into_bias[d];
    for (ptrdiff_t k = 0; k < of.width; k++) {
        double mean = 0;
        for (ptrdiff_t s = 0; s < of.stride; s++)
            mean += rows[s * of.width + k];
        mean /= (double)of.stride;
        for (ptrdiff_t d = 0; d < of.points; d++)
            point[d] += mean * of.into[k * of.points + d];
    }
    double square = 0;
    for (ptrdiff_t d = 0; d < of.points; d++)
        square += point[d] * point[d];
    double length = sqrt(square);
    for (ptrdiff_t d = 0; d < of.points; d++)
        point[d] /= length > 1e-12 ? length : 1e-12;
}

/* The first of the entries that lie nearest to `point`. */
static ptrdiff_t nearest(level of, const double *point, double *likeness)
{
    for (ptrdiff_t e = 0; e < of.entries; e++)
        likeness[e] = -of.halves[e];
    for (ptrdiff_t d = 0; d < of.points; d++) {
        double value = point[d];
        const double *row = of.normalised + d * of.entries;
        for (ptrdiff_t e = 0; e < of.entries; e++)
            likeness[e] += value * row[e];
    }
    ptrdiff_t best = 0;
    for (ptrdiff_t e = 1; e < of.entries; e++)
        if (likeness[e] > likeness[best])
            best = e;
    return best;
}

/* Take what an entry stands for from `stride` rows. */
static void subtract(level of, const double *entry, double *rows, double *made)
{
    for (ptrdiff_t k = 0; k < of.width; k++)
        made[k] = of.out_bias[k];
    for (ptrdiff_t d = 0; d < of.points; d++)
        for (ptrdiff_t k = 0; k < of.width; k++)
            made[k] += entry[d] * of.out[d * of.width + k];
    for (ptrdiff_t s = 0; s < of.stride; s++)
        for (ptrdiff_t k = 0; k < of.width; k++)
            rows[s * of.width + k] -= made[k];
}

/* Choose an entry for every `stride` of `rows` rows, and take what it stands for from them.
 *
 * `residual` [rows][width]; `scratch` holds points + the larger of entries and width; `codes`
 * [rows / stride].
 */
void quantize_level(double *residual, const double *into, const double *into_bias,
                    const double *out, const double *out_bias, const double *codebook,
                    const double *normalised, const double *halves, double *scratch,
                    ptrdiff_t *codes, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t points,
                    ptrdiff_t entries, ptrdiff_t stride)
{
    level of = {width,    points,   entries,    stride, into, into_bias,
                out,      out_bias, codebook,   normalised, halves};
    for (ptrdiff_t t = 0; t < rows; t += stride, residual += stride * width) {
        project(of, residual, scratch);
        *codes = nearest(of, scratch, scratch + points);
        subtract(of, codebook + *codes++ * points, residual, scratch + points);
    }
}
