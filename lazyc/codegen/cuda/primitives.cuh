// What generated kernels call. On a GPU these are single instructions, mostly (PTX ISA, "Instruction Set");
// tests/cuda_emulator has a second set that runs on a CPU, so kernels hold no PTX themselves.

using U32 = unsigned int;

using S8 = signed char;

struct F16 {
  unsigned short bits;
};

struct BF16 {
  unsigned short bits;
};

struct alignas(16) Vector {  // 128 bits
  U32 words[4];
};

#ifdef __CUDACC__

// Blocks that are to fit on a multiprocessor at one time; the compiler's own choice where it is 0 (nvrtc.py).
#ifndef LEAST_BLOCKS
#define LEAST_BLOCKS 0
#endif

// --- numbers

__device__ __forceinline__ float to_float(F16 x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}

__device__ __forceinline__ float to_float(BF16 x) {
  return __uint_as_float((U32)x.bits << 16);
}

__device__ __forceinline__ F16 to_f16(float x) {
  F16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}

__device__ __forceinline__ BF16 to_bf16(float x) {
  BF16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }

// --- shared memory

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

__device__ __forceinline__ U32 shared_address(const void* pointer) {
  return (U32)__cvta_generic_to_shared(pointer);
}

// Copies 16 bytes, to be there after cp_async_wait; zeros where not `inside`.
__device__ __forceinline__ void cp_async(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(to)), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

// Ends a group of copies, which may be empty.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most GROUPS groups of this thread, the latest, are not there yet.
template <int GROUPS>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements. Thread 8m + r gives the place of row r of matrix m.
__device__ __forceinline__ void ldmatrix(U32 (&result)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(shared_address(row)) : "memory");
}

__device__ __forceinline__ void ldmatrix_transposed(U32 (&result)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(shared_address(row)) : "memory");
}

// --- tensor cores

// d[16][8] += a[16][32] * b[32][8], a being 2:4: `a` holds what is kept of it, `metadata` where that was.
// Threads 0 and 1 of each four give the metadata where SELECTOR is 0, threads 2 and 3 where it is 1.
#define LAZYC_MMA_SP(TYPE)                                                                            \
  asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE ".f32 "    \
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"  \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                       \
               : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]),                  \
                 "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata), "n"(SELECTOR))

template <int SELECTOR>
__device__ __forceinline__ void mma_sp(float (&d)[4], const Vector& a, const U32 (&b)[4], U32 metadata, F16) {
  LAZYC_MMA_SP("f16");
}

template <int SELECTOR>
__device__ __forceinline__ void mma_sp(float (&d)[4], const Vector& a, const U32 (&b)[4], U32 metadata, BF16) {
  LAZYC_MMA_SP("bf16");
}

#undef LAZYC_MMA_SP

// d[16][8] += a[16][64] * b[64][8], without saturation. Each thread gives metadata.
template <int SELECTOR>
__device__ __forceinline__ void mma_sp(int (&d)[4], const Vector& a, const U32 (&b)[4], U32 metadata, S8) {
  asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]),
                 "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata), "n"(SELECTOR));
}

#else
#include "emulator.h"
#endif

// --- numbers, in plain C++

__device__ __forceinline__ U32 bits_of(F16 x) { return x.bits; }
__device__ __forceinline__ U32 bits_of(BF16 x) { return x.bits; }
__device__ __forceinline__ U32 bits_of(S8 x) { return (unsigned char)x; }

// nan if either is nan.
template <class T>
__device__ __forceinline__ T largest(T x, T y) {
  return x > y || x != x ? x : y;
}

template <class T>
__device__ __forceinline__ T least(T x, T y) {
  return x < y || x != x ? x : y;
}

// A float truncated; the least integer for what is out of range, as x86 has it.
template <class T>
__device__ __forceinline__ int to_int(T x) {
  return x >= T(-2147483648.0) && x < T(2147483648.0) ? (int)x : -2147483647 - 1;
}

template <class T>
__device__ __forceinline__ long long to_long(T x) {
  return x >= T(-9223372036854775808.0) && x < T(9223372036854775808.0) ? (long long)x
                                                                         : -9223372036854775807ll - 1;
}

// floor(x / y), and what is left: 0 <= result < y. y > 0.
template <class T>
__device__ __forceinline__ T floor_index(T x, T y) {
  return x / y - (x % y < 0);
}

template <class T>
__device__ __forceinline__ T mod_index(T x, T y) {
  return x % y + (x % y < 0 ? y : 0);
}
