// 3×3 convolution with stride 1 and a border of one zero, and its gradients, for channels-last tensors on a CPU, by
// Winograd's algorithm F(4×4, 3×3): Lavin & Gray 2016, Sec. 4.
//
// The output is cut into tiles of 4×4 pixels. What a tile is made of, 6×6 pixels, is transformed so that the
// convolution becomes 36 products of matrices, one for each of the 36 points: (tiles × inputs) · (inputs × outputs). That
// is a quarter of the multiplications. A block of tiles goes through all three steps while it is in the cache. What is
// read and what is written may pass through batch norm on the way. Every sum is taken in one order, whatever the number
// of threads.

#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <omp.h>

#include <algorithm>

#include "through.h"

namespace bnlib {

using at::Tensor;

constexpr int64_t kOut = 4, kIn = 6, kPoints = kIn * kIn;  // pixels a side of a tile, of what it is made of
constexpr int64_t kTiles = 24;                              // a block: up to 256 channels of it stay in the cache
constexpr int64_t kColumns = 16;                            // outputs that a product makes at a time
constexpr int64_t kVectors = kColumns / kLanes;

// All that such a function calls becomes part of it; left to itself GCC calls the transforms, which takes twice as long.
#define BNLIB_INLINED __attribute__((flatten))

// ------------------------------------------------------------------------------------ the transforms, along one axis

struct OfInput {  // Bᵀ
  static constexpr int from = 6;
  template <typename V>
  static void apply(const V* d, V* v) {
    const V even = d[4] - 4.f * d[2], odd = d[3] - 4.f * d[1];
    const V wide_even = d[4] - d[2], wide_odd = 2.f * (d[3] - d[1]);
    v[0] = 4.f * d[0] - 5.f * d[2] + d[4];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = wide_even + wide_odd;
    v[4] = wide_even - wide_odd;
    v[5] = 4.f * d[1] - 5.f * d[3] + d[5];
  }
};

struct ToOutput {  // Aᵀ
  template <typename V>
  static void apply(const V* m, V* y) {
    const V sum = m[1] + m[2], difference = m[1] - m[2], wide_sum = m[3] + m[4], wide_difference = m[3] - m[4];
    y[0] = m[0] + sum + wide_sum;
    y[1] = difference + 2.f * wide_difference;
    y[2] = sum + 4.f * wide_sum;
    y[3] = difference + 8.f * wide_difference + m[5];
  }
};

struct OfOutputGradient {  // A
  static constexpr int from = 4;
  template <typename V>
  static void apply(const V* y, V* m) {
    const V even = y[0] + y[2], odd = y[1] + y[3];
    const V wide_even = y[0] + 4.f * y[2], wide_odd = 2.f * y[1] + 8.f * y[3];
    m[0] = y[0];
    m[1] = even + odd;
    m[2] = even - odd;
    m[3] = wide_even + wide_odd;
    m[4] = wide_even - wide_odd;
    m[5] = y[3];
  }
};

struct OfWeights {  // G
  static constexpr int from = 3, to = 6;
  template <typename V>
  static void apply(const V* g, V* u) {
    const V even = (g[0] + g[2]) / -6.f, odd = g[1] / -6.f;
    const V wide_even = g[0] / 24.f + g[2] / 6.f, wide_odd = g[1] / 12.f;
    u[0] = g[0] / 4.f;
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = wide_even + wide_odd;
    u[4] = wide_even - wide_odd;
    u[5] = g[2];
  }
};

struct ToWeightGradient {  // Gᵀ
  static constexpr int from = 6, to = 3;
  template <typename V>
  static void apply(const V* u, V* g) {
    const V sum = u[1] + u[2], difference = u[1] - u[2], wide_sum = u[3] + u[4], wide_difference = u[3] - u[4];
    g[0] = u[0] / 4.f - sum / 6.f + wide_sum / 24.f;
    g[1] = wide_difference / 12.f - difference / 6.f;
    g[2] = wide_sum / 6.f - sum / 6.f + u[5];
  }
};

// Along both axes of a square: get(row, column) gives vectors V, put(row, column, vector) takes them.
template <typename Transform, typename V, typename Get, typename Put>
inline void transform(const Get& get, const Put& put) {
  constexpr int from = Transform::from, to = Transform::to;
  V half[to][from], before[from], after[to];
  for (int column = 0; column < from; ++column) {
    for (int row = 0; row < from; ++row) before[row] = get(row, column);
    Transform::apply(before, after);
    for (int row = 0; row < to; ++row) half[row][column] = after[row];
  }
  for (int row = 0; row < to; ++row) {
    Transform::apply(half[row], after);
    for (int column = 0; column < to; ++column) put(row, column, after[column]);
  }
}

// ------------------------------------------------------------------------------------ strips of tiles

// Up to kTiles tiles side by side, of one image: where in it they begin, in pixels.
struct Strip {
  int64_t image, top, left, tiles;
};

// All strips of a batch. A block is as many as have kTiles tiles together, and at least one.
struct Strips {
  int64_t height, width, down, across, pieces, count, in_block;
  explicit Strips(const Tensor& x)
      : height(x.size(2)), width(x.size(3)), down((height + kOut - 1) / kOut), across((width + kOut - 1) / kOut),
        pieces((across + kTiles - 1) / kTiles), count(x.size(0) * down * pieces),
        in_block(std::max<int64_t>(1, kTiles / std::max<int64_t>(1, across))) {}
  int64_t blocks() const { return (count + in_block - 1) / in_block; }
  Strip operator[](int64_t strip) const {
    const int64_t piece = strip % pieces, row = strip / pieces;
    return {row / down, row % down * kOut, piece * kTiles * kOut, std::min(kTiles, across - piece * kTiles)};
  }
  // The number of a block's pixels, without those of its tiles that are outside the image.
  int64_t pixels(int64_t block) const {
    int64_t sum = 0;
    for_block(block, [&](const Strip& strip, int64_t) {
      sum += std::min(kOut, height - strip.top) * std::min(strip.tiles * kOut, width - strip.left);
    });
    return sum;
  }
  // Calls body(strip, number of the block's tiles before it) for each strip of the block; returns the number of tiles.
  template <typename Body>
  int64_t for_block(int64_t block, const Body& body) const {
    int64_t tiles = 0;
    for (int64_t s = block * in_block; s < std::min(count, (block + 1) * in_block); ++s) {
      const Strip strip = (*this)[s];
      body(strip, tiles);
      tiles += strip.tiles;
    }
    return tiles;
  }
};

// A block of tiles is 36 matrices (kTiles, columns), so many values apart: 16 more than they have, or the same place in
// all of them would fall on few of the cache's sets.
constexpr int64_t apart(int64_t columns) { return kTiles * columns + kColumns; }

// What a strip's tiles are made of, transformed down its columns of pixels: 6 rows of at most so many pixels, 16 channels.
constexpr int64_t kBandPixels = kTiles * kOut + kIn - kOut, kBand = kIn * kBandPixels * kColumns;

// Pixels outside the image are zero, and so is their transform.
template <typename Transform, int border, typename R, typename S>
inline void transform_down(const R& read, int64_t channels, int64_t c0, const Strips& strips, const Strip& strip, S* band) {
  using V = Vector<S>;
  constexpr int from = Transform::from;
  const int64_t top = strip.top - border, left = strip.left - border, pixels = strip.tiles * kOut + from - kOut;
  const int64_t first = std::max<int64_t>(0, -left), end = std::min(pixels, strips.width - left);
  const int64_t row_length = strips.width * channels;
  const int64_t corner = (strip.image * strips.height + top) * row_length + left * channels + c0;
  for (int row = 0; row < kIn; ++row) {
    std::fill_n(band + row * kBandPixels * kColumns, first * kColumns, S(0));
    std::fill(band + (row * kBandPixels + end) * kColumns, band + (row * kBandPixels + pixels) * kColumns, S(0));
  }
  const auto transform_all = [&](const auto& is_inside) {
    for (int64_t c = 0; c < kColumns; c += kLanes) {
      const auto value = read.of(c0 + c);
      for (int64_t x = first; x < end; ++x) {
        V before[from], after[kIn];
        for (int row = 0; row < from; ++row)
          before[row] = is_inside(row) ? value(corner + row * row_length + x * channels + c) : V{};
        Transform::apply(before, after);
        for (int row = 0; row < kIn; ++row) store(band + (row * kBandPixels + x) * kColumns + c, after[row]);
      }
    }
  };
  if (top >= 0 && top + from <= strips.height)
    transform_all([](int) { return true; });
  else
    transform_all([&](int row) { return top + row >= 0 && top + row < strips.height; });
}

// The transformed squares of a block of tiles, a column for each channel from `first` on; returns the number of tiles.
template <typename Transform, int border, typename R, typename S>
BNLIB_INLINED int64_t read_block(const R& read, int64_t channels, int64_t first, int64_t columns, const Strips& strips,
                                 int64_t block, S* band, S* matrices) {
  using V = Vector<S>;
  return strips.for_block(block, [&](const Strip& strip, int64_t t0) {
    for (int64_t c0 = 0; c0 < columns; c0 += kColumns) {
      transform_down<Transform, border>(read, channels, first + c0, strips, strip, band);
      for (int64_t t = 0; t < strip.tiles; ++t)
        for (int64_t c = 0; c < kColumns; c += kLanes)
          for (int row = 0; row < kIn; ++row) {
            V before[Transform::from], after[kIn];
            for (int column = 0; column < Transform::from; ++column)
              before[column] = load(band + (row * kBandPixels + t * kOut + column) * kColumns + c);
            Transform::apply(before, after);
            for (int column = 0; column < kIn; ++column)
              store(matrices + (row * kIn + column) * apart(columns) + (t0 + t) * columns + c0 + c, after[column]);
          }
    }
  });
}

// The outputs that a block's matrices become, of 16 channels from k on.
template <typename W, typename S>
BNLIB_INLINED void write_block(const S* matrices, const W& write, int64_t channels, int64_t k, const Strips& strips,
                               int64_t block) {
  using V = Vector<S>;
  static_assert(kVectors <= 2);
  const auto to_rows = [&](int64_t tile, int v, V half[kOut][kIn]) {
    for (int column = 0; column < kIn; ++column) {
      V before[kIn], after[kOut];
      for (int row = 0; row < kIn; ++row)
        before[row] = load(matrices + (row * kIn + column) * apart(kColumns) + tile * kColumns + v * kLanes);
      ToOutput::apply(before, after);
      for (int row = 0; row < kOut; ++row) half[row][column] = after[row];
    }
  };
  const auto first = [&](int v) {
    V half[kOut][kIn], after[kOut];
    to_rows(0, v, half);
    ToOutput::apply(half[0], after);
    return after[0];
  };
  const V origins[] = {first(0), first(kVectors - 1)};
  const decltype(write.of(k, V{})) put[] = {write.of(k, origins[0]), write.of(k + (kVectors - 1) * kLanes, origins[1])};
  V a[kVectors] = {}, b[kVectors] = {};
  strips.for_block(block, [&](const Strip& strip, int64_t t0) {
    for (int64_t t = 0; t < strip.tiles; ++t) {
      V half[kVectors][kOut][kIn];
      for (int v = 0; v < kVectors; ++v) to_rows(t0 + t, v, half[v]);
      const int64_t left = strip.left + t * kOut;
      const int64_t corner = ((strip.image * strips.height + strip.top) * strips.width + left) * channels + k;
      for (int row = 0; row < kOut && strip.top + row < strips.height; ++row) {
        V after[kVectors][kOut], a_of_row[kVectors] = {}, b_of_row[kVectors] = {};
        for (int v = 0; v < kVectors; ++v) ToOutput::apply(half[v][row], after[v]);
        for (int column = 0; column < kOut && left + column < strips.width; ++column)
          for (int v = 0; v < kVectors; ++v)
            put[v](corner + (row * strips.width + column) * channels + v * kLanes, after[v][column], a_of_row[v],
                   b_of_row[v]);
        for (int v = 0; v < kVectors; ++v) {  // not one by one: the error grows with the number of additions
          a[v] += a_of_row[v];
          b[v] += b_of_row[v];
        }
      }
    }
  });
  if (write.sums)
    for (int v = 0; v < kVectors; ++v) {
      const V found[] = {a[v], b[v], origins[v]};
      for (int which = 0; which < 3; ++which) store(write.sums->at(block, which, k + v * kLanes), found[which]);
    }
}

// ------------------------------------------------------------------------------------ products of matrices

// out (+)= a · b for some rows and 16 columns: as many sums stay in registers while `depth` goes by.
template <int Rows, bool Add, typename S>
inline void product(const S* a, int64_t a_row, int64_t a_depth, const S* b, int64_t b_depth, int64_t depth, S* out,
                    int64_t out_row) {
  Vector<S> sums[Rows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector<S> row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = load(b + k * b_depth + v * kLanes);
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kVectors; ++v) sums[r][v] += a[r * a_row + k * a_depth] * row[v];
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      S* to = out + r * out_row + v * kLanes;
      store(to, Add ? load(to) + sums[r][v] : sums[r][v]);
    }
}

