// Products of activations [T, K] with packed weights, a tile of rows and 32 columns at a time.
#pragma once
#include <algorithm>

#include "abi.h"
#include "workspace.h"

constexpr int kPanel = 32;
// Rows of a tile: as many as the registers hold sums of.
#ifdef __AVX512F__
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 3;
#endif

// Weights of two inputs k and k + 1, and of as many outputs as a register has lanes.
INLINE native_pairs weights_at(const bf16* pair_of_inputs, int part) {
  return load_as<native_pairs>(pair_of_inputs + 2 * kNativeLanes * part);
}

INLINE native_pairs weights_at(const int8_t* pair_of_inputs, int part) {
  const int8_t* first = pair_of_inputs + kNativeLanes * part;
  return exact_pairs(load_int8(first), load_int8(first + kPanel));
}

// tile[r][n] = sum over k of x[r][k] * panel[k][n], for kRows rows that lie `tile_stride` apart in
// the tile.
template <int kRows, class Element>
static void product(const bf16* x, int64_t stride, int64_t num_inputs, const Element* panel,
                    float* tile, int64_t tile_stride) {
  constexpr int kParts = kPanel / kNativeLanes;
  constexpr int kAheadBytes = 4096, kLineBytes = 64;
  native_floats sums[kRows][kParts] = {};
  for (int64_t k = 0; k < num_inputs; k += 2) {
    const Element* weights = panel + k * kPanel;
#pragma GCC unroll 2
    for (size_t line = 0; line < 2 * kPanel * sizeof(Element); line += kLineBytes)
      __builtin_prefetch((const char*)weights + kAheadBytes + line);
    native_pairs parts[kParts];
#pragma GCC unroll 4
    for (int part = 0; part < kParts; part++) parts[part] = weights_at(weights, part);
#pragma GCC unroll 12
    for (int row = 0; row < kRows; row++) {
      native_pairs input = splat_pair<native_pairs>(x + row * stride + k);
#pragma GCC unroll 4
      for (int part = 0; part < kParts; part++)
        sums[row][part] = dot(sums[row][part], parts[part], input);
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < kRows; row++)
    memcpy(tile + row * tile_stride, sums[row], sizeof(sums[row]));
}

template <int kRows = kTileRows, class Element>
static void product_of(int64_t num_rows, const bf16* x, int64_t stride, int64_t num_inputs,
                       const Element* panel, float* tile, int64_t tile_stride = kPanel) {
  if (num_rows == kRows) return product<kRows>(x, stride, num_inputs, panel, tile, tile_stride);
  if constexpr (kRows > 1)
    product_of<kRows - 1>(num_rows, x, stride, num_inputs, panel, tile, tile_stride);
}

// Calls finish(row, tile_row) for rows [first, last) of x times one panel.
template <class Element, class Finish>
static void multiply_panel(const bf16* x, int64_t stride, int64_t first, int64_t last,
                           const Element* panel, int64_t num_inputs, Finish finish) {
  alignas(64) float tile[kTileRows * kPanel];
  int64_t num_tiles = (last - first + kTileRows - 1) / kTileRows;
  for (int64_t index = 0; index < num_tiles; index++) {
    int64_t begin = first + (last - first) * index / num_tiles;
    int64_t end = first + (last - first) * (index + 1) / num_tiles;
    product_of(end - begin, x + begin * stride, stride, num_inputs, panel, tile);
    for (int64_t row = begin; row < end; row++) finish(row, tile + (row - begin) * kPanel);
  }
}

// An int8 panel as a bfloat16 one, valid until the thread's next.
static const bf16* widened(const int8_t* panel, int64_t num_inputs) {
  static thread_local Buffer buffer;
  bf16* wide = buffer.of<bf16>(num_inputs * kPanel);
  for (int64_t k = 0; k < num_inputs; k += 2)
    for (int part = 0; part < kPanel / kNativeLanes; part++) {
      native_pairs weights = weights_at(panel + k * kPanel, part);
      memcpy(wide + k * kPanel + 2 * kNativeLanes * part, &weights, sizeof(weights));
    }
  return wide;
}

// Calls finish(row, tile_row) for rows [first, last) of x times one panel.
template <class Finish>
static void multiply(const bf16* x, int64_t stride, int64_t first, int64_t last,
                     const Weight& weight, int64_t panel, Finish finish) {
  const int64_t num_inputs = weight.num_inputs, offset = panel * kPanel * num_inputs;
  if (!weight.scales)
    return multiply_panel(x, stride, first, last, (const bf16*)weight.panels + offset, num_inputs,
                          finish);
  const float* scales = weight.scales + panel * kPanel;
  auto finish_scaled = [&](int64_t row, float* tile) {
    for (int64_t i = 0; i < kPanel; i += 16) store(tile + i, load(tile + i) * load(scales + i));
    finish(row, tile);
  };
  const int8_t* narrow = (const int8_t*)weight.panels + offset;
  // Where several tiles of rows would widen the panel anew, once is cheaper.
  if (last - first > kTileRows)
    multiply_panel(x, stride, first, last, widened(narrow, num_inputs), num_inputs, finish_scaled);
  else
    multiply_panel(x, stride, first, last, narrow, num_inputs, finish_scaled);
}

// How a product is cut into items: few rows, one panel each; many rows, blocks of both, so that
// rows stay in the second-level cache while panels pass by.
struct Grid {
  int64_t num_rows, num_panels, row_blocks, panel_blocks, panels_per_block;

  Grid(int64_t rows, const Weight& weight)
      : num_rows(rows),
        num_panels(weight.num_panels),
        row_blocks((rows + kRowBlock - 1) / kRowBlock),
        panels_per_block(row_blocks == 1 ? 1 : 4) {
    panel_blocks = (num_panels + panels_per_block - 1) / panels_per_block;
  }

  int64_t num_items() const { return row_blocks * panel_blocks; }

  // Calls visit(first row, last row, panel) for the item's panels.
  template <class Visit>
  void visit(int64_t item, Visit visit) const {
    int64_t block = item / panel_blocks, first = item % panel_blocks * panels_per_block;
    int64_t last = std::min(first + panels_per_block, num_panels);
    for (int64_t panel = first; panel < last; panel++)
      visit(num_rows * block / row_blocks, num_rows * (block + 1) / row_blocks, panel);
  }

 private:
  static constexpr int64_t kRowBlock = 48;
};

INLINE f32x16 bias_of(const Weight& weight, int64_t output) {
  return weight.bias ? load(weight.bias + output) : f32x16{};
}

// One item of y = x W + b in bfloat16; y has `num_outputs` columns, of which a panel may have more.
static void linear_item(const Grid& grid, int64_t item, const bf16* x, const Weight& weight,
                        bf16* y, int64_t num_outputs) {
  grid.visit(item, [&](int64_t first, int64_t last, int64_t panel) {
    multiply(x, weight.num_inputs, first, last, weight, panel, [&](int64_t row, float* tile) {
      for (int64_t i = 0, n = panel * kPanel; i < kPanel && n < num_outputs; i += 16, n += 16)
        store_bf16(y + row * num_outputs + n, load(tile + i) + bias_of(weight, n));
    });
  });
}

// The same in float32, with columns that need not be a multiple of 16.
static void linear_item(const Grid& grid, int64_t item, const bf16* x, const Weight& weight,
                        float* y, int64_t num_outputs) {
  grid.visit(item, [&](int64_t first, int64_t last, int64_t panel) {
    int64_t output = panel * kPanel, count = std::min<int64_t>(kPanel, num_outputs - output);
    multiply(x, weight.num_inputs, first, last, weight, panel, [&](int64_t row, float* tile) {
      for (int64_t i = 0; i < kPanel; i += 16)
        store(tile + i, load(tile + i) + bias_of(weight, output + i));
      memcpy(y + row * num_outputs + output, tile, count * sizeof(float));
    });
  });
}
