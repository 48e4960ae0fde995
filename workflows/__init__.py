"""The commands people type, and recipes for data sets and paper tables."""
