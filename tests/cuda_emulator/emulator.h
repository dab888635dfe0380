// CUDA's execution model on a CPU, for the kernels of lazyc/codegen/cuda: what primitives.cuh takes in place of
// its PTX. It is written after NVIDIA's documents, not after the kernels:
//
//   PTX ISA 8.7, 9.7.14.5   ldmatrix; fragments of m16n8k16 and m16n8k32
//               9.7.14.6    sparse matrix storage; fragments and metadata of sparse mma.m16n8k32 and m16n8k64
//               9.7.9.25    cp.async and its groups
//
// A thread of a block is a fiber. A fiber runs until it comes to something that takes others: a barrier, or an
// instruction of the whole warp, which runs when the last of 32 threads has come. What hardware leaves open is
// made as bad as it may be: shared memory and the targets of copies under way hold nan, a copy is there when it
// is waited for and no sooner, and fibers may run in either order.

#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>
#include <ucontext.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace emulator {

constexpr int WARP = 32;
constexpr size_t STACK_BYTES = 256 << 10;

struct Copy {
  void* to;
  const void* from;
  bool inside;
};

struct Collective {  // of a warp or a block: who has come, and what all of them do then
  int expected = 0, arrived = 0;
  unsigned turn = 0;
  const char* name = "";
  void* arguments[1024] = {};
};

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  std::vector<char> stack;
  bool is_started = false, is_done = false;
  std::vector<Copy> open;                   // copies of the group that is not ended yet
  std::vector<std::vector<Copy>> pending;   // ended groups, oldest first
};

struct Index {
  unsigned x = 0;
};

inline std::vector<Fiber> fibers;
inline std::vector<Collective> warps;
inline Collective everyone;
inline int current;
inline bool has_moved;
inline jmp_buf scheduler, failure;
inline std::string message;
inline std::vector<unsigned char> shared;
inline std::vector<std::pair<const unsigned char*, size_t>> memory;  // what the kernel was given
inline std::function<void()> kernel;

[[noreturn]] inline void fail(const std::string& text) {
  message = text + " (thread " + std::to_string(current) + ")";
  std::longjmp(failure, 1);
}

inline void pause() {
  if (setjmp(fibers[current].here) == 0) std::longjmp(scheduler, 1);
}

inline void run_fiber() {
  kernel();
  Fiber& self = fibers[current];
  if (!self.open.empty() || !self.pending.empty()) fail("copies are under way at the end of the kernel");
  self.is_done = has_moved = true;
  std::longjmp(scheduler, 1);
}

// Waits for the others of `group`; the last to come runs `act` on what all of them brought.
template <class Act>
void meet(Collective& group, int place, const char* name, void* argument, Act act) {
  if (group.arrived == 0) group.name = name;
  if (std::strcmp(group.name, name) != 0) {
    fail(std::string("threads diverge: ") + group.name + " and " + name);
  }
  group.arguments[place] = argument;
  const unsigned turn = group.turn;
  has_moved = true;
  if (++group.arrived == group.expected) {
    act(group.arguments);
    group.arrived = 0;
    ++group.turn;
    return;
  }
  while (group.turn == turn) pause();
  has_moved = true;
}

template <class Act>
void in_warp(const char* name, void* argument, Act act) {
  meet(warps[current / WARP], current % WARP, name, argument, act);
}

inline void land(const std::vector<Copy>& group) {
  for (const Copy& copy : group) {
    if (copy.inside) {
      std::memcpy(copy.to, copy.from, 16);
    } else {
      std::memset(copy.to, 0, 16);
    }
  }
}

inline void check_shared(const void* pointer, const char* what) {
  const unsigned char* place = (const unsigned char*)pointer;
  if (place < shared.data() || place + 16 > shared.data() + shared.size()) {
    fail(std::string(what) + " outside of shared memory");
  }
  if ((uintptr_t)place % 16) fail(std::string(what) + " at a place that is not aligned");
}

}  // namespace emulator

inline emulator::Index threadIdx, blockIdx;

