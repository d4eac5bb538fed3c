// The step of a few tokens through all blocks of GPT-2, in one parallel region, and one layer alone.
// native.py compiles this for the processor that it runs on; its tables are the structs below.
//
// R tokens, C channels, H heads, D = C / H head size, B rows of the cache, S slots of each.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

struct Bfloat16 {
  uint16_t bits;

  Bfloat16() = default;
  explicit Bfloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    bits = (word + 0x7fff + (word >> 16 & 1)) >> 16;  // to the nearest, ties to even
  }
  operator float() const {
    uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};

template <class W>
struct Linear {
  const W* weight;  // (outputs, inputs)
  const float *scales, *bias;  // one for each output
  int64_t outputs, inputs;
};

struct Norm {
  const float *weight, *bias;
};

template <class W>
struct Block {
  Norm attention_norm;
  Linear<W> qkv, projection;
  Norm feed_forward_norm;
  Linear<W> expand, contract;
};

template <class W>
struct Model {
  const Block<W>* blocks;
  int64_t num_blocks, num_heads, C;
  Norm final_norm;
};

template <class T>
struct Cache {
  T* memory;  // (2, blocks, B, H, S, D or D + 1), of which a row is in one piece
  int64_t values, block, row, slots;  // how far on the values, the next block and row are
};

// The input of a product as weights of type W meet it: `narrow` fills it, `dot` sums the products.
template <class W>
struct Input {  // with numbers as they are
  std::vector<float> numbers;

  Input(const float* x, int64_t size) : numbers(x, x + size) {}
  float dot(const W* weight) const {
    float sum = 0;
    const float* x = numbers.data();
    const int64_t size = numbers.size();
#pragma omp simd reduction(+ : sum) simdlen(16)
    for (int64_t i = 0; i < size; i++) sum += float(weight[i]) * x[i];
    return sum;
  }
};

template <>
struct Input<int8_t> {  // in whole numbers, of which 127 is the largest
  std::vector<int8_t> numbers;
  float factor = 1e-12f;
  int32_t sum = 0;

  Input(const float* x, int64_t size) : numbers(size) {
    float largest = factor;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < size; i++) largest = std::max(largest, std::fabs(x[i]));
    for (int64_t i = 0; i < size; i++) numbers[i] = int8_t(std::rint(x[i] * 127 / largest));
    for (int64_t i = 0; i < size; i++) sum += numbers[i];
    factor = largest / 127;
  }
  float dot(const int8_t* weight) const {
    int32_t total = 0;  // of weights + 128: many processors multiply unsigned by signed at once
    const int8_t* x = numbers.data();
    const int64_t size = numbers.size();
    for (int64_t i = 0; i < size; i++) total += int32_t(uint8_t(weight[i] ^ 0x80)) * x[i];
    return factor * float(total - 128 * sum);
  }
};

// Shares the outputs among the threads; `put` gets each one: (token, number, value).
template <class W, class Put>
void product(const Linear<W>& layer, const float* x, int64_t R, Put put) {
  std::vector<Input<W>> inputs;
  for (int64_t r = 0; r < R; r++) inputs.emplace_back(x + r * layer.inputs, layer.inputs);
#pragma omp for
  for (int64_t n = 0; n < layer.outputs; n++)
    for (int64_t r = 0; r < R; r++)
      put(r, n, inputs[r].dot(layer.weight + n * layer.inputs) * layer.scales[n] + layer.bias[n]);
}

void normalize(const Norm& norm, const float* x, float* result, int64_t R, int64_t C) {
  for (int64_t r = 0; r < R; r++, x += C, result += C) {
    float mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < C; i++) mean += x[i] / C;
#pragma omp simd reduction(+ : variance)
    for (int64_t i = 0; i < C; i++) variance += (x[i] - mean) * (x[i] - mean) / C;
    const float factor = 1 / std::sqrt(variance + 1e-5f);
    for (int64_t i = 0; i < C; i++)
      result[i] = (x[i] - mean) * factor * norm.weight[i] + norm.bias[i];
  }
}

