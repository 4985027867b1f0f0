// The first half of a layer: norm, projection, rotation, KV store, attention, output projection.
//
// hidden += delta, then delta = this follower's part of the attention block's output. A sequence
// with one new token takes `decode_attention`, one with more `prefill_attention`.
#pragma once
#include <vector>

#include "decode_attention.h"
#include "linear.h"
#include "norm.h"
#include "prefill_attention.h"
#include "rope_store.h"
#include "team.h"
#include "workspace.h"

// A stage whose items are calls of a job's method.
template <class Job, void (Job::*method)(int64_t) const>
static Stage stage(int64_t num_items) {
  return {[](const void* job, int64_t item) { (static_cast<const Job*>(job)->*method)(item); },
          num_items};
}

class AttnHalf {
 public:
  AttnHalf(const Model& model, const Layer& layer, const Cache& cache, const Step& step,
           Workspace& workspace)
      : model_(model),
        layer_(layer),
        cache_(cache),
        step_(step),
        group_size_(model.num_q_heads / model.num_kv_heads),
        query_width_(model.num_q_heads * model.head_size),
        projected_width_(query_width_ + 2 * model.num_kv_heads * model.head_size),
        qkv_grid_(step.num_tokens, layer.qkv),
        output_grid_(step.num_tokens, layer.output),
        normed_(workspace.normed.of<bf16>(step.num_tokens * model.hidden_size)),
        projected_(workspace.projected.of<float>(step.num_tokens * projected_width_)),
        queries_(workspace.queries.of<bf16>(step.num_tokens * query_width_)),
        heads_(workspace.heads.of<bf16>(step.num_tokens * query_width_)) {
    for (int64_t sequence = 0; sequence < step.num_sequences; sequence++)
      if (num_new(sequence) == 1)
        plan_decode(sequence);
      else
        plan_prefill(sequence);
    const int64_t num_partials = segments_.size() * group_size_;
    partial_.sums = workspace.partial.of<float>(num_partials * (model.head_size + 2));
    partial_.largest = partial_.sums + num_partials * model.head_size;
    partial_.total = partial_.largest + num_partials;
    keys_ = workspace.keys.of<bf16>(packed_keys_ * model.head_size);
    values_ = workspace.values.of<bf16>(packed_keys_ * packed_head_size(model.head_size));
  }

  void run(Team& team) const {
    team.run(this, {
                       stage<AttnHalf, &AttnHalf::norm>(step_.num_tokens),
                       stage<AttnHalf, &AttnHalf::project>(qkv_grid_.num_items()),
                       stage<AttnHalf, &AttnHalf::store_keys>(step_.num_tokens),
                       stage<AttnHalf, &AttnHalf::attend_or_pack>(segments_.size() + packs_.size()),
                       stage<AttnHalf, &AttnHalf::merge_or_attend>(merges_.size() + tiles_.size()),
                       stage<AttnHalf, &AttnHalf::output>(output_grid_.num_items()),
                   });
  }

 private:
  struct Segment {
    int64_t sequence, head, begin, first, end;
  };

  struct Merge {
    int64_t sequence, head, segment, num_segments;
  };

  // Keys [first, first + 32) of a sequence whose packed keys start at `base`, for one KV head.
  struct Pack {
    int64_t sequence, head, base, num_keys, first, end;
  };

  // Queries [first, last) of one query head.
  struct Queries {
    int64_t head, base, num_keys, first, last;
  };

  int64_t num_new(int64_t sequence) const {
    return step_.starts[sequence + 1] - step_.starts[sequence];
  }

  void plan_decode(int64_t sequence) {
    const int64_t end = step_.positions[step_.starts[sequence]] + 1;
    const int64_t first = layer_.window ? std::max<int64_t>(0, end - layer_.window) : 0;
    for (int64_t head = 0; head < model_.num_kv_heads; head++) {
      const int64_t segment = segments_.size();
      for (int64_t at = first / kSegment * kSegment; at < end; at += kSegment)
        segments_.push_back({sequence, head, std::max(at, first / kGroup * kGroup),
                             std::max(at, first), std::min(at + kSegment, end)});
      merges_.push_back({sequence, head, segment, (int64_t)segments_.size() - segment});
    }
  }

