# make demo   set up .venv and animate a photo with the shipped model
# make test   set up .venv, then lint and run all tests (PYTEST_FLAGS="-k name" for some of them)
# make lint   ruff only
# make clean  remove .venv, the demo's clips and every cache
# Another Python than python3: make test PYTHON=/path/to/python

PYTHON ?= python3
PHOTO ?= $(firstword $(sort $(wildcard $(addprefix livephoto_core/demo/photos/*.,jpg png webp))))
TEXT ?= camera pans left
INTENSITY ?= 5
PYTEST_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
ANIMATE = $(BIN)/livephoto animate "$(PHOTO)" "$(TEXT)" --intensity $(INTENSITY)

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	@mkdir -p out
	$(ANIMATE) -o out/demo.mp4
	$(ANIMATE) -o out/demo.png
	@echo "clip:          $(CURDIR)/out/demo.mp4"
	@echo "contact sheet: $(CURDIR)/out/demo.png"

test: lint
	$(BIN)/pytest $(PYTEST_FLAGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache out/demo.mp4 out/demo.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "error: $(PYTHON) not found; install Python 3.10 or newer, or name one: make PYTHON=/path/to/python" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "error: $(PYTHON) is $$("$(PYTHON)" -V 2>&1); Python 3.10 or newer is needed: make PYTHON=/path/to/python" >&2; exit 2; }
	@"$(PYTHON)" -m venv $(VENV) || { \
		echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing into $(VENV) (minutes on the first run) ..."
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing into $(VENV) with what the tests need (minutes on the first run) ..."
	@$(INSTALL) -e ".[test]"
	@touch $(VENV)/.installed $@
