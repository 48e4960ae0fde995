"""Tests of the synthetic streets and their truth."""
