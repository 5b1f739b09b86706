/* Structural similarity and its gradient on a CPU; similarity.py says what it is, and calls this.

   Images are planes of height x width values. The window is applied along rows, then along columns; borders are
   mirrored. Values are shifted by a half: smaller squares lose fewer digits in the differences below. */

#include <omp.h>
#include <stdint.h>
#include <string.h>

#define RADIUS 5 /* of the window */
#define TAPS (2 * RADIUS + 1)
#define EACH_PIXEL _Pragma("omp simd") for (int64_t w = 0; w < width; w++)

static int64_t mirrored(int64_t at, int64_t side) { return at < 0 ? -at : at < side ? at : 2 * (side - 1) - at; }

/* scratch: threads x (4 x height x width + 5 x width + TAPS). The derivatives of the map are those by the window's
   mean of the first image, of the squares and of the product. */
void forward(const float *first, const float *second, const float *window, float *map, float *by_mean,
             float *by_squares, float *by_product, float *scratch, int64_t planes, int64_t height, int64_t width,
             float c1, float c2, int64_t threads) {
    int64_t size = height * width;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t plane = 0; plane < planes; plane++) {
        float *across = scratch + omp_get_thread_num() * (4 * size + 5 * width + TAPS);
        float *down = across + 4 * size, *line = down + 4 * width + RADIUS;
        for (int64_t h = 0; h < height; h++) {
            const float *x = first + plane * size + h * width, *y = second + plane * size + h * width;
            for (int kind = 0; kind < 4; kind++) {
                EACH_PIXEL {
                    float a = x[w] - 0.5f, b = y[w] - 0.5f;
                    line[w] = kind == 0 ? a : kind == 1 ? b : kind == 2 ? a * a + b * b : a * b;
                }
                for (int64_t w = 1; w <= RADIUS; w++) {
                    line[-w] = line[w];
                    line[width - 1 + w] = line[width - 1 - w];
                }
                float *restrict to = across + kind * size + h * width;
                memset(to, 0, width * sizeof(float));
                for (int k = 0; k < TAPS; k++) EACH_PIXEL to[w] += window[k] * line[w + k - RADIUS];
            }
        }
        for (int64_t h = 0; h < height; h++) {
            memset(down, 0, 4 * width * sizeof(float));
            for (int kind = 0; kind < 4; kind++)
                for (int k = 0; k < TAPS; k++) {
                    const float *from = across + kind * size + mirrored(h + k - RADIUS, height) * width;
                    float *restrict to = down + kind * width;
                    EACH_PIXEL to[w] += window[k] * from[w];
                }
            float *restrict made = map + plane * size + h * width;
            float *restrict mean = by_mean + plane * size + h * width;
            float *restrict squares = by_squares + plane * size + h * width;
            float *restrict product = by_product + plane * size + h * width;
            EACH_PIXEL {
                float a = down[w], b = down[width + w];
                float spread = down[2 * width + w] - a * a - b * b + c2;
                float structure = (2 * (down[3 * width + w] - a * b) + c2) / spread;
                float light = a + 0.5f, other = b + 0.5f, lights = light * light + other * other + c1;
                float luminance = (2 * light * other + c1) / lights;
                made[w] = luminance * structure;
                product[w] = 2 * luminance / spread;
                squares[w] = -luminance * structure / spread;
                mean[w] = 2 * structure * (other - luminance * light) / lights - 2 * a * squares[w] - b * product[w];
            }
        }
    }
}

/* The first image's gradient. scratch: threads x (3 x height x width + width + TAPS). */
void backward(const float *first, const float *second, const float *window, const float *gradient,
              const float *by_mean, const float *by_squares, const float *by_product, float *back, float *scratch,
              int64_t planes, int64_t height, int64_t width, int64_t threads) {
    int64_t size = height * width;
    const float *derivatives[3] = {by_mean, by_squares, by_product};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t plane = 0; plane < planes; plane++) {
        float *down = scratch + omp_get_thread_num() * (3 * size + width + TAPS);
        float *line = down + 3 * size;
        memset(down, 0, 3 * size * sizeof(float));
        for (int64_t h = 0; h < height; h++) {
            const float *from = gradient + plane * size + h * width;
            for (int kind = 0; kind < 3; kind++) {
                const float *by = derivatives[kind] + plane * size + h * width;
                EACH_PIXEL line[w] = by[w] * from[w];
                for (int k = 0; k < TAPS; k++) {
                    float *restrict to = down + kind * size + mirrored(h + k - RADIUS, height) * width;
                    EACH_PIXEL to[w] += window[k] * line[w];
                }
            }
        }
        for (int64_t h = 0; h < height; h++) {
            const float *x = first + plane * size + h * width, *y = second + plane * size + h * width;
            float *restrict to = back + plane * size + h * width;
            for (int kind = 0; kind < 3; kind++) {
                const float *from = down + kind * size + h * width;
                memset(line, 0, (width + 2 * RADIUS) * sizeof(float));
                for (int k = 0; k < TAPS; k++) EACH_PIXEL line[w + k] += window[k] * from[w];
                for (int64_t w = 1; w <= RADIUS; w++) { /* what fell over the borders comes back mirrored */
                    line[RADIUS + w] += line[RADIUS - w];
                    line[RADIUS + width - 1 - w] += line[RADIUS + width - 1 + w];
                }
                EACH_PIXEL {
                    float sum = line[w + RADIUS];
                    to[w] = kind == 0   ? sum
                            : kind == 1 ? to[w] + 2 * (x[w] - 0.5f) * sum
                                        : to[w] + (y[w] - 0.5f) * sum;
                }
            }
        }
    }
}
