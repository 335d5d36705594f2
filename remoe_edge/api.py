"""The engine as a program imports it: files of features by name, beside the engine's own settings.

The engine itself (engine/) knows no feature; this is the one place above both that puts them together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from remoe_edge.engine import engine as core
from remoe_edge.engine.extensions import PlannedBudget, StartObservers
from remoe_edge.engine.lossy import coarse_path
from remoe_edge.engine.observers import Observer
from remoe_edge.engine.settings import EngineSettings
from remoe_edge.errors import InputError
from remoe_edge.files.atomic import check_output
from remoe_edge.files.path_argument import path_argument

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from remoe_edge.deploy.leases import Leases
    from remoe_edge.engine.settings import SettingsKeywords
    from remoe_edge.predict.past_prompts import PastPromptsFile
    from remoe_edge.profile.kept_profile import ProfileFile
    from remoe_edge.quality.choose import Choice
    from remoe_edge.routing.live_trace import TraceFile

PathLike = str | bytes | os.PathLike[str]


class Engine(core.Engine):
    """Hold one loaded model; generate from it, one answer at a time.

    path: a GGUF, or the first of its split shards.
    settings: an `EngineSettings`; its fields may be given as keywords instead, or on top of it.
    profile: a file that keeps what is known of this model between runs: what `remoe-edge profile` has
        fitted, and which experts are hot. They are read before anything asks for them, while nothing
        else is being read; the file is written anew at `close`. It need not exist.
    past_prompts: a file of what past prompts activated (docs/prediction.md): a new prompt is expected to
        use what similar ones did, and the policy keeps that. Written anew at `close`; it need not exist.
    trace: a file to record into: which experts every step of every layer was routed to, and what the
        routers said of the others (docs/policies.md). It takes its name at `close`.
    telemetry: a file for records of what each token cost and what the machine did meanwhile
        (docs/telemetry.md), or observers of one's own. Where there is a power sensor, a file begins
        with three seconds of waiting: that is what idle takes.
    deployment: the record of functions that `remoe-edge deploy` has deployed (docs/deploy.md), which are
        leased as prompts want them.
    publish: let `remoe-edge top` show this engine; a folder instead of the user's own for it.
    quality_loss: the perplexity that may be lost for fewer reads, "1%" or 0.01: the setting that reads
        least at that price is taken from what `remoe-edge price` has measured (docs/quality.md).
    reproducible: have that setting choose the same whatever the cache holds.
    price_list: what `remoe-edge price` has written, where it is not beside the model.
    progress: called with a fraction while loading; returning False cancels.

    Threads, and what every method raises: see `remoe_edge.engine.engine.Engine`.
    """

    def __init__(
        self,
        path: PathLike,
        settings: EngineSettings | None = None,
        *,
        profile: PathLike | None = None,
        past_prompts: PathLike | None = None,
        trace: PathLike | None = None,
        telemetry: PathLike | Sequence[Observer] | None = None,
        deployment: PathLike | None = None,
        publish: bool | PathLike = False,
        quality_loss: str | float | None = None,
        reproducible: bool = False,
        price_list: PathLike | None = None,
        progress: Callable[[float], bool] | None = None,
        **keywords: Unpack[SettingsKeywords],
    ) -> None:
        settings = EngineSettings.of(settings, keywords)
        path = path_argument("the model's path", path)
        choice = None
        if quality_loss is not None or reproducible or price_list is not None:
            choice = priced(path, settings, quality_loss, reproducible, price_list)
            settings = settings.replace(**choice.setting.on)
        if settings.coarse is not None and not settings.coarse_below and quality_loss is None:
            raise InputError("coarse is used with coarse_below or quality_loss alone")
        _check_files(
            [path, settings.routers, coarse_path(path, settings), price_list],
            [profile, past_prompts, trace, telemetry],
        )
        super().__init__(
            path,
            settings,
            profile=None if profile is None else profile_file(profile),
            past_prompts=None if past_prompts is None else past_file(past_prompts, settings),
            trace=None if trace is None else trace_file(trace),
            planner=plan,
            functions=None if deployment is None else leases(deployment, path),
            observers=observing(telemetry, path),
            progress=progress,
        )
        if choice is not None and self.native is not None:
            self._keep_to(choice)
        if publish is not False:
            self._publish(publish)

    def _keep_to(self, choice: Choice) -> None:
        """Say what was chosen for a price; close where it would cost more than that with this cache."""
        from remoe_edge.quality.choose import check_cache

        assert self.native is not None
        try:
            check_cache(choice, self.path, self.native.n_slots, self.native.total_experts)
        except InputError:
            self.close()
            raise
        if choice.why:
            self._loaded.notes.append(choice.why)

    def _publish(self, where: bool | PathLike) -> None:
        from remoe_edge.telemetry.status import Status, default_folder

        folder = default_folder() if isinstance(where, bool) else path_argument("publish", where)
        try:
            self.add_observer(Status(folder))
        except OSError as error:
            self._loaded.notes.append(f"not shown by `remoe-edge top`: {error}")


def _check_files(inputs: Sequence[object], outputs: Sequence[object]) -> None:
    """Raise InputError where one file would be written over another that was given."""
    read = [path_argument("a file", each) for each in inputs if each is not None]
    written = [
        path_argument("a file", each)
        for each in outputs
        if isinstance(each, str | bytes | os.PathLike) and os.fsencode(each)
    ]
    for i, output in enumerate(written):
        check_output(output, [*read, *written[:i]], is_made=False)


# Each imports its feature only where it is used: numpy-heavy modules and sensors cost a start.


def profile_file(path: PathLike) -> ProfileFile:
    """Name the file that keeps a model's profile."""
    from remoe_edge.profile.kept_profile import ProfileFile

    return ProfileFile(path_argument("profile", path))


