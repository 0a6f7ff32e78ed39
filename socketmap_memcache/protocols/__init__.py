"""Wire formats. Nothing here does I/O or imports Twisted: bytes in, items out, and the reverse."""
