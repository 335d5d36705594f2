"""What breaks a rule today, area by area: to be emptied, never to grow.

tests/test_layers.py and tests/test_tidy.py fail for whatever breaks a rule and is not here, and
for whatever is here and no longer breaks one. Lines are as the check says them, without the line
number.
"""

from __future__ import annotations

# --- layers, Python: to be emptied
UPWARD_IMPORTS: frozenset[str] = frozenset()
OUTSIDE_IMPORTS: frozenset[str] = frozenset()
# Modules and rooms that import each other; any circle of others fails.
CIRCULAR_MODULES: frozenset[str] = frozenset()
CIRCULAR_ROOMS: frozenset[str] = frozenset()
ENVIRONMENT: frozenset[str] = frozenset()
# Packages that come with others and are not declared: to be declared.
UNDECLARED_PACKAGES: frozenset[str] = frozenset()

# --- layers, C++: the bindings hand llama.cpp its parameters; to be emptied
INCLUDES: frozenset[str] = frozenset()

# --- headers whose opening contract is not there yet: to be emptied
HEADERS: frozenset[str] = frozenset()
# ggml's own variable: products must be computed the way ggml would on this run.
GETENV: frozenset[str] = frozenset(
    {
        "csrc/device/compute/row_products.cc: reads the environment",
    }
)

# --- files longer than their folder allows, with the lines they may have: to be emptied
LONG_FILES: dict[str, float] = {}
# --- pages with lines of more than 120 characters, and how many: to be emptied
LONG_LINES: dict[str, float] = {}
# --- pages whose sentences have more than 20 words on the average: to be emptied
LONG_SENTENCES: dict[str, float] = {}

# --- words that docs/glossary.md bans and an area still has, by area: to be emptied
BANNED_NAMES: dict[str, frozenset[str]] = {}
BANNED_PHRASES: dict[str, frozenset[str]] = {}
