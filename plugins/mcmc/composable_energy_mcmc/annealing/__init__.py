r"""Annealing from a Gaussian to a density: path, schedule and resampling, shared by `smc`, `tempering`, `log_z` and `calibrate`."""
