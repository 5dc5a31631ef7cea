// Once a tensor, the rule `default`'s schedule and controller (`control` of
// learned_optim/rules/default.py, with clipping.py, controller.py, feedback.py and hand.py; names
// are theirs). Tensors are the lanes here, a tile of TV of them. Powers of two are cut at 2^-40,
// far below what moves a float32 parameter.
#pragma once
#include <math.h>

#include "default_rule.h"
#include "default_survey.h"

namespace {

constexpr int TELLS = 12, ADVICE = 5, FACTS = 5, GAUGE = 6;
constexpr float TINY = 1e-30f, LOUDEST = 2.0f, AIM = 0.2f, LN_2 = 0.693147181f;

// The constants of the hand rule, as the caller's flat weights begin.
struct Hand {
  float log_step[2], log_floor[2];  // of matrices, of all others
  float logit_beta1, logit_beta2, log_warmup;
  float log_tau[2];  // horizon unknown and known
  float power[2];  // of the fall, and of the one at the end
  float blend, log_gain;
  float log_rate[2];  // of matrices, of all others
  float brake;
  float aim[2];  // in tenths; horizon unknown and known
  float log_band;
  float logit_share, log_due;  // of `deferral`
  float log_clip;
  float repay;
};
constexpr int HAND = sizeof(Hand) / sizeof(float);
constexpr float HAND_SCALE = 5.0f;
constexpr float LONG = 1000.0f, LONG_POWER = 0.5f;
constexpr float RISING = 0.1f, SHORT = 300.0f, SHORTEST = 5.0f, BRIEF = 100.0f;
constexpr float SLOWEST = -4.0f, FASTEST = 2.5f, COMMON = LN_2, SMOOTH = 10.0f, SETTLED = 100.0f;
constexpr float FAR_SMOOTH = 20.0f, UPHILL = 0.03f, FAR_AGAINST = -0.65f;
constexpr float AGAINST = -0.5f, LARGE = 9.0f, FAINT = 1e-7f;
constexpr float ROUNDING = 1e-4f, GROWS = 1.1f, FORGOTTEN = 0.5f, SINKING = 0.1f, FAINTEST = 3.0f;
constexpr float SHORT_RUN = 200.0f, FIRST = 10.0f, FIRST_AGAINST = 0.1f, FIRST_LARGE = 6.0f;

// Floats of the controller in the caller's flat weights, behind those of the hand rule.
inline long controller_weights(int units) {
  return units ? 4L * units * (TELLS + units + 1) + (long)ADVICE * (units + 1) : 0;
}

inline Hand read_hand(const float* weights) {
  float values[HAND];
  for (int i = 0; i < HAND; i++) values[i] = weights[i] * HAND_SCALE;
  Hand hand;
  memcpy(&hand, values, sizeof hand);
  return hand;
}

INLINE float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }
INLINE vf vexp(vf x) { return exp2_clamped(x * LOG2_E); }
INLINE vf vsigmoid(vf x) { return reciprocal(1.0f + vexp(-x)); }
INLINE vf vroot(vf x) { return x * reciprocal_root(x); }  // of normal positive numbers
INLINE vf vpower(vf x, float p) { return exp2_clamped(log_normal(x) * (LOG2_E * p)); }

// One vector of tensors.
struct Means {
  vf g2, v, m2, gm, theta2, go, o2;
};

struct Facts {
  vf is_matrix, fan_in, fan_out, count, has_basis;
};

INLINE vf by_kind(const Facts& facts, const float (&pair)[2]) {
  return facts.is_matrix * pair[0] + (1.0f - facts.is_matrix) * pair[1];
}

// The fraction of the horizon that is done: 0 where it is unknown.
struct Time {
  vf step, total;
  bool known;

  INLINE vf done() const { return known ? vmin(step / total, set1(1.0f)) : vf{}; }
};

