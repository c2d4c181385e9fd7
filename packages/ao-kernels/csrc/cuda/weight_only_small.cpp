#include "cuda/weight_only_small.h"

#include <algorithm>
#include <cmath>

namespace ao::small {
namespace {

// Costs in microseconds of one multiprocessor, fitted to measurements on an H200.
constexpr double kByteCost = 36e-6;    // of codes: its share of the bandwidth of memory is 32e-6
constexpr double kStepCost = 0.03;     // the instructions of a step, 16 rows
constexpr double kNarrowCost = 0.06;   // the same, of a narrow one
constexpr double kTokensCost = 1.15;   // 16 tokens rather than 8: times as much
constexpr double kLatency = 10e3;      // bytes under way at which half of the time is waiting
constexpr double kTokenCost = 0.003;   // 256 bytes of a token from L2
constexpr double kBlockCost = 0.9;     // to start a block, and to store what it has
constexpr double kWarpCost = 0.03;     // to add up what a warp has
constexpr double kClusterCost = 2.0;   // two barriers, each time a cluster has twice as many blocks
constexpr double kRemoteCost = 0.04;   // a value that each thread reads of every block

size_t bytes_of(const Shape& s, const Plan& plan, int slice) {
  const int columns = s.columns();
  const int warp = warp_bytes(s.unit_bytes, s.wide(), s.fragments(), columns, slots_of(s.unit_bytes, s.wide()));
  const int spans = s.wide() ? slice : 4 * slice;
  size_t floats = 0;
  if (plan.cluster > 1) floats += size_t{16} * s.fragments() * columns * plan.tiles;
  if (s.zero) floats += size_t{1} * columns * spans;
  return 16 * static_cast<size_t>(s.M) * plan.x_row + size_t{1} * warp * plan.tiles * plan.splits + 4 * floats;
}

// Multiprocessors that clusters can fill: a guess on the safe side, for a cluster lies within a group of multiprocessors and leaves
// some of it over. int4 4096 x 14336, 16 tokens, H200: 128 blocks in clusters of 8 took 31.5 us, 88 in clusters of 4 22.3.
int usable(const Device& device, int cluster) {
  return cluster <= 2 ? device.multiprocessors : std::max(1, device.multiprocessors * 2 / 3);
}

int most_cluster(const Device& device) { return device.code >= 90 ? 8 : 1; }

// How long a plan takes.
double cost_of(const Shape& s, const Device& device, const Plan& plan, int64_t blocks, int slice) {
  const int warps = plan.tiles * plan.splits, step = s.fragments() * step_bytes(s.unit_bytes, s.wide());
  const int places = usable(device, plan.cluster);
  const int64_t each = (blocks + places - 1) / places;  // of a multiprocessor
  // Of these, so many at a time: one works while another starts or ends.
  const auto fitting = static_cast<int64_t>((device.shared_bytes + 1024) / (plan.shared_bytes + 1024));
  const int64_t at_once = std::min({each, fitting, int64_t{s.most_warps() / warps}});
  const double waiting = kLatency / (double(at_once) * warps * (slots_of(s.unit_bytes, s.wide()) - 1) * step);
  const double codes = std::max(kByteCost * step, s.fragments() * (s.wide() ? kStepCost : kNarrowCost)) *
                       (s.M > 8 ? kTokensCost : 1) * (1 + waiting * waiting);
  const int longest = (slice + plan.splits - 1) / plan.splits;  // the others wait for this one's end
  double ends = kBlockCost + warps * kWarpCost;
  if (plan.cluster > 1)
    ends += kClusterCost * std::log2(plan.cluster) + kRemoteCost * s.M * s.fragments() / (2 * plan.splits);
  return each * (warps * longest * codes + slice * s.M * kTokenCost + ends / std::sqrt(at_once));
}

// The number of blocks, and how many a multiprocessor holds. Each should get as many of a grid as the others, although the
// next grid's blocks move in as soon as there is room: whatever has room for one more may get two. So there is a block for
// every place, and room for the blocks of one grid or of two: int8 14336 x 4096, one token, H200: 128 blocks and room for two
// a multiprocessor 24 us, room for one 18 us.
void place_blocks(const Shape& s, const Device& device, int64_t all_tiles, Plan& plan) {
  const int64_t least = (all_tiles + plan.tiles - 1) / plan.tiles;
  plan.blocks = static_cast<int>(least);
  if (plan.cluster > 1) return;
  const int64_t each = (least + device.multiprocessors - 1) / device.multiprocessors;
  plan.blocks = static_cast<int>(std::min(all_tiles, each * device.multiprocessors));
  if (each > 2) return;
  const int64_t memory = device.shared_bytes + 1024;  // of a multiprocessor; a block takes 1024 bytes more than it asks for
  const int64_t fitting = std::min(memory / static_cast<int64_t>(plan.shared_bytes + 1024),
                                   int64_t{s.most_warps() / (plan.tiles * plan.splits)});
  const bool full = plan.blocks == each * device.multiprocessors;
  const int64_t room = full && fitting >= 2 * each ? 2 * each : each;
  if (room < fitting) plan.shared_bytes = std::max(plan.shared_bytes, static_cast<size_t>(memory / (room + 1) - 1024 + 16));
}

}  // namespace

Plan make_plan(const Shape& s, const Device& device) {
  const int rows = 16 * s.fragments(), most_warps = s.most_warps();
  const int64_t all_tiles = (s.N + rows - 1) / rows;
  const int steps = static_cast<int>((s.K + 127) / 128);
  Plan best;
  double best_cost = 0;
  for (int cluster = 1; cluster <= most_cluster(device) && cluster <= steps; cluster *= 2) {
    const int slice = (steps + cluster - 1) / cluster;
    for (int tiles = std::min(most_warps, 16); tiles >= 1; --tiles) {
      const int64_t blocks = (all_tiles + tiles - 1) / tiles * cluster;
      for (int splits = 1; splits <= std::min(most_warps / tiles, slice); ++splits) {
        Plan plan{.tiles = tiles, .splits = splits, .cluster = cluster, .x_row = slice * 16 + 4,
                  .early = device.early_launch};
        plan.shared_bytes = bytes_of(s, plan, slice);
        if (plan.shared_bytes > static_cast<size_t>(device.shared_bytes)) break;
        const double cost = cost_of(s, device, plan, blocks, slice);
        if (!best.tiles || cost < best_cost) best = plan, best_cost = cost;
      }
    }
  }
  if (best.tiles) place_blocks(s, device, all_tiles, best);
  return best;
}

int64_t most_token_values(const Device& device) { return most_cluster(device) > 1 ? 1 << 19 : 3 << 13; }

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
