/* The mean gradient-magnitude similarity and its gradient on a CPU; similarity.py says what it is, and calls this.

   Images are planes of height x width values. The grey image of each scale has a border of one value, replicated. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#define EACH_PIXEL _Pragma("omp simd") for (int64_t w = 0; w < width; w++)

/* Replicate what is inside into the border. */
static void pad(float *grey, int64_t height, int64_t width) {
    int64_t stride = width + 2;
    for (int64_t h = 1; h <= height; h++) {
        float *line = grey + h * stride;
        line[0] = line[1];
        line[width + 1] = line[width];
    }
    memcpy(grey, grey + stride, stride * sizeof(float));
    memcpy(grey + (height + 1) * stride, grey + height * stride, stride * sizeof(float));
}

/* The reverse of `pad`: what the border got belongs to the values inside. */
static void unpad(float *back, int64_t height, int64_t width) {
    int64_t stride = width + 2;
    for (int64_t w = 0; w < stride; w++) {
        back[stride + w] += back[w];
        back[height * stride + w] += back[(height + 1) * stride + w];
    }
    for (int64_t h = 1; h <= height; h++) {
        float *line = back + h * stride;
        line[1] += line[0];
        line[width] += line[width + 1];
    }
}

/* Means of 2x2 values; a last row or column without a partner is left out. */
static void halve(const float *grey, float *to, int64_t height, int64_t width) {
    int64_t stride = width + 2, small = width / 2 + 2;
    for (int64_t h = 0; h < height / 2; h++) {
        const float *line = grey + (2 * h + 1) * stride + 1;
        for (int64_t w = 0; w < width / 2; w++)
            to[(h + 1) * small + w + 1] =
                (line[2 * w] + line[2 * w + 1] + line[stride + 2 * w] + line[stride + 2 * w + 1]) / 4;
    }
}

/* The reverse of `halve`: add to the gradient of the finer scale. */
static void grow(const float *small_back, float *back, int64_t height, int64_t width) {
    int64_t stride = width + 2, small = width / 2 + 2;
    for (int64_t h = 0; h < height / 2 * 2; h++) {
        float *line = back + (h + 1) * stride + 1;
        for (int64_t w = 0; w < width / 2 * 2; w++) line[w] += small_back[(h / 2 + 1) * small + w / 2 + 1] / 4;
    }
}

/* Prewitt's gradients of a line: a difference along one axis, a mean of three along the other. */
static inline void prewitt(const float *above, int64_t stride, int64_t w, float *across, float *down) {
    const float *on = above + stride, *below = on + stride;
    *across = (above[w + 2] - above[w] + on[w + 2] - on[w] + below[w + 2] - below[w]) / 3;
    *down = (below[w] - above[w] + below[w + 1] - above[w + 1] + below[w + 2] - above[w + 2]) / 3;
}

/* Return the sum of a scale's similarities; `back` becomes the gradient of `share` times it by the first image. */
static double compare(const float *first, const float *second, float *restrict back, float *restrict line,
                      int64_t height, int64_t width, float c, float share) {
    int64_t stride = width + 2;
    float *restrict by_across = line, *restrict by_down = line + width;
    double sum = 0;
    memset(back, 0, (height + 2) * stride * sizeof(float));
    for (int64_t h = 0; h < height; h++) {
        float of_line = 0;
        _Pragma("omp simd reduction(+ : of_line)") for (int64_t w = 0; w < width; w++) {
            float across, down, other_across, other_down;
            prewitt(first + h * stride, stride, w, &across, &down);
            prewitt(second + h * stride, stride, w, &other_across, &other_down);
            float one = sqrtf(across * across + down * down + 1e-12f);
            float other = sqrtf(other_across * other_across + other_down * other_down + 1e-12f);
            float squares = one * one + other * other + c, similarity = (2 * one * other + c) / squares;
            float by_one = share * 2 * (other - similarity * one) / (squares * one) / 3;
            of_line += similarity;
            by_across[w] = by_one * across;
            by_down[w] = by_one * down;
        }
        sum += of_line;
        for (int row = 0; row < 3; row++) {
            float *to = back + (h + row) * stride;
            EACH_PIXEL to[w + 2] += by_across[w];
            EACH_PIXEL to[w] -= by_across[w];
        }
        for (int column = 0; column < 3; column++) {
            float *above = back + h * stride + column, *below = above + 2 * stride;
            EACH_PIXEL below[w] += by_down[w];
            EACH_PIXEL above[w] -= by_down[w];
        }
    }
    return sum;
}

/* means: of each image, over scales of each scale's mean; by_grey: the gradient of their mean over the images by the
   first image's grey values. scratch: threads x (3 x scales x (height + 2) x (width + 2) + 2 x width). */
void forward(const float *first, const float *second, float *restrict means, float *restrict by_grey, float *scratch,
             int64_t images, int64_t channels, int64_t height, int64_t width, int64_t scales, float c,
             int64_t threads) {
    int64_t all = scales * (height + 2) * (width + 2);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t image = 0; image < images; image++) {
        float *one = scratch + omp_get_thread_num() * (3 * all + 2 * width), *other = one + all, *back = other + all;
        float *line = back + all;
        for (int which = 0; which < 2; which++) {
            const float *from = (which ? second : first) + image * channels * height * width;
            float *to = which ? other : one;
            for (int64_t h = 0; h < height; h++) {
                float *grey = to + (h + 1) * (width + 2) + 1;
                EACH_PIXEL {
                    float sum = 0;
                    for (int64_t channel = 0; channel < channels; channel++)
                        sum += from[(channel * height + h) * width + w];
                    grey[w] = sum / channels;
                }
            }
        }
        double mean = 0;
        int64_t at[16], high[16], wide[16]; /* where a scale begins, and its size */
        at[0] = 0, high[0] = height, wide[0] = width;
        for (int64_t scale = 0; scale < scales; scale++) {
            int64_t start = at[scale], h = high[scale], w = wide[scale], next = start + (h + 2) * (w + 2);
            pad(one + start, h, w);
            pad(other + start, h, w);
            mean += compare(one + start, other + start, back + start, line, h, w, c, 1.0f / (images * scales * h * w)) /
                    (scales * h * w);
            unpad(back + start, h, w);
            if (scale + 1 == scales) break;
            halve(one + start, one + next, h, w);
            halve(other + start, other + next, h, w);
            at[scale + 1] = next, high[scale + 1] = h / 2, wide[scale + 1] = w / 2;
        }
        means[image] = mean;
        for (int64_t scale = scales - 1; scale > 0; scale--)
            grow(back + at[scale], back + at[scale - 1], high[scale - 1], wide[scale - 1]);
        for (int64_t h = 0; h < height; h++) {
            const float *from = back + (h + 1) * (width + 2) + 1;
            memcpy(by_grey + (image * height + h) * width, from, width * sizeof(float));
        }
    }
}
