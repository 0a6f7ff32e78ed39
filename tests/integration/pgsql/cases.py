"""Rows, keys, and queries for them."""

from __future__ import annotations

ROWS = [
    *(("a@b.c", "one", None), ("a@b.c", "two", "x@y"), ("user", "U", ""), ("@b.c", "domain", None), ("b.c", "d", None)),
    *(("o'clock@b.c", "quote", None), ("back\\slash@b.c", "back", None), ("\u00fc@b.c", "\u00dc", None)),
    *(("%s@b.c", "percent", None), ("null@b.c", None, None), ("a b@b.c", "blank", None), ('"q"@b.c', "q", None)),
    *(("u@x.y.example.com", "labels", None), ("many@b.c", "1", "2"), ("many@b.c", "3", "4"), ("7", "seven", None)),
]
ODD_KEYS = [
    *("a@b.c", "A@B.C", "user", "@b.c", "b.c", "o'clock@b.c", "back\\slash@b.c", "\u00fc@b.c", "\u00dc@B.C", "%s@b.c"),
    *("null@b.c", "a b@b.c", '"q"@b.c', "u@x.y.example.com", "many@b.c", "7", "", "@", "a@", "@@", "a@@b.c", "'", "\\"),
    *(
        "' OR ''='",
        "\\'; SELECT 1; --",
        "$1",
        "--",
        "/*",
        "nobody@nowhere.example",
        "x" * 3000,
        "a@b.c@b.c",
        ".",
        "a@.",
    ),
]
QUERIES = [
    "query = SELECT v FROM t WHERE k = '%s'",
    "query = SELECT v, w FROM t WHERE k = '%s' ORDER BY v\nexpansion_limit = 3",
    "query = SELECT v FROM t WHERE k = '%u@%d' ORDER BY v\nresult_format = <%s> %U",
    "query = SELECT v FROM t WHERE k = concat('%u', '@', '%d') ORDER BY v",
    "query = SELECT v FROM t WHERE k LIKE '%%@%d' AND k = lower('%S') ORDER BY v\nresult_format = %u",
    "query = SELECT v FROM t WHERE k = '%u@x.y.%2.%1' ORDER BY v",
    "query = SELECT v FROM t WHERE length(k) = '%s'\nresult_format = smtp:[%s]",
    "query = SELECT w FROM t WHERE k = '%s'\nresult_format = %d",
    "query = SELECT v FROM t WHERE k = E'%s' ORDER BY v",
    "query = SELECT 'x'; SELECT v FROM t WHERE k = '%s' ORDER BY v;",
    "query = SELECT v FROM t WHERE k = '%s' ORDER BY v\ndomain = b.c, static:no, !b.c",
    "query = SELECT text '%s'",
    "query = SELECT '%s' || '!%%'",
    "select_function = f",
    "select_field = v\ntable = t\nwhere_field = k\nadditional_conditions = AND w IS NULL ORDER BY v",
    "query = SELECT nothing FROM nowhere WHERE k = '%s'",
]
