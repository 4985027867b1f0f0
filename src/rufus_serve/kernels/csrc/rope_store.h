// What lies between the projection and attention: q and k norms, rotation, and the KV cache.
#pragma once
#include "abi.h"
#include "norm.h"

constexpr int kMaxHeadSize = 256;

// Turns a head by its position's angles: its halves are the pairs' coordinates.
INLINE void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i++) {
    float x = head[i], y = head[i + half];
    head[i] = x * cos[i] - y * sin[i];
    head[i + half] = y * cos[i] + x * sin[i];
  }
}

INLINE void narrow(const float* from, bf16* to, int64_t size) {
  for (int64_t i = 0; i < size; i += 16) store_bf16(to + i, load(from + i));
}

// One token: `projected` [(Q + 2H) D] -> `queries` [Q D], and its key and value into the cache.
static void rope_store(const Model& model, const Layer& layer, const Cache& cache, float* projected,
                       int64_t position, int64_t slot, bf16* queries) {
  const int64_t size = model.head_size, num_turned = model.num_q_heads + model.num_kv_heads;
  const int64_t half = size / 2;
  for (int64_t head = 0; head < num_turned + model.num_kv_heads; head++) {
    float* values = projected + head * size;
    const bool is_query = head < model.num_q_heads;
    if (head < num_turned) {
      const bf16* norm = is_query ? layer.q_norm : layer.k_norm;
      if (norm) norm_in_place(values, norm, size, model.rms_norm_eps);
      rotate(values, model.cos + position * half, model.sin + position * half, half);
    }
    int64_t stored = (head - model.num_q_heads) * cache.num_slots + slot;
    narrow(values, is_query ? queries + head * size : cache.slots + stored * size, size);
  }
}