float power_of_two(int32_t exponent) {  // from -126 to 127
  const uint32_t word = uint32_t(exponent + 127) << 23;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// e^x to 2e-7 of it, in steps that a compiler takes for many numbers at once.
float exponential(float x) {
  const float y = std::min(std::max(x, -60.0f), 60.0f) * 1.44269504f, whole = std::rint(y);
  const float f = (y - whole) * 0.693147181f;
  const float rest = 1 / 6.0f + f * (1 / 24.0f + f * (1 / 120.0f + f / 720));
  return power_of_two(int32_t(whole)) * (1 + f * (1 + f * (0.5f + f * rest)));
}

float gelu(float x) {  // x sigmoid(2 u), which is x (1 + tanh u) / 2
  return x / (1 + exponential(-2 * 0.7978845608f * (x + 0.044715f * x * x * x)));
}

// A slot of the cache holds D numbers; whole ones and the exponent of the power of 2 they count.
template <class T>
constexpr bool is_whole = std::is_same_v<T, int8_t>;

template <class T>
void store(const float* x, T* slot, int64_t D) {
  if constexpr (is_whole<T>) {
    float largest = 1e-30f;
    for (int64_t d = 0; d < D; d++) largest = std::max(largest, std::fabs(x[d]));
    const int exponent = std::ilogb(largest) - 6;
    const float steps = power_of_two(-exponent);
    for (int64_t d = 0; d < D; d++) slot[d] = T(std::min(127.0f, std::rint(x[d] * steps)));
    slot[D] = exponent;
  } else
    for (int64_t d = 0; d < D; d++) slot[d] = T(x[d]);
}

template <class T>
float scale_of(const T* slot, int64_t D) {
  return is_whole<T> ? power_of_two(int32_t(slot[D])) : 1;
}

constexpr int SUMS = 64;  // that a processor keeps in registers

template <class T, int N>
void mix(const float* weights, const T* values, int64_t size, int64_t slot, float* mixed) {
  float sums[N] = {};
  for (int64_t i = 0; i < size; i++)
    for (int d = 0; d < N; d++) sums[d] += weights[i] * float(values[i * slot + d]);
  std::copy(sums, sums + N, mixed);
}

// softmax(query keys^T) values over `size` slots; `weights` has room for as many.
template <class T>
void attend(const float* query, const T* keys, const T* values, int64_t size, int64_t D,
            float* weights, float* __restrict mixed) {
  const Input<T> input(query, D);
  const int64_t slot = D + is_whole<T>;
  float highest = -INFINITY, sum = 0;
  for (int64_t i = 0; i < size; i++) {
    weights[i] = input.dot(keys + i * slot) * scale_of(keys + i * slot, D);
    highest = std::max(highest, weights[i]);
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; i++) sum += weights[i] = exponential(weights[i] - highest);
  for (int64_t i = 0; i < size; i++) weights[i] *= scale_of(values + i * slot, D) / sum;
  int64_t d = 0;
  for (; d + SUMS <= D; d += SUMS) mix<T, SUMS>(weights, values + d, size, slot, mixed + d);
  for (; d < D; d++) mix<T, 1>(weights, values + d, size, slot, mixed + d);
}

// x (R, C) becomes the final states; token r stands in `rows[r]` of the cache at `positions[r]`.
template <class W>
void step(const Model<W>& model, const Cache<W>& cache, int64_t R, const int64_t* rows,
          const int64_t* positions, float* x, int num_threads) {
  const int64_t C = model.C, H = model.num_heads, D = C / H, S = cache.slots;
  const int64_t F = model.blocks->expand.outputs, size = D + is_whole<W>;
  std::vector<float> qkv(R * 3 * C), mixed(R * C), hidden(R * F);
#pragma omp parallel num_threads(num_threads)
  {
    std::vector<float> normed(R * C), weights(S);
    for (int64_t b = 0; b < model.num_blocks; b++) {
      const Block<W>& block = model.blocks[b];
      W *keys = cache.memory + b * cache.block, *values = keys + cache.values;
      auto add = [&](int64_t r, int64_t n, float y) { x[r * C + n] += y; };
      normalize(block.attention_norm, x, normed.data(), R, C);
      product(block.qkv, normed.data(), R,
              [&](int64_t r, int64_t n, float y) { qkv[r * 3 * C + n] = y; });
#pragma omp for
      for (int64_t h = 0; h < H; h++)
        for (int64_t r = 0; r < R; r++) {  // in order, for tokens of a row see those before
          const int64_t start = rows[r] * cache.row + h * S * size;
          const int64_t last = start + positions[r] * size;
          float* query = &qkv[r * 3 * C + h * D];
          store(query + C, keys + last, D);
          store(query + 2 * C, values + last, D);
          for (int64_t d = 0; d < D; d++) query[d] /= std::sqrt(float(D));
          attend(query, keys + start, values + start, positions[r] + 1, D, weights.data(),
                 &mixed[r * C + h * D]);
        }
      product(block.projection, mixed.data(), R, add);
      normalize(block.feed_forward_norm, x, normed.data(), R, C);
      product(block.expand, normed.data(), R,
              [&](int64_t r, int64_t n, float y) { hidden[r * F + n] = gelu(y); });
      product(block.contract, hidden.data(), R, add);
    }
  }
  std::vector<float> states(x, x + R * C);
  normalize(model.final_norm, states.data(), x, R, C);
}

template <class W>
void one_layer(const Linear<W>& layer, const float* x, int64_t R, float* result, int num_threads) {
#pragma omp parallel num_threads(num_threads)
  product(layer, x, R, [&](int64_t r, int64_t n, float y) { result[r * layer.outputs + n] = y; });
}

#define FUNCTIONS(NAME, W)                                                                     \
  void layer_##NAME(const Linear<W>* layer, const float* x, int64_t R, float* result, int n) { \
    one_layer(*layer, x, R, result, n);                                                        \
  }                                                                                            \
  void step_##NAME(const Model<W>* model, const Cache<W>* cache, int64_t R,                    \
                   const int64_t* rows, const int64_t* positions, float* x, int n) {           \
    step(*model, *cache, R, rows, positions, x, n);                                            \
  }

extern "C" {
FUNCTIONS(float32, float)
FUNCTIONS(bfloat16, Bfloat16)
FUNCTIONS(int8, int8_t)
}
