# Two commands set everything up:
#   make demo   an environment without torch, then the main job on the bundled videos
#   make test   an environment with everything, then linters, types and all tests
PYTHON ?= python3
RUN := .venv-run
DEV := .venv-dev

.PHONY: demo test system demo-data

demo: $(RUN)/ready
	$(RUN)/bin/s3clip-run --demo

# Four workers on two cores, for many tests wait; worksteal keeps a file in one process, which makes its
# fixtures once. The faults collect their folder alone: importing what other tests need took 12 s in each process.
test: $(DEV)/ready
	$(DEV)/bin/ruff check
	$(DEV)/bin/ruff format --check
	$(DEV)/bin/mypy
	OMP_NUM_THREADS=1 $(DEV)/bin/python -m pytest -n 4 --dist worksteal -m "not faults and not faults_long"
	OMP_NUM_THREADS=1 $(DEV)/bin/python -m pytest -n 6 --dist worksteal -m faults tests/streams   # they mostly wait

# The tiny bundle and the two videos that the runtime ships: trains for minutes, and resumes.
demo-data: $(DEV)/ready
	$(DEV)/bin/python -m benchmarks.demo_data

$(RUN)/ready: pyproject.toml | system
	$(PYTHON) -m venv --clear $(RUN)
	$(RUN)/bin/python -m pip install --quiet ".[cpu]"
	touch $@

$(DEV)/ready: pyproject.toml | system
	$(PYTHON) -m venv --clear $(DEV)
	$(DEV)/bin/python -m pip install --quiet --no-compile --editable ".[dev]"
	-$(DEV)/bin/python -m compileall -qq -j 0 $(DEV)/lib   # pip compiles on one core; some files are for other Pythons
	touch $@

# opencv-python's wheel needs three shared libraries, and Debian packs Python's venv apart.
system:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "s3clip needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@missing=""; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	for pair in libGL.so.1=libgl1 libglib-2.0.so.0=libglib2.0-0 libxcb.so.1=libxcb1; do \
	  /sbin/ldconfig -p | grep -q "$${pair%%=*}" || missing="$$missing $${pair##*=}"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then SUDO=; elif sudo -n true 2>/dev/null; then SUDO=sudo; \
	else echo "run first: sudo apt-get install$$missing"; exit 1; fi; \
	$$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq --no-install-recommends $$missing
