/* DNSMOS' log power spectrogram: the Fourier transform as a product in FP32, the rest in FP64.
 *
 * The logarithm is computed here, because that of a C library differs by version and CPU. In FP64
 * every product and addition is rounded apart (see lanes.h), so all CPUs give the same bits.
 */

#include <stdint.h>
#include <string.h>

#include "products.h"

static const double MIN_POWER = 1e-12; /* the model's */

/* log10 of a positive normal number, to some 1e-16 of the larger of it and 1.
 *
 * x = 2^exponent m with m between sqrt(1/2) and sqrt(2); ln m = 2 atanh(s), s = (m - 1) / (m + 1), by
 * its series, whose first term left out is below 1e-17.
 */
INLINE double decimal_logarithm(double x)
{
    const int64_t one = 0x3ff0000000000000, root = 0x3fe6a09e667f3bcd; /* 1 and sqrt(1/2) */
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits += one - root;
    double exponent = (double)((bits >> 52) - 1023), m;
    bits = (bits & 0x000fffffffffffff) + root;
    memcpy(&m, &bits, sizeof m);
    double s = (m - 1) / (m + 1), z = s * s, sum = 1.0 / 21;
    for (int n = 19; n > 0; n -= 2)
        sum = sum * z + 1.0 / n;
    return exponent * 0.30102999566398120 + 2 * s * sum * 0.43429448190325182;
}

/* Frames [rows][samples] to log10 of their power [rows][bins].
 *
 * `panels`: the real and then the imaginary parts of the filters, 2 * bins outputs and as many more as
 * fill a panel; `products` [rows][outputs] is overwritten.
 */
void log_power(const float *frames, const float *panels, float *products, float *power,
               ptrdiff_t rows, ptrdiff_t samples, ptrdiff_t outputs, ptrdiff_t bins)
{
    matrix from = {(float *)frames, samples}, to = {products, outputs};
    memset(products, 0, sizeof(float) * rows * outputs);
    add_products(from, panels, to, rows, samples, outputs);
    for (ptrdiff_t row = 0; row < rows; row++, products += outputs, power += bins)
        for (ptrdiff_t bin = 0; bin < bins; bin++) {
            double real = products[bin], imaginary = products[bins + bin];
            double square = real * real + imaginary * imaginary;
            power[bin] = (float)decimal_logarithm(square > MIN_POWER ? square : MIN_POWER);
        }
}
