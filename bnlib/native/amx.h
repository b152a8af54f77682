// 3×3 convolution with stride 1 and a border of one zero, and the gradient of its images, in bfloat16 by AMX: Intel's
// Software Developer's Manual, vol. 1, ch. 18.
//
// AMX multiplies tiles: (16 rows × 32 values in bfloat16) · (32 × 16), summed up in float32. An image is copied with a
// border of zeros, through batch norm where asked, into memory that stays in the cache. In channels-last order the three
// pixels beside each other that a row of the kernel takes then are 3·C consecutive values, for 16 neighbouring outputs 16
// such rows that overlap; a convolution is three products of matrices, and nothing is copied into another order. Each
// image is a block, whose sums are taken in one order, whatever the number of threads.

#pragma once

#ifdef __AMX_BF16__

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "through.h"

namespace bnlib {

using at::Tensor;

// Linux lends the tiles' registers to processes that ask.
inline bool has_tiles() {
  constexpr int kAskForPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
  return granted;
}

// The images of a batch, each of which is a block.
struct Images {
  int64_t count, height, width, pitch;  // pitch: from a row to the next, in pixels; one zero stands between two rows
  explicit Images(const Tensor& x) : count(x.size(0)), height(x.size(2)), width(x.size(3)), pitch(width + 1) {}
  int64_t blocks() const { return count; }
  int64_t pixels(int64_t) const { return height * width; }
};

constexpr int64_t kTile = 16, kDepth = 32;  // rows and outputs of a tile, values that a product sums up
constexpr int64_t kSums = 4;                // tiles of outputs that registers hold at once

// The registers, by number: 0 to 3 sums; 4 and 5 pixels, 6 and 7 weights. Where 3 · channels is no multiple of kDepth, 5
// and 7 are for the half of it that is left.
struct TileRegisters {
  explicit TileRegisters(bool half) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    if (half) {
      shapes.bytes[5] = 32;
      shapes.rows[7] = 8;
    }
    _tile_loadconfig(&shapes);
  }
  ~TileRegisters() { _tile_release(); }
};

