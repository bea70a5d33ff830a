"""Posteriors that other people sample, with references: the default sampler is measured on them."""
