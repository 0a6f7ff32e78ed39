"""Greylisting, as postgrey does it, over any table."""
