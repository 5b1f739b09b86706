/* A gated mean of two features on a CPU, `decoder + sigmoid(gate) * (skip - decoder)`; gate.py calls it. */

#include <math.h>

#include "element.h"

#define EACH_VALUE _Pragma("omp parallel for simd num_threads(threads) schedule(static)") for (int64_t i = 0; i < count; i++)

/* Within 2 units in the last place, without a call, so that compilers can do it for many values at once. */
static inline float sigmoid(float x) {
    float power = -x < -87 ? -87 : -x > 87 ? 87 : -x; /* written so that a NaN stays one */
    float halvings = rintf(power * 1.44269504f);
    float rest = power - halvings * 0.693359375f - halvings * -2.12194440e-4f; /* of e^power = 2^halvings e^rest */
    float series = 1.9875691500e-4f;
    series = series * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    union { int32_t bits; float number; } scale = {((int32_t)halvings + 127) << 23};
    return 1 / (1 + (series * rest * rest + rest + 1) * scale.number);
}

void forward(const element *decoder, const element *skip, const element *gate, element *restrict made, int64_t count,
             int64_t threads) {
    EACH_VALUE {
        float from = wide(decoder[i]);
        made[i] = narrow(from + sigmoid(wide(gate[i])) * (wide(skip[i]) - from));
    }
}

void backward(const element *decoder, const element *skip, const element *gate, const element *gradient,
              element *restrict by_decoder, element *restrict by_skip, element *restrict by_gate, int64_t count,
              int64_t threads) {
    EACH_VALUE {
        float open = sigmoid(wide(gate[i])), passed = wide(gradient[i]), through = passed * open;
        by_skip[i] = narrow(through);
        by_decoder[i] = narrow(passed - through);
        by_gate[i] = narrow(through * (1 - open) * (wide(skip[i]) - wide(decoder[i])));
    }
}
