// The second half of a layer: norm, gate and up projections, silu(gate) * up, down projection.
//
// hidden += delta, then delta = this follower's part of the MLP's output.
#pragma once
#include "linear.h"
#include "norm.h"
#include "attn_half.h"

class MlpHalf {
 public:
  MlpHalf(const Model& model, const Layer& layer, const Step& step, Workspace& workspace)
      : model_(model),
        layer_(layer),
        step_(step),
        gate_up_grid_(step.num_tokens, layer.gate_up),
        down_grid_(step.num_tokens, layer.down),
        normed_(workspace.normed.of<bf16>(step.num_tokens * model.hidden_size)),
        inner_(workspace.inner.of<bf16>(step.num_tokens * model.inner_size)) {}

  void run(Team& team) const {
    team.run(this, {
                       stage<MlpHalf, &MlpHalf::norm>(step_.num_tokens),
                       stage<MlpHalf, &MlpHalf::gate_up>(gate_up_grid_.num_items()),
                       stage<MlpHalf, &MlpHalf::down>(down_grid_.num_items()),
                   });
  }

 private:
  void norm(int64_t token) const {
    const int64_t at = token * model_.hidden_size;
    add_and_norm(step_.hidden + at, step_.delta + at, layer_.mlp_norm, model_.hidden_size,
                 model_.rms_norm_eps, normed_ + at);
  }

  void gate_up(int64_t item) const {
    const Weight& weight = layer_.gate_up;
    gate_up_grid_.visit(item, [&](int64_t first, int64_t last, int64_t panel) {
      const f32x16 gate_bias = bias_of(weight, panel * kPanel);
      const f32x16 up_bias = bias_of(weight, panel * kPanel + 16);
      multiply(normed_, weight.num_inputs, first, last, weight, panel,
               [&](int64_t row, const float* tile) {
                 f32x16 gate = load(tile) + gate_bias, up = load(tile + 16) + up_bias;
                 store_bf16(inner_ + row * model_.inner_size + panel * 16,
                            gate / (exp_of(-gate) + 1.0f) * up);
               });
    });
  }

  void down(int64_t item) const {
    linear_item(down_grid_, item, inner_, layer_.down, step_.delta, model_.hidden_size);
  }

  const Model& model_;
  const Layer& layer_;
  const Step& step_;
  const Grid gate_up_grid_, down_grid_;
  bf16* const normed_;
  bf16* const inner_;
};
