"""One recipe trained with several seeds: one run after another, and the mean of their metrics.

Each run is a folder of its own, `RUN/seed-0`, as `train --seed 0` leaves it. `RUN/seeds.json` holds
the recipe, the seeds and the metrics so far, so that a series that was killed can be resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rescale_cli.errors import BadInput, Interrupted, OutputExists, UsageError
from rescale_cli.evaluating.ranks import is_main
from rescale_cli.files.reading import read_whole
from rescale_cli.files.staging import write_text
from rescale_cli.json_text import clip, parse_json
from rescale_cli.measures.significance import mean_and_interval
from rescale_cli.signals import last_step, undisturbed
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.recipe_toml import options_from
from rescale_cli.training.run import Watch
from rescale_cli.training.run_folder import SEEDS, RunFolder, RunState, resumed
from rescale_cli.training.train import Trained, read_resumable, train

#: Metrics of a run: shares, 0 to 1. `many`, `medium` and `few` are mean recalls, as in `evaluate`.
Metrics = Mapping[str, float | None]
MOST = 1 << 24


@dataclass(frozen=True, slots=True)
class SeedRun:
    """The run of one seed."""

    seed: int
    folder: RunFolder
    metrics: Metrics | None = None
    """The metrics at its end, see `metrics_of`; None if the run is not complete yet."""

    def as_json(self) -> dict[str, Any]:
        """An entry of `result.seeds`."""
        rescaled = self.folder.rescaled
        return {
            "seed": self.seed,
            "run": str(self.folder.path),
            "model": str(self.folder.model) if self.metrics is not None else None,
            "rescaled": str(rescaled) if rescaled.is_file() else None,
            "metrics": None if self.metrics is None else dict(self.metrics),
        }


@dataclass(frozen=True, slots=True)
class SeedRuns:
    """A series of runs that differ only in their seed."""

    path: Path
    """RUN, the folder that contains their folders."""
    recipe: Recipe
    """The recipe of all runs, except for the seed."""
    runs: tuple[SeedRun, ...]
    """In the order in which the seeds were given."""

    @classmethod
    def of(cls, path: Path, recipe: Recipe, seeds: Sequence[int]) -> SeedRuns:
        """A new series for these seeds."""
        runs = tuple(SeedRun(seed, RunFolder(path / f"seed-{seed}")) for seed in seeds)
        return cls(path, recipe, runs)

    def changed(self, changes: dict[str, Any], seeds: Sequence[int] = ()) -> SeedRuns:
        """The series with changed options, as far as these may change, and with more seeds.

        Raises:
            BadInput: an option is changed that must stay the same.
        """
        recipe = resumed(RunState(self.recipe, 0, 0, {}), changes)
        keep = all(getattr(recipe, name) == getattr(self.recipe, name) for name in _DECIDES)
        old = tuple(run if keep else replace(run, metrics=None) for run in self.runs)
        known = {run.seed for run in old}
        more = SeedRuns.of(self.path, recipe, [seed for seed in seeds if seed not in known])
        return replace(more, runs=(*old, *more.runs))

    def with_metrics(self, number: int, metrics: Metrics) -> SeedRuns:
        """The series after run `number` is complete."""
        done = replace(self.runs[number], metrics=metrics)
        return replace(self, runs=(*self.runs[:number], done, *self.runs[number + 1 :]))

    def summary(self) -> dict[str, Any]:
        """`mean` and `interval` of each metric over the finished runs, for JSON.

        The interval is Student's, 95 %, see `mean_and_interval`, cut off at 0 and 1 as shares are;
        null for one run, and where a metric is n/a in one of them.
        """
        done = [run.metrics for run in self.runs if run.metrics is not None]
        found: dict[str, Any] = {"mean": {}, "interval": {}}
        for name in done[0] if done else ():
            values = [value for one in done if (value := one.get(name)) is not None]
            mean, interval = mean_and_interval(values) if len(values) == len(done) else (None, None)
            found["mean"][name] = mean
            found["interval"][name] = interval and [max(interval[0], 0.0), min(interval[1], 1.0)]
        return found

    def write(self) -> None:
        """Write seeds.json atomically; paths in it are relative to RUN."""
        runs = [{"seed": run.seed, "run": run.folder.path.name, "metrics": run.metrics}
                for run in self.runs]  # fmt: skip
        said = {"version": 1, "recipe": asdict(self.recipe), "seeds": runs, **self.summary()}
        write_text(self.path / SEEDS, json.dumps(said, indent=2) + "\n", force=True)


def read_seed_runs(path: Path) -> SeedRuns | None:
    """The series in a folder; None if there is no seeds.json.

    Raises:
        BadInput: seeds.json is damaged.
    """
    file = path / SEEDS
    if not file.is_file():
        return None
    said = parse_json(read_whole(file, MOST), SEEDS)
    match said:
        case {"version": 1, "recipe": dict(recipe), "seeds": [*entries]} if all(
            isinstance(e, dict) and type(e.get("seed")) is int and _metrics(e) for e in entries
        ):
            base = Recipe(**options_from(recipe, SEEDS))
            found = SeedRuns.of(path, base, [entry["seed"] for entry in entries])
            pairs = zip(found.runs, entries, strict=True)
            return replace(found, runs=tuple(replace(r, metrics=e["metrics"]) for r, e in pairs))
    raise BadInput(
        f"{file} is not a list of runs that this version can resume",
        saw=clip(repr(said), 200),
        fix="resume one run: --resume RUN/seed-0, or train again in another folder: -o RUN",
    )


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds that `--seeds 0,1,2` names.

    Raises:
        UsageError: a seed is not a whole number from 0, or is given twice.

    Example:
        >>> parse_seeds("0,1, 2")
        (0, 1, 2)
    """
    words = [word.strip() for word in text.split(",")]
    good = all(word.isascii() and word.isdecimal() and len(word) < 19 for word in words)
    seeds = tuple(map(int, words)) if good else ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(
            "--seeds must be different whole numbers of at least 0, separated by commas",
            saw=clip(repr(text), 80),
            fix="--seeds 0,1,2",
        )
    return seeds


