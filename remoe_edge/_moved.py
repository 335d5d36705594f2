"""Keep the module names of version 0.1 importable for one version.

`import remoe_edge.trace` gives `remoe_edge.routing.trace` itself, not a copy, with a DeprecationWarning.
This file goes with version 0.3.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

# Importing importlib.abc would be an eighth of the time that `remoe-edge --version` takes.
if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object

NEW_NAMES = {
    "budget": "engine.budget",
    "stats": "engine.stats",
    "watch": "engine.observers",
    "interrupt": "engine.interrupt",
    "llama": "engine.llama",
    "llama_log": "engine.llama_log",
    "kv_cache": "engine.kv_cache",
    "chat_template": "engine.chat_template",
    "memory": "machine.memory",
    "kernel_files": "machine.kernel_files",
    "machine.amx": "amx",
    "storage": "machine.storage",
    "trace": "routing.trace",
    "recording": "routing.record_prompts",
    "simulate": "routing.simulate",
    "warm_start": "profile.kept_profile",
    "profile.warm_start": "profile.kept_profile",
    "bench.watch": "bench.disturbances",
    "models": "files.models",
    "prompts": "files.prompts",
    "info": "inspect.info",
    "doctor": "inspect.doctor",
    "convert.overlay": "files.overlay",
    "bench.machine": "bench.conditions",
    "bench.disk": "machine.disk",
    "telemetry.machine": "machine.description",
    "convert.fingerprint": "files.fingerprint",
    "convert.atomic": "files.atomic",
    "convert.safetensors_file": "files.safetensors_file",
    "convert.tensor_values": "files.tensor_values",
    "plan.fit": "placement.fit",
    "plan.allocate": "placement.allocate",
}


class _Moved(Loader):
    """Answer an import of an old name with the module that has its contents now."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Claim the old names, and no others."""
        package, _, name = fullname.partition(".")
        if package != "remoe_edge" or name not in NEW_NAMES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leave it to the import system."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Put the new module in the place of the empty one that the import system made."""
        new = "remoe_edge." + NEW_NAMES[module.__name__.partition(".")[2]]
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)


def install() -> None:
    """Make the old names importable; called once, by the package."""
    # First: an installed package has a folder models/ of data, which else would pass for a module.
    sys.meta_path.insert(0, _Moved())
