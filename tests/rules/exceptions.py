"""What breaks a rule today, area by area: to be emptied, never to grow.

tests/test_layers.py and tests/test_tidy.py fail for whatever breaks a rule and is not here, and
for whatever is here and no longer breaks one. Lines are as the check says them, without the line
number.
"""

from __future__ import annotations

# --- layers, Python: to be emptied once settings and features are handed to the engine from above
UPWARD_IMPORTS: frozenset[str] = frozenset(
    {
        "remoe_edge/engine/engine.py: remoe_edge.convert.overlay is above engine",
        "remoe_edge/engine/engine.py: remoe_edge.plan.choose is above engine",
        "remoe_edge/engine/engine.py: remoe_edge.predict.past_prompts is above engine",
        "remoe_edge/engine/engine.py: remoe_edge.profile.warm_start is above engine",
        "remoe_edge/engine/engine.py: remoe_edge.telemetry.recording is above engine",
        "remoe_edge/engine/engine.py: remoe_edge.telemetry.status is above engine",
        "remoe_edge/files/fingerprint.py: remoe_edge.convert.names is above files",
    }
)
# Loading torch, to be moved to tune/.
OUTSIDE_IMPORTS: frozenset[str] = frozenset(
    {
        "remoe_edge/cli/eval.py: torch belongs to tune",
        "remoe_edge/cli/tune.py: torch belongs to tune",
    }
)
# Modules and rooms that import each other; any circle of others fails.
CIRCULAR_MODULES: frozenset[str] = frozenset(
    {
        "remoe_edge.engine.engine",
        "remoe_edge.plan.choose",
        "remoe_edge.plan.compute",
        "remoe_edge.plan.latency",
        "remoe_edge.plan.layers",
        "remoe_edge.plan.measure",
        "remoe_edge.plan.planner",
    }
)
CIRCULAR_ROOMS: frozenset[str] = frozenset(
    {
        "convert",
        "engine",
        "files",
        "inspect",
        "plan",
        "predict",
        "profile",
        "routing",
        "telemetry",
    }
)
ENVIRONMENT: frozenset[str] = frozenset()
# Comes with llama-cpp-python; to be declared.
UNDECLARED_PACKAGES: frozenset[str] = frozenset({"jinja2"})

# --- layers, C++
INCLUDES: frozenset[str] = frozenset()
