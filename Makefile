# Everything sets itself up: the machine needs python3 and make, and root only if a system package is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A modern editable install would lose the twistd plugin; its "compat" mode puts this folder on the path as it is.
PIP_INSTALL := $(BIN)/python -m pip --quiet --disable-pip-version-check install
INSTALL := $(PIP_INSTALL) --config-settings editable_mode=compat --editable

export PYTHON
# Tests start many processes, each of which would otherwise compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test lint bench fuzz soak check clean

help:
	@echo 'make run     run the service in the foreground, as configured in examples/quickstart'
	@echo 'make test    run all tests (ARGS="-k name" for some)'
	@echo 'make lint    ruff and mypy'
	@echo 'make check   all that has to pass before a change goes in'
	@echo 'make bench   the benchmarks (ARGS="--only hits cpu" for some; see docs/speed.rst)'
	@echo 'make fuzz    a million mutated inputs for each codec and each listener (ARGS="--inputs 20000" for fewer)'
	@echo 'make soak    ten rounds of all faults, some ten minutes (ARGS="--fault-rounds 3 --fault-seconds 10" for others)'
	@echo 'make clean   remove all that these commands made'

run: $(VENV)/installed
	cd examples/quickstart && ../../$(BIN)/twistd --pidfile= -n socketmap-memcache --config main.cf

test: $(VENV)/installed-test
	@tests/install-packages postfix postfix-cdb postfix-lmdb postfix-pcre postfix-pgsql postfix-sqlite memcached \
		postgrey nutcracker postgresql redis-server redis-sentinel libmemcached openssl nc cc
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest --numprocesses 3 --dist loadfile $(ARGS) || { \
		echo 'What has failed runs once more, alone: on a busy machine other programs may have been too slow.' && \
		$(BIN)/coverage run -m pytest --second-try --last-failed --last-failed-no-failures none; }

lint: $(VENV)/installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy socketmap_memcache tests benchmarks
	$(BIN)/mypy twisted/plugins/socketmap_memcache_plugin.py # apart: it would be found under two names
	$(BIN)/mypy examples/policy/twisted/plugins/blocked_senders.py

check:
	.ci/run

bench: benchmarks/load $(VENV)/installed-test
	@tests/install-packages postfix postfix-cdb postfix-lmdb memcached postgrey gross openssl
	$(BIN)/python -m benchmarks.bench $(ARGS)

fuzz: $(VENV)/installed-test
	$(BIN)/python -m tests.fuzz.run $(ARGS)

soak: $(VENV)/installed-test
	@tests/install-packages memcached cc
	$(BIN)/python -m pytest --fault-rounds 10 --fault-seconds 5 tests/faults $(ARGS)

benchmarks/load: benchmarks/load.c
	@tests/install-packages cc
	cc -O2 -Wall -Wextra -o $@ $<

$(VENV)/created:
	@tests/install-packages venv
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) 'pip>=22.1' # the first that takes --config-settings
	touch $@

$(VENV)/installed: $(VENV)/created setup.cfg
	$(INSTALL) .
	touch $@

$(VENV)/installed-test: $(VENV)/created setup.cfg
	@tests/install-packages cc headers libdb # for berkeleydb
	$(INSTALL) '.[test]'
	touch $@ $(VENV)/installed

$(VENV)/installed-lint: $(VENV)/created setup.cfg
	@tests/install-packages cc headers libdb # for berkeleydb
	$(INSTALL) '.[test,lint]'
	touch $@ $(VENV)/installed $(VENV)/installed-test

clean:
	rm -rf $(VENV) build dist *.egg-info benchmarks/load examples/quickstart/greylist.lmdb .coverage .coverage.* htmlcov
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
