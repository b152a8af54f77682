// Vectors of as many channels as a register holds, in the types that tensors have.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#ifdef __AVX__
#include <immintrin.h>
#endif

namespace bnlib {

// Wider vectors than the processor has are no error, but some operations on them are then done element by element:
// batch norm's forward pass took 14 times as long on AVX2 with 16 lanes.
#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

struct BFloat16 {
  uint16_t bits;
};
constexpr uint16_t kInfinity = 0x7f80;  // as a BFloat16

// For elements of type T: the type that is computed in, and kLanes of it.
template <typename T>
struct Computing {
  using Scalar = float;
  using Vector = Floats;
};
template <>
struct Computing<double> {
  using Scalar = double;
  using Vector = Doubles;
};
template <typename T>
struct Computing<const T> : Computing<T> {};
template <typename T>
using Scalar = typename Computing<T>::Scalar;
template <typename T>
using Vector = typename Computing<T>::Vector;

template <typename T>
inline Vector<T> load(const T* p) {
  Vector<T> value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
inline Floats load(const BFloat16* p) {
  Halves bits;
  std::memcpy(&bits, p, sizeof bits);
  return (Floats)(__builtin_convertvector(bits, Words) << 16);
}
inline Floats load(const uint8_t* p) {
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, Integers), Floats);
}
template <typename T>
inline void store(T* p, Vector<T> value) {
  std::memcpy(p, &value, sizeof value);
}
inline Halves bits_of(Floats value) {  // of the nearest bfloat16, ties to even
#ifdef __AVX512BF16__
  return (Halves)_mm512_cvtneps_pbh((__m512)value);
#else
  const Words wide = (Words)value, rounded = wide + 0x7fff + ((wide >> 16) & 1);
  return __builtin_convertvector((value == value ? rounded : wide | 0x400000) >> 16, Halves);  // a NaN stays one
#endif
}
inline void store(BFloat16* p, Floats value) {
  const Halves bits = bits_of(value);
  std::memcpy(p, &bits, sizeof bits);
}
inline void store(uint32_t* p, Words value) { std::memcpy(p, &value, sizeof value); }

// A store that leaves the cache to others, of what is too large to stay there until it is read; in float32 alone. The
// thread calls `streamed` before another reads it.
template <typename T>
inline void stream(T* p, Vector<T> value) {
#ifdef __AVX__
  if constexpr (std::is_same_v<T, float>) {
#ifdef __AVX512F__
    return _mm512_stream_ps(p, (__m512)value);
#else
    return _mm256_stream_ps(p, (__m256)value);
#endif
  }
#endif
  store(p, value);
}
// The same; returns what was written, as it will be read.
template <typename T>
inline Vector<T> stream_rounded(T* p, Vector<T> value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const Halves bits = bits_of(value);
    std::memcpy(p, &bits, sizeof bits);
    return (Floats)(__builtin_convertvector(bits, Words) << 16);
  } else {
    stream(p, value);
    return value;
  }
}
inline void streamed() {
#ifdef __AVX__
  _mm_sfence();
#endif
}

// The values where the mask is set, else 0.
template <typename V, typename M>
inline V masked(V values, M mask) {
  return (V)((M)values & mask);
}

// The values above 0, else 0; a NaN stays one, so that a run that diverges is seen to.
template <typename V>
inline V relu(V values) {
  return V{} > values ? V{} : values;
}

// Copies elements of a where those of b are above 0, and 0 elsewhere; returns what was written.
template <typename T>
inline Vector<T> copy_where_positive(const T* a, const T* b, T* to) {
  const auto copied = masked(load(a), load(b) > 0);
  store(to, copied);
  return copied;
}
inline Floats copy_where_positive(const BFloat16* a, const BFloat16* b, BFloat16* to) {  // as integers, four conversions less
  Halves bits, above;
  std::memcpy(&bits, a, sizeof bits);
  std::memcpy(&above, b, sizeof above);
  bits = masked(bits, above - 1 < kInfinity);  // neither 0 nor with a sign, nor NaN
  std::memcpy(to, &bits, sizeof bits);
  return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

// Whether x is images (N, C, H, W) that are channels-last and on a CPU, with a multiple of so many channels.
inline bool is_images(const at::Tensor& x, int64_t channels = 1) {
  return x.dim() == 4 && x.is_cpu() && x.is_contiguous(at::MemoryFormat::ChannelsLast) && x.size(1) > 0 &&
         x.size(1) % channels == 0;
}

// Whether its elements are of a type below.
inline bool has_element(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble || tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16;
}

// The type that they are computed in.
inline at::ScalarType computed_in(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kBFloat16 ? at::kFloat : tensor.scalar_type();
}

// What a forward pass has kept, images and weights channels-last as they were: who keeps them elsewhere meanwhile, as
// `torch.autograd.graph.save_on_cpu` does, may give them back in another order.
inline std::vector<at::Tensor> laid_out_again(std::vector<at::Tensor> kept) {
  for (at::Tensor& each : kept)
    if (each.defined() && each.dim() == 4) each = each.contiguous(at::MemoryFormat::ChannelsLast);
  return kept;
}

// The first element; null of a tensor that is not defined.
template <typename T>
T* data(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
}

// Whether nobody else holds the tensor, so that it may be written over: its memory is in the cache, new memory is not.
inline bool is_free(const at::Tensor& tensor) {
  return tensor.use_count() == 1 && tensor.storage().use_count() == 1;
}

// Calls body with an element of the tensor's type, so that the compiler knows it.
template <typename Body>
void with_element(const at::Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == at::kBFloat16) return body(BFloat16());
  if (tensor.scalar_type() == at::kDouble) return body(double());
  body(float());
}

}  // namespace bnlib
