// Sigmoid, tanh and the gradient's features on vectors. Errors are relative, over all of float32.
#pragma once
#include "vec.h"

namespace {

constexpr float LOG2_E = 1.44269504f;

// 2^r to 2e-7 on [-1/2, 1/2]: minimax.
INLINE vf exp2_fraction(vf r) {
  vf q = r * 0.00132764794f + 0.00967554189f;
  q = q * r + 0.0555071309f;
  q = q * r + 0.240221202f;
  q = q * r + 0.693146944f;
  return q * r + 1.0f;
}

// 2^y to 2e-7 for y clamped to at most 40, which lets three such numbers be multiplied before one
// reciprocal. AVX-512 has instructions that take the integer off and put it into the exponent, however
// small: 6 to 15 % of a step in float32. Elsewhere it is added to the exponent, so y is at least -40 too.
#if defined(__AVX512DQ__)
INLINE vf exp2_clamped(vf y) {
  y = vmin(set1(40.0f), y);
  vf r = (vf)_mm512_reduce_ps((__m512)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return (vf)_mm512_scalef_ps((__m512)exp2_fraction(r), (__m512)(y - r));
}
#else
INLINE vf exp2_clamped(vf y) {
  y = clamp(y, -40.0f, 40.0f);
  const float round_to_integer = 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the integer
  vf shifted = y + round_to_integer;
  vf r = y - (shifted - round_to_integer);
  return from_bits(bits(exp2_fraction(r)) + (bits(shifted) << 23));
}
#endif

struct Fraction {
  vf n, d;
};

// tanh(x) = n / d to 4e-7: minimax in the relative error on [0, 8.5], beyond which float32 has 1.
INLINE Fraction tanh_fraction(vf x) {
  x = clamp(x, -8.5f, 8.5f);
  vf u = x * x;
  vf n = u * 1.28676687e-08f + 2.03376821e-05f;
  n = n * u + 0.00348238298f;
  n = n * u + 0.133709386f;
  n = n * u + 1.0f;
  vf d = u * 7.60122361e-07f + 0.000326176232f;
  d = d * u + 0.0258299895f;
  d = d * u + 0.467042714f;
  d = d * u + 1.0f;
  return {x * n, d};
}

INLINE vf tanh(vf x) {
  Fraction t = tanh_fraction(x);
  return t.n * reciprocal(t.d);
}

// log(x) for x normal and positive: exponent and 2 * atanh((m - 1) / (m + 1)), m in [0.7, 1.42).
INLINE vf log_normal(vf x) {
  const int32_t sqrt_half = 0x3f3504f3;
  vi offset = bits(x) - sqrt_half;
  vi exponent = offset >> 23;
  vf m = from_bits((offset & 0x7fffff) + sqrt_half);
  vf s = (m - 1.0f) * reciprocal(m + 1.0f);
  vf u = s * s;
  vf q = u * 0.222222222f + 0.285714286f;
  q = q * u + 0.4f;
  q = q * u + 0.666666667f;
  q = q * u + 2.0f;
  vf e = __builtin_convertvector(exponent, vf);
  // ln 2 in two parts: the first has few bits, so that its product with e is exact.
  return e * 0.693145752f + (s * q + e * 1.42860677e-06f);
}

// Features of a gradient: (log|g| / p, sign g), or (-1, e^p g) below e^-p.
struct LogSign {
  float inverse_p, exp_p;
};

INLINE void log_sign(vf g, const LogSign& f, vf* magnitude, vf* direction) {
  const float tiny = 1.17549435e-38f, largest = 3.40282347e38f;
  vf a = from_bits(bits(g) & 0x7fffffff);
  vf ratio = log_normal(vmax(set1(tiny), a)) * f.inverse_p;
  vf sign = from_bits((bits(g) & (int32_t)0x80000000) | bits(set1(1.0f)));
  vf large = ratio < -1.0f ? set1(-1.0f) : ratio;
  *magnitude = a <= largest ? large : a;  // infinity and NaN stay what they are
  *direction = ratio < -1.0f ? g * f.exp_p : sign;
}

// The gradient by g of `magnitude` and `direction` times theirs, `dm` and `dd`. The magnitude is
// -1 or less in the small branch alone; exactly -1 counts as the other, as torch's clamp has it.
INLINE vf log_sign_backward(vf g, const LogSign& f, vf dm, vf dd) {
  const float tiny = 1.17549435e-38f;
  vf a = from_bits(bits(g) & 0x7fffffff);
  vf ratio = log_normal(vmax(set1(tiny), a)) * f.inverse_p;
  return ratio < -1.0f ? dd * f.exp_p : dm * f.inverse_p / g;
}

// The same of smoothed features: log sqrt(g^2 + h^2) / p, and the sign convolved with a density of
// width h > 0, (2 / pi) h^3 / (g^2 + h^2)^2.
INLINE vf log_sign_smoothed_backward(vf g, vf h, const LogSign& f, vf dm, vf dd) {
  vf r = 1.0f / (g * g + h * h), near = h * r;
  return dm * f.inverse_p * g * r + dd * 1.27323954f * near * near * h;
}

}  // namespace
