// The library's exported functions: each call goes to the instruction set the caller names.
#if defined(WITH_X86)
#include "cpu.h"
#endif
#include "table.h"
#include "team.h"

Team learned_optim_team = {};
bool learned_optim_dot_products = true;

extern const Table table_baseline;
#if defined(WITH_X86)
extern const Table table_avx2, table_avx512;
#endif

namespace {

const Table* find(int level) {
#if defined(WITH_X86)
  if (level == 2) return &table_avx512;
  if (level == 1) return &table_avx2;
#endif
  return &table_baseline;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// The best level of this machine: 0 baseline, 1 AVX2 + FMA, 2 AVX-512.
EXPORT int learned_optim_best_level() {
#if defined(WITH_X86)
  static int found = -1;  // to ask the CPU takes microseconds
  int level = __atomic_load_n(&found, __ATOMIC_RELAXED);
  if (level < 0) __atomic_store_n(&found, level = cpu_level(), __ATOMIC_RELAXED);
  return level;
#else
  return 0;
#endif
}

// Hash of the sources, so that a stale library is never called.
EXPORT const char* learned_optim_sources() { return SOURCES_HASH; }

// Whose threads the kernels run on from now on, see team.h; null for their own.
EXPORT void learned_optim_set_team(const Team* team) {
  learned_optim_team = team ? *team : Team{};
}

// Whether the CPU's instructions for products of pairs are used where there are any, so that tests reach
// what other CPUs do.
EXPORT void learned_optim_set_dot_products(int used) { learned_optim_dot_products = used; }

EXPORT int learned_optim_bptt(int level, const CellsArguments* cells, const BpttArguments* a) {
  return find(level)->bptt(cells, a);
}

EXPORT int learned_optim_vjp(int level, const CellsArguments* cells, const VjpArguments* a) {
  return find(level)->vjp(cells, a);
}

EXPORT int learned_optim_step(int level, const CellsArguments* cells, const StepArguments* a) {
  return find(level)->step(cells, a);
}

EXPORT int learned_optim_update(int level, const CellsArguments* cells, const UpdateArguments* a) {
  return find(level)->update(cells, a);
}

EXPORT int learned_optim_finite(int level, const FiniteArguments* a) {
  return find(level)->finite(a);
}

EXPORT int learned_optim_take(int level, const TakeArguments* a) { return find(level)->take(a); }

EXPORT int learned_optim_see(int level, const SeeArguments* a) { return find(level)->see(a); }

EXPORT int learned_optim_unsee(int level, const UnseeArguments* a) { return find(level)->unsee(a); }

EXPORT int learned_optim_straighten(int level, const StraightenArguments* a) {
  return find(level)->straighten(a);
}

EXPORT int learned_optim_normalize(int level, const NormalizeArguments* a) {
  return find(level)->normalize(a);
}

EXPORT int learned_optim_finish(int level, const FinishArguments* a) {
  return find(level)->finish(a);
}

// Adds 1 to each of `count` numbers.
EXPORT int learned_optim_count(int, const CountArguments* a) {
  for (long i = 0; i < a->count; i++) *a->numbers[i] += 1;
  return 0;
}

EXPORT int learned_optim_default_survey(int level, const DefaultArguments* a) {
  return find(level)->default_survey(a);
}

EXPORT int learned_optim_default_update(int level, const DefaultArguments* a) {
  return find(level)->default_update(a);
}

EXPORT int learned_optim_default_control(int level, const DefaultControlArguments* a,
                                         const DefaultKeptArguments* kept) {
  return find(level)->default_control(a, kept);
}

EXPORT int learned_optim_default_runs(int level, const DefaultControlArguments* control,
                                      const DefaultRunsArguments* a) {
  return find(level)->default_runs(control, a);
}
