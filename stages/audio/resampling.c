/* A windowed sinc at fixed phases. FP64 holds the product of two floats exactly, so that only the order
 * of a sum matters, which is that of its terms here and in resampling.py: all CPUs give the same bits.
 */

#include <stddef.h>

/* out[n] = sum over k of taps[n % phases][k] * audio[n / phases * step + first[n % phases] + k]
 *
 * `audio` is padded with zeros, so that every term exists; `taps` [phases][width].
 */
void resample(const float *audio, const double *taps, const ptrdiff_t *first, float *out,
              ptrdiff_t samples, ptrdiff_t step, ptrdiff_t phases, ptrdiff_t width)
{
    for (ptrdiff_t n = 0; n < samples; audio += step)
        for (ptrdiff_t phase = 0; phase < phases && n < samples; phase++, n++) {
            const float *from = audio + first[phase];
            const double *tap = taps + phase * width;
            double sum = 0;
            for (ptrdiff_t k = 0; k < width; k++)
                sum += tap[k] * (double)from[k];
            out[n] = (float)sum;
        }
}
