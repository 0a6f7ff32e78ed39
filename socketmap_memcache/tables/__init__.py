"""Lookup tables, type:name."""
