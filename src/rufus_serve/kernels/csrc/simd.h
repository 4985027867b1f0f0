// Vectors of 16 floats and of 16 pairs of bfloat16, on AVX-512 with or without BF16, and on AVX2.
//
// Arithmetic uses GCC's vector extension, which splits a vector where registers are narrower.
// Only what has no operator is written for each instruction set.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define INLINE static inline __attribute__((always_inline))

using bf16 = uint16_t;
typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

// Element 2i in the low half of lane i, element 2i + 1 in the high half.
typedef u32x16 pairs;

// What fits a register, for loops that keep many sums: split vectors would go through memory.
#ifdef __AVX512F__
typedef f32x16 native_floats;
typedef pairs native_pairs;
#else
typedef float native_floats __attribute__((vector_size(32)));
typedef uint32_t native_pairs __attribute__((vector_size(32)));
#endif
constexpr int kNativeLanes = sizeof(native_floats) / sizeof(float);

template <class Vector, class Element>
INLINE Vector load_as(const Element* from) {
  Vector vector;
  memcpy(&vector, from, sizeof(vector));
  return vector;
}

INLINE f32x16 splat(float value) { return value - f32x16{}; }
INLINE f32x16 load(const float* from) { return load_as<f32x16>(from); }
INLINE void store(float* to, f32x16 value) { memcpy(to, &value, sizeof(value)); }

INLINE u32x16 load_wide(const bf16* from) {
  return __builtin_convertvector(load_as<u16x16>(from), u32x16);
}

INLINE f32x16 load_bf16(const bf16* from) { return (f32x16)(load_wide(from) << 16); }

INLINE float to_float(bf16 value) {
  uint32_t bits = (uint32_t)value << 16;
  float wide;
  memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

// Rounds to the nearest, ties to even; NaN stays NaN.
INLINE u16x16 to_bf16(f32x16 value) {
#ifdef __AVX512BF16__
  return (u16x16)_mm512_cvtneps_pbh((__m512)value);
#else
  u32x16 bits = (u32x16)value;
  u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(value == value ? rounded : rounded * 0 + 0x7fc0, u16x16);
#endif
}

INLINE void store_bf16(bf16* to, f32x16 value) {
  u16x16 narrow = to_bf16(value);
  memcpy(to, &narrow, sizeof(narrow));
}

INLINE pairs load_pairs(const bf16* from) { return load_as<pairs>(from); }

// 16 elements, and zeros in the upper lanes.
INLINE pairs load_few_pairs(const bf16* from) {
  pairs vector = {};
  memcpy(&vector, from, sizeof(vector) / 2);
  return vector;
}

template <class Pairs = pairs>
INLINE Pairs splat_pair(const bf16* from) {
  uint32_t pair;
  memcpy(&pair, from, sizeof(pair));
  return pair - Pairs{};
}

// Whole numbers as floats. GCC 12 would widen them one by one if it were not told how.
INLINE native_floats load_int8(const int8_t* from) {
#ifdef __AVX512F__
  return (native_floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_as<__m128i>(from)));
#else
  __m128i bytes = _mm_loadl_epi64((const __m128i*)from);
  return (native_floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#endif
}

// Pairs (first[i], second[i]) of floats that bfloat16 holds exactly.
INLINE native_pairs exact_pairs(native_floats first, native_floats second) {
  return (native_pairs)first >> 16 | (native_pairs)second;
}

// sum + a[2i] * b[2i] + a[2i + 1] * b[2i + 1] in lane i.
template <class Floats, class Pairs>
INLINE Floats dot(Floats sum, Pairs a, Pairs b) {
#ifdef __AVX512BF16__
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum += (Floats)(a << 16) * (Floats)(b << 16);
  return sum + (Floats)(a & 0xffff0000u) * (Floats)(b & 0xffff0000u);
#endif
}

INLINE f32x16 larger(f32x16 a, f32x16 b) {
#ifdef __AVX512F__
  return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

#ifndef __AVX512F__
INLINE native_floats larger(native_floats a, native_floats b) {
  return (native_floats)_mm256_max_ps((__m256)a, (__m256)b);
}
#endif

// Bit i: whether lane i is at or above `bound`.
INLINE uint32_t lanes_from(native_floats value, float bound) {
#ifdef __AVX512F__
  return _mm512_cmp_ps_mask((__m512)value, _mm512_set1_ps(bound), _CMP_GE_OQ);
#else
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)value, _mm256_set1_ps(bound), _CMP_GE_OQ));
#endif
}

INLINE float sum_of(f32x16 value) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)value);
#else
  float sum = 0;
  for (int lane = 0; lane < 16; lane++) sum += value[lane];
  return sum;
#endif
}

INLINE float largest_of(f32x16 value) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps((__m512)value);
#else
  float largest = value[0];
  for (int lane = 1; lane < 16; lane++) largest = value[lane] > largest ? value[lane] : largest;
  return largest;
#endif
}

#ifndef __AVX512F__
INLINE float largest_of(native_floats value) {
  __m128 few = _mm_max_ps(_mm256_castps256_ps128((__m256)value),
                          _mm256_extractf128_ps((__m256)value, 1));
  few = _mm_max_ps(few, _mm_movehl_ps(few, few));
  return _mm_cvtss_f32(_mm_max_ss(few, _mm_movehdup_ps(few)));
}
#endif

