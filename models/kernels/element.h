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

/* Channels are computed in groups, so that what belongs to a group stays in registers: `IN_GROUPS(function, ...)` calls
   `function(width, group, ...)` for each, with a width that the compiler knows and the group's first channel. */
#define GROUP 64 /* channels at most */
#define INLINE static inline __attribute__((always_inline))
#define EACH _Pragma("omp simd") for (int c = 0; c < width; c++)
#define IN_GROUPS(function, ...)                                                                                       \
    for (int64_t group = 0, left; (left = channels - group) > 0;) {                                                    \
        if (left >= 64) function(64, group, __VA_ARGS__), group += 64;                                                 \
        else if (left >= 32) function(32, group, __VA_ARGS__), group += 32;                                            \
        else if (left >= 16) function(16, group, __VA_ARGS__), group += 16;                                            \
        else if (left >= 8) function(8, group, __VA_ARGS__), group += 8;                                               \
        else function((int)left, group, __VA_ARGS__), group = channels;                                                \
    }
