"""Running things: the command line, grids of runs, conversion, benchmarks."""
