#include "cuda/weight_only_small.h"

#include <algorithm>

namespace ao::small {
namespace {

constexpr int kWarps = 16;  // of a multiprocessor: 64 KB of codes under way

// Costs in steps of one warp, 1 KB of 4-bit codes: 32 ns of one multiprocessor's share of an H200's memory bandwidth.
constexpr double kTokenCost = 0.1;    // 256 bytes of a token from L2
constexpr double kBlockCost = 10;     // to start a block, and to add up and store what its warps have
constexpr double kClusterCost = 16;   // its two barriers and the reads of the other blocks' sums

size_t bytes_of(const Shape& s, const Plan& plan, int slice) {
  const int columns = s.M > 8 ? 16 : 8;
  const int warp = warp_bytes(s.unit_bytes, s.wide(), columns, slots_of(s.unit_bytes, s.wide()));
  const int spans = s.wide() ? slice : 4 * slice;
  size_t floats = 0;
  if (plan.cluster > 1) floats += size_t{16} * columns * plan.tiles;
  if (s.zero) floats += size_t{1} * columns * spans;
  return 16 * static_cast<size_t>(s.M) * plan.x_row + size_t{1} * warp * plan.tiles * plan.splits + 4 * floats;
}

}  // namespace

Plan make_plan(const Shape& s, const Device& device) {
  const int64_t all_tiles = (s.N + 15) / 16;
  const int steps = static_cast<int>((s.K + 127) / 128);
  Plan best;
  double best_cost = 0;
  for (int cluster = 1; cluster <= (device.capability >= 90 ? 8 : 1) && cluster <= steps; cluster *= 2) {
    for (int tiles = 8; tiles >= 1; --tiles) {
      const int64_t blocks = (all_tiles + tiles - 1) / tiles * cluster;
      const int64_t each = (blocks + device.multiprocessors - 1) / device.multiprocessors;
      const int slice = (steps + cluster - 1) / cluster;
      Plan plan{.tiles = tiles, .cluster = cluster, .x_row = slice * 16 + 4};
      const size_t limit = static_cast<size_t>(device.shared_bytes);
      // Two blocks of a multiprocessor overlap: one works while the other starts or ends.
      for (int blocks_at_once = each > 1 ? 2 : 1; blocks_at_once >= 1; --blocks_at_once) {
        plan.splits = std::clamp(kWarps / blocks_at_once / tiles, 1, slice);
        plan.shared_bytes = bytes_of(s, plan, slice);
        if (plan.shared_bytes * blocks_at_once <= limit) break;
      }
      while (plan.shared_bytes > limit && plan.splits > 1) {
        --plan.splits;
        plan.shared_bytes = bytes_of(s, plan, slice);
      }
      if (plan.shared_bytes > limit) continue;
      const double cost = static_cast<double>(each) * (slice * (tiles + kTokenCost * s.M) + kBlockCost +
                                                       (cluster > 1 ? kClusterCost : 0));
      if (!best.tiles || cost < best_cost) best = plan, best_cost = cost;
    }
  }
  return best;
}

int64_t most_token_values(const Device& device) { return device.capability >= 90 ? 1 << 19 : 3 << 13; }

bool takes(const Shape& s, const Device& device) {
  return device.usable && s.M <= kMostTokens && s.K % 32 == 0 && (s.group_size >= s.K || s.group_size % 32 == 0) &&
         s.M * s.K <= most_token_values(device) && s.N * (s.K / s.group_size + 1) <= 1 << 30;
}

const Plan& remembered_plan(const Shape& s, const Device& device) {
  struct Entry {
    Shape shape{};
    const Device* device = nullptr;
    Plan plan;
  };
  static thread_local Entry entries[64];
  const uint64_t hash = static_cast<uint64_t>(s.M * 31 + s.N * 7 + s.K * 3 + s.group_size + 2 * s.unit_bytes + s.zero) * 0x9e3779b97f4a7c15;
  Entry& entry = entries[hash >> 58];
  if (entry.device != &device || entry.shape != s) entry = {s, &device, make_plan(s, device)};
  return entry.plan;
}

}  // namespace ao::small
