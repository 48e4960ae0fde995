"""Readers of the benchmarks' ground truth: files in, arrays out."""
