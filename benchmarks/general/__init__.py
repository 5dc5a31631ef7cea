"""Parts of `benchmarks.generalization`: problems, contenders, the loop, the cache, the scores."""
