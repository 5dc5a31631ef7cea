"""One script per claim; results as JSON and figures in `benchmarks/results`."""
