"""Raw video in, training shards out: offline, restartable, on one machine or a cluster."""
