# make demo: set up, then ask how few directions keep 90 % of what attention contributes in the bundled model.
# make quick: set up, then run the tests that take seconds.   make test: all tests.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
CONSTRAINTS := .ci/constraints.txt
# Tests that run at the same time, and the seconds after which one that hangs is ended.
JOBS ?= 2
LIMIT ?= 300
# What one process has compiled the others, and the programs that tests start, need not compile again.
PYTEST := PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n $(JOBS) --dist worksteal --timeout $(LIMIT) --timeout-method thread

.PHONY: setup demo quick test check reference
setup: $(VENV)/ready

# If this Python already has torch (on a CUDA machine, say), it is kept; otherwise the pinned one is installed first.
$(VENV)/ready: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else "Python 3.10 to 3.13 is needed, not %d.%d; choose one with make PYTHON=python3.12" % v)'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@own=$$($(PYTHON) -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' 2>/dev/null) && \
		echo "keeping the torch in $$own" && \
		echo "$$own" > "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/kept_torch.pth" || true
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PY) -c 'import torch' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' $(CONSTRAINTS))"
	@grep -v '^torch==' $(CONSTRAINTS) > $(VENV)/constraints.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint $(VENV)/constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	@$(PY) experiments/analyze.py basis=learned target_faithfulness=0.9 steps=125 mask.finishing_trials=0
	@echo "and 95 % of the model's own channels removed:"
	@$(PY) experiments/analyze.py steps=40 controls.random_masks=0 visualizer=none | grep -o 'evaluation loss.*'

quick: setup
	@$(PYTEST) -m 'not slow'

test: setup
	@$(PYTEST)

# Format, lint and types, without changing anything.
check: setup
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

# The tables of conf/README.md, from the comments in conf/.
reference: setup
	@$(PY) -m mechint.config.reference
