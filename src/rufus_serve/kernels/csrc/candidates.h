// The best tokens of rows of logits, the rows' totals, and the logits of tokens that are named.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "abi.h"
#include "team.h"
#include "workspace.h"

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

// One row of those that are wanted. It is read once from memory; what is looked at again are the
// blocks of vectors that may hold something wanted.
class RowSearch {
 public:
  // `best_start`: where the row's candidates go. `first` and `stop`: its part of what is named.
  RowSearch(const Candidates& wanted, int64_t index, int64_t best_start, int64_t first, int64_t stop)
      : wanted_(wanted),
        temperatures_(wanted.temperatures + 2 * index),
        size_(wanted.vocab_size),
        row_(wanted.logits + index * wanted.vocab_size) {
    count_ = std::max(0, wanted_.counts[index]);
    leave_out(first, stop);
    if (count_ > 0 || temperatures_[0] != 0.0f || temperatures_[1] != 0.0f) read();
    collect();
    tell_best(best_start);
    for (int64_t at : {0, 1}) wanted_.totals[2 * index + at] = log_sum_exp(at);
    wanted_.held[index] = held(best_start);
    put_back(first, stop);
  }

 private:
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();
  // A block is a few vectors, whose lanes' largest values are kept: its slices. Of slices of a row,
  // as many as there are wanted tokens have a largest value at or above some bound, so nothing below
  // it is among the best. The more slices, the fewer tokens lie above it.
  static constexpr int64_t kLargestBlock = 32;
  static constexpr int64_t kSlicesPerCandidate = 8;
  static constexpr int64_t kMinSlices = 1024;
  static constexpr int64_t kLanes = kNativeLanes;
  // Exponentials that are summed in float, before sums are in double.
  static constexpr int64_t kSummedTogether = 1024;
  static constexpr int64_t kSums = 4;
  static constexpr int64_t kManyToSort = 64;

  struct Scratch {
    std::vector<float> peaks, fewer_peaks;
    std::vector<uint64_t> found, sorted;
  };
  static Scratch& scratch() { return of_thread<Scratch>(); }

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

  // Finds the slices' largest values, and the totals relative to the largest of all.
  void read() {
    width_ = std::clamp(size_ / num_wanted_slices(), (int64_t)1, kLargestBlock) * kLanes;
    num_blocks_ = (size_ + width_ - 1) / width_;
    peaks_.resize(num_blocks_ * kLanes);
    const int64_t together = kSummedTogether / width_;
    for (int64_t block = 0; block < num_blocks_; block += together) {
      native_floats peaks = native_floats{} + kLowest;
      for (int64_t at = block; at < std::min(block + together, num_blocks_); at++)
        peaks = larger(peaks, keep_peaks(at));
      raise_to(std::max(peak_, largest_of(peaks)));
      add(block * width_, std::min((block + together) * width_, size_));
    }
  }

  int64_t num_wanted_slices() const { return std::max(kMinSlices, kSlicesPerCandidate * count_); }

  int64_t end_of(int64_t block) const { return std::min((block + 1) * width_, size_); }

  native_floats keep_peaks(int64_t block) {
    native_floats peaks = native_floats{} + kLowest;
    // NaN is no largest value: of two, the second stays.
    for (int64_t at = block * width_; at < end_of(block); at += kLanes)
      peaks = larger(logits_from(at), peaks);
    memcpy(&peaks_[block * kLanes], &peaks, sizeof(peaks));
    return peaks;
  }

  void raise_to(float peak) {
    if (peak == peak_) return;
    for (int64_t which : {0, 1})
      totals_[which] *= std::exp2(((double)peak_ - peak) * scale_of(which));
    peak_ = peak;
  }

  void add(int64_t start, int64_t stop) {
    const float reference = peak_ > kLowest ? peak_ : 0.0f;
    for (int64_t which : {0, 1}) {
      if (temperatures_[which] == 0.0f) continue;
      const float scale = scale_of(which);
      const auto powers = [&](int64_t at) {
        return exact_power_of_two((logits_from(at) - reference) * scale);
      };
      // Several sums, none of which waits for another.
      native_floats sums[kSums] = {};
      int64_t at = start;
      for (; at + kSums * kLanes <= stop; at += kSums * kLanes)
        for (int64_t sum = 0; sum < kSums; sum++) sums[sum] += powers(at + sum * kLanes);
      for (; at < stop; at += kLanes) sums[0] += powers(at);
      for (int64_t sum = 1; sum < kSums; sum++) sums[0] += sums[sum];
      for (int64_t lane = 0; lane < kLanes; lane++) totals_[which] += sums[0][lane];
    }
  }

  // Of exponents to the base of 2.
  float scale_of(int64_t which) const {
    const float temperature = temperatures_[which];
    return temperature == 0.0f ? 0.0f : (float)(1.4426950408889634 / temperature);
  }

  native_floats logits_from(int64_t at) const {
    if (at + kLanes <= size_) return load_as<native_floats>(row_ + at);
    native_floats rest = native_floats{} + kLowest;
    memcpy(&rest, row_ + at, (size_ - at) * sizeof(float));
    return rest;
  }

  // At or above it lie the wanted tokens, and few others.
  float bound() {
    if (count_ == 1) return peak_;
    find_fewer_peaks();
    uint32_t low = rank_of(kLowest), high = rank_of(peak_) + 1;
    while (high - low > 1) {
      const uint32_t middle = low + (high - low) / 2;
      const int64_t num_above = num_fewer_from(value_of(middle));
      (num_above < count_ ? high : low) = middle;
      if (num_above >= count_ && num_above <= count_ + count_ / 8) break;
    }
    return value_of(low);
  }

