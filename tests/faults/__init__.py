"""Faults: each is made to happen, and then nothing is lost. `make test-faults` prints the table."""
