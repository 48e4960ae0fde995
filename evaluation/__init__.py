"""Predictions in, numbers out, each with its protocol."""
