"""Geometry against answers on paper."""
