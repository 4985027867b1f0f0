// Attention of many queries of a sequence: its keys and values are first packed as weights are, so
// that scores and outputs are products of tiles; a running softmax goes over blocks of keys.
#pragma once
#include "decode_attention.h"
#include "linear.h"

constexpr int64_t kKeyBlock = 512;
constexpr float kUnseen = -1e30f;  // the score of a key that a query may not see
constexpr int64_t kQueryBlock = 4 * kTileRows;  // queries of an item

// Packed keys and values of one KV head of one sequence. Legend: C keys, rounded up to 32.
struct PackedHead {
  bf16* keys;    // [C / 32][D / 2][32][2]
  bf16* values;  // [D / 32, rounded up][C / 2][32][2]
  int64_t num_keys;
};

INLINE int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

INLINE int64_t packed_head_size(int64_t head_size) { return rounded_up(head_size, kPanel); }

// Packs 32 keys from `first` on; those at or behind `end` become zeros.
static void pack_keys(const HeadCache& cache, const PackedHead& packed, int64_t first,
                      int64_t end) {
  const int64_t size = cache.head_size;
  uint32_t* keys = (uint32_t*)(packed.keys + first * size);
  for (int64_t i = 0; i < kPanel; i++) {
    const bf16* key = first + i < end ? cache.keys + cache.offset(first + i) : nullptr;
    for (int64_t pair = 0; pair < size / 2; pair++)
      keys[pair * kPanel + i] = key ? load_as<uint32_t>(key + 2 * pair) : 0;
  }
  for (int64_t i = 0; i < kPanel; i += 2) {
    const bf16* even = first + i < end ? cache.values + cache.offset(first + i) : nullptr;
    const bf16* odd = first + i + 1 < end ? cache.values + cache.offset(first + i + 1) : nullptr;
    for (int64_t d = 0; d < packed_head_size(size); d += 16) {
      const bool is_value = d < size;
      u32x16 low = even && is_value ? load_wide(even + d) : u32x16{};
      u32x16 high = odd && is_value ? load_wide(odd + d) : u32x16{};
      u32x16 both = low | high << 16;
      memcpy(packed.values + (d / kPanel * packed.num_keys + first + i) * kPanel + d % kPanel * 2,
             &both, sizeof(both));
    }
  }
}

// The running softmax of a tile of queries.
struct Tile {
  alignas(64) float scores[kTileRows][kKeyBlock];
  alignas(64) bf16 weights[kTileRows][kKeyBlock];
  alignas(64) float sums[kTileRows][kMaxHeadSize];
  float largest[kTileRows], total[kTileRows];
};

// Turns a row's scores of keys [block, block + count) into weights; it sees keys [first, last].
// Scores are multiplied by `scale`, and weights are powers of two.
static void soften(Tile& tile, int64_t row, int64_t block, int64_t count, int64_t first,
                   int64_t last, int64_t size, float scale) {
  float* scores = tile.scores[row];
  f32x16 largest = splat(kUnseen), total = {};
  for (int64_t i = 0; i < count; i += 16) {
    f32x16 score = load(scores + i);
    if (block + i < first || block + i + 16 > last + 1) {
      i32x16 keys = lane_numbers() + (int32_t)(block + i);
      score = (keys >= (int32_t)first) & (keys <= (int32_t)last) ? score : splat(kUnseen);
      store(scores + i, score);
    }
    largest = larger(score, largest);
  }
  const float found = largest_of(largest);
  if (found == kUnseen) {
    memset(tile.weights[row], 0, count * sizeof(bf16));
    return;
  }
  const float now_largest = std::max(tile.largest[row], found * scale);
  for (int64_t i = 0; i < count; i += 16) {
    f32x16 weight = power_of_two(load(scores + i) * scale - now_largest);
    total += weight;
    store_bf16(tile.weights[row] + i, weight);
  }
  const float kept = std::exp2(tile.largest[row] - now_largest);
  tile.total[row] = tile.total[row] * kept + sum_of(total);
  tile.largest[row] = now_largest;
  if (kept != 1.0f)
    for (int64_t d = 0; d < size; d += 16)
      store(tile.sums[row] + d, load(tile.sums[row] + d) * kept);
}

// Queries of one head, `num_rows` <= kTileRows of them `stride` apart, at `positions`.
static void attend_tile(const PackedHead& packed, int64_t head_size, const bf16* queries,
                        int64_t stride, const int64_t* positions, int64_t num_rows, int64_t window,
                        bf16* to) {
  Tile tile;
  alignas(64) float panel[kTileRows * kPanel];
  const int64_t size = packed_head_size(head_size);
  const float scale = (float)M_LOG2E / std::sqrt((float)head_size);
  const auto first_of = [&](int64_t row) {
    return window ? std::max<int64_t>(0, positions[row] - window + 1) : 0;
  };
  int64_t begin = first_of(0), end = 0;
  for (int64_t row = 0; row < num_rows; row++) {
    begin = std::min(begin, first_of(row));
    end = std::max(end, positions[row] + 1);
    tile.largest[row] = kHidden;
    tile.total[row] = 0;
    memset(tile.sums[row], 0, size * sizeof(float));
  }
  for (int64_t block = begin / kPanel * kPanel; block < end; block += kKeyBlock) {
    int64_t count = std::min(kKeyBlock, rounded_up(end - block, kPanel));
    for (int64_t key = 0; key < count; key += kPanel)
      product_of(num_rows, queries, stride, head_size, packed.keys + (block + key) * head_size,
                 tile.scores[0] + key, kKeyBlock);
    for (int64_t row = 0; row < num_rows; row++)
      soften(tile, row, block, count, first_of(row), positions[row], size, scale);
    for (int64_t d = 0; d < size; d += kPanel) {
      product_of(num_rows, tile.weights[0], kKeyBlock, count,
                 packed.values + d * packed.num_keys + block * kPanel, panel);
      for (int64_t row = 0; row < num_rows; row++)
        for (int64_t i = 0; i < kPanel; i += 16)
          store(tile.sums[row] + d + i,
                load(tile.sums[row] + d + i) + load(panel + row * kPanel + i));
    }
  }
  for (int64_t row = 0; row < num_rows; row++)
    for (int64_t d = 0; d < head_size; d += 16)
      store_bf16(to + row * stride + d, load(tile.sums[row] + d) / tile.total[row]);
}