// Rows at a time: with as many sums each, AVX2's 16 registers are full; of AVX-512's 32 more than these gain nothing.
constexpr int kTileRows = kVectors == 1 ? 8 : 6, kInputRows = kVectors == 1 ? 8 : 4;

// Memory of its own for each thread, of n values each.
template <typename S>
struct Scratch {
  int64_t n;
  Tensor memory;
  Scratch(int64_t n, const Tensor& like) : n(n), memory(at::empty({omp_get_max_threads(), n}, like.options())) {}
  S* mine() const { return data<S>(memory) + omp_get_thread_num() * n; }
};

// ------------------------------------------------------------------------------------ the convolution

// Weights (outputs, inputs, 3, 3), channels-last, to 36 matrices (inputs, 16) for every 16 outputs. Mirrored: those of
// the convolution that gives the gradient of the input, whose outputs are the inputs.
template <bool mirrored, typename S>
Tensor transformed(const Tensor& weight) {
  const int64_t K = weight.size(0), C = weight.size(1), outputs = mirrored ? C : K, inputs = mirrored ? K : C;
  const Tensor result = at::empty({outputs / kColumns, kPoints, inputs, kColumns}, weight.options());
  const S* from = data<S>(weight);
  S* to = data<S>(result);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < inputs; ++i)
    for (int64_t o = 0; o < outputs; o += kLanes) {
      transform<OfWeights, Vector<S>>(
          [&](int row, int column) {
            Vector<S> tap;
            for (int lane = 0; lane < kLanes; ++lane)
              tap[lane] = mirrored ? from[((i * 3 + 2 - row) * 3 + 2 - column) * C + o + lane]
                                   : from[(((o + lane) * 3 + row) * 3 + column) * C + i];
            return tap;
          },
          [&](int row, int column, Vector<S> value) {
            store(to + ((o / kColumns * kPoints + row * kIn + column) * inputs + i) * kColumns + o % kColumns, value);
          });
    }
  return result;
}