  void plan_prefill(int64_t sequence) {
    const int64_t start = step_.starts[sequence], stop = step_.starts[sequence + 1];
    const int64_t end = 1 + *std::max_element(step_.positions + start, step_.positions + stop);
    const int64_t num_keys = rounded_up(end, kPanel);
    for (int64_t head = 0; head < model_.num_kv_heads; head++) {
      const int64_t base = packed_keys_ + head * num_keys;
      for (int64_t first = 0; first < num_keys; first += kPanel)
        packs_.push_back({sequence, head, base, num_keys, first, end});
      for (int64_t query = 0; query < group_size_; query++)
        for (int64_t first = start; first < stop; first += kQueryBlock)
          tiles_.push_back({head * group_size_ + query, base, num_keys, first,
                            std::min(first + kQueryBlock, stop)});
    }
    packed_keys_ += model_.num_kv_heads * num_keys;
  }

  HeadCache head_cache(int64_t sequence, int64_t head) const {
    return {cache_, model_, step_.blocks + sequence * step_.blocks_per_sequence, head};
  }

  PackedHead packed(int64_t base, int64_t num_keys) const {
    return {keys_ + base * model_.head_size, values_ + base * packed_head_size(model_.head_size),
            num_keys};
  }

  Partial partial_of(int64_t segment, int64_t head = 0) const {
    const int64_t index = segment * group_size_ + head;
    return {partial_.sums + index * model_.head_size, partial_.largest + index,
            partial_.total + index};
  }

  void norm(int64_t token) const {
    const int64_t at = token * model_.hidden_size;
    add_and_norm(step_.hidden + at, step_.delta + at, layer_.input_norm, model_.hidden_size,
                 model_.rms_norm_eps, normed_ + at);
  }

  void project(int64_t item) const {
    linear_item(qkv_grid_, item, normed_, layer_.qkv, projected_, projected_width_);
  }

  void store_keys(int64_t token) const {
    rope_store(model_, layer_, cache_, projected_ + token * projected_width_,
               step_.positions[token], step_.slots[token], queries_ + token * query_width_);
  }

  void attend_or_pack(int64_t item) const {
    if (item < (int64_t)segments_.size()) {
      const Segment& at = segments_[item];
      const int64_t token = step_.starts[at.sequence];
      attend(head_cache(at.sequence, at.head),
             queries_ + token * query_width_ + at.head * group_size_ * model_.head_size,
             group_size_, at.begin, at.first, at.end, partial_of(item));
    } else {
      const Pack& at = packs_[item - segments_.size()];
      pack_keys(head_cache(at.sequence, at.head), packed(at.base, at.num_keys), at.first, at.end);
    }
  }

  void merge_or_attend(int64_t item) const {
    if (item < (int64_t)merges_.size()) {
      const Merge& at = merges_[item];
      bf16* to = heads_ + step_.starts[at.sequence] * query_width_ +
                 at.head * group_size_ * model_.head_size;
      for (int64_t head = 0; head < group_size_; head++)
        merge(partial_of(at.segment, head), at.num_segments, group_size_, model_.head_size,
              to + head * model_.head_size);
    } else {
      const Queries& at = tiles_[item - merges_.size()];
      for (int64_t first = at.first; first < at.last; first += kTileRows) {
        const int64_t offset = first * query_width_ + at.head * model_.head_size;
        attend_tile(packed(at.base, at.num_keys), model_.head_size, queries_ + offset, query_width_,
                    step_.positions + first, std::min<int64_t>(kTileRows, at.last - first),
                    layer_.window, heads_ + offset);
      }
    }
  }

  void output(int64_t item) const {
    linear_item(output_grid_, item, heads_, layer_.output, step_.delta, model_.hidden_size);
  }

  const Model& model_;
  const Layer& layer_;
  const Cache& cache_;
  const Step& step_;
  const int64_t group_size_, query_width_, projected_width_;
  const Grid qkv_grid_, output_grid_;
  bf16* const normed_;
  float* const projected_;
  bf16* const queries_;
  bf16* const heads_;
  std::vector<Segment> segments_;
  std::vector<Merge> merges_;
  std::vector<Pack> packs_;
  std::vector<Queries> tiles_;
  int64_t packed_keys_ = 0;
  Partial partial_;
  bf16* keys_;
  bf16* values_;
};
