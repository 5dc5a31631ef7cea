// What an x86-64 can do, asked of itself. `__builtin_cpu_supports` asks the compiler's run-time library,
// and that of zig denies everything: its kernels would be the slowest ones, without a word.
#pragma once
#include <cpuid.h>

namespace {

inline bool has_bits(unsigned found, unsigned bits) { return (found & bits) == bits; }

// Registers whose contents the system keeps while others use the CPU (XCR0).
inline unsigned kept_registers() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// 0 baseline, 1 AVX2 with FMA and F16C, 2 AVX-512 F, DQ, BW and VL as well.
inline int cpu_level() {
  constexpr unsigned YMM = 0x6, ZMM = 0xe6;
  constexpr unsigned FMA = 1u << 12, XGETBV = 1u << 27, AVX = 1u << 28, F16C = 1u << 29;
  constexpr unsigned AVX2 = 1u << 5, F = 1u << 16, DQ = 1u << 17, BW = 1u << 30, VL = 1u << 31;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has_bits(c, FMA | XGETBV | AVX | F16C)) return 0;
  const unsigned kept = kept_registers();
  if (!has_bits(kept, YMM) || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has_bits(b, AVX2)) return 0;
  return has_bits(kept, ZMM) && has_bits(b, F | DQ | BW | VL) ? 2 : 1;
}

// VNNI of AVX-512, and of AVX2: one instruction multiplies pairs and adds the products up.
inline bool has_vnni_512() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && has_bits(c, 1u << 11);
}

inline bool has_vnni_256() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && has_bits(a, 1u << 4);
}

}  // namespace
