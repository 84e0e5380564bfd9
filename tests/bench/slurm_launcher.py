"""Part d of `python -m tests.bench.slurm`: many short trials on warm workers, against hydra-submitit-launcher.

Ours is `sweep run` with warm workers as jobs; the other arm is one `--multirun` over the very same configurations: a
job array with as many jobs at once as we have workers, each training through torchtune's own recipe.

Invariants: the trials are drawn once, by the code that `sweep run` draws them with, and the warm arm fails if it
trained others; both arms have the same rows, steps, threads and processors, save each adapter, validate nothing and
checkpoint nothing in between. Each arm's wall-clock runs from its command's start to its end. Before, both
environments have read the data untimed, so that neither pays for cold files. The launcher is not imported here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.arms import NAME, Job, Prepared, prepare, warm
from tests.bench.clocks import ArmFailed, FirstWrites, run_to_end
from tests.bench.dispatch import BATCH_SIZE, OVERRIDES
from tests.bench.results import Measured, Trained, p90, sameness
from tests.bench.slurm_lab import Calls, Lab
from tests.helpers.tune_log import read_tune_log
from trainer.room import read_json

AIM = 5.0
SAME = 1e-4  # largest relative difference of a trial's last loss between the arms
HOW_TO_MAKE_ONE = (
    "the Python of an environment made by `python3 -m venv ENV`, `ENV/bin/pip install 'torch>=2.6,<2.14'`, then "
    "`ENV/bin/pip install hydra-core hydra-submitit-launcher torchtune==0.6.1 torchao==0.15.0`"
)
# What a job of the launcher does, from one moment to the next.
PHASES = {
    "process starts → our function is called (submitit, Hydra)": ("process", "called"),
    "→ torch and torchtune imported": ("called", "imported"),
    "→ recipe set up (base, data)": ("imported", "set_up"),
    "→ trained and saved": ("set_up", "trained"),
}


@dataclass(frozen=True, slots=True)
class Launched:
    """The launcher's arm, and the times of each of its jobs."""

    measured: Measured
    jobs: tuple[Mapping[str, float], ...]


