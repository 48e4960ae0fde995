"""Tests of `training.networks`."""
