// The best tokens of rows of logits, the rows' totals, and the logits of tokens that are named.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "abi.h"
#include "team.h"

// Values as numbers in the same order, equal zeros as one.
static uint32_t rank_of(float value) {
  value += 0.0f;
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

static float value_of(uint32_t rank) {
  const uint32_t bits = rank >> 31 ? rank & 0x7fffffffu : ~rank;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// One row of those that are wanted.
class RowSearch {
 public:
  RowSearch(const Candidates& wanted, int64_t index)
      : wanted_(wanted), size_(wanted.vocab_size), row_(wanted.logits + index * wanted.vocab_size) {
    count_ = std::max(0, wanted_.counts[index]);
    const int64_t first = wanted_.named_starts[index], stop = wanted_.named_starts[index + 1];
    leave_out(first, stop);
    find_peaks();
    collect();
    tell_best(wanted_.best_starts[index]);
    for (int64_t at = 2 * index; at < 2 * index + 2; at++)
      wanted_.totals[at] = log_sum_exp(wanted_.temperatures[at]);
    put_back(first, stop);
  }

  // All rows; those of a team go to whichever thread is free.
  static void run_all(Team& team, const Candidates& wanted) {
    const auto search = [](const void* job, int64_t row) {
      RowSearch(*static_cast<const Candidates*>(job), row);
    };
    team.run(&wanted, {{search, wanted.num_rows}});
  }

 private:
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();
  // Of interleaved slices of a row, as many as there are wanted tokens have a largest value at or
  // above some bound, so nothing below it is among the best. The more slices, the fewer tokens lie
  // above it.
  static constexpr int64_t kSlicesPerCandidate = 8;
  static constexpr int64_t kMinSlices = 1024;
  static constexpr int64_t kLanes = kNativeLanes;
  // Exponentials that are summed in float, before sums are in double.
  static constexpr int64_t kSummedTogether = 1024;

  void leave_out(int64_t first, int64_t stop) {
    for (int64_t at = first; at < stop; at++) {
      const int64_t place = place_of(at);
      wanted_.named_logits[at] = place < 0 ? kLowest : row_[place];
    }
    for (int64_t at = first; at < stop; at++)
      if (place_of(at) >= 0) row_[place_of(at)] = kLowest;
  }

  void put_back(int64_t first, int64_t stop) {
    for (int64_t at = first; at < stop; at++)
      if (place_of(at) >= 0) row_[place_of(at)] = wanted_.named_logits[at];
  }

  // Where a named token's logit lies in the row; below 0: in another share of the vocabulary.
  int64_t place_of(int64_t at) const {
    const int64_t place = wanted_.named[at] - wanted_.first_id;
    return place < size_ ? place : -1;
  }

  void find_peaks() {
    const int64_t wanted = std::max(kMinSlices, kSlicesPerCandidate * count_);
    const int64_t num_slices = std::clamp(size_, (int64_t)1, wanted);
    peaks_.assign((num_slices + kLanes - 1) / kLanes * kLanes, kLowest);
    for (int64_t start = 0; start < size_; start += peaks_.size()) {
      const int64_t stop = std::min(start + (int64_t)peaks_.size(), size_);
      for (int64_t at = start; at < stop; at += kLanes) {
        float* peaks = &peaks_[at - start];
        // NaN is no largest value: of two, the second stays.
        const native_floats found = larger(logits_from(at), load_as<native_floats>(peaks));
        memcpy(peaks, &found, sizeof(found));
      }
    }
    peak_ = *std::max_element(peaks_.begin(), peaks_.end());
  }

  native_floats logits_from(int64_t at) const {
    if (at + kLanes <= size_) return load_as<native_floats>(row_ + at);
    native_floats rest = native_floats{} + kLowest;
    memcpy(&rest, row_ + at, (size_ - at) * sizeof(float));
    return rest;
  }

  // At or above it lie the wanted tokens, and few others.
  float bound() const {
    if (count_ == 1) return peak_;
    if (count_ > (int64_t)peaks_.size()) return kLowest;
    uint32_t low = rank_of(kLowest), high = rank_of(peak_) + 1;
    while (high - low > 1) {
      const uint32_t middle = low + (high - low) / 2;
      const int64_t num_above = num_peaks_from(value_of(middle));
      (num_above < count_ ? high : low) = middle;
      if (num_above >= count_ && num_above <= count_ + count_ / 8) break;
    }
    return value_of(low);
  }

  int64_t num_peaks_from(float value) const {
    int64_t found = 0;
    for (size_t at = 0; at < peaks_.size(); at += kLanes)
      found += __builtin_popcount(lanes_from(load_as<native_floats>(&peaks_[at]), value));
    return found;
  }

  // The tokens from the bound on, as numbers that rise from the best to the worst.
  void collect() {
    found_.clear();
    if (count_ == 0) return;
    if (count_ == 1 && peak_ > kLowest) {
      found_.push_back(first_peak());
      return;
    }
    const float lowest = bound();
    for (int64_t start = 0; start < size_; start += kLanes) {
      uint32_t lanes = lanes_from(logits_from(start), lowest);
      if (lowest == kLowest && start + kLanes > size_) lanes &= (1u << (size_ - start)) - 1;
      for (; lanes; lanes &= lanes - 1) {
        const int64_t place = start + __builtin_ctz(lanes);
        found_.push_back((uint64_t)~rank_of(row_[place]) << 32 | place);
      }
    }
    const auto end = found_.begin() + std::min(count_, (int64_t)found_.size());
    std::nth_element(found_.begin(), end, found_.end());
    std::sort(found_.begin(), end);
  }

  // Where the largest value stands first: in one of the slices whose largest value it is.
  int64_t first_peak() const {
    const int64_t num_slices = peaks_.size();
    int64_t first = size_;
    for (int64_t slice = 0; slice < num_slices; slice++)
      if (peaks_[slice] == peak_)
        for (int64_t at = slice; at < first; at += num_slices)
          if (row_[at] == peak_) first = at;
    return first;
  }

  void tell_best(int64_t start) const {
    const int64_t num_found = std::min(count_, (int64_t)found_.size());
    int64_t to = start;
    for (int64_t at = 0; at < num_found; at++, to++) tell(to, (uint32_t)found_[at]);
    // What is no number comes last.
    for (int64_t place = 0; place < size_ && to < start + count_; place++)
      if (row_[place] != row_[place]) tell(to++, place);
    for (; to < start + count_; to++) {
      wanted_.best[to] = kLowest;
      wanted_.ids[to] = 0;
    }
  }

  void tell(int64_t to, int64_t place) const {
    wanted_.best[to] = row_[place];
    wanted_.ids[to] = place + wanted_.first_id;
  }

  // Of the row divided by a temperature; 0 for temperature 0.
  double log_sum_exp(float temperature) const {
    if (temperature == 0.0f) return 0.0;
    const float scaled_peak = peak_ / temperature;
    if (!std::isfinite(scaled_peak)) return scaled_peak;
    const float scale = (float)(1.4426950408889634 / temperature);
    double total = 0.0;
    for (int64_t start = 0; start < size_; start += kSummedTogether) {
      const int64_t stop = std::min(start + kSummedTogether, size_);
      native_floats sums = {};
      for (int64_t at = start; at < stop; at += kLanes)
        sums += exact_power_of_two((logits_from(at) - peak_) * scale);
      for (int64_t lane = 0; lane < kLanes; lane++) total += sums[lane];
    }
    return std::log(total) + scaled_peak;
  }

  const Candidates& wanted_;
  const int64_t size_;
  float* const row_;
  int64_t count_ = 0;
  float peak_ = 0.0f;
  std::vector<float> peaks_;
  std::vector<uint64_t> found_;
};