INLINE vf hand_schedule(const Hand& hand, const Time& time) {
  vf rise = set1(expf(hand.log_warmup));
  if (time.known) rise = vmin(rise, vmax(time.total * RISING, set1(1.0f)));
  const vf warmup = vmin(time.step / rise, set1(1.0f));
  const float tau = expf(hand.log_tau[time.known ? 1 : 0]);
  const float power = fmaxf(hand.power[0], 0.0f);
  const vf early = 1.0f + vmin(time.step, set1(LONG)) * (1.0f / tau);
  const vf late = (1.0f + time.step * (1.0f / tau)) / early;
  vf fall = vpower(early, -power) * vpower(late, -fminf(power, LONG_POWER));
  if (time.known) {
    vf left = vmax(set1(1.0f), time.total - time.step + 1.0f) / time.total;
    fall *= vpower(vmin(left, set1(1.0f)), fmaxf(hand.power[1], 0.0f));
    fall *= vroot(vmax(SHORT / vmax(time.total, set1(SHORTEST)), set1(1.0f)));
  }
  return warmup * fall;
}

// The share of a step that is taken later.
INLINE vf waiting(const Hand& hand, const Time& time) {
  const vf share = set1(logistic(hand.logit_share));
  if (!time.known) return share;
  return share * clamp(log_normal(time.total * (1 / BRIEF)) * LOG2_E, 0, 1);
}

INLINE vf agreement(const Means& means) {
  return means.gm / (vroot(means.g2 + TINY) * vroot(means.m2 + TINY));
}

INLINE vf outlook(const Means& means) {
  return -means.go / (vroot(means.g2 + TINY) * vroot(means.o2 + TINY));
}

// The factor on the gradient that the momentum sees.
INLINE vf clipping(const Hand& hand, const Means& means, const Time& time, vf before) {
  vf ratio = before * expf(2 * hand.log_clip) / vmax(means.g2, set1(TINY));
  ratio = vmin(vmax(ratio, set1(TINY)), set1(1.0f));
  const auto unseen = (before <= set1(TINY)) | (means.m2 <= FAINT * before);
  const auto free = (time.step <= set1(FIRST)) | unseen;
  return free ? set1(1.0f) : vroot(ratio);
}

// What the controller sees: rows of TV, at vector `i` of them.
INLINE void write_tells(const Means& means, vf mean_v, vf growth, vf pace, const Facts& facts,
                        const Time& time, float* x, int i) {
  vf done = time.done();
  vf tells[TELLS] = {
      clamp(log_normal((means.g2 + TINY) / (mean_v + TINY)), -6, 6) * (1 / 3.0f),
      clamp(log_normal((means.m2 + TINY) / (mean_v + TINY)), -8, 8) * 0.25f,
      agreement(means),
      clamp(log_normal(vmax(set1(TINY), growth)), -4, 4),
      log_normal(time.step) * 0.2f - 1.0f,
      done,
      set1(time.known ? 1.0f : 0.0f),
      facts.is_matrix,
      log_normal(facts.fan_in) * 0.2f,
      log_normal(facts.fan_out) * 0.2f,
      log_normal(vmax(set1(1e-3f), 1.0f - done)) * (1 / 3.0f),
      pace * (1 / FASTEST),
  };
#pragma GCC unroll 16
  for (int k = 0; k < TELLS; k++) store(x + k * TV + i * W, tells[k]);
}

// Rows of one tile of tensors, TV floats each.
struct ControlTile {
  float* sums;    // DEFAULT_SUMS rows
  float* facts;   // FACTS rows
  float *step, *total;
  float* gauge;   // GAUGE rows: scale at the first step, pace, agreement, scale, outlook, largest
  float *cell, *h;  // of the controller: 2 C rows before -> after, C rows of scratch
  float *x, *advice;
  float* signals;  // SIGNALS rows
};

inline ControlTile lay_out_control(int units, Arena& arena) {
  ControlTile tile;
  auto rows = [&](long count) { return arena.take<float>(count * TV); };
  tile.sums = rows(DEFAULT_SUMS);
  tile.facts = rows(FACTS);
  tile.step = rows(1);
  tile.total = rows(1);
  tile.gauge = rows(GAUGE);
  tile.cell = rows(2 * units);
  tile.h = rows(units);
  tile.x = rows(TELLS);
  tile.advice = rows(ADVICE);
  tile.signals = rows(SIGNALS);
  return tile;
}