  // Of slices of several blocks each, as many as make a good bound.
  void find_fewer_peaks() {
    const int64_t together = std::max((int64_t)1, num_blocks_ * kLanes / num_wanted_slices());
    fewer_peaks_.clear();
    for (int64_t block = 0; block < num_blocks_; block += together) {
      native_floats peaks = native_floats{} + kLowest;
      for (int64_t at = block; at < std::min(block + together, num_blocks_); at++)
        peaks = larger(peaks, load_as<native_floats>(&peaks_[at * kLanes]));
      const float* first = reinterpret_cast<const float*>(&peaks);
      fewer_peaks_.insert(fewer_peaks_.end(), first, first + kLanes);
    }
  }

  int64_t num_fewer_from(float value) const {
    int64_t found = 0;
    for (size_t at = 0; at < fewer_peaks_.size(); at += kLanes)
      found += __builtin_popcount(lanes_from(load_as<native_floats>(&fewer_peaks_[at]), value));
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
    found_.reserve(2 * count_);
    const float lowest = bound();
    for (int64_t block = 0; block < num_blocks_; block++)
      if (lanes_from(load_as<native_floats>(&peaks_[block * kLanes]), lowest))
        collect_from(block, lowest);
    sort_found();
  }

  // The wanted ones to the front, in order.
  void sort_found() {
    const int64_t num_found = found_.size();
    if (num_found >= kManyToSort && num_found <= 2 * count_) {
      sort_by_digits();
      return;
    }
    const auto end = found_.begin() + std::min(count_, num_found);
    std::nth_element(found_.begin(), end, found_.end());
    std::sort(found_.begin(), end);
  }

  // By the digits of their ranks, the last one first: comparisons would be guessed wrongly. They
  // were found in the order of their places, which is kept among equals.
  void sort_by_digits() {
    uint32_t starts[4][256] = {};
    for (uint64_t each : found_)
      for (int digit = 0; digit < 4; digit++) starts[digit][digit_of(each, digit)]++;
    std::vector<uint64_t>& sorted = scratch().sorted;
    sorted.resize(found_.size());
    for (int digit = 0; digit < 4; digit++) {
      uint32_t start = 0;
      for (uint32_t& each : starts[digit]) start += std::exchange(each, start);
      for (uint64_t each : found_) sorted[starts[digit][digit_of(each, digit)]++] = each;
      found_.swap(sorted);
    }
  }

  static uint8_t digit_of(uint64_t found, int digit) { return found >> (32 + 8 * digit); }

  void collect_from(int64_t block, float lowest) {
    for (int64_t start = block * width_; start < end_of(block); start += kLanes) {
      uint32_t lanes = lanes_from(logits_from(start), lowest);
      if (lowest == kLowest && start + kLanes > size_) lanes &= (1u << (size_ - start)) - 1;
      for (; lanes; lanes &= lanes - 1) {
        const int64_t place = start + __builtin_ctz(lanes);
        found_.push_back((uint64_t)~rank_of(row_[place]) << 32 | place);
      }
    }
  }

  // Where the largest value stands first.
  int64_t first_peak() const {
    int64_t block = 0;
    while (!lanes_from(load_as<native_floats>(&peaks_[block * kLanes]), peak_)) block++;
    return std::find(row_ + block * width_, row_ + end_of(block), peak_) - row_;
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
  double log_sum_exp(int64_t which) const {
    const float temperature = temperatures_[which];
    if (temperature == 0.0f) return 0.0;
    const float scaled_peak = peak_ / temperature;
    return std::isfinite(scaled_peak) ? std::log(totals_[which]) + scaled_peak : scaled_peak;
  }

  // How much of the first total the candidates have that were told from `start` on.
  double held(int64_t start) const {
    if (temperatures_[0] == 0.0f || !std::isfinite(peak_)) return 0.0;
    const float scale = scale_of(0);
    const int64_t num_found = std::min(count_, (int64_t)found_.size());
    double sum = 0.0;
    for (int64_t at = 0; at < num_found; at += kLanes) {
      native_floats logits = native_floats{} + kLowest;
      memcpy(&logits, wanted_.best + start + at,
             std::min(kLanes, num_found - at) * sizeof(float));
      const native_floats powers = exact_power_of_two((logits - peak_) * scale);
      for (int64_t lane = 0; lane < kLanes; lane++) sum += powers[lane];
    }
    return sum / totals_[0];
  }

  const Candidates& wanted_;
  const float* const temperatures_;
  const int64_t size_;
  float* const row_;
  int64_t count_ = 0;
  int64_t width_ = kLanes;
  int64_t num_blocks_ = 0;
  std::vector<float>&peaks_ = scratch().peaks, &fewer_peaks_ = scratch().fewer_peaks;
  float peak_ = kLowest;
  double totals_[2] = {};
  std::vector<uint64_t>& found_ = scratch().found;
};

// All rows.
class Search {
 public:
  explicit Search(const Candidates& wanted) : wanted_(wanted) {
    for (int64_t row = 0; row < wanted.num_rows; row++) {
      best_starts_.push_back(best_starts_.back() + std::max(0, wanted.counts[row]));
      named_starts_.push_back(named_starts_.back() + wanted.named_counts[row]);
    }
  }

  // Rows go to whichever thread is free.
  void run(Team& team) const {
    const auto search = [](const void* job, int64_t row) {
      static_cast<const Search*>(job)->search(row);
    };
    team.run(this, {{search, wanted_.num_rows}}, Then::kSleep);
  }

 private:
  void search(int64_t row) const {
    RowSearch(wanted_, row, best_starts_[row], named_starts_[row], named_starts_[row + 1]);
  }

  const Candidates& wanted_;
  std::vector<int64_t> best_starts_{0}, named_starts_{0};
};
