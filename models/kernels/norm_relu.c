/* Batch normalisation and the ReLU after it on a CPU; norm_relu_cpu.py calls it.

   A feature is `places` rows of `channels` values. Every thread takes rows that follow one another, a tile of them at a
   time, and of a tile one group of channels after the other: what belongs to a group stays in registers. Comparisons
   are written so that a NaN stays one. */

#include <math.h>
#include <omp.h>
#include <string.h>

#include "element.h"

#define TILE 64 /* rows that are read again from the cache */

/* Rows of the calling thread: from *first up to what is returned. */
static int64_t share(int64_t places, int64_t *first) {
    int64_t each = (places + omp_get_num_threads() - 1) / omp_get_num_threads();
    *first = each * omp_get_thread_num();
    return *first + each < places ? *first + each : places;
}

/* Add a tile of rows to the count, means and squared deviations of those before it. */
INLINE void gather(int width, int64_t group, const element *value, int64_t rows, int64_t before, int64_t channels,
                   float *middles, float *squares) {
    float sum[GROUP] = {0}, square[GROUP] = {0};
    value += group, middles += group, squares += group;
    for (int64_t row = 0; row < rows; row++) EACH sum[c] += wide(value[row * channels + c]);
    EACH sum[c] /= rows;
    for (int64_t row = 0; row < rows; row++) EACH {
        float away = wide(value[row * channels + c]) - sum[c];
        square[c] += away * away;
    }
    float part = (float)rows / (before + rows);
    EACH {
        float apart = sum[c] - middles[c];
        squares[c] += square[c] + apart * apart * before * part;
        middles[c] += apart * part;
    }
}

INLINE void apply(int width, int64_t group, const element *value, element *to, int64_t rows, int64_t channels,
                  const float *means, const float *factors, const float *biases) {
    float mean[GROUP], factor[GROUP], bias[GROUP];
    EACH mean[c] = means[group + c], factor[c] = factors[group + c], bias[c] = biases[group + c];
    value += group, to += group;
    for (int64_t row = 0; row < rows; row++) EACH {
        float out = (wide(value[row * channels + c]) - mean[c]) * factor[c] + bias[c];
        to[row * channels + c] = narrow(out < 0 ? 0 : out);
    }
}

/* part: threads x 2 x channels, for each thread its means and squared deviations; the first is used for the whole. */
void forward(const element *feature, const float *weight, const float *bias, element *restrict made,
             float *restrict mean, float *restrict variance, float *restrict scale, float *restrict part,
             int64_t places, int64_t channels, float eps, int64_t threads) {
    int team = 1;
    memset(part, 0, sizeof(float) * 2 * channels * threads);
#pragma omp parallel num_threads(threads)
    {
        float *middles = part + 2 * channels * omp_get_thread_num(), *squares = middles + channels;
        int64_t first, last = share(places, &first);
#pragma omp single nowait
        team = omp_get_num_threads();
        for (int64_t start = first; start < last; start += TILE) {
            int64_t rows = last - start < TILE ? last - start : TILE;
            IN_GROUPS(gather, feature + start * channels, rows, start - first, channels, middles, squares)
        }
    }
    int64_t each = (places + team - 1) / team;
    for (int64_t c = 0; c < channels; c++) {
        float total = 0, middle = 0, squares = 0;
        for (int thread = 0; thread < team && each * thread < places; thread++) { /* in order: the same sum each time */
            int64_t left = places - each * thread;
            const float *of = part + 2 * channels * thread + c;
            float here = left < each ? left : each, apart = of[0] - middle;
            squares += of[channels] + apart * apart * total * here / (total + here);
            middle += apart * here / (total + here);
            total += here;
        }
        mean[c] = middle;
        variance[c] = squares / (places > 1 ? places - 1 : 1);
        scale[c] = 1 / sqrtf(squares / places + eps);
        part[c] = scale[c] * weight[c];
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t start = 0; start < places; start += TILE) {
        int64_t rows = places - start < TILE ? places - start : TILE, at = start * channels;
        IN_GROUPS(apply, feature + at, made + at, rows, channels, mean, part, bias)
    }
}

INLINE void weigh(int width, int64_t group, const element *value, const element *from, int64_t rows, int64_t channels,
                  const float *means, const float *factors, const float *biases, float *plains, float *weighteds) {
    float mean[GROUP], factor[GROUP], bias[GROUP], plain[GROUP] = {0}, weighted[GROUP] = {0};
    EACH mean[c] = means[group + c], factor[c] = factors[group + c], bias[c] = biases[group + c];
    value += group, from += group;
    for (int64_t row = 0; row < rows; row++) EACH {
        float away = wide(value[row * channels + c]) - mean[c];
        float passed = away * factor[c] + bias[c] <= 0 ? 0 : wide(from[row * channels + c]);
        plain[c] += passed;
        weighted[c] += passed * away;
    }
    EACH plains[group + c] += plain[c], weighteds[group + c] += weighted[c];
}

INLINE void pass_back(int width, int64_t group, const element *value, const element *from, element *to, int64_t rows,
                      int64_t channels, const float *means, const float *factors, const float *biases,
                      const float *slopes, const float *levels) {
    float mean[GROUP], factor[GROUP], bias[GROUP], slope[GROUP], level[GROUP];
    EACH mean[c] = means[group + c], factor[c] = factors[group + c], bias[c] = biases[group + c];
    EACH slope[c] = slopes[group + c], level[c] = levels[group + c];
    value += group, from += group, to += group;
    for (int64_t row = 0; row < rows; row++) EACH {
        float away = wide(value[row * channels + c]) - mean[c];
        float passed = away * factor[c] + bias[c] <= 0 ? 0 : wide(from[row * channels + c]);
        to[row * channels + c] = narrow(passed * factor[c] + away * slope[c] + level[c]);
    }
}

/* part: threads x 2 x channels, sums of each thread, and then 3 x channels more. */
void backward(const element *feature, const float *weight, const float *bias, const float *mean, const float *scale,
              const element *gradient, element *restrict back, float *restrict weight_gradient,
              float *restrict bias_gradient, float *restrict part, int64_t places, int64_t channels, int64_t threads) {
    float *restrict factor = part + 2 * channels * threads;
    float *restrict slope = factor + channels, *restrict level = slope + channels;
    memset(part, 0, sizeof(float) * 2 * channels * threads);
    for (int64_t c = 0; c < channels; c++) factor[c] = scale[c] * weight[c];
#pragma omp parallel num_threads(threads)
    {
        float *plain = part + 2 * channels * omp_get_thread_num(), *weighted = plain + channels;
        int64_t first, last = share(places, &first);
        for (int64_t start = first; start < last; start += TILE) {
            int64_t rows = last - start < TILE ? last - start : TILE, at = start * channels;
            IN_GROUPS(weigh, feature + at, gradient + at, rows, channels, mean, factor, bias, plain, weighted)
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        float plain = 0, weighted = 0;
        for (int64_t thread = 0; thread < threads; thread++) {
            plain += part[2 * channels * thread + c];
            weighted += part[2 * channels * thread + channels + c];
        }
        bias_gradient[c] = plain;
        weight_gradient[c] = weighted * scale[c];
        slope[c] = -factor[c] * scale[c] * weight_gradient[c] / places;
        level[c] = -factor[c] * plain / places;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t start = 0; start < places; start += TILE) {
        int64_t rows = places - start < TILE ? places - start : TILE, at = start * channels;
        IN_GROUPS(pass_back, feature + at, gradient + at, back + at, rows, channels, mean, factor, bias, slope, level)
    }
}
