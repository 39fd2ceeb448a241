/* The convolutions of DNSMOS that windows share, multiplied in BF16. */

#define TERMS_IN_BF16
#include "layers.h"

/* The floats of the `workspace` of `bf16_shared_layers`. */
ptrdiff_t bf16_shared_floats(ptrdiff_t rows, ptrdiff_t columns)
{
    return layers_floats(rows, columns);
}

/* As `run_layers` has it. */
void bf16_shared_layers(const float *power, ptrdiff_t rows, ptrdiff_t columns, const float *first,
                        const uint16_t *const *weights, const float *const *biases,
                        float *workspace, float *features)
{
    run_layers(power, rows, columns, first, weights, biases, workspace, features);
}