inline void read_means(const ControlTile& tile, int i, Means* means, Facts* facts) {
  vf* of_facts[] = {&facts->is_matrix, &facts->fan_in, &facts->fan_out, &facts->count,
                    &facts->has_basis};
  for (int k = 0; k < FACTS; k++) *of_facts[k] = load(tile.facts + k * TV + i * W);
  vf* of_means[] = {&means->g2, &means->v, &means->m2, &means->gm, &means->theta2,
                    &means->go, &means->o2};
  for (int k = 0; k < DEFAULT_SUMS; k++)
    *of_means[k] = load(tile.sums + k * TV + i * W) / facts->count;
}

// The controller's LSTM and head: `x` and `cell` to `advice`.
inline void advise(int units, const float* packed, const float* head, const ControlTile& tile) {
  float *h = tile.cell, *c = h + units * (long)TV;
  Kept out = {tile.h, c, nullptr, nullptr};
  layer_forward<Lstm, 0, false>(units, TELLS, packed, tile.x, h, c, out);
  memcpy(h, tile.h, sizeof(float) * units * TV);
  for (int r = 0; r < ADVICE; r++)
    for (int i = 0; i < V; i++) {
      vf sum = set1(head[(long)ADVICE * units + r]);
      for (int k = 0; k < units; k++) sum += load(h + k * TV + i * W) * head[(long)r * units + k];
      store(tile.advice + r * TV + i * W, sum);
    }
}

// What is the same with and without a controller, before it and after it.
struct Scales {
  vf mean_v, v_before, scale, rms, correct1, correct2;
};

INLINE Scales read_scales(const Hand& hand, const Means& means, const Facts& facts,
                          const Time& time, float* origin) {
  const float beta1 = logistic(hand.logit_beta1), beta2 = logistic(hand.logit_beta2);
  Scales s;
  // beta^t as 2^(t log2 beta), the logarithm in float64: it is close to 0.
  vf left1 = exp2_clamped(time.step * (float)log2((double)beta1));
  vf left2 = exp2_clamped(time.step * (float)log2((double)beta2));
  s.correct1 = 1.0f / vmax(set1(1e-6f), 1.0f - left1);
  s.correct2 = 1.0f / vmax(set1(1e-6f), 1.0f - left2);
  s.v_before = means.v / vmax(set1(1e-6f), 1.0f - left2 * (1.0f / beta2));
  s.mean_v = (beta2 * means.v + (1.0f - beta2) * means.g2) * s.correct2;
  s.rms = vroot(means.theta2 + TINY);
  vf floor = vexp(by_kind(facts, hand.log_floor)) * reciprocal_root(facts.fan_in);
  s.scale = vmax(floor, s.rms);
  store(origin, time.step == set1(1.0f) ? s.scale : load(origin));
  return s;
}

// The pace before this step's gradient, with what the scale has grown by taken off.
INLINE vf repaid(const Hand& hand, const Scales& s, vf pace, vf last) {
  const vf zero = {}, common = set1(COMMON);
  last = last > zero ? last : s.scale;
  const vf grown = log_normal(vmax(set1(1.0f), s.scale / last));
  return pace > common ? vmax(common, pace - fmaxf(hand.repay, 0.0f) * grown) : pace;
}

// How far beyond the band around the aim the agreement is, as far as the pace should answer.
INLINE vf beyond_aim(vf agreed, vf aim, vf ahead, vf band) {
  const vf zero = {}, off = agreed - aim, uphill = clamp(ahead * (-1 / UPHILL), 0, 1);
  const vf below = uphill * vmin(off + band, zero);
  return vmax(off - band, zero) + below + (1.0f - uphill) * vmin(agreed - FAR_AGAINST, zero);
}

// The largest gradient so far, its root mean square.
INLINE vf largest_of(vf before, const Means& means, vf step) {
  const vf rms = vroot(means.g2 + TINY), zero = {};
  return vmax(before * (1.0f - FORGOTTEN / step), before > zero ? vmin(rms, GROWS * before) : rms);
}

