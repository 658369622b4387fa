// Tiles of 16-bit numbers in shared memory, as boxes of TMA fill them and WGMMA reads them: rows in
// blocks of 64 columns, 128 bytes, whose pieces of 16 bytes are swizzled; or of 32 columns and no
// more. A tile is an operand by its rows, or turned, by its columns.
#pragma once

#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/layout.hpp>
#include <type_traits>

#include "gemm/cutlass_type.h"

namespace pyops {

// (row, column) and (column, row) to elements of a tile.
template <class T, int kColumns>
using AtomByRows = std::conditional_t<kColumns == 32, cute::GMMA::Layout_K_SW64_Atom<cutlass_t<T>>,
                                      cute::GMMA::Layout_K_SW128_Atom<cutlass_t<T>>>;
template <class T, int kRows, int kColumns>
using TileByRows = decltype(cute::tile_to_shape(
    AtomByRows<T, kColumns>{}, cute::Shape<cute::Int<kRows>, cute::Int<kColumns>>{}));
template <class T, int kRows, int kColumns>
using TileByColumns = decltype(cute::tile_to_shape(
    cute::GMMA::Layout_MN_SW128_Atom<cutlass_t<T>>{},
    cute::Shape<cute::Int<kColumns>, cute::Int<kRows>>{}, cute::Step<cute::_2, cute::_1>{}));

// Where the box that begins at `row` and `column` begins in its tile.
template <int kRows>
PYOPS_HOST_DEVICE constexpr int box_offset(int row, int column) {
  return column * kRows + row * 64;
}

}  // namespace pyops
