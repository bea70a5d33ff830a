"""`python -m benchmarks.posteriors`."""

from benchmarks.posteriors.run import main

main()
