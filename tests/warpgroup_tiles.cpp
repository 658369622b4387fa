// How CuTe lays out what TMA, WGMMA and the threads of a warpgroup share, for comparison with what
// the hardware does and the kernels count on.
#include <cute/tensor.hpp>

#include "attention/attention_warpgroup.h"
#include "gemm/warpgroup_tile.h"

using namespace pyops;

namespace {

// CUDA's driver: a box of 128-byte rows, of which row r has its piece of 16 bytes c at c ^ r % 8.
template <int kRows>
int place_by_tma(int row, int column, int box_rows) {
  const int box_row = row / box_rows * box_rows, box_column = column / 64 * 64;
  const int r = row - box_row, c = column - box_column;
  return box_offset<kRows>(box_row, box_column) + r * 64 + ((c / 8) ^ (r % 8)) * 8 + c % 8;
}
// The same of 64-byte rows, of which two by two are swizzled alike.
int place_in_narrow_box(int row, int column) {
  return row * 32 + ((column / 8) ^ (row / 2 % 4)) * 8 + column % 8;
}

// CuTe swizzles bytes of an address; here elements of a tile that begins where a pattern does.
template <class Layout>
int place_by_cute(int i, int j) {
  const auto layout = cute::as_position_independent_swizzle_layout(Layout{});
  return static_cast<int>(layout(i, j));
}

template <class T, int kRows, int kColumns>
bool agrees(int box_rows) {
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      const int place = place_by_tma<kRows>(i, j, box_rows);
      if (place_by_cute<TileByRows<T, kRows, kColumns>>(i, j) != place) return false;
      if (place_by_cute<TileByColumns<T, kRows, kColumns>>(j, i) != place) return false;
    }
  }
  return true;
}

// A tile of 32 columns, and an operand of any eight rows on of a box of patches.
template <class T, int kColumns>
bool shifted_tiles_agree() {
  for (int first = 0; first < 14 * 8; first += 8) {
    for (int i = 0; i < 64; ++i) {
      for (int j = 0; j < kColumns; ++j) {
        const int row = first + i;
        const int place =
            kColumns == 32 ? place_in_narrow_box(row, j) : place_by_tma<176>(row, j, 176);
        if (first * kColumns + place_by_cute<TileByRows<T, 64, kColumns>>(i, j) != place) {
          return false;
        }
      }
    }
  }
  return true;
}

// CuTe numbers an element (row, column) of 64 rows as row + 64·column.
template <int kColumns>
bool accumulators_agree() {
  const cute::SM90::GMMA::CLayout_64xN<kColumns> layout;
  for (int thread = 0; thread < 128; ++thread) {
    for (int x = 0; x < kColumns / 2; ++x) {
      const int row = row_of(thread) + x / 2 % 2 * 8;
      const int column = x / 4 * 8 + column_of(thread) + x % 2;
      if (static_cast<int>(layout(thread, x)) != row + 64 * column) return false;
    }
  }
  return true;
}

// The operand's eight numbers are an accumulator's, sixteen columns on for each k.
bool operands_agree() {
  const cute::SM90::GMMA::ALayout_64x16 operand;
  const cute::SM90::GMMA::CLayout_64xN<128> accumulator;
  for (int thread = 0; thread < 128; ++thread) {
    for (int k = 0; k < 8; ++k) {
      for (int x = 0; x < 8; ++x) {
        const int place = static_cast<int>(operand(thread, x)) + 64 * 16 * k;
        if (static_cast<int>(accumulator(thread, 8 * k + x)) != place) return false;
      }
    }
  }
  return true;
}

}  // namespace

extern "C" {

int tiles_agree() {
  return agrees<BFloat16, 64, 64>(64) && agrees<BFloat16, 64, 128>(64) &&
         agrees<Float16, 128, 64>(64) && agrees<Float16, 128, 128>(64) &&
         agrees<BFloat16, 128, 64>(128) && agrees<BFloat16, 128, 128>(128) &&
         agrees<BFloat16, 32, 128>(32) && agrees<BFloat16, 64, 128>(32) &&
         shifted_tiles_agree<BFloat16, 64>() && shifted_tiles_agree<Float16, 32>();
}

int registers_agree() {
  return accumulators_agree<32>() && accumulators_agree<64>() && accumulators_agree<128>() &&
         operands_agree();
}
}