def metrics_of(line: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of a run, from the errors in the last line of its metrics.jsonl."""

    def right(error: float | None) -> float | None:
        return None if error is None else 1 - error

    found: dict[str, float | None] = {"training_error": line["error"]}
    if "val_error" in line:
        found |= {"error": line["val_error"], "accuracy": right(line["val_error"])}
        found["balanced_accuracy"] = right(line["val_balanced_error"])
        found |= {name: line[name] for name in ("many", "medium", "few")}
    return found


def train_seeds(
    series: SeedRuns,
    *,
    fresh: bool,
    force: bool = False,
    download: bool = False,
    watching: Callable[[SeedRun, int], AbstractContextManager[Watch]] = lambda run, number: (
        nullcontext(Watch())
    ),
    done: Callable[[Trained], None] = lambda trained: None,
) -> SeedRuns | None:
    """Train the runs that are not complete yet, one after another.

    Args:
        series: its folder is prepared; see `RunFolder.prepare`.
        fresh: whether the series is new, not resumed.
        force: whether the files of earlier runs may be replaced.
        download: fetch data that are missing.
        watching: gives the `Watch` of a run; called with the run and its position, from 0.
        done: called with each run that is complete.

    Returns:
        the series with all metrics; None on every rank of torchrun except 0.

    Raises:
        Interrupted, RescaleError: see `train`. The runs so far are kept, and can be resumed.
    """
    if fresh:
        _refuse_own_weights(series)
    elif is_main():
        series.write()
    claim = _Claim(series, claimed=not fresh)
    for number, run in enumerate(series.runs):
        if run.metrics is not None:
            continue
        held = run.folder.held(create=True) if is_main() else nullcontext()
        with claim.stopping(run), held:
            recipe, state = _start_of(series, run, fresh=fresh, force=force)
            with watching(run, number) as watch:
                watch = replace(watch, begun=claim)
                trained = train(
                    recipe, run.folder, state, download=download, watch=watch, more=True
                )
        if trained is not None:
            done(trained)
            if trained.lines:
                series = series.with_metrics(number, metrics_of(trained.lines[-1]))
            with last_step() if run.seed == series.runs[-1].seed else undisturbed():
                series.write()
    return series if is_main() else None


def _start_of(
    series: SeedRuns, run: SeedRun, *, fresh: bool, force: bool
) -> tuple[Recipe, RunState | None]:
    """The recipe of a run and the state to resume it from; prepares the folder of a new run."""
    recipe = replace(series.recipe, seed=run.seed)
    if fresh or not run.folder.last.is_file():
        if is_main():
            run.folder.prepare(force=force)
        return recipe, None
    state = read_resumable(run.folder)
    return resumed(state, asdict(recipe)), state


class _Claim:
    """Makes RUN the folder of a series once the first step of its first run has succeeded."""

    def __init__(self, series: SeedRuns, *, claimed: bool) -> None:
        self._series, self._claimed = series, claimed

    def __call__(self) -> None:
        """Remove the files of earlier runs, and write seeds.json."""
        if not self._claimed and is_main():
            series = self._series
            for folder in (RunFolder(series.path), *(run.folder for run in series.runs)):
                folder.clear()
            series.write()
        self._claimed = True

    @contextmanager
    def stopping(self, run: SeedRun) -> Iterator[None]:
        """After a signal, say how to resume; remove the folder of a series that could not begin."""
        try:
            yield
        except (Interrupted, KeyboardInterrupt) as error:
            if not self._claimed:
                raise
            what = error.what if isinstance(error, Interrupted) else "interrupted"
            fix = f"resume all seeds: rescale-cli train --resume {self._series.path}"
            raise Interrupted(f"seed {run.seed}: {what}", fix=fix) from None
        finally:
            if not self._claimed and is_main():
                with suppress(OSError):
                    run.folder.path.rmdir()  # unless something is in it


def _refuse_own_weights(series: SeedRuns) -> None:
    source = Path(series.recipe.weights).resolve() if series.recipe.weights else None
    if source is not None and series.path.resolve() in (source, *source.parents):
        raise OutputExists(
            f"{series.path} contains the weights to start from, which would be replaced",
            saw=f"--weights {series.recipe.weights}",
            fix="name another folder: -o RUN",
        )


def _metrics(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of seeds.json has valid metrics, or null for none yet."""
    found = entry.get("metrics", "")
    numbers = found.values() if isinstance(found, dict) else ()
    whole = isinstance(found, dict) or found is None
    return whole and all(isinstance(value, float | int | None) for value in numbers)


#: Of the options that may change when a run is resumed, those that change its result.
_DECIDES = ("epochs", "milestones", "gamma")
