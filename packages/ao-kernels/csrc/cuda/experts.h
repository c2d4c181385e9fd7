// The rows of experts: T tokens sorted by expert, of which those of expert e end at offsets[e]. See docs/decisions/0015 and 0025.
#pragma once
#include <cstdint>

namespace ao {

struct Experts {
  const int* offsets;  // (E), ascending; what lies behind T counts as T
  int E, T;
};

constexpr int kMostExperts = 1024;

// Tokens of a tile in place of those that the rules choose, for tune_grouped.py; 0: the rules'.
inline int forced_tile = 0;

// Tiles of `tokens` that any offsets can need, one expert a tile; rows of no expert are one expert more.
inline int64_t most_tiles(const Experts& experts, int tokens) {
  const int64_t groups = experts.T < experts.E + 1 ? experts.T : experts.E + 1;
  return (experts.T - groups) / tokens + groups;
}

// Of an expert that has any, when rows are spread evenly.
inline int64_t rows_of_expert(const Experts& experts) {
  const int64_t used = experts.T < experts.E ? experts.T : experts.E;
  return used ? (experts.T + used - 1) / used : 0;
}

}  // namespace ao