// Runs the blocks one after another. Returns what went wrong; empty if nothing did.
namespace emulator {

inline std::string run(int blocks, int threads, size_t shared_bytes, bool is_reversed, std::function<void()> body) {
  kernel = std::move(body);
  fibers = std::vector<Fiber>(threads);
  message.clear();
  if (setjmp(failure)) return message;
  for (int block = 0; block < blocks; ++block) {
    shared.assign(shared_bytes, 0xff);
    if ((uintptr_t)shared.data() % 16) return "shared memory is not aligned";
    warps.assign((threads + WARP - 1) / WARP, Collective());
    for (auto& warp : warps) warp.expected = WARP;
    everyone = Collective();
    everyone.expected = threads;
    for (auto& fiber : fibers) {
      fiber.stack.resize(STACK_BYTES);
      fiber.is_started = fiber.is_done = false;
    }
    blockIdx.x = block;
    for (int left = threads; left > 0;) {
      has_moved = false;
      left = 0;
      for (int k = 0; k < threads; ++k) {
        current = is_reversed ? threads - 1 - k : k;
        Fiber& fiber = fibers[current];
        if (fiber.is_done) continue;
        ++left;
        threadIdx.x = current;
        if (setjmp(scheduler) == 0) {
          if (fiber.is_started) std::longjmp(fiber.here, 1);
          fiber.is_started = true;
          getcontext(&fiber.start);
          fiber.start.uc_stack.ss_sp = fiber.stack.data();
          fiber.start.uc_stack.ss_size = fiber.stack.size();
          fiber.start.uc_link = nullptr;
          makecontext(&fiber.start, run_fiber, 0);
          setcontext(&fiber.start);
        }
      }
      if (left > 0 && !has_moved) return "threads wait for others that never come";
    }
  }
  return "";
}

}  // namespace emulator

// --- the language

inline void __syncthreads() {
  emulator::meet(emulator::everyone, emulator::current, "__syncthreads", nullptr, [](void**) {});
}

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  struct Argument {
    T value;
    int source;
    T result;
  } own{value, source, T()};
  emulator::in_warp("shfl", &own, [](void** all) {
    for (int k = 0; k < emulator::WARP; ++k) {
      Argument& to = *(Argument*)all[k];
      to.result = ((Argument*)all[to.source % emulator::WARP])->value;
    }
  });
  return own.result;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, (int)(threadIdx.x % emulator::WARP) ^ lanes);
}

// --- numbers

