/* Maxima of 2x2 places on a CPU; max_pool.py calls it.

   A feature is `lines` of `width` places of `channels` values; lines and width are even. Of equal values the first one
   is the maximum, and so is a NaN. */

#include <omp.h>

#include "element.h"

/* Of two values the one to keep: 1 for the later one. */
static inline int later(element first, element second) {
    return wide(second) > wide(first) || wide(second) != wide(second);
}

/* The place, 0 to 3, of the maximum of two rows of two. */
static inline int largest(element a, element b, element c, element d) {
    int at = later(a, b);
    element most = at ? b : a;
    at = later(most, c) ? 2 : at;
    most = at == 2 ? c : most;
    return later(most, d) ? 3 : at;
}

INLINE void keep(int width, int64_t group, const element *above, const element *below, element *to, int64_t channels) {
    above += group, below += group, to += group;
    EACH {
        element a = above[c], b = above[channels + c], l = below[c], r = below[channels + c];
        int at = largest(a, b, l, r);
        to[c] = at == 0 ? a : at == 1 ? b : at == 2 ? l : r;
    }
}

void forward(const element *feature, element *restrict made, int64_t lines, int64_t width, int64_t channels,
             int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t line = 0; line < lines / 2; line++)
        for (int64_t place = 0; place < width / 2; place++) {
            const element *above = feature + (2 * line * width + 2 * place) * channels;
            element *to = made + (line * (width / 2) + place) * channels;
            IN_GROUPS(keep, above, above + width * channels, to, channels)
        }
}

INLINE void give_back(int width, int64_t group, const element *above, const element *below, const element *from,
                      element *restrict over, element *restrict under, int64_t channels) {
    above += group, below += group, from += group, over += group, under += group;
    EACH {
        int at = largest(above[c], above[channels + c], below[c], below[channels + c]);
        over[c] = at == 0 ? from[c] : 0;
        over[channels + c] = at == 1 ? from[c] : 0;
        under[c] = at == 2 ? from[c] : 0;
        under[channels + c] = at == 3 ? from[c] : 0;
    }
}

void backward(const element *feature, const element *gradient, element *restrict back, int64_t lines, int64_t width,
              int64_t channels, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t line = 0; line < lines / 2; line++)
        for (int64_t place = 0; place < width / 2; place++) {
            int64_t at = (2 * line * width + 2 * place) * channels, down = width * channels;
            const element *above = feature + at, *from = gradient + (line * (width / 2) + place) * channels;
            IN_GROUPS(give_back, above, above + down, from, back + at, back + at + down, channels)
        }
}
