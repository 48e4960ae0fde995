# Everything from nothing:   make quickstart    make test
# With an environment that exists already (conda, say):   make test PYTHON=python
#
# detectron2 has no release on the package index. An importable one is used if there is one;
# else a re-upload of upstream's Python sources, pinned by hash (seconds, no compiler);
# `make DETECTRON2=upstream setup` builds upstream instead. The README says which is which.

VENV ?= .venv
BASE_PYTHON ?= python3
PYTHON ?= $(VENV)/bin/python
DETECTRON2 ?= wheel
UPSTREAM = git+https://github.com/facebookresearch/detectron2.git@a59f05630a8f205756064244bf5beb8661f96180
WHEEL = sal-detectron2==0.7.2 --hash=sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561

# Threads that wait spin otherwise, and one core each is what workers get.
export OMP_WAIT_POLICY = PASSIVE

ifeq ($(PYTHON),$(VENV)/bin/python)
READY = $(VENV)/.ready
endif

.PHONY: setup test test-faults test-slow lint quickstart benchmark clean

setup: $(READY)

$(VENV)/.ready: pyproject.toml Makefile
	$(BASE_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@if $(PYTHON) -c 'import detectron2' 2>/dev/null; then \
	  echo 'detectron2 is there'; \
	elif [ '$(DETECTRON2)' = upstream ]; then \
	  $(PYTHON) -m pip install --no-build-isolation --no-deps '$(UPSTREAM)'; \
	else \
	  echo '$(WHEEL)' > $(VENV)/detectron2.txt && \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	    --only-binary=:all: --implementation cp --python-version 3.10 \
	    --upgrade --target $(VENV)/detectron2 -r $(VENV)/detectron2.txt && \
	  $(PYTHON) -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), \
	    "detectron2.pth").write_text(str(pathlib.Path("$(VENV)/detectron2").absolute()) + "\n")'; \
	fi
	@$(PYTHON) -W ignore -c 'import detectron2'
	@touch $@

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

# What a change must pass first, under ten minutes on two cores; CI runs test-faults as well.
test: lint
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 -m 'not slow' --ignore tests/faults --durations=10

# Everything that can go wrong, made to happen; prints a table of faults and their tests.
test-faults: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 -m 'fault and not slow' --durations=10

# Minutes rather than seconds: measured claims, long stress.
test-slow: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m slow

quickstart: setup
	$(PYTHON) -m workflows.cli quickstart

# The machinery's figures, side by side in one run:   make benchmark SOURCE='drive.mp4 --fov-deg 70'
benchmark: setup
	$(PYTHON) -m workflows.benchmark $(or $(SOURCE),$(error give SOURCE=, a video or a data set))

clean:
	rm -rf quickstart build *.egg-info
