"""Tests of `pipeline.shards`."""