def launcher_section(lab: Lab, args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    rows = args.micro_batches * BATCH_SIZE
    job = Job(
        overrides=(*OVERRIDES, f"recipe.overrides.dataset.split='train[:{rows}]'", "queue=slurm_cpu"),
        trials=args.trials,
        workers=args.workers,
        milestones=4,
        scratch=lab.scratch,
    )
    prepared = prepare(job)
    warm_up(prepared, lab.scratch / "warm-up", args.launcher_python)
    ours = warm(prepared, lab.scratch / "warm")
    print(f"d, sweep run: {ours.seconds:.1f} s for {job.trials} trials on {job.workers} warm workers", flush=True)
    theirs = launch(prepared, lab.scratch / "launcher", args.launcher_python)
    print(f"d, hydra-submitit-launcher: {theirs.measured.seconds:.1f} s", flush=True)
    used = {"warm": lab.processor_seconds(f"{NAME}-"), "launcher": lab.processor_seconds(_app().stem)}
    return _text(job, ours, theirs, lab.calls, used), _numbers(ours, theirs, lab.calls, used)


def warm_up(prepared: Prepared, scratch: Path, python: str) -> None:
    """Train the first trial in the launcher's environment, without the launcher and untimed."""
    task = _write_task(prepared, scratch)
    here = [f"hydra.run.dir={scratch / 'run'}", f"+task={task}", "+number=0"]
    run_to_end([python, str(_app()), *here], prepared.job.env(), scratch / "output.log")
    shutil.rmtree(scratch)


def launch(prepared: Prepared, scratch: Path, python: str) -> Launched:
    """All trials as one job array.

    Raises:
        ArmFailed: it failed, or left a trial out.
    """
    job, task = prepared.job, _write_task(prepared, scratch)
    words = [
        "--multirun",
        "hydra/launcher=submitit_slurm",
        f"hydra.launcher.array_parallelism={job.workers}",
        "hydra.launcher.cpus_per_task=1",
        f"hydra.sweep.dir={scratch / 'multirun'}",
        f"+task={task}",
        f"+number=range(0,{job.trials})",
    ]
    logs = scratch / "logs"
    with FirstWrites(logs, lambda path: path.suffix == ".txt") as first:
        ended = run_to_end([python, str(_app()), *words], job.env(), scratch / "output.log")
    firsts = {int(path.parent.name): at for path, at in first.times.items()}
    jobs = [read_json(scratch / f"{number}.json") for number in range(job.trials)]
    if lost := [number for number, times in enumerate(jobs) if times is None]:
        raise ArmFailed(f"hydra-submitit-launcher did not train {len(lost)} trials, the first of them {lost[0]}")
    trained = []
    for number, times in enumerate(jobs):
        steps = read_tune_log(logs / str(number))
        last = steps[max(steps)]["loss"]
        trained.append(Trained(number, str(number), firsts[number], times["trained"], len(steps), last))
    return Launched(Measured("launcher", ended.began, ended.seconds, tuple(trained), ended.cpu), tuple(jobs))


def _write_task(prepared: Prepared, scratch: Path) -> Path:
    (scratch / "logs").mkdir(parents=True)
    task = scratch / "task.json"
    task.write_text(json.dumps({"configs": prepared.configs, "out": str(scratch)}))
    return task


def _app() -> Path:
    return Path(__file__).with_name("slurm_launcher_app.py")


def _text(job: Job, ours: Measured, theirs: Launched, calls: Calls, used: Mapping[str, float]) -> str:
    other, ratio = theirs.measured, theirs.measured.seconds / ours.seconds
    lines = [
        f"### d. {job.trials} short trials, {job.workers} at once: hydra-submitit-launcher takes {ratio:.2f} times our "
        f"wall-clock; aim >= {AIM:g}: {'reached' if ratio >= AIM else 'NOT reached'}\n",
        "| arm | wall-clock s | first step after s | then s | a trial from its first step on, median ms | "
        "jobs' processor time s | controller CPU s | scheduler calls |",
        "|---|---|---|---|---|---|---|---|",
        _line("sweep, warm workers", ours, calls, used),
        _line("hydra-submitit-launcher, a job a trial", other, calls, used),
        f"\nFrom the first step on: {other.running / ours.running:.2f} times; in processor time of the jobs "
        f"{used['launcher'] / used['warm']:.2f} times. Ours: freed worker → next trial's first "
        f"step, median / p90 {_ms(ours.gaps())} ms; each worker's own first step, median / last "
        f"{statistics.median(_starts(ours)):.1f} / {_starts(ours)[-1]:.1f} s after the command. The launcher's jobs:\n",
        "| span | median s | p90 s |",
        "|---|---|---|",
        *(f"| {name} | {statistics.median(spans):.2f} | {p90(spans):.2f} |" for name, spans in _phases(theirs).items()),
        f"\n{sameness({'warm': ours, 'launcher': other})}"
        + ("" if same(ours, other) else f"; NOT the same work: more than {SAME:g}, or other lengths"),
    ]
    return "\n".join(lines)


def _numbers(ours: Measured, theirs: Launched, calls: Calls, used: Mapping[str, float]) -> dict[str, Any]:
    return {
        "arms": [
            {**arm.to_json(), "scheduler_calls": _calls(arm, calls), "jobs_processor_seconds": used[arm.arm]}
            for arm in (ours, theirs.measured)
        ],
        "ratio": theirs.measured.seconds / ours.seconds,
        "ratio_from_first_step": theirs.measured.running / ours.running,
        "ratio_of_processor_time": used["launcher"] / used["warm"],
        "aim": AIM,
        "same_work": same(ours, theirs.measured),
        "worker_first_steps_seconds": _starts(ours),
        "launcher_phases_median_seconds": {name: statistics.median(it) for name, it in _phases(theirs).items()},
    }


def same(ours: Measured, other: Measured) -> bool:
    """Whether both arms trained the same trials for as many steps to the same loss."""
    known = {trial.number: trial for trial in ours.trials}
    return known.keys() == {trial.number for trial in other.trials} and all(
        trial.steps == known[trial.number].steps
        and abs(trial.loss - known[trial.number].loss) <= SAME * abs(known[trial.number].loss)
        for trial in other.trials
    )


def _line(title: str, run: Measured, calls: Calls, used: Mapping[str, float]) -> str:
    made = ", ".join(f"{count} {name}" for name, count in _calls(run, calls).items())
    cpu = "–" if run.cpu is None else f"{run.cpu:.1f}"
    return (
        f"| {title} | {run.seconds:.1f} | {run.start_up:.1f} | {run.running:.1f} | {run.lasting * 1e3:.0f} | "
        f"{used[run.arm]:.0f} | {cpu} | {made or 'none'} |"
    )


def _calls(run: Measured, calls: Calls) -> dict[str, int]:
    return dict(sorted(Counter(name for _, name in calls.between(run.began, run.began + run.seconds)).items()))


def _starts(run: Measured) -> list[float]:
    """Seconds from the command to each worker's first step."""
    slots = {trial.slot for trial in run.trials}
    return sorted(min(t.first_step for t in run.trials if t.slot == slot) - run.began for slot in slots)


def _phases(theirs: Launched) -> dict[str, list[float]]:
    phases = {name: [job[end] - job[begin] for job in theirs.jobs] for name, (begin, end) in PHASES.items()}
    return {
        **phases,
        "process start-up in all, before training": [job["set_up"] - job["process"] for job in theirs.jobs],
        "processor time of the start-up": [job["cpu_before_training"] for job in theirs.jobs],
        "processor time of training and saving": [job["cpu"] - job["cpu_before_training"] for job in theirs.jobs],
    }


def _ms(values: list[float]) -> str:
    return f"{statistics.median(values) * 1e3:.0f} / {p90(values) * 1e3:.0f}" if values else "–"