template <typename R, typename W, typename S>
BNLIB_INLINED void convolve_blocks(const R& read, const S* weights, const W& write, const Strips& strips, int64_t inputs,
                                   int64_t outputs, const Scratch<S>& scratch) {
#pragma omp parallel
  {
    S *band = scratch.mine(), *in = band + kBand, *out = in + kPoints * apart(inputs);
#pragma omp for schedule(static)
    for (int64_t block = 0; block < strips.blocks(); ++block) {
      const int64_t tiles = read_block<OfInput, 1>(read, inputs, 0, inputs, strips, block, band, in);
      for (int64_t k = 0; k < outputs; k += kColumns) {
        for (int point = 0; point < kPoints; ++point)
          for (int64_t t = 0; t < tiles; t += kTileRows)
            product<kTileRows, false>(in + point * apart(inputs) + t * inputs, inputs, 1,
                                      weights + (k / kColumns * kPoints + point) * inputs * kColumns, kColumns, inputs,
                                      out + point * apart(kColumns) + t * kColumns, kColumns);
        write_block(out, write, outputs, k, strips, block);
      }
    }
    streamed();
  }
}

// Convolution of what is read with the weights, or, mirrored, of an output's gradient: the gradient of the input.
template <bool mirrored, typename S, typename R, typename W>
void convolve(const R& read, const Tensor& weight, const W& write, const Strips& strips) {
  const int64_t inputs = weight.size(mirrored ? 0 : 1), outputs = weight.size(mirrored ? 1 : 0);
  const Tensor weights = transformed<mirrored, S>(weight);
  const Scratch<S> scratch(kBand + kPoints * (apart(inputs) + apart(kColumns)), weight);
  convolve_blocks(read, data<S>(weights), write, strips, inputs, outputs, scratch);
}

