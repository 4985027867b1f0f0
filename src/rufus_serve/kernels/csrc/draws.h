// Draws rows' tokens from what is known of them. `leader/engine/draw.py` says what that means, and
// does the same without kernels.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "abi.h"
#include "workspace.h"

class RowDraw {
 public:
  // `first` and `first_named`: where the row's candidates and named tokens begin.
  RowDraw(const Draws& draws, int64_t row, int64_t first, int64_t first_named)
      : draws_(draws), row_(row), params_(draws.params[row]), total_(draws.totals[2 * row]) {
    known_.clear();
    weights_.clear();
    reaches_.clear();
    const int64_t count = params_.flags & kOnlyNamed ? 0 : draws.counts[row];
    if (count > 0) floor_ = draws.logits[first + count - 1];
    find_known(first, count, first_named, draws.named_counts[row]);
    most_total_ = total_;
    if (draws.mask_places[row] >= 0) keep_allowed();
  }

  // Below 0: the row in full must decide.
  int64_t token() {
    if (known_.empty()) return kUndecided;
    if (params_.flags & kGreedy) {
      const float best = known_[0].logit;
      return best == kLowest || best < floor_ ? kUndecided : known_[0].id;
    }
    const int64_t place = choose(total_);
    // What both bounds of the total decide alike is decided whatever it is.
    if (place < 0 || (most_total_ != total_ && choose(most_total_) != place)) return kUndecided;
    return known_[place].id;
  }

  static void run_all(const Draws& draws) {
    int64_t first = 0, first_named = 0;
    for (int64_t row = 0; row < draws.num_rows; row++) {
      draws.tokens[row] = RowDraw(draws, row, first, first_named).token();
      first += draws.counts[row];
      first_named += draws.named_counts[row];
    }
  }

 private:
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();
  static constexpr int64_t kUndecided = -1;
  // Totals are sums of float32 exponentials; what they leave unsure is unknown as well.
  static constexpr double kUnsure = 1e-6;

  struct Known {
    float logit;
    int32_t id;

    bool operator<(const Known& other) const {
      return logit != other.logit ? logit > other.logit : id < other.id;
    }
  };

  struct Scratch {
    std::vector<Known> known, named;
    std::vector<double> weights, reaches;
  };
  static Scratch& scratch() { return of_thread<Scratch>(); }

  // Candidates, and the named tokens that lie among them, the best first.
  void find_known(int64_t first, int64_t count, int64_t first_named, int64_t num_named) {
    const float* named_logits = draws_.named_logits + first_named;
    if (num_named > 0) {
      const double of_named = log_sum(named_logits, num_named);
      total_ = params_.flags & kOnlyNamed ? of_named : log_add(total_, of_named);
    }
    std::vector<Known>& named = scratch().named;
    named.clear();
    for (int64_t at = 0; at < num_named; at++)
      if (named_logits[at] >= floor_)
        named.push_back({named_logits[at], draws_.named[first_named + at]});
    std::sort(named.begin(), named.end());
    auto next = named.begin();
    for (int64_t at = first; at < first + count; at++) {
      // What is no number comes last.
      const float logit = draws_.logits[at];
      const Known candidate = {logit == logit ? logit : kLowest, draws_.ids[at]};
      while (next != named.end() && *next < candidate) known_.push_back(*next++);
      known_.push_back(candidate);
    }
    known_.insert(known_.end(), next, named.end());
  }

  // The tokens that the grammar allows; the row's total is known within bounds then.
  void keep_allowed() {
    const bool needs_total = params_.flags & kNeedsTotal;
    const double of_all = needs_total ? log_sum_of_known() : 0.0;
    const int32_t* words = draws_.masks + draws_.mask_places[row_] * draws_.words_per_mask;
    const auto is_forbidden = [&](const Known& token) {
      const int64_t word = token.id >> 5;
      if (token.id < 0 || word >= draws_.words_per_mask) return true;
      return ((words[word] >> (token.id & 31)) & 1) == 0;
    };
    known_.erase(std::remove_if(known_.begin(), known_.end(), is_forbidden), known_.end());
    if (!needs_total) return;
    const double unknown =
        total_ + std::log(std::max(0.0, 1.0 - std::exp(of_all - total_)) + kUnsure);
    total_ = log_sum_of_known();
    most_total_ = log_add(total_, unknown);
  }

