# Two commands matter: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
DEMO ?= runs/demo
DATA ?=
SOURCE = $(or $(DATA),$(DEMO)/phantoms)
BIN := .venv/bin
READY := .venv/.ready
# pip compiles a minute long in one process; this uses all cores. A few files are of other Pythons.
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib || true

.PHONY: demo test lint types docs stats bench clean

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing medar into .venv (about two minutes the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@$(COMPILE)
	@touch $(READY)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# The site of the documentation, in build/site: open index.html, or serve the folder.
# medar itself is installed by now, so that pip adds only what the extra lists.
docs: .venv/.docs
	$(BIN)/python docs/cli_reference.py > docs/reference/cli.md
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

.venv/.docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt 'medar[docs]'
	@touch .venv/.docs

stats:
	$(PYTHON) docs/code_statistics.py

bench: $(READY)
	$(BIN)/python benchmarks/prepare.py "$(SOURCE)"

# The whole way, on phantoms or a data set of your own: make demo DATA=path
demo: $(READY)
ifeq ($(DATA),)
	@test -f $(DEMO)/phantoms/dataset.json || $(BIN)/medar data phantoms $(DEMO)/phantoms --n 64
endif
	$(BIN)/medar data check "$(SOURCE)" --deep || test $$? -eq 1
	$(BIN)/medar run synthesis configs/demo.yaml --data "$(SOURCE)" --out $(DEMO)/run
	@$(BIN)/medar data show --data $(DEMO)/run/prepared --out $(DEMO)/prepared.png
	@$(BIN)/medar data show --data $(DEMO)/run/prepared --inverse --out $(DEMO)/round-trip.png
	@echo "read $(DEMO)/run/report.html; the synthetic volumes are $(DEMO)/run/samples/sample_*.nii.gz;"
	@echo "$(DEMO)/prepared.png is what went in, $(DEMO)/round-trip.png what came back from there;"
	@echo "the runs: $(BIN)/mlflow ui --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///$(DEMO)/mlflow.db}"

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(DEMO)
