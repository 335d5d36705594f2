# `make` is test + lint; each alone as well. Needs `pip install -e '.[dev]'`, docs also '.[docs]'.
.PHONY: check test lint format docs
check: lint test

test:
	python -m pytest
	python -m pytest --run-slow tests/test_native.py -k plain

lint:
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(shell git ls-files '*.cc' '*.h')

format:
	ruff check --fix .
	ruff format .
	clang-format -i $(shell git ls-files '*.cc' '*.h')

docs:
	mkdocs build --strict
