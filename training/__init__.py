"""Shards in, checkpoints out: depth, ego-motion and per-object motion, learned jointly."""