// The part of the brake that gradients lost in rounding call for.
INLINE vf sinks(const Means& means, vf largest) {
  const vf now = vroot(vmax(means.g2, means.m2) + TINY);
  return SINKING * clamp(log_normal((ROUNDING * largest + TINY) / now), 0, FAINTEST);
}

// Rows of TV from those of the step before: pace, mean agreement, scale, outlook and largest
// gradient; returns the pace.
INLINE vf feed_back(const Hand& hand, const Means& means, const Facts& facts, const Time& time,
                    const Scales& s, vf more_aim, float* pace) {
  float *agreed = pace + TV, *scale = agreed + TV, *outlooks = scale + TV;
  float* largest = outlooks + TV;
  const vf zero = {}, one = set1(1.0f), band = set1(expf(hand.log_band));
  vf before = load(pace), mean = load(agreed), cosine = agreement(means);
  mean += (cosine - mean) * (1 / SMOOTH);
  vf settled = vmin(time.step * (1 / SETTLED), one);
  if (time.known) settled *= vmax(one - time.step / time.total, zero);
  const vf last = load(outlooks), ahead = last + (outlook(means) - last) * (1 / FAR_SMOOTH);
  const vf aim = 0.1f * hand.aim[time.known ? 1 : 0] + AIM * tanh(more_aim);
  const vf beyond = beyond_aim(mean, aim, ahead, band);
  const auto away = (cosine < set1(AGAINST)) & (means.g2 > LARGE * s.mean_v);
  vf change = vexp(by_kind(facts, hand.log_rate)) * settled * beyond;
  if (time.known) {
    vf share = clamp(log_normal(SHORT_RUN / time.total) * LOG2_E, 0, 1);
    const auto wrong = (cosine < set1(FIRST_AGAINST)) & (means.g2 > FIRST_LARGE * s.v_before) &
                       (time.step <= set1(FIRST)) & (share > zero);
    change = wrong ? -hand.brake * share : change;
  }
  change = away ? set1(-hand.brake) : change;
  const vf peak = load(largest);
  const vf peaked = largest_of(peak, means, time.step);
  vf moved = repaid(hand, s, before, load(scale)) + (change - hand.brake * sinks(means, peaked));
  moved = clamp(moved, SLOWEST, FASTEST);
  // A gradient or a momentum of zero says nothing.
  const auto speaks = (means.g2 > zero) & (means.m2 > zero);
  moved = speaks ? moved : before;
  store(pace, moved);
  store(agreed, speaks ? mean : load(agreed));
  store(scale, speaks ? s.scale : load(scale));
  store(outlooks, speaks ? ahead : last);
  store(largest, speaks ? peaked : peak);
  return moved;
}

INLINE void write_signals(const Hand& hand, const Means& means, const Facts& facts,
                          const Time& time, const Scales& s, const float* advice, float* gauge,
                          float* to) {
  vf schedule = hand_schedule(hand, time);
  vf paced = feed_back(hand, means, facts, time, s, load(advice + 2 * TV), gauge + TV);
  vf length = vexp(by_kind(facts, hand.log_step)) * schedule * s.scale;
  vf per_root = reciprocal_root(vmax(set1(TINY), s.mean_v));
  per_root *= 1.0f - facts.has_basis * (1.0f - 1.0f / SEEN_DEAD);
  const float haste = fmaxf(expf(hand.log_due), 1.0f);
  vf louder = load(advice), more_blend = load(advice + TV);
  vf signals[SIGNALS] = {
      set1(logistic(hand.logit_beta1)),
      set1(logistic(hand.logit_beta2)),
      per_root,
      s.correct1 * per_root,
      s.correct2 * per_root * per_root,
      (1.0f - facts.has_basis) / s.rms,
      length * vexp(paced + LOUDEST * tanh(louder)),
      vsigmoid(hand.blend + more_blend),
      set1(expf(hand.log_gain)),
      tanh(load(advice + 3 * TV)),
      tanh(load(advice + 4 * TV)),
      clipping(hand, means, time, s.v_before),
      waiting(hand, time),
      haste / (time.step + haste - 1.0f),
  };
#pragma GCC unroll 16
  for (int k = 0; k < SIGNALS; k++) store(to + k * TV, signals[k]);
}