inline float from_bits(uint32_t bits) {
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline uint32_t to_bits(float x) {
  uint32_t result;
  std::memcpy(&result, &x, 4);
  return result;
}

inline float to_float(BF16 x) { return from_bits((uint32_t)x.bits << 16); }

inline float to_float(F16 x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float sign = x.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? std::numeric_limits<float>::quiet_NaN() : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp((float)fraction, -24);
  return sign * std::ldexp((float)(1024 + fraction), exponent - 25);
}

// To nearest, ties to even.
inline BF16 to_bf16(float x) {
  if (x != x) return {0x7fff};
  const uint32_t bits = to_bits(x);
  return {(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline F16 to_f16(float x) {
  const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
  if (x != x) return {0x7fff};
  if (x == 0) return {sign};
  const float size = std::fabs(x);
  if (size >= 65520.0f) return {(unsigned short)(sign | 0x7c00)};
  int exponent = 0;
  std::frexp(size, &exponent);                       // size = f * 2^exponent, 0.5 <= f < 1
  const int unit = std::max(exponent - 11, -24);     // of the last place that f16 has
  const int count = (int)std::nearbyint(std::ldexp(size, -unit));
  // Beyond subnormal numbers the exponent's field begins where the fraction ends, so a carry does the rest.
  return {(unsigned short)(sign | (unit == -24 ? count : ((unit + 24) << 10) + count))};
}

inline float infinity() { return std::numeric_limits<float>::infinity(); }
inline float not_a_number() { return std::numeric_limits<float>::quiet_NaN(); }

// Byte i of the result is that of y:x which nibble i of the selector says.
inline U32 __byte_perm(U32 x, U32 y, U32 selector) {
  const uint64_t both = (uint64_t)y << 32 | x;
  U32 result = 0;
  for (int i = 0; i < 4; ++i) result |= (U32)(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}

// --- shared memory

inline unsigned char* dynamic_shared() { return emulator::shared.data(); }

inline void cp_async(void* to, const void* from, bool inside) {
  emulator::check_shared(to, "a copy");
  if (inside) {
    const unsigned char* place = (const unsigned char*)from;
    bool is_known = false;
    for (const auto& [start, bytes] : emulator::memory) {
      is_known |= start <= place && place + 16 <= start + bytes;
    }
    if (!is_known) emulator::fail("a copy from memory that the kernel was not given");
    if ((uintptr_t)place % 16) emulator::fail("a copy from a place that is not aligned");
  }
  std::memset(to, 0xff, 16);
  emulator::fibers[emulator::current].open.push_back({to, from, inside});
}

inline void cp_async_commit() {
  auto& fiber = emulator::fibers[emulator::current];
  fiber.pending.push_back(std::move(fiber.open));
  fiber.open.clear();
}

template <int GROUPS>
void cp_async_wait() {
  auto& pending = emulator::fibers[emulator::current].pending;
  while (pending.size() > GROUPS) {
    emulator::land(pending.front());
    pending.erase(pending.begin());
  }
}

namespace emulator {

struct Rows {
  const void* row;
  U32* result;
};

// Thread 4r + c gets elements 2c and 2c + 1 of row r of each matrix; transposed, of column r.
inline void load_matrices(void** all, bool is_transposed) {
  unsigned short matrices[4][8][8];
  for (int k = 0; k < WARP; ++k) {
    std::memcpy(matrices[k / 8][k % 8], ((Rows*)all[k])->row, 16);
  }
  for (int k = 0; k < WARP; ++k) {
    for (int m = 0; m < 4; ++m) {
      U32 word = 0;
      for (int e = 0; e < 2; ++e) {
        const int row = k / 4, column = k % 4 * 2 + e;
        word |= (U32)(is_transposed ? matrices[m][column][row] : matrices[m][row][column]) << 16 * e;
      }
      ((Rows*)all[k])->result[m] = word;
    }
  }
}

}  // namespace emulator

inline void ldmatrix(U32 (&result)[4], const void* row) {
  emulator::check_shared(row, "a row of a matrix");
  emulator::Rows own{row, result};
  emulator::in_warp("ldmatrix", &own, [](void** all) { emulator::load_matrices(all, false); });
}

inline void ldmatrix_transposed(U32 (&result)[4], const void* row) {
  emulator::check_shared(row, "a row of a matrix");
  emulator::Rows own{row, result};
  emulator::in_warp("ldmatrix.trans", &own, [](void** all) { emulator::load_matrices(all, true); });
}

// --- tensor cores

namespace emulator {

template <class Accumulator>
struct Fragments {
  Accumulator* d;
  const Vector* a;
  const U32* b;
  U32 metadata;
};

template <class T>
float half_of(U32 word, int place) {
  T x;
  x.bits = (unsigned short)(word >> 16 * place);
  return to_float(x);
}

// Figures "Sparse MMA .m16n8k32 fragment layout" and "metadata layout", .f16 and .bf16.
template <int SELECTOR, class T>
void multiply_sparse(void** all) {
  double a[16][32], b[32][8];
  bool is_kept[16][32] = {};
  for (int k = 0; k < WARP; ++k) {
    const Fragments<float>& own = *(Fragments<float>*)all[k];
    const int group = k / 4, in_group = k % 4;
    for (int i = 0; i < 8; i += 2) {  // elements i and i + 1 are those kept of four
      const int row = i == 0 || i == 4 ? group : group + 8;
      const int first = i < 4 ? in_group * 4 : in_group * 4 + 16;
      // Columns 0..15 of both rows: first thread of the pair; 16..31: the second.
      const Fragments<float>& giver = *(Fragments<float>*)all[group * 4 + 2 * SELECTOR + first / 16];
      const int code = giver.metadata >> (row >= 8 ? 16 : 0) + first % 16 & 15;
      const int places[2] = {code & 3, code >> 2};
      if (places[0] >= places[1]) fail("metadata are not in order");
      for (int e = 0; e < 2; ++e) {
        a[row][first + places[e]] = half_of<T>(own.a->words[i / 2], e);
        is_kept[row][first + places[e]] = true;
      }
    }
    for (int i = 0; i < 8; ++i) {
      b[in_group * 2 + i % 2 + i / 2 * 8][group] = half_of<T>(own.b[i / 2], i % 2);
    }
  }
  for (int k = 0; k < WARP; ++k) {
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? k / 4 : k / 4 + 8, column = k % 4 * 2 + i % 2;
      double sum = ((Fragments<float>*)all[k])->d[i];
      for (int j = 0; j < 32; ++j) {
        if (is_kept[row][j]) sum += a[row][j] * b[j][column];
      }
      ((Fragments<float>*)all[k])->d[i] = (float)sum;
    }
  }
}

inline int byte_of(U32 word, int place) { return (int8_t)(word >> 8 * place); }

// Sections "Matrix fragments for sparse mma.m16n8k64 with .u8 / .s8 integer type", without .satfinite.
inline void multiply_sparse_bytes(void** all) {
  int a[16][64], b[64][8];
  bool is_kept[16][64] = {};
  for (int k = 0; k < WARP; ++k) {
    const Fragments<int>& own = *(Fragments<int>*)all[k];
    const int group = k / 4, in_group = k % 4;
    for (int i = 0; i < 16; i += 2) {  // elements i and i + 1 are those kept of four
      const int row = i < 4 || (8 <= i && i < 12) ? group : group + 8;
      const int first = in_group * 8 + (i < 8 ? 0 : 32) + i % 4 / 2 * 4;
      // Columns 0..31: the first pair of threads, 32..63: the second; of row `group` the first of a pair.
      const Fragments<int>& giver = *(Fragments<int>*)all[group * 4 + first / 32 * 2 + row / 8];
      const int code = giver.metadata >> first % 32 & 15;
      const int places[2] = {code & 3, code >> 2};
      if (places[0] >= places[1]) fail("metadata are not in order");
      for (int e = 0; e < 2; ++e) {
        a[row][first + places[e]] = byte_of(own.a->words[i / 4], i % 4 + e);
        is_kept[row][first + places[e]] = true;
      }
    }
    for (int i = 0; i < 16; ++i) {
      b[in_group * 4 + i % 4 + i / 4 * 16][group] = byte_of(own.b[i / 4], i % 4);
    }
  }
  for (int k = 0; k < WARP; ++k) {
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? k / 4 : k / 4 + 8, column = k % 4 * 2 + i % 2;
      uint32_t sum = ((Fragments<int>*)all[k])->d[i];  // which wraps
      for (int j = 0; j < 64; ++j) {
        if (is_kept[row][j]) sum += (uint32_t)(a[row][j] * b[j][column]);
      }
      ((Fragments<int>*)all[k])->d[i] = (int)sum;
    }
  }
}

}  // namespace emulator

template <int SELECTOR, class T>
void mma_sp(float (&d)[4], const Vector& a, const U32 (&b)[4], U32 metadata, T) {
  static_assert(SELECTOR == 0 || SELECTOR == 1);
  emulator::Fragments<float> own{d, &a, b, metadata};
  emulator::in_warp(SELECTOR ? "mma.sp 1" : "mma.sp 0", &own, emulator::multiply_sparse<SELECTOR, T>);
}

template <int SELECTOR>
void mma_sp(int (&d)[4], const Vector& a, const U32 (&b)[4], U32 metadata, S8) {
  static_assert(SELECTOR == 0, "all threads give metadata");
  emulator::Fragments<int> own{d, &a, b, metadata};
  emulator::in_warp("mma.sp of bytes", &own, emulator::multiply_sparse_bytes);
}