// ------------------------------------------------------------------------------------ the gradient of the weights

// The transposed convolution: 36 matrices (inputs, outputs) are added up over the tiles, then transformed to 3×3. A task is
// a part of the batch and a range of the outputs: wide layers have more ranges and fewer parts, each of which has sums.
template <typename S, typename R, typename G>
BNLIB_INLINED void weight_gradient(const R& read, const G& read_gradient, const Tensor& weight, S* gradient,
                                   const Strips& strips) {
  const int64_t outputs = weight.size(0), inputs = weight.size(1), size = kPoints * inputs * outputs;
  const int64_t ranges = (outputs + kRange - 1) / kRange, blocks = strips.blocks();
  const int64_t parts = std::max<int64_t>(1, std::min(kTasks / ranges, blocks));
  const Scratch<S> scratch(kBand + kPoints * (apart(inputs) + apart(std::min(kRange, outputs))), weight);
  const Tensor all = blocks ? at::empty({parts, size}, weight.options()) : at::zeros({parts, size}, weight.options());
#pragma omp parallel for schedule(static) collapse(2)
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t range = 0; range < ranges; ++range) {
      const int64_t k0 = range * kRange, columns = std::min(kRange, outputs - k0);
      const int64_t begin = part * blocks / parts, end = (part + 1) * blocks / parts;
      S *band = scratch.mine(), *in = band + kBand, *out = in + kPoints * apart(inputs);
      S* sums = data<S>(all) + part * size;
      for (int64_t block = begin; block < end; ++block) {
        const int64_t tiles = read_block<OfInput, 1>(read, inputs, 0, inputs, strips, block, band, in);
        read_block<OfOutputGradient, 0>(read_gradient, outputs, k0, columns, strips, block, band, out);
        for (int point = 0; point < kPoints; ++point)
          for (int64_t k = 0; k < columns; k += kColumns)
            for (int64_t c = 0; c < inputs; c += kInputRows) {
              const S *a = in + point * apart(inputs) + c, *b = out + point * apart(columns) + k;
              S* to = sums + (point * inputs + c) * outputs + k0 + k;
              if (block == begin)
                product<kInputRows, false>(a, 1, inputs, b, columns, tiles, to, outputs);
              else
                product<kInputRows, true>(a, 1, inputs, b, columns, tiles, to, outputs);
            }
      }
    }
  const S* sums = data<S>(all);
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < inputs; ++c)
    for (int64_t k = 0; k < outputs; k += kLanes) {
      transform<ToWeightGradient, Vector<S>>(
          [&](int row, int column) {
            Vector<S> sum = {};
            for (int64_t part = 0; part < parts; ++part)
              sum += load(sums + part * size + ((row * kIn + column) * inputs + c) * outputs + k);
            return sum;
          },
          [&](int row, int column, Vector<S> value) {
            for (int lane = 0; lane < kLanes; ++lane)
              gradient[(((k + lane) * 3 + row) * 3 + column) * inputs + c] = value[lane];
          });
    }
}

}  // namespace bnlib
