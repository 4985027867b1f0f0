// Attention of one query per head over a segment of a sequence's keys, straight from the cache.
//
// A segment's softmax is partial; `merge` joins those of a sequence. Segments have a fixed size,
// so that a sequence's result depends neither on the others of the step nor on the threads.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "abi.h"
#include "rope_store.h"

constexpr int64_t kSegment = 256;  // keys
constexpr int64_t kGroup = 16;     // keys whose scores fill one vector
constexpr int kHeadsTogether = 4;  // query heads of one KV head that share a pass over the keys
constexpr float kHidden = -std::numeric_limits<float>::infinity();

// Keys and values of one KV head of one sequence.
struct HeadCache {
  const bf16* keys;
  const bf16* values;
  const int64_t* blocks;
  int64_t block_size, head_size;

  HeadCache(const Cache& cache, const Model& model, const int64_t* sequence_blocks, int64_t head)
      : keys(cache.slots + head * cache.num_slots * model.head_size),
        values(keys + model.num_kv_heads * cache.num_slots * model.head_size),
        blocks(sequence_blocks),
        block_size(cache.block_size),
        head_size(model.head_size) {}

  int64_t offset(int64_t key) const {
    return (blocks[key / block_size] * block_size + key % block_size) * head_size;
  }
};

// A group's rows one after the other: in the cache itself where blocks hold whole groups, else
// copied to `copy`. Rows from `end` on hold anything.
INLINE const bf16* group_rows(const HeadCache& cache, const bf16* from, int64_t key, int64_t end,
                              bf16* copy) {
  if (cache.block_size % kGroup == 0) return from + cache.offset(key);
  for (int64_t i = 0; i < kGroup; i++)
    memcpy(copy + i * cache.head_size, from + cache.offset(std::min(key + i, end - 1)),
           cache.head_size * sizeof(bf16));
  return copy;
}

// Scores of 16 keys, unscaled.
INLINE f32x16 scores_of(const bf16* query, const bf16* keys, int64_t head_size) {
  f32x16 sums[kGroup] = {};
  int64_t i = 0;
  for (; i + 32 <= head_size; i += 32) {
    pairs part = load_pairs(query + i);
#pragma GCC unroll 16
    for (int key = 0; key < kGroup; key++)
      sums[key] = dot(sums[key], load_pairs(keys + key * head_size + i), part);
  }
  if (i < head_size)
    for (int key = 0; key < kGroup; key++)
      sums[key] = dot(sums[key], load_few_pairs(keys + key * head_size + i),
                      load_few_pairs(query + i));
  return sums_of(sums);
}

INLINE void prefetch_rows(const bf16* rows, int64_t head_size) {
  for (int64_t i = 0; i < kGroup * head_size; i += 32) __builtin_prefetch(rows + i);
}

// What kHeads heads make of one segment; the arrays are [heads], [heads][D] for `sums`.
struct Partial {
  float* sums;
  float* largest;
  float* total;
};

// sums[h] += weights[h] * values over keys [begin, end), for kWidth * 32 columns from `column` on.
template <int kHeads, int kWidth>
static void weigh(const HeadCache& cache, const bf16 (*weights)[kSegment], int64_t begin,
                  int64_t end, int64_t column, float* sums) {
  alignas(64) bf16 copy[kGroup * kMaxHeadSize];
  const int64_t size = cache.head_size;
  const bool is_half = size - column < 32;
  const auto load_row = [&](const bf16* row) {
    return is_half ? load_few_pairs(row) : load_pairs(row);
  };
  f32x16 low[kHeads][kWidth] = {}, high[kHeads][kWidth] = {};
  for (int64_t key = begin; key < end; key += kGroup) {
    const bf16* rows = group_rows(cache, cache.values, key, end, copy) + column;
    const int64_t count = std::min(kGroup, end - key);
    for (int64_t i = 0; i < count; i += 2, rows += 2 * size) {
      pairs even[kWidth], odd[kWidth];
#pragma GCC unroll 2
      for (int part = 0; part < kWidth; part++) {
        pairs first = load_row(rows + 32 * part);
        pairs second = i + 1 < count ? load_row(rows + size + 32 * part) : pairs{};
        interleave(first, second, even[part], odd[part]);
      }
#pragma GCC unroll 4
      for (int head = 0; head < kHeads; head++) {
        pairs weight = splat_pair(&weights[head][key - begin + i]);
#pragma GCC unroll 2
        for (int part = 0; part < kWidth; part++) {
          low[head][part] = dot(low[head][part], even[part], weight);
          high[head][part] = dot(high[head][part], odd[part], weight);
        }
      }
    }
  }
  for (int head = 0; head < kHeads; head++)
    for (int part = 0; part < kWidth; part++) {
      alignas(64) float ordered[32];
      store_interleaved(ordered, low[head][part], high[head][part]);
      memcpy(sums + head * size + column + 32 * part, ordered,
             std::min<int64_t>(32, size - column - 32 * part) * sizeof(float));
    }
}