  // The place of the token that the row's number points at; below 0: it may lie beyond.
  int64_t choose(double log_total) {
    const int64_t num_known = known_.size();
    if (num_known == 0 || !std::isfinite(scaled(0))) return kUndecided;
    const double floor_weight = std::exp((double)(floor_ / params_.temperature) - scaled(0));
    double total = std::exp(log_total - scaled(0));
    const bool cuts = params_.top_k > 0 || params_.min_p > 0.0;
    bool is_whole = floor_weight == 0.0 || (cuts && holds_all_that_is_kept(floor_weight));
    if (cuts && !is_whole) return kUndecided;
    int64_t num_kept = is_whole ? num_kept_best() : num_known;
    if (is_whole) total = reach(num_kept - 1);
    if (params_.top_p < 1.0) {
      const double edge = params_.top_p * total;
      int64_t in_nucleus = 0;
      while (in_nucleus < num_known && reach(in_nucleus) - weight(in_nucleus) < edge) in_nucleus++;
      if (!is_whole && in_nucleus == num_known && reach(num_known - 1) < edge) return kUndecided;
      num_kept = std::min(num_kept, std::max(in_nucleus, (int64_t)1));
      is_whole = true;
      total = reach(num_kept - 1);
    }
    const double pointer = draws_.uniforms[row_] * total;
    int64_t chosen = 0;
    while (chosen < num_known && reach(chosen) <= pointer) chosen++;
    if (is_whole) return std::min(chosen, num_kept - 1);
    return chosen < num_known ? chosen : kUndecided;
  }

  // Whether no unknown token passes top-k and min-p.
  bool holds_all_that_is_kept(double floor_weight) {
    if (floor_weight < params_.min_p) return true;
    return params_.top_k > 0 && floor_weight < weight(params_.top_k - 1);
  }

  // How many of the first tokens top-k and min-p leave; as good as the last one stay.
  int64_t num_kept_best() {
    const double last = params_.top_k > 0 ? weight(params_.top_k - 1) : 0.0;
    int64_t kept = 0;
    while (weight(kept) > 0.0 && weight(kept) >= last && weight(kept) >= params_.min_p) kept++;
    return std::max(kept, (int64_t)1);
  }

  double scaled(int64_t place) const { return known_[place].logit / params_.temperature; }

  // Relative to the best one's; 0 behind the last known token.
  double weight(int64_t place) {
    if (place >= (int64_t)known_.size()) return 0.0;
    weigh_up_to(place);
    return weights_[place];
  }

  // The weights of all tokens up to that one.
  double reach(int64_t place) {
    weigh_up_to(place);
    return reaches_[place];
  }

  // Most draws need few of the exponentials.
  void weigh_up_to(int64_t place) {
    while ((int64_t)weights_.size() <= place) {
      const double weight = std::exp(scaled(weights_.size()) - scaled(0));
      reaches_.push_back(weight + (reaches_.empty() ? 0.0 : reaches_.back()));
      weights_.push_back(weight);
    }
  }

  double log_sum(const float* logits, int64_t count) const {
    float peak = kLowest;
    for (int64_t at = 0; at < count; at++) peak = std::max(peak, logits[at]);
    const double scaled_peak = peak / params_.temperature;
    if (!std::isfinite(scaled_peak)) return scaled_peak;
    double sum = 0.0;
    for (int64_t at = 0; at < count; at++)
      sum += std::exp((double)(logits[at] / params_.temperature) - scaled_peak);
    return scaled_peak + std::log(sum);
  }

  double log_sum_of_known() {
    if (known_.empty() || !std::isfinite(scaled(0))) return known_.empty() ? kLowest : scaled(0);
    double sum = 0.0;
    for (size_t place = 0; place < known_.size(); place++)
      sum += std::exp(scaled(place) - scaled(0));
    return scaled(0) + std::log(sum);
  }

  static double log_add(double a, double b) {
    const double larger = std::max(a, b);
    return std::isfinite(larger) ? larger + std::log1p(std::exp(std::min(a, b) - larger)) : larger;
  }

  const Draws& draws_;
  const int64_t row_;
  const DrawParams& params_;
  double total_, most_total_ = 0.0;
  float floor_ = kLowest;
  std::vector<Known>& known_ = scratch().known;
  std::vector<double>&weights_ = scratch().weights, &reaches_ = scratch().reaches;
};
