/* Cosine distance and squared difference of two features on a CPU, by place; feature_distance.py calls it. */

#include <math.h>

#include "element.h"

#define SHORTEST 1e-8f /* a feature below it has no direction */
#define EACH_ROW _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t row = 0; row < rows; row++)

/* Of each row of places the sums of both; of each place what its gradient consists of, `along` and `across`: that of the
   cosine distance is across * made - along * wanted. */
void forward(const element *made, const float *wanted, float *restrict cosine, float *restrict squared,
             float *restrict along, float *restrict across, int64_t rows, int64_t places, int64_t channels,
             int64_t threads) {
    EACH_ROW {
        float distances = 0, differences = 0;
        for (int64_t place = row * places; place < (row + 1) * places; place++) {
            const element *m = made + place * channels;
            const float *w = wanted + place * channels;
            float product = 0, of_made = 0, of_wanted = 0, difference = 0;
            _Pragma("omp simd reduction(+ : product, of_made, of_wanted, difference)")
            for (int64_t c = 0; c < channels; c++) {
                float one = wide(m[c]), other = w[c];
                product += one * other;
                of_made += one * one;
                of_wanted += other * other;
                difference += (one - other) * (one - other);
            }
            float length = sqrtf(of_made), lengths = fmaxf(length, SHORTEST) * fmaxf(sqrtf(of_wanted), SHORTEST);
            along[place] = 1 / lengths;
            across[place] = length < SHORTEST ? 0 : product / (lengths * of_made);
            distances += 1 - product / lengths;
            differences += difference;
        }
        cosine[row] = distances;
        squared[row] = differences;
    }
}

/* `turn` and `pull`: how much the cosine distance of a place and the difference of a value weigh. */
void backward(const element *made, const float *wanted, const float *along, const float *across,
              element *restrict by_made, int64_t rows, int64_t places, int64_t channels, float turn, float pull,
              int64_t threads) {
    EACH_ROW {
        for (int64_t place = row * places; place < (row + 1) * places; place++) {
            const element *m = made + place * channels;
            const float *w = wanted + place * channels;
            element *by = by_made + place * channels;
            float of_made = turn * across[place] + pull, of_wanted = turn * along[place] + pull;
            _Pragma("omp simd")
            for (int64_t c = 0; c < channels; c++) by[c] = narrow(of_made * wide(m[c]) - of_wanted * w[c]);
        }
    }
}