INLINE i32x16 lane_numbers() { return i32x16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

// exp, to 2e-7 relative; arguments below -87 count as -87, above 88 as 88.
INLINE f32x16 exp_of(f32x16 x) {
  x = larger(x, splat(-87.0f));
  x = x < 88.0f ? x : splat(88.0f);
  const float round_by = 12582912.0f;  // 1.5 * 2^23: what is added to it loses its fraction
  f32x16 n = (x * 1.44269504f + round_by) - round_by;
  f32x16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
  f32x16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * (f32x16)((__builtin_convertvector(n, i32x16) + 127) << 23);
}

// 2^x of x <= 0, to 3e-6 relative: enough for what bfloat16 holds. Below -126 it may be 0.
INLINE f32x16 power_of_two(f32x16 x) {
#ifdef __AVX512F__
  f32x16 n = (f32x16)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
  x = larger(x, splat(-127.0f));
  const float round_by = 12582912.0f;  // 1.5 * 2^23, as above
  f32x16 n = (x + round_by) - round_by;
#endif
  f32x16 r = x - n;
  f32x16 p = splat(9.58285e-3f);
  p = p * r + 5.590642e-2f;
  p = p * r + 2.4024099e-1f;
  p = p * r + 6.9312419e-1f;
  p = p * r + 1.0f;
#ifdef __AVX512F__
  return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return p * (f32x16)((__builtin_convertvector(n, i32x16) + 127) << 23);
#endif
}

// 2^x of x <= 0, to 2e-7 relative; below -126 that of -126, and NaN of NaN.
INLINE native_floats exact_power_of_two(native_floats x) {
  x = larger(native_floats{} - 126.0f, x);
#ifdef __AVX512F__
  native_floats n = (native_floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
  native_floats n = (native_floats)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#endif
  native_floats r = x - n;
  native_floats p = native_floats{} + 1.3264725e-3f;
  p = p * r + 9.6715130e-3f;
  p = p * r + 5.5507336e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.9314700e-1f;
  p = p * r + 1.0f;
#ifdef __AVX512F__
  return (native_floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32((__m256)n), _mm256_set1_epi32(127));
  return p * (native_floats)_mm256_slli_epi32(exponent, 23);
#endif
}

#ifdef __AVX512F__

// Lane i: the sum of vectors[i].
INLINE f32x16 sums_of(const f32x16 (&vectors)[16]) {
  __m512 v[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    __m512 a = (__m512)vectors[i], b = (__m512)vectors[i + 8];
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[i], v[i + 4], 0x88),
                         _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd));
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++)
    v[i] = _mm512_add_ps(_mm512_shuffle_ps(v[i], v[i + 2], 0x44),
                         _mm512_shuffle_ps(v[i], v[i + 2], 0xee));
  v[0] = _mm512_add_ps(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));
  // By now the sums lie as 0 2 1 3 | 8 10 9 11 | 4 6 5 7 | 12 14 13 15.
  const __m512i order =
      _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  return (f32x16)_mm512_permutexvar_ps(order, v[0]);
}

// Pairs (a[i], b[i]) of 32 elements each: half of them in `low`, half in `high`.
INLINE void interleave(pairs a, pairs b, pairs& low, pairs& high) {
  low = (pairs)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b);
  high = (pairs)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b);
}

#else

struct Halves {
  __m256 low, high;
};

INLINE Halves halves(f32x16 vector) { return load_as<Halves>((const float*)&vector); }

INLINE __m256 sums_of_4(const f32x16* vectors) {
  __m256 sums[4];
  for (int i = 0; i < 4; i++) {
    Halves half = halves(vectors[i]);
    sums[i] = _mm256_add_ps(half.low, half.high);
  }
  return _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
}

INLINE f32x16 sums_of(const f32x16 (&vectors)[16]) {
  f32x16 result;
  for (int i = 0; i < 4; i++) {
    __m256 sums = sums_of_4(vectors + 4 * i);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    memcpy((float*)&result + 4 * i, &four, sizeof(four));
  }
  return result;
}

INLINE void interleave(pairs a, pairs b, pairs& low, pairs& high) {
  __m256i result[4];
  for (int half = 0; half < 2; half++) {
    __m256i x = load_as<__m256i>((const char*)&a + 32 * half);
    __m256i y = load_as<__m256i>((const char*)&b + 32 * half);
    result[half] = _mm256_unpacklo_epi16(x, y);
    result[2 + half] = _mm256_unpackhi_epi16(x, y);
  }
  memcpy(&low, result, sizeof(low));
  memcpy(&high, result + 2, sizeof(high));
}

#endif

// Stores sums made from interleaved pairs in the order of the elements.
INLINE void store_interleaved(float* to, f32x16 low, f32x16 high) {
  for (int lane = 0; lane < 4; lane++) {
    memcpy(to + 8 * lane, (const float*)&low + 4 * lane, 16);
    memcpy(to + 8 * lane + 4, (const float*)&high + 4 * lane, 16);
  }
}