def past_file(path: PathLike, settings: EngineSettings) -> PastPromptsFile:
    """Name the file that keeps past prompts, those under the tuned routers of `settings`."""
    from remoe_edge.predict.past_prompts import PastPromptsFile

    routers = None if settings.routers is None else Path(settings.routers)
    return PastPromptsFile(path_argument("past_prompts", path), routers)


def trace_file(path: PathLike) -> TraceFile:
    """Name the file that a trace is recorded into."""
    from remoe_edge.routing.live_trace import TraceFile

    return TraceFile(path_argument("trace", path))


def leases(deployment: PathLike, model: Path) -> Leases:
    """Lease the functions of a deployment, which must be of this model."""
    from remoe_edge.deploy.leases import Leases
    from remoe_edge.deploy.ray_process import RayHolder
    from remoe_edge.deploy.record import load_for

    deployed = load_for(path_argument("deployment", deployment), model)
    return Leases(deployed, RayHolder(deployed))


def priced(
    path: Path,
    settings: EngineSettings,
    loss: str | float | None,
    reproducible: bool,
    price_list: PathLike | None,
) -> Choice:
    """Choose the means that a price pays for. Raises InputError where they are set, or have no price."""
    from remoe_edge.engine.lossy import means_of
    from remoe_edge.quality.choose import Choice, choose_for, parse_loss
    from remoe_edge.quality.setting import Setting

    if not isinstance(reproducible, bool):
        raise InputError(f"reproducible is True or False, not {reproducible!r}")
    means = means_of(settings)
    if loss is None:
        if price_list is not None:
            raise InputError("price_list is used with quality_loss alone")
        setting = Setting(**means)
        if not setting.reproducible:
            raise InputError(f"{setting} depends on what the cache holds: it is not reproducible")
        return Choice(setting, "", 0.0)
    if means:
        raise InputError(f"quality_loss chooses the means: it goes without {Setting(**means)}")
    share = parse_loss(loss)
    if not path.is_file():
        return Choice(Setting(), "", 0.0)  # the engine says so
    routers = None if settings.routers is None else Path(settings.routers)
    file = None if price_list is None else path_argument("price_list", price_list)
    coarse = None if settings.coarse is None else Path(settings.coarse)
    return choose_for(path, routers, share, reproducible=reproducible, path=file, coarse=coarse)


def plan(path: Path, settings: EngineSettings) -> PlannedBudget:
    """Find the budget for a time per token."""
    from remoe_edge.plan.choose import choose_cache

    return choose_cache(path, settings)


def observing(telemetry: PathLike | Sequence[Observer] | None, model: Path) -> StartObservers:
    """Make the function that starts an engine's observers. Raises InputError for what is none of them."""
    file: Path | None = None
    observers: Sequence[Observer] = ()
    if telemetry is None:
        pass
    elif isinstance(telemetry, str | bytes | os.PathLike):
        file = path_argument("telemetry", telemetry)
    elif isinstance(telemetry, Sequence):
        observers = cast("Sequence[Observer]", telemetry)
    else:
        raise InputError(f"telemetry is a path or a list of observers, not {telemetry!r}")

    def start(note: Callable[[str], None]) -> Sequence[Observer]:
        if file is not None:
            from remoe_edge.telemetry.recording import Recording

            return (Recording.start(file, model=model, note=note),)
        return observers

    return start
