// RMS norm.
#pragma once
#include <cmath>

#include "simd.h"

INLINE float inverse_rms(const float* x, int64_t size, float eps) {
  f32x16 squares = {};
  for (int64_t i = 0; i < size; i += 16) squares += load(x + i) * load(x + i);
  return 1.0f / std::sqrt(sum_of(squares) / size + eps);
}

// x += delta, then to = norm(x); sizes are multiples of 16.
INLINE void add_and_norm(float* x, const bf16* delta, const bf16* weight, int64_t size, float eps,
                         bf16* to) {
  for (int64_t i = 0; i < size; i += 16) store(x + i, load(x + i) + load_bf16(delta + i));
  float scale = inverse_rms(x, size, eps);
  for (int64_t i = 0; i < size; i += 16)
    store_bf16(to + i, load(x + i) * scale * load_bf16(weight + i));
}

INLINE void norm_in_place(float* x, const bf16* weight, int64_t size, float eps) {
  float scale = inverse_rms(x, size, eps);
  for (int64_t i = 0; i < size; i += 16) store(x + i, load(x + i) * scale * load_bf16(weight + i));
}
