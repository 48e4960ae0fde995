"""Builds on clusters: a script for Slurm, objects for Kubernetes; see CLUSTERS.md."""
