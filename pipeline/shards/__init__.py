"""The shard set: the only contract between pipeline and training. See FORMAT.md."""
