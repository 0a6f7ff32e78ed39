"""The service under load while all around it is broken on purpose; ``make soak`` does at length what the tests do.

Each :mod:`site <.site>` is one service with its memcached and its backup. Its :mod:`faults <.faults>` happen one after
the other, under :mod:`load <.load>`; each answer is compared with :mod:`the truth <.truth>`, and the sums are
:mod:`the rows <.report>` of a table.
"""
