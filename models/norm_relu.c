/* Batch normalisation and the ReLU after it on a CPU; models/norm_relu_cpu.py calls it.

   A feature is `places` rows of `channels` values. Every thread takes rows that follow one another. Comparisons are
   written so that a NaN stays one. */

#include <math.h>
#include <omp.h>

#include "element.h"

#define TILE 64 /* rows that are read twice, the second time from the cache */

/* Rows of the calling thread: from *first up to what is returned. */
static int64_t share(int64_t places, int64_t *first) {
    int64_t each = (places + omp_get_num_threads() - 1) / omp_get_num_threads();
    *first = each * omp_get_thread_num();
    return *first + each < places ? *first + each : places;
}

/* part: threads x 4 x channels, for each thread: its count, means, squared deviations, and a tile's sums. */
void forward(const element *feature, element *restrict made, const float *weight, const float *bias,
             float *running_mean, float *running_variance, float *restrict mean, float *restrict scale,
             float *restrict part, int64_t places, int64_t channels, float momentum, float eps, int64_t threads) {
    int team = 1;
#pragma omp parallel num_threads(threads)
    {
        float *restrict count = part + 4 * channels * omp_get_thread_num();
        float *restrict middle = count + channels, *restrict squares = middle + channels;
        float *restrict tile = squares + channels;
        int64_t first, last = share(places, &first);
#pragma omp single nowait
        team = omp_get_num_threads();
        EACH_CHANNEL count[c] = middle[c] = squares[c] = 0;
        for (int64_t start = first; start < last; start += TILE) {
            int64_t end = start + TILE < last ? start + TILE : last;
            float here = end - start, before = start - first, total = here + before;
            EACH_CHANNEL tile[c] = 0;
            for (int64_t row = start; row < end; row++) {
                const element *value = feature + row * channels;
                EACH_CHANNEL tile[c] += wide(value[c]);
            }
            EACH_CHANNEL {
                tile[c] /= here;
                float apart = tile[c] - middle[c];
                squares[c] += apart * apart * before * here / total;
                middle[c] += apart * here / total;
                count[c] = total;
            }
            for (int64_t row = start; row < end; row++) {
                const element *value = feature + row * channels;
                EACH_CHANNEL {
                    float away = wide(value[c]) - tile[c];
                    squares[c] += away * away;
                }
            }
        }
    }
    EACH_CHANNEL {
        float total = part[c], middle = part[channels + c], squares = part[2 * channels + c];
        for (int thread = 1; thread < team; thread++) { /* in order, so that a sum is the same each time */
            const float *of = part + 4 * channels * thread + c;
            float here = of[0], apart = of[channels] - middle;
            if (here == 0) continue;
            squares += of[2 * channels] + apart * apart * total * here / (total + here);
            middle += apart * here / (total + here);
            total += here;
        }
        float variance = squares / places;
        mean[c] = middle;
        scale[c] = 1 / sqrtf(variance + eps);
        running_mean[c] += momentum * (middle - running_mean[c]);
        running_variance[c] += momentum * (squares / (places > 1 ? places - 1 : 1) - running_variance[c]);
        part[c] = scale[c] * weight[c];
    }
    const float *restrict factor = part;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < places; row++) {
        const element *value = feature + row * channels;
        element *to = made + row * channels;
        EACH_CHANNEL {
            float out = (wide(value[c]) - mean[c]) * factor[c] + bias[c];
            to[c] = narrow(out < 0 ? 0 : out);
        }
    }
}

/* part: threads x 2 x channels, sums of each thread, and then 3 x channels more. */
void backward(const element *feature, const element *gradient, element *restrict back, const float *mean,
              const float *scale, const float *weight, const float *bias, float *restrict weight_gradient,
              float *restrict bias_gradient, float *restrict part, int64_t places, int64_t channels, int64_t threads) {
    float *restrict factor = part + 2 * channels * threads;
    float *restrict slope = factor + channels, *restrict level = slope + channels;
    int team = 1;
    EACH_CHANNEL factor[c] = scale[c] * weight[c];
#pragma omp parallel num_threads(threads)
    {
        float *restrict plain = part + 2 * channels * omp_get_thread_num(), *restrict weighted = plain + channels;
        int64_t first, last = share(places, &first);
#pragma omp single nowait
        team = omp_get_num_threads();
        EACH_CHANNEL plain[c] = weighted[c] = 0;
        for (int64_t row = first; row < last; row++) {
            const element *value = feature + row * channels, *from = gradient + row * channels;
            EACH_CHANNEL {
                float away = wide(value[c]) - mean[c];
                float passed = away * factor[c] + bias[c] <= 0 ? 0 : wide(from[c]);
                plain[c] += passed;
                weighted[c] += passed * away;
            }
        }
    }
    EACH_CHANNEL {
        float plain = 0, weighted = 0;
        for (int thread = 0; thread < team; thread++) {
            plain += part[2 * channels * thread + c];
            weighted += part[2 * channels * thread + channels + c];
        }
        bias_gradient[c] = plain;
        weight_gradient[c] = weighted * scale[c];
        slope[c] = -factor[c] * scale[c] * weight_gradient[c] / places;
        level[c] = -factor[c] * plain / places;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < places; row++) {
        const element *value = feature + row * channels, *from = gradient + row * channels;
        element *to = back + row * channels;
        EACH_CHANNEL {
            float away = wide(value[c]) - mean[c];
            float passed = away * factor[c] + bias[c] <= 0 ? 0 : wide(from[c]);
            to[c] = narrow(passed * factor[c] + away * slope[c] + level[c]);
        }
    }
}
