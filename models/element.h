/* What the features of a network consist of: with BFLOAT16 values of that type, else float. */

#include <stdint.h>

#ifdef BFLOAT16
typedef uint16_t element;
static inline float wide(element value) {
    union { uint32_t bits; float number; } both = {(uint32_t)value << 16};
    return both.number;
}
static inline element narrow(float value) { /* to the nearest, ties to even */
    union { float number; uint32_t bits; } both = {value};
    return value != value ? 0x7fc0 : (element)((both.bits + 0x7fff + ((both.bits >> 16) & 1)) >> 16);
}
#else
typedef float element;
static inline float wide(element value) { return value; }
static inline element narrow(float value) { return value; }
#endif

#define EACH_CHANNEL _Pragma("omp simd") for (int64_t c = 0; c < channels; c++)
