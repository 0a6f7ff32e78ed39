from __future__ import annotations

from socket import gethostname

import attrs
import pytest

from socketmap_memcache.config.parameters import Parameters
from socketmap_memcache.config.syntax import Entry, ParsedFile
from socketmap_memcache.errors import ConfigurationError
from socketmap_memcache.policies.greylist.settings import PARAMETERS, Settings, read_settings


def parameters(**values: str) -> Parameters:
    entries = {f"greylist_{name}": Entry(f"greylist_{name}", value, 7, "main.cf") for name, value in values.items()}
    return Parameters(ParsedFile("main.cf", entries))


def read(**values: str) -> Settings:
    asked = parameters(**values)
    settings = read_settings(asked)
    asked.finish([])
    return settings


def error(**values: str) -> str:
    """Return the only error, whose value counts as its default."""
    asked = parameters(**values)
    read_settings(asked)
    with pytest.raises(ConfigurationError) as caught:
        asked.finish([])
    (problem,) = caught.value.problems
    return str(problem)


def test_defaults() -> None:
    """What the settings are without parameters is what the defaults of the parameters say."""
    written = {name.removeprefix("greylist_"): value for name, value in PARAMETERS.items()}
    assert read() == read(**written) == attrs.evolve(Settings(), hostname=gethostname().encode())


def test_all() -> None:
    """Every setting has its parameter."""
    settings = read(
        delay="1m",
        retry_window="6h",
        max_age="5w",
        ipv4_prefix="32",
        ipv6_prefix="128",
        lookup_by_host="yes",
        auto_whitelist_clients="0",
        action="defer",
        text="Später %s %r",
        header="X-Late: %t",
        hostname="mx.example.com",
        privacy="yes",
        normalize_srs="yes",
        normalize_hex="yes",
        fail_action="450 4.3.0 Not now",
        training_mode="yes",
    )
    assert settings == Settings(
        delay=60,
        retry_window=21600,
        max_age=3024000,
        ipv4_prefix=32,
        ipv6_prefix=128,
        lookup_by_host=True,
        auto_whitelist_clients=0,
        action=b"defer",
        text="Später %s %r".encode(),
        header=b"X-Late: %t",
        hostname=b"mx.example.com",
        privacy=True,
        normalize_srs=True,
        normalize_hex=True,
        fail_action=b"450 4.3.0 Not now",
        training_mode=True,
    )


@pytest.mark.parametrize(
    "name, value",
    [
        ("delay", "soon"),
        ("ipv4_prefix", "0"),
        ("ipv4_prefix", "33"),
        ("ipv6_prefix", "0"),
        ("ipv6_prefix", "129"),
        ("auto_whitelist_clients", "-1"),
        ("privacy", "perhaps"),
    ],
)
def test_bounds(name: str, value: str) -> None:
    """A value out of its bounds is an error with its place."""
    assert error(**{name: value}).startswith("main.cf:7: ")


@pytest.mark.parametrize("name, value", [("retry_window", "300"), ("max_age", "299")])
def test_too_short(name: str, value: str) -> None:
    """A delay in which a triplet is forgotten again would stop all mail."""
    text = f"main.cf: greylist_delay = 300s: must be less than greylist_{name} ({value}s), or no mail ever passes"
    assert error(**{name: value}) == text


def test_empty_texts() -> None:
    """No text and no header may be wanted."""
    assert read(text="", header="") == attrs.evolve(Settings(), hostname=gethostname().encode(), text=b"", header=b"")


@pytest.mark.parametrize("name", ["action", "fail_action"])
class TestActions:
    def test_empty(self, name: str) -> None:
        """An action must not be empty: Postfix would permit the mail."""
        assert error(**{name: ""}) == f"main.cf:7: greylist_{name}: must not be empty: write an action of access(5)"

    def test_unknown(self, name: str) -> None:
        """An action that Postfix does not know is an error that names the nearest."""
        assert error(**{name: "DEFER_IF_PERMITS 4.2.0"}) == (
            f"main.cf:7: greylist_{name} = DEFER_IF_PERMITS 4.2.0: DEFER_IF_PERMITS is not an action of access(5); "
            "did you mean 'DEFER_IF_PERMIT'?"
        )
        assert "250 is not an action of access(5)" in error(**{name: "250 ok"})

    def test_not_text(self, name: str) -> None:
        """An action must be one line of UTF-8."""
        for value in ("DEFER\nx", "DEFER \udcff", "DEFER \0"):
            assert error(**{name: value}).endswith(": must be one line of UTF-8 without control characters")

    def test_more_words(self, name: str) -> None:
        """An action may have a text, and be in any case; a code needs a text."""
        for value in ("defer_if_permit 4.3.0 x", "451 x", "Dunno"):
            assert getattr(read(**{name: value}), name) == value.encode()


def test_code_alone() -> None:
    """A code without a text is OK to Postfix, which is not what was meant."""
    text = "main.cf:7: greylist_fail_action = 450: alone it is OK to Postfix; write a text after it"
    assert error(fail_action="450") == text
    assert error(action="450", text="") == "main.cf:7: greylist_text is empty: 450 alone is OK to Postfix"
    assert read(action="450").action == b"450"


def test_header() -> None:
    """A header needs a name and a colon, or Postfix ignores it."""
    for value in ("delayed", "X Greylist: y", ": x"):
        assert error(header=value).endswith("a header is a name without blanks, a colon, and a text")
