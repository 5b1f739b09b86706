/* Features of twice the sides by bilinear interpolation on a CPU; enlarge.py calls it.

   A feature is `batch` images of height × width places of `channels` values. Half a place lies between the centre of a
   place and those of the two that replace it: each is three quarters of the one it lies in and a quarter of the one
   beside, which at the border is the same one. First all is done down, into a row of `scratch`, then across. */

#include <omp.h>

#include "element.h"

static inline int64_t within(int64_t place, int64_t count) {
    return place < 0 ? 0 : place < count ? place : count - 1;
}

void forward(const element *feature, element *restrict made, float *scratch, int64_t batch, int64_t height,
             int64_t width, int64_t channels, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < batch * 2 * height; row++) {
        int64_t image = row / (2 * height), y = row % (2 * height), values = width * channels;
        const element *near = feature + (image * height + y / 2) * values;
        const element *far = feature + (image * height + within(y / 2 + (y % 2 ? 1 : -1), height)) * values;
        float *down = scratch + omp_get_thread_num() * values;
        _Pragma("omp simd")
        for (int64_t i = 0; i < values; i++) down[i] = 0.75f * wide(near[i]) + 0.25f * wide(far[i]);
        for (int64_t x = 0; x < 2 * width; x++) {
            const float *here = down + x / 2 * channels;
            const float *beside = down + within(x / 2 + (x % 2 ? 1 : -1), width) * channels;
            element *to = made + (row * 2 * width + x) * channels;
            _Pragma("omp simd")
            for (int64_t c = 0; c < channels; c++) to[c] = narrow(0.75f * here[c] + 0.25f * beside[c]);
        }
    }
}

/* A place gets back from the two that replace it and from the one beyond on either side; at the border, from itself. */
void backward(const element *gradient, element *restrict back, float *scratch, int64_t batch, int64_t height,
              int64_t width, int64_t channels, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < batch * height; row++) {
        int64_t image = row / height, y = row % height, values = 2 * width * channels;
        const element *of_image = gradient + image * 2 * height * values;
        const element *a = of_image + within(2 * y - 1, 2 * height) * values, *b = of_image + 2 * y * values;
        const element *c = b + values, *d = of_image + within(2 * y + 2, 2 * height) * values;
        float *down = scratch + omp_get_thread_num() * values;
        _Pragma("omp simd")
        for (int64_t i = 0; i < values; i++)
            down[i] = 0.75f * (wide(b[i]) + wide(c[i])) + 0.25f * (wide(a[i]) + wide(d[i]));
        for (int64_t x = 0; x < width; x++) {
            const float *first = down + within(2 * x - 1, 2 * width) * channels, *second = down + 2 * x * channels;
            const float *third = second + channels, *fourth = down + within(2 * x + 2, 2 * width) * channels;
            element *to = back + (row * width + x) * channels;
            _Pragma("omp simd")
            for (int64_t i = 0; i < channels; i++)
                to[i] = narrow(0.75f * (second[i] + third[i]) + 0.25f * (first[i] + fourth[i]));
        }
    }
}
