// Tiles of 16-bit numbers in shared memory, as boxes of TMA fill them and WGMMA reads them: rows in
// blocks of 64 columns, 128 bytes, whose pieces of 16 bytes are swizzled. A tile is an operand by
// its rows, or turned, by its columns.
#pragma once

#include <cute/layout.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

#include "core/dtype.h"

namespace pyops {

template <class T>
struct CutlassType;
template <>
struct CutlassType<BFloat16> {
  using type = cutlass::bfloat16_t;
};
template <>
struct CutlassType<Float16> {
  using type = cutlass::half_t;
};
template <class T>
using cutlass_t = typename CutlassType<T>::type;

// (row, column) and (column, row) to elements of a tile.
template <class T, int kRows, int kColumns>
using TileByRows =
    decltype(cute::tile_to_shape(cute::GMMA::Layout_K_SW128_Atom<cutlass_t<T>>{},
                                 cute::Shape<cute::Int<kRows>, cute::Int<kColumns>>{}));
template <class T, int kRows, int kColumns>
using TileByColumns =
    decltype(cute::tile_to_shape(cute::GMMA::Layout_MN_SW128_Atom<cutlass_t<T>>{},
                                 cute::Shape<cute::Int<kColumns>, cute::Int<kRows>>{},
                                 cute::Step<cute::_2, cute::_1>{}));

// Where the box that begins at `row` and `column` begins in its tile.
template <int kRows>
PYOPS_HOST_DEVICE constexpr int box_offset(int row, int column) {
  return column * kRows + row * 64;
}

}  // namespace pyops
