"""The energies, the libraries and the samplers that the benchmarks compare."""