// Sums (Columns, Rows, 16, 16) of Rows tiles of pixels and Columns of outputs: for each of three rows of pixels, `row`
// values apart, (16, 3 · channels) · weights, those of the second column `column` values further on.
template <int Rows, int Columns>
inline void multiply(const BFloat16* pixels, int64_t row, int64_t channels, const BFloat16* weights, int64_t column,
                     float* sums) {
  const int64_t depth = 3 * channels, tile = kTile * channels, bytes = 2 * channels;
  constexpr int all = Rows * Columns;
#define BNLIB_FOR_SUMS(what)        \
  {                                 \
    what(0);                        \
    if constexpr (all > 1) what(1); \
    if constexpr (all > 2) what(2); \
    if constexpr (all > 3) what(3); \
  }
  BNLIB_FOR_SUMS(_tile_zero)
  for (int64_t dy = 0; dy < 3; ++dy, pixels += row) {
    int64_t k = 0;
    for (; k + kDepth <= depth; k += kDepth, weights += kDepth * kTile) {
      _tile_loadd(6, weights, 64);
      if constexpr (Columns == 2) {
        _tile_loadd(7, weights + column, 64);
        _tile_loadd(4, pixels + k, bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (Rows == 2) {
          _tile_loadd(5, pixels + tile + k, bytes);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      } else {
#define BNLIB_ADD(sum)                             \
  _tile_loadd(4, pixels + sum * tile + k, bytes);  \
  _tile_dpbf16ps(sum, 4, 6)
        BNLIB_FOR_SUMS(BNLIB_ADD)
      }
    }
    if (Columns == 1 && k < depth) {
      _tile_loadd(7, weights, 64);
      weights += kDepth / 2 * kTile;
#define BNLIB_ADD_HALF(sum)                        \
  _tile_loadd(5, pixels + sum * tile + k, bytes);  \
  _tile_dpbf16ps(sum, 5, 7)
      BNLIB_FOR_SUMS(BNLIB_ADD_HALF)
    }
  }
#define BNLIB_STORE(sum) _tile_stored(sum, sums + (sum % Columns * Rows + sum / Columns) * kTile * kTile, 64)
  BNLIB_FOR_SUMS(BNLIB_STORE)
#undef BNLIB_FOR_SUMS
#undef BNLIB_ADD
#undef BNLIB_ADD_HALF
#undef BNLIB_STORE
}

// Weights (outputs, inputs, 3, 3), channels-last, as tiles take them: for every 16 outputs and each row of the kernel
// 3 · inputs values by twos, (3 · inputs / 2, 16, 2). Mirrored: those of the convolution that gives the gradient of the
// images, whose outputs are the inputs.
template <bool mirrored>
Tensor in_tiles(const Tensor& weight) {
  const int64_t K = weight.size(0), C = weight.size(1), outputs = mirrored ? C : K, inputs = mirrored ? K : C;
  const Tensor result = at::empty({outputs / kTile, 3, 3 * inputs / 2, kTile, 2}, weight.options());
  const auto* from = data<BFloat16>(weight);
  auto* to = data<BFloat16>(result);
#pragma omp parallel for schedule(static)
  for (int64_t part = 0; part < outputs / kTile * 3; ++part) {
    const int64_t first = part / 3 * kTile, dy = part % 3;
    BFloat16* tiles = to + part * 3 * inputs * kTile;
    for (int64_t dx = 0; dx < 3; ++dx)
      for (int64_t i = 0; i < inputs; ++i) {
        BFloat16* row = tiles + (dx * inputs + i) / 2 * 2 * kTile + i % 2;
        for (int64_t o = 0; o < kTile; ++o)
          row[2 * o] = mirrored ? from[((i * 3 + 2 - dy) * 3 + 2 - dx) * C + first + o]
                                : from[(((first + o) * 3 + dy) * 3 + dx) * C + i];
      }
  }
  return result;
}

// An image's pixels among zeros, as `read` gives them: the pixel (y, x) at (y + 1) · pitch + x + 1.
template <typename R>
inline void copy_image(const R& read, int64_t image, const Images& images, int64_t channels, BFloat16* to) {
  for (int64_t y = 0; y < images.height; ++y)
    for (int64_t c = 0; c < channels; c += kLanes) {
      const auto value = read.of(c);
      const int64_t from = (image * images.height + y) * images.width * channels + c;
      BFloat16* row = to + ((y + 1) * images.pitch + 1) * channels + c;
      for (int64_t x = 0; x < images.width; ++x) store(row + x * channels, value(from + x * channels));
    }
}

// Writes the convolution of what is read, Columns · 16 outputs at a time.
template <int Columns, typename R, typename W>
void convolve_images(const R& read, const BFloat16* weights, const W& write, const Images& images, int64_t inputs,
                     int64_t outputs, const Tensor& memory) {
  constexpr int64_t at_once = kSums / Columns, tile_sums = kTile * kTile;
  const int64_t places = images.height * images.pitch, tiles = (places + kTile - 1) / kTile;  // one in a row is no pixel
  const int64_t row = images.pitch * inputs, column = kTile * 9 * inputs;
#pragma omp parallel
  {
    const TileRegisters registers(3 * inputs % kDepth);
    auto* image = data<BFloat16>(memory) + omp_get_thread_num() * memory.size(1);
    alignas(64) float sums[kSums * tile_sums];
#pragma omp for schedule(static)
    for (int64_t n = 0; n < images.count; ++n) {
      copy_image(read, n, images, inputs, image);
      for (int64_t k = 0; k < outputs; k += Columns * kTile) {
        const auto multiply_from = [&](int64_t tile) {  // returns how many tiles of pixels
          const auto* pixels = image + tile * kTile * inputs;
          const auto* these = weights + k * 9 * inputs;
          const int64_t rows = std::min(at_once, tiles - tile);
          if (rows == 1) multiply<1, Columns>(pixels, row, inputs, these, column, sums);
          if (rows == 2) multiply<2, Columns>(pixels, row, inputs, these, column, sums);
          if constexpr (Columns == 1) {
            if (rows == 3) multiply<3, 1>(pixels, row, inputs, these, column, sums);
            if (rows == 4) multiply<4, 1>(pixels, row, inputs, these, column, sums);
          }
          return rows;
        };
        int64_t rows = multiply_from(0);
        const Floats origins[] = {load(sums), load(sums + (Columns - 1) * rows * tile_sums)};
        const decltype(write.of(k, origins[0])) put[] = {write.of(k, origins[0]),
                                                         write.of(k + (Columns - 1) * kTile, origins[1])};
        Floats a[Columns] = {}, b[Columns] = {};
        int64_t y = 0, x = 0;
        for (int64_t tile = 0; tile < tiles; tile += at_once) {
          if (tile) rows = multiply_from(tile);
          const int64_t end = std::min(rows * kTile, places - tile * kTile);
          for (int64_t place = 0; place < end;) {
            const int64_t pixels = std::min(end - place, images.width - x);
            for (int c = 0; c < Columns; ++c) {
              const int64_t at = ((n * images.height + y) * images.width + x) * outputs + k + c * kTile;
              const float* from = sums + c * rows * tile_sums + place * kTile;
              Floats a_here = {}, b_here = {};  // not one by one: the error grows with the number of additions
              for (int64_t i = 0; i < pixels; ++i) put[c](at + i * outputs, load(from + i * kTile), a_here, b_here);
              a[c] += a_here;
              b[c] += b_here;
            }
            place += pixels;
            x += pixels;
            if (x == images.width && place < end) {
              ++place;
              ++y;
              x = 0;
            }
          }
        }
        if (write.sums)
          for (int c = 0; c < Columns; ++c) {
            const Floats found[] = {a[c], b[c], origins[c]};
            for (int which = 0; which < 3; ++which) store(write.sums->at(n, which, k + c * kTile), found[which]);
          }
      }
    }
  }
}

// Writes the convolution of what is read; weights: (C', C, 3, 3), bfloat16, channels-last.
template <bool mirrored, typename S, typename R, typename W>
void convolve(const R& read, const Tensor& weight, const W& write, const Images& images) {
  static_assert(kLanes == kTile);
  const int64_t outputs = weight.size(mirrored ? 1 : 0), inputs = weight.size(mirrored ? 0 : 1);
  const int64_t places = (images.height * images.pitch + kTile - 1) / kTile * kTile + 2 * images.pitch + 2;
  const Tensor weights = in_tiles<mirrored>(weight);
  const Tensor memory = at::zeros({omp_get_max_threads(), places * inputs}, weight.options());
  const auto* tiles = data<BFloat16>(weights);
  if (inputs % kDepth == 0 && outputs % kDepth == 0) return convolve_images<2>(read, tiles, write, images, inputs, outputs, memory);
  convolve_images<1>(read, tiles, write, images, inputs, outputs, memory);
}

}  // namespace bnlib

#endif
