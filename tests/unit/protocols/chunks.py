"""Cuts bytes into chunks as a network might."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def chunked(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """Make any chunks, none of them empty, that joined are the stream; often all of one byte."""
    if draw(st.booleans()):
        return [stream[i : i + 1] for i in range(len(stream))]
    places = draw(st.lists(st.integers(0, len(stream)), max_size=20).map(sorted))
    ends = [*places, len(stream)]
    return [chunk for start, end in zip([0, *places], ends, strict=True) if (chunk := stream[start:end])]