// The whole tile: reads sums, facts, times, gauge and cell; leaves gauge, cell and signals.
inline void control_tile(const float* weights, const float* packed, int units, bool known,
                         const ControlTile& tile) {
  const Hand hand = read_hand(weights);
  Means means;
  Facts facts;
  Scales scales[V];
  auto time = [&](int i) -> Time {
    return {load(tile.step + i * W), load(tile.total + i * W), known};
  };
  for (int i = 0; i < V; i++) {
    read_means(tile, i, &means, &facts);
    scales[i] = read_scales(hand, means, facts, time(i), tile.gauge + i * W);
    vf growth = scales[i].scale / vmax(set1(TINY), load(tile.gauge + i * W));
    vf pace = load(tile.gauge + TV + i * W);
    write_tells(means, scales[i].mean_v, growth, pace, facts, time(i), tile.x, i);
  }
  memset(tile.advice, 0, sizeof(float) * ADVICE * TV);
  const float* head = weights + HAND + 4L * units * (TELLS + units + 1);
  if (units) advise(units, packed, head, tile);
  for (int i = 0; i < V; i++) {
    read_means(tile, i, &means, &facts);
    write_signals(hand, means, facts, time(i), scales[i], tile.advice + i * W,
                  tile.gauge + i * W, tile.signals + i * W);
  }
}

struct Control {
  const DefaultControlArguments* a;
  long set;  // floats of one set of weights
};

inline long packed_controller(int units) { return 4L * units * (TELLS + units + 1); }

// One tile of one rule's tensors.
inline void control_chunk(void* context, long index, void* memory) {
  const Control& job = *(const Control*)context;
  const DefaultControlArguments& a = *job.a;
  const long n = a.tensors, tiles = (n + TV - 1) / TV;
  const long rule = index / tiles, first = index % tiles * TV;
  const int valid = n - first < TV ? (int)(n - first) : TV;
  Arena arena = {(char*)memory};
  const ControlTile tile = lay_out_control(a.units, arena);
  float* packed = arena.take<float>(packed_controller(a.units));
  const float* weights = a.weights + rule * job.set;
  if (a.units) pack_forward<Lstm>(weights + HAND, a.units, TELLS, packed);
  for (int r = 0; r < DEFAULT_SUMS; r++)
    for (int i = 0; i < TV; i++) {
      const long tensor = rule * n + first + (i < valid ? i : 0);
      tile.sums[r * TV + i] = a.survey[tensor * SURVEY + 1 + r];
    }
  gather_rows(a.facts + first, n, FACTS, valid, tile.facts);
  gather_rows(a.step + first, n, 1, valid, tile.step);
  if (a.total) gather_rows(a.total + first, n, 1, valid, tile.total);
  for (int i = valid; i < TV; i++) {  // lanes of no tensor
    for (int r = 0; r < FACTS; r++) tile.facts[r * TV + i] = 1;
    tile.step[i] = tile.total[i] = 1;
  }
  float* gauge = a.gauge + (long)GAUGE * rule * n + first;
  float* cell = a.cell + 2L * a.units * rule * n + first;
  gather_rows(gauge, n, GAUGE, valid, tile.gauge);
  gather_rows(cell, n, 2 * a.units, valid, tile.cell);
  control_tile(weights, packed, a.units, a.total != nullptr, tile);
  scatter_rows(tile.gauge, n, GAUGE, valid, gauge);
  scatter_rows(tile.cell, n, 2 * a.units, valid, cell);
  scatter_rows(tile.signals, n, SIGNALS, valid, a.signals + rule * SIGNALS * n + first);
}

inline int run_default_control(const DefaultControlArguments* a) {
  Arena measure = {nullptr};
  lay_out_control(a->units, measure);
  measure.take<float>(packed_controller(a->units));
  Control job = {a, HAND + controller_weights(a->units) + default_weights(a->hidden)};
  Job work = {control_chunk, &job, a->rules * ((a->tensors + TV - 1) / TV), measure.used};
  return run(work, 1);
}

}  // namespace
