"""Postfix socketmap look-ups out of memcached, with a persistent backup."""

__version__ = "0.1.0"
