// SPDX-License-Identifier: BSD-3-Clause
// patch_entropy_sample on the CPU: prefix sums and a binary search with replacement, a tree of partial sums
// (Fenwick) without, and a partial sort for the lowest and the highest.
#include "../patch_entropy_sampling.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace fastseg {
namespace {

// Sums of weights that can be taken away one by one: entry i holds those of (i - lowest set bit of i, i].
class WeightTree {
 public:
  WeightTree(const PatchSampling& in, int64_t row) : sums_(in.windows + 1, 0) {
    for (int64_t window = 0; window < in.windows; ++window) {
      const uint64_t weight = in.weight(row, window);
      total_ += weight;
      sums_[window + 1] += weight;
      const int64_t parent = window + 1 + ((window + 1) & -(window + 1));
      if (parent <= in.windows) sums_[parent] += sums_[window + 1];
    }
    while (step_ * 2 <= in.windows) step_ *= 2;
  }

  uint64_t total() const { return total_; }

  // The first window whose weight and all before it sum to more than `target`, and takes its weight away.
  int64_t take(uint64_t target) {
    int64_t before = 0;
    for (int64_t step = step_; step > 0; step /= 2) {
      if (before + step < int64_t(sums_.size()) && sums_[before + step] <= target) {
        before += step;
        target -= sums_[before];
      }
    }
    const int64_t window = before;
    const uint64_t weight = sum_to(window + 1) - sum_to(window);
    total_ -= weight;
    for (int64_t i = window + 1; i < int64_t(sums_.size()); i += i & -i) sums_[i] -= weight;
    return window;
  }

 private:
  uint64_t sum_to(int64_t end) const {
    uint64_t sum = 0;
    for (int64_t i = end; i > 0; i -= i & -i) sum += sums_[i];
    return sum;
  }

  std::vector<uint64_t> sums_;
  uint64_t total_ = 0;
  int64_t step_ = 1;
};

int64_t draw_with_replacement(const PatchSampling& in, int64_t row) {
  std::vector<uint64_t> sums(in.windows);
  uint64_t total = 0;
  for (int64_t window = 0; window < in.windows; ++window) sums[window] = total += in.weight(row, window);
  if (total == 0) return 0;
  for (int64_t draw = 0; draw < in.draws; ++draw) {
    const uint64_t target = multiply_high(in.uniform(row, draw), total);
    in.write(row, draw, std::upper_bound(sums.begin(), sums.end(), target) - sums.begin());
  }
  return in.draws;
}

int64_t draw_without_replacement(const PatchSampling& in, int64_t row) {
  WeightTree tree(in, row);
  int64_t draw = 0;
  for (; draw < in.draws && tree.total() > 0; ++draw) {
    in.write(row, draw, tree.take(multiply_high(in.uniform(row, draw), tree.total())));
  }
  return draw;
}

int64_t take_first(const PatchSampling& in, int64_t row) {
  std::vector<std::pair<uint64_t, int64_t>> order;
  for (int64_t window = 0; window < in.windows; ++window) {
    uint64_t key = 0;
    if (in.order(row, window, &key)) order.emplace_back(key, window);
  }
  const int64_t count = std::min<int64_t>(in.draws, int64_t(order.size()));
  std::partial_sort(order.begin(), order.begin() + count, order.end());
  for (int64_t draw = 0; draw < count; ++draw) in.write(row, draw, order[draw].second);
  return count;
}

}  // namespace

void patch_sample_cpu(const PatchSampling& in, int64_t begin, int64_t end) {
  const bool random =
      in.strategy == SampleStrategy::kProbabilistic || in.strategy == SampleStrategy::kThreshold;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t count = !random          ? take_first(in, row)
                          : in.replacement ? draw_with_replacement(in, row)
                                           : draw_without_replacement(in, row);
    for (int64_t draw = count; draw < in.draws; ++draw) in.write(row, draw, -1);
    in.count[row] = count;
  }
}

}  // namespace fastseg