// Keys [first, end) of the groups from `begin`, a multiple of 16, on; a segment at most.
template <int kHeads>
static void attend_segment(const HeadCache& cache, const bf16* queries, int64_t begin,
                           int64_t first, int64_t end, Partial partial) {
  alignas(64) float scores[kHeads][kSegment];
  alignas(64) bf16 weights[kHeads][kSegment];
  alignas(64) bf16 copy[kGroup * kMaxHeadSize];
  const int64_t size = cache.head_size;
  const float scale = 1.0f / std::sqrt((float)size);
  for (int64_t key = begin; key < end; key += kGroup) {
    const bf16* rows = group_rows(cache, cache.keys, key, end, copy);
    if (key + kGroup < end) prefetch_rows(cache.keys + cache.offset(key + kGroup), size);
    prefetch_rows(cache.values + cache.offset(key), size);
    for (int head = 0; head < kHeads; head++) {
      i32x16 keys = lane_numbers() + (int32_t)key;
      f32x16 found = scores_of(queries + head * size, rows, size) * scale;
      found = (keys >= (int32_t)first) & (keys < (int32_t)end) ? found : splat(kHidden);
      store(scores[head] + key - begin, found);
    }
  }
  for (int head = 0; head < kHeads; head++) {
    f32x16 largest = splat(kHidden), total = {};
    for (int64_t i = 0; i < end - begin; i += 16) largest = larger(largest, load(scores[head] + i));
    partial.largest[head] = largest_of(largest);
    for (int64_t i = 0; i < end - begin; i += 16) {
      f32x16 score = load(scores[head] + i);
      f32x16 weight = exp_of(score - partial.largest[head]);
      weight = score == kHidden ? f32x16{} : weight;
      total += weight;
      store_bf16(weights[head] + i, weight);
    }
    partial.total[head] = sum_of(total);
  }
  int64_t column = 0;
  for (; column + 64 <= size; column += 64)
    weigh<kHeads, 2>(cache, weights, begin, end, column, partial.sums);
  for (; column < size; column += 32)
    weigh<kHeads, 1>(cache, weights, begin, end, column, partial.sums);
}

// All `num_heads` query heads of a KV head, some at a time.
static void attend(const HeadCache& cache, const bf16* queries, int64_t num_heads, int64_t begin,
                   int64_t first, int64_t end, Partial partial) {
  const auto pass = [&](auto attend_heads, int count) {
    attend_heads(cache, queries, begin, first, end, partial);
    queries += count * cache.head_size;
    partial.sums += count * cache.head_size;
    partial.largest += count;
    partial.total += count;
    num_heads -= count;
  };
  while (num_heads >= kHeadsTogether) pass(attend_segment<kHeadsTogether>, kHeadsTogether);
  if (num_heads == 3) pass(attend_segment<3>, 3);
  if (num_heads == 2) pass(attend_segment<2>, 2);
  if (num_heads == 1) pass(attend_segment<1>, 1);
}

// One query head: joins `count` partial results that lie `stride` heads apart.
static void merge(const Partial& partial, int64_t count, int64_t stride, int64_t head_size,
                  bf16* to) {
  alignas(64) float joined[kMaxHeadSize] = {};
  float largest = kHidden, total = 0;
  for (int64_t i = 0; i < count; i++) largest = std::max(largest, partial.largest[i * stride]);
  for (int64_t i = 0; i < count; i++) {
    float weight = std::exp(partial.largest[i * stride] - largest);
    total += weight * partial.total[i * stride];
    const float* sums = partial.sums + i * stride * head_size;
    for (int64_t d = 0; d < head_size; d += 16)
      store(joined + d, load(joined + d) + load(sums + d) * weight);
  }
  for (int64_t d = 0; d < head_size; d += 16) store_bf16(to + d, load(joined + d) / total);
}
