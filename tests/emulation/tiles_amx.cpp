// The tiles that emulated AMX works on: a thread's own, checked against the configuration they were
// given. TDPBF16PS as the manual's pseudocode has it: even and odd products of a pair in two chains
// of fused multiply-adds along the depth, their sum added to the tile, denormals as zero
// throughout.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "amx.h"

namespace pyops {
namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

// What LDTILECFG reads.
struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t colsb[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);

struct alignas(64) Tile {
  uint8_t row[kRows][kRowBytes];
};

struct State {
  Config config;
  Tile tiles[kTiles];
};
thread_local State state{};

using emulation::require;

int rows(int tile) { return state.config.rows[tile]; }
int row_bytes(int tile) { return state.config.colsb[tile]; }

Tile& configured(int tile) {
  require(state.config.palette == 1, "a tile before _tile_loadconfig or after _tile_release (#UD)");
  require(tile >= 0 && tile < kTiles && rows(tile) > 0, "a tile the configuration lacks (#UD)");
  return state.tiles[tile];
}

// The control register of the vector unit as the matrix unit behaves: to nearest even, denormals
// zero on both sides, nothing signalled.
class TileArithmetic {
 public:
  TileArithmetic() : control_(_mm_getcsr()) { set(0x9fc0); }
  ~TileArithmetic() { set(control_); }
  TileArithmetic(const TileArithmetic&) = delete;
  TileArithmetic& operator=(const TileArithmetic&) = delete;

 private:
  static void set(unsigned control) { asm volatile("ldmxcsr %0" : : "m"(control) : "memory"); }
  const unsigned control_;
};

// A row of pairs as two rows of float32.
struct Pairs {
  __m256 even[2], odd[2];
};

Pairs widen(const uint8_t* row) {
  Pairs pairs;
  for (int half = 0; half < 2; ++half) {
    const __m256i bits = _mm256_load_si256(reinterpret_cast<const __m256i*>(row) + half);
    pairs.even[half] = (__m256)_mm256_slli_epi32(bits, 16);
    pairs.odd[half] = (__m256)_mm256_and_si256(bits, _mm256_set1_epi32(~0xffff));
  }
  return pairs;
}

[[gnu::noinline]] void multiply(Tile& sums, const Tile& left, const Tile& right, int m, int depth) {
  Pairs b[kRows];
  for (int k = 0; k < depth; ++k) b[k] = widen(right.row[k]);
  for (int i = 0; i < m; ++i) {
    Pairs sum{};
    for (int k = 0; k < depth; ++k) {
      uint32_t pair;
      std::memcpy(&pair, left.row[i] + 4 * k, 4);
      const __m256 even = (__m256)_mm256_set1_epi32(static_cast<int>(pair << 16));
      const __m256 odd = (__m256)_mm256_set1_epi32(static_cast<int>(pair & 0xffff0000));
      for (int half = 0; half < 2; ++half) {
        sum.even[half] = _mm256_fmadd_ps(even, b[k].even[half], sum.even[half]);
        sum.odd[half] = _mm256_fmadd_ps(odd, b[k].odd[half], sum.odd[half]);
      }
    }
    auto* out = reinterpret_cast<float*>(sums.row[i]);
    for (int half = 0; half < 2; ++half, out += 8) {
      const __m256 both = _mm256_add_ps(sum.even[half], sum.odd[half]);
      _mm256_store_ps(out, _mm256_add_ps(_mm256_load_ps(out), both));
    }
  }
}

// x·2^floor(n), as the manual's table of special cases has it.
template <class T>
T scaled(T x, T n) {
  constexpr T kInfinity = __builtin_inff(), kNaN = __builtin_nanf(""), kLimit = 5000;
  if (x != x) return n == kInfinity ? kInfinity : n == -kInfinity ? 0 : x;
  if (n != n) return n;
  if (n == kInfinity) return x == 0 ? kNaN : std::copysign(kInfinity, x);
  if (n == -kInfinity) return std::abs(x) == kInfinity ? kNaN : std::copysign(T{0}, x);
  return std::ldexp(x, static_cast<int>(std::floor(std::clamp(n, -kLimit, kLimit))));
}

}  // namespace

void emulation::refuse(const char* what) {
  std::fprintf(stderr, "emulated AVX-512 and AMX: %s\n", what);
  std::abort();
}

float emulation::scale_special(float x, float n) { return scaled(x, n); }
double emulation::scale_special(double x, double n) { return scaled(x, n); }

void _tile_loadconfig(const void* config) {
  std::memcpy(&state.config, config, sizeof state.config);
  const Config& c = state.config;
  require(c.palette == 1 && c.start_row == 0, "a configuration of palette 1 begins at row 0 (#GP)");
  for (const uint8_t byte : c.reserved) require(byte == 0, "a reserved byte is set (#GP)");
  for (int i = 0; i < 16; ++i) {
    const int limit = i < kTiles ? kRows : 0;
    require(c.rows[i] <= limit && c.colsb[i] <= 4 * limit, "a tile too large (#GP)");
    require((c.rows[i] == 0) == (c.colsb[i] == 0), "a tile without rows or columns (#GP)");
  }
  std::memset(state.tiles, 0, sizeof state.tiles);
}

void _tile_release() { state = {}; }

void _tile_zero(int tile) { configured(tile) = {}; }

void _tile_loadd(int tile, const void* base, int64_t stride) {
  Tile& to = configured(tile) = {};
  for (int i = 0; i < rows(tile); ++i) {
    const auto* from = static_cast<const uint8_t*>(base) + i * stride;
    std::memcpy(to.row[i], from, static_cast<size_t>(row_bytes(tile)));
  }
}

void _tile_stored(int tile, void* base, int64_t stride) {
  const Tile& from = configured(tile);
  for (int i = 0; i < rows(tile); ++i) {
    auto* to = static_cast<uint8_t*>(base) + i * stride;
    std::memcpy(to, from.row[i], static_cast<size_t>(row_bytes(tile)));
  }
}

void _tile_dpbf16ps(int sums, int left, int right) {
  Tile& c = configured(sums);
  const Tile &a = configured(left), &b = configured(right);
  require(sums != left && sums != right && left != right, "a tile in two places (#UD)");
  require(row_bytes(sums) % 4 == 0 && row_bytes(left) % 4 == 0, "rows of half a pair (#UD)");
  require(rows(sums) == rows(left) && row_bytes(sums) == row_bytes(right) &&
              row_bytes(left) / 4 == rows(right),
          "tiles whose shapes do not fit (#UD)");
  const TileArithmetic as_on_tiles;
  multiply(c, a, b, rows(left), rows(right));
}

}  // namespace pyops
