"""The energies, libraries and samplers of the comparisons."""
