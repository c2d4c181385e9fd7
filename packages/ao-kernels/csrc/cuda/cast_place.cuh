// Which rows a block of threads works on: those of a tile of x, or of a tile of an expert's tokens.
#pragma once
#include "cuda/cast.h"
#include "cuda/experts.cuh"

namespace ao::casts {

constexpr int kPlaces = 32;  // an expert's places are padded to multiples of so many

struct Place {
  int vector = 0;       // the expert whose columns these are, -1: of none
  int row = 0;          // the first, of x
  int read = 0;         // rows of x here, at most kTile
  int64_t place = 0;    // of the first, transposed
  int places = 0;       // to be written, transposed
  bool nothing = false;
};

// tile: along the rows. All threads of a warp.
__device__ inline Place place_of(const Cast& a, int tile) {
  Place found;
  if (!a.experts.offsets) {
    found.row = tile * kTile;
    found.read = min(kTile, a.R - found.row);
    found.place = found.row;
    found.places = min(kTile, a.rows - found.row);
    return found;
  }
  const Rows rows = rows_of_tile(a.experts, kTile, tile);
  found.nothing = rows.expert < 0;
  found.vector = rows.expert < a.experts.E ? rows.expert : -1;
  found.row = rows.first;
  found.read = min(kTile, rows.stop - rows.first);
  if (!found.nothing && found.vector >= 0) found.places = (found.read + kPlaces - 1) / kPlaces * kPlaces;
  return found;
}

// Of an expert: its places begin at the end of those in front of it.
__device__ inline int64_t first_place(const Cast& a, const Place& found) {
  if (!a.experts.offsets || found.vector < 0) return found.place;
  const int before = found.vector ? a.ends[found.vector - 1] : 0;
  return before + (found.row - expert_begin(a.experts, found.vector));
}

}  // namespace ao::casts
