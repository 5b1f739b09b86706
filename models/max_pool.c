/* Maxima of 2x2 places on a CPU; models/max_pool.py calls it.

   A feature is `lines` of `width` places of `channels` values; lines and width are even. Of equal values the first one
   is the maximum, and so is a NaN. */

#include <omp.h>

#include "element.h"

/* Of two values the one to keep: 1 for the later one. */
static inline int later(element first, element second) {
    return wide(second) > wide(first) || wide(second) != wide(second);
}

void forward(const element *feature, element *restrict made, int64_t lines, int64_t width, int64_t channels,
             int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t line = 0; line < lines / 2; line++)
        for (int64_t place = 0; place < width / 2; place++) {
            const element *above = feature + (2 * line * width + 2 * place) * channels;
            const element *below = above + width * channels;
            element *to = made + (line * (width / 2) + place) * channels;
            EACH_CHANNEL {
                element most = above[c], next = above[channels + c];
                most = later(most, next) ? next : most;
                next = below[c];
                most = later(most, next) ? next : most;
                next = below[channels + c];
                to[c] = later(most, next) ? next : most;
            }
        }
}

void backward(const element *feature, const element *gradient, element *restrict back, int64_t lines, int64_t width,
              int64_t channels, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t line = 0; line < lines / 2; line++)
        for (int64_t place = 0; place < width / 2; place++) {
            int64_t at = (2 * line * width + 2 * place) * channels, under = at + width * channels;
            const element *above = feature + at, *below = feature + under;
            const element *from = gradient + (line * (width / 2) + place) * channels;
            EACH_CHANNEL {
                element most = above[c], next = above[channels + c];
                int second = later(most, next);
                most = second ? next : most;
                next = below[c];
                int third = later(most, next);
                most = third ? next : most;
                int fourth = later(most, below[channels + c]);
                element passed = from[c];
                back[at + c] = second || third || fourth ? 0 : passed;
                back[at + channels + c] = second && !third && !fourth ? passed : 0;
                back[under + c] = third && !fourth ? passed : 0;
                back[under + channels + c] = fourth ? passed : 0;
            }
        }
}
