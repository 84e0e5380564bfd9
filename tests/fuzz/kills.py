"""Runs random schedules of kills, and checks what must hold of a sweep afterwards.

    python -m tests.fuzz.kills --queue simulated|local|slurm [--schedules N] [--minutes M] [--seed S]

A schedule (see `kill_schedules`) has a configuration, kills of the processes that create the room, change its budget
and control it, and signals to its workers. Its last controller is left alone and must end the sweep. Then:

- each trial was told once how it ended, and the numbers are contiguous;
- no trial was trained by two processes at once, and no attempt twice;
- the study has every report, and a complete trial was told the value of its final report;
- the winner is the best trial by the reports, and the budget was kept;
- each trial that was the best when it ended was evaluated once, if the sweep evaluates;
- no process is left, and no log has a traceback.

A schedule that fails prints its seed, what it did, and the command line that repeats it; its files are kept.
Everything but torch is real: the controller is that of `sweep run`, in a process of its own, and workers are processes
of `tests.helpers.fakes`. `--queue slurm` starts the cluster of `tests.slurm.cluster`, as root.

Invariants: a schedule ends, since its lives are counted and the last one must come to its end by itself. The limit in
seconds is for a machine that is busy, and a schedule that reaches it fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from optuna.trial import FrozenTrial

from sweep.cli import foreground, line_log
from sweep.cli.foreground import drive
from sweep.cli.run_control import RunControl
from sweep.config.settings import Settings
from sweep.evaluation.jobs import evaluations_room
from sweep.model.effects import Finish
from sweep.model.states import Finished, TrialStatus
from sweep.processes import PreforkServer
from sweep.queues.local import LocalBackend
from sweep.queues.simulated.tables import load_table
from sweep.queues.slurm import SlurmBackend
from sweep.queues.slurm import dispatcher as slurm_dispatch
from sweep.queues.slurm.dispatcher import SlurmDispatcher
from sweep.queues.slurm.section import SlurmQueue
from sweep.report.reader import open_reader, read_evaluation
from sweep.search.storage import load_study, winners
from sweep.wiring import creation, session
from sweep.wiring.compose import Composed, compose_config, freeze
from sweep.wiring.rooms import change_settings, check_same_sweep, load_settings
from tests.fuzz.kill_schedules import QUEUES, Change, How, Life, Schedule, draw
from tests.helpers import sweep_checks
from tests.helpers.executions import check_executions, executions_dir
from tests.helpers.fakes import MILESTONES, SIGNALS
from tests.helpers.kill_points import die_before_act, fast_dispatcher, fast_slurm
from tests.helpers.tables import write_table
from tests.helpers.warm import start_server, warm_processes
from tests.slurm.cluster import Cluster, missing
from trainer.identity import process_id
from trainer.room import Room, held, read_text

NOT_SEARCHED = ("space.model.lora_rank", "space.gradient_accumulation_steps", "derive.model.lora_alpha")
HANG_SECONDS = {"simulated": 300.0, "local": 900.0, "slurm": 1800.0}
SUSPENDED_SECONDS = 0.2
# Exit codes of a controller's process; any other one is a failure of the program.
CODES = {Finished.DONE: 0, Finished.DETACHED: 10, Finished.STOPPED: 11}
# What the controllers' processes import while they run: once in the process that they are forked from.
IMPORTS = (
    "alembic.command",
    "optuna.pruners",
    "optuna.samplers",
    "optuna.storages._rdb.storage",
    "scipy.stats.qmc",
    "sqlalchemy.dialects.sqlite",
    "sweep.cli.run_control",
    "sweep.controller.loop",
    "sweep.evaluation.controller",
    "sweep.queues.simulated.dispatcher",
    "sweep.report.terminal",
    "sweep.search.build",
    "sweep.search.forecast_sampler",
    "sweep.search.strategy.freeze_thaw",
    "sweep.search.strategy.halving",
    "sweep.store.channel",
    "sweep.tracking.runs",
)
ROUNDS = 60  # controllers after a detachment or a stop, before the sweep counts as one that does not end


class ViolationError(AssertionError):
    """An invariant does not hold after a schedule."""


def run(schedule: Schedule, folder: Path, table: Path | None = None) -> None:
    """Run a schedule in an empty directory.

    Args:
        table: the recorded curves of a simulated queue.

    Raises:
        AssertionError: what does not hold.
    """
    os.environ["SWEEP_ROOMS"] = str(folder / "rooms")
    (folder / "rooms").mkdir()
    runner = Runner(schedule, folder, table)
    runner.create()
    for index, life in enumerate(schedule.lives):
        if schedule.change and schedule.change.after == index:
            runner.change(schedule.change)
        runner.control(life)
    if schedule.change and schedule.change.after == len(schedule.lives):
        runner.change(schedule.change)
    for _ in range(ROUNDS):
        if runner.control(None) is Finished.DONE:
            break
    else:
        raise ViolationError(f"the sweep has not ended after {ROUNDS} undisturbed controllers")
    runner.check()


class Runner:
    """Runs one schedule.

    Args:
        folder: an empty directory for its rooms, its database and the log of its controllers.
    """

    def __init__(self, schedule: Schedule, folder: Path, table: Path | None) -> None:
        self._schedule, self._folder = schedule, folder
        self._log = folder / "controllers.log"
        self._hang_seconds = HANG_SECONDS[schedule.queue]
        self._deadline = time.monotonic() + self._hang_seconds
        self.room = Room((folder / "rooms" / "s").resolve())
        words = ["objective=loss", f"objective.milestones={MILESTONES}", "objective.milestone_tokens=10"]
        words += ["wandb=disabled", "queue.poll_seconds=0.01", "queue.idle_seconds=60"]
        words += ["space.optimizer.lr=tag(log,interval(1e-5,1e-1))"]
        words += [
            "space.model.lora_rank=null",
            "space.gradient_accumulation_steps=null",
            "derive.model.lora_alpha=null",
        ]
        if table is not None:
            words = ["queue=simulated", f"queue.table={table}", "objective=val_loss", "wandb=disabled"]
        elif schedule.queue == "slurm":
            words += ["queue=slurm_cpu", "queue.query_seconds=0.4"]
        if schedule.sqlite:
            words.append(f"storage=sqlite:///{folder}/study.db")
        self._trial_tokens = 10 * MILESTONES if table is None else load_table(str(table)).trial_tokens
        if schedule.tokens is not None:
            words.append(f"search.tokens={schedule.tokens * self._trial_tokens}")
        self._composed: Composed = freeze(compose_config([*words, *schedule.words]), "s")

    # --- what a schedule does -----------------------------------------------------------------------------------------

    def create(self) -> None:
        """Create the room, with processes that are killed on the way; in the end the same command succeeds."""
        for at in self._schedule.creation:
            self._child(partial(self._create, at))
            self._check_whole()
        code = self._child(partial(self._create, 0))
        assert code == 0, f"the command that creates the sweep fails after a kill\n{self._tail()}"
        self._check_whole()
        assert self.room.sweep.exists()
        (self.room.root / SIGNALS).write_text(json.dumps(self._schedule.signals))
        if self._schedule.sqlite:
            sweep_checks.count_tells(self._folder / "study.db")

    def change(self, change: Change) -> None:
        """Change the budget, with a process that is killed on the way; then again."""
        before = load_settings(self.room)

        def act(killed: int) -> int:
            if killed:
                die_before_act(killed, self._folder)
            change_settings(self.room, [f"search.trials={change.trials}"])
            return 0

        if change.killed:
            self._child(partial(act, change.killed))
            found = load_settings(self.room)
            expected = replace(before, search=replace(before.search, trials=change.trials))
            assert found in (before, expected), "a killed change has left other settings than the old or the new ones"
        assert self._child(partial(act, 0)) == 0, f"the same change fails after a kill\n{self._tail()}"
        assert load_settings(self.room).search.trials == change.trials

    def control(self, life: Life | None) -> Finished | None:
        """One life of the controller; how it ended, None if it was killed.

        Args:
            life: what happens to it; None: nothing.
        """
        code = self._child(partial(self._control, life))
        if code == -signal.SIGKILL and life is not None and life.how in (How.EFFECT, How.ACT):
            return None
        ends = {code: how for how, code in CODES.items()}
        assert code in ends, f"a controller failed with exit code {code} ({life})\n{self._tail()}"
        return ends[code]

    # --- what its processes do ----------------------------------------------------------------------------------------

    def _create(self, killed: int) -> int:
        """As `sweep run`: the room of this configuration, which may be there already."""
        composed = self._composed
        if killed:
            die_before_act(killed, self._folder)
        if self.room.sweep.exists():
            check_same_sweep(self.room, composed.settings)
        else:
            creation.create_room(composed, self._trial_tokens)
        return 0

    def _control(self, life: Life | None) -> int:
        if life is not None and life.how is How.ACT:
            die_before_act(life.at, self._folder)
        elif life is not None:
            _signal_after_effects(life)
        finish: Finish = drive(self.room, RunControl(self.room), PreforkServer())
        if self._schedule.tokens is not None and "none is complete" in finish.reason:
            return CODES[Finished.DONE]  # the tokens were spent on trials that pause
        assert finish.how in CODES, f"{finish.how}: {finish.reason}"
        return CODES[finish.how]

    def _child(self, act: Callable[[], int]) -> int:
        """Run a function in a process of its own; returns its exit code, or minus the signal that ended it.

        A process that stops itself is continued.
        """
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with self._log.open("a") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
                code = act()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        while True:
            done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if not done:
                if time.monotonic() > self._deadline:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    raise ViolationError(f"the schedule hangs after {self._hang_seconds:g} s\n{self._tail()}")
                time.sleep(0.002)
            elif os.WIFSTOPPED(status):
                time.sleep(SUSPENDED_SECONDS)
                os.kill(pid, signal.SIGCONT)
            else:
                return os.waitstatus_to_exitcode(status)

    # --- what must hold -----------------------------------------------------------------------------------------------

    def _check_whole(self) -> None:
        """There is no sweep, or a complete one."""
        if not self.room.sweep.exists():
            return
        settings = load_settings(self.room)
        recipe = read_text(self.room.root / "recipe.yaml")
        assert recipe, "the sweep lacks its recipe"
        waiting = _frozen(self.room, settings)
        assert len(waiting) == len(settings.warm_start.enqueue), "the sweep lacks its warm start"

    def check(self) -> None:
        """Everything that must hold at the end."""
        schedule, room = self._schedule, self.room
        sweep_checks.wait_for_workers(room)
        sweep_checks.wait_for_workers(evaluations_room(room))
        state = open_reader(room).state()
        sweep_checks.check_trials(state, len(state.rows), cancelled=load_settings(room).search.target is not None)
        sweep_checks.check_told_once(room, range(len(state.rows)))
        sweep_checks.check_values(room, state, written=schedule.queue != "simulated")
        if schedule.tokens is None or state.count(TrialStatus.COMPLETE):  # the tokens may be spent on trials that pause
            sweep_checks.check_winner(state)
        sweep_checks.check_verdicts(room, state)
        if schedule.queue != "simulated":
            sweep_checks.check_all_milestones(state)
            check_executions(executions_dir(room.root))
        self._check_budget()
        if schedule.evaluated:
            self._check_evaluations()
        sweep_checks.check_logs(room, self._log)
        sweep_checks.check_no_process(self._folder)

    def _check_budget(self) -> None:
        schedule, settings = self._schedule, load_settings(self.room)
        state = open_reader(self.room).state()
        searched = [row for row in state.rows if row.final is None]
        finals = [row for row in state.rows if row.final is not None]
        limit, target = schedule.final_trials, settings.search.target
        assert len(searched) <= limit, f"{len(searched)} trials were searched, and {limit} are allowed"
        values = [row.value for row in searched if row.state is TrialStatus.COMPLETE and row.value is not None]
        if target is not None and min(values, default=math.inf) <= target:
            pass  # the search has ended sooner
        elif schedule.tokens is None:
            assert len(searched) == limit, f"{len(searched)} of {limit} trials were searched"
        if schedule.tokens is not None:
            at_once = schedule.workers * schedule.slots
            spent, allowed = sum(row.tokens for row in searched), (schedule.tokens + at_once) * self._trial_tokens
            assert spent <= allowed, f"{spent} tokens were spent; {allowed} are the most that can be"
        ranks = sorted(
            (row.value, row.number) for row in searched if row.state is TrialStatus.COMPLETE and row.value is not None
        )
        wanted = {(number, seed) for _, number in ranks[: schedule.finals] for seed in range(settings.search.seeds)}
        trained = [row.final for row in finals]
        assert len(set(trained)) == len(trained), f"a final was trained twice: {trained}"
        assert wanted <= set(trained), f"the finals {trained} were trained, and {wanted} are wanted"
        if schedule.change is None:  # with a larger budget, another trial may take the place of a finalist
            assert len(trained) == len(wanted), f"the finals {trained} were trained, and only {wanted} are wanted"
        assert all(row.state is TrialStatus.COMPLETE for row in finals), "a final is never pruned"

    def _check_evaluations(self) -> None:
        room, inner = self.room, evaluations_room(self.room)
        settings = load_settings(room)
        best = winners(_frozen(room, settings), settings.objectives[0])
        assert inner.trials() == sorted(best), "other trials were evaluated than those that were the best"
        values = {row.number: row.value for row in open_reader(room).state().rows}
        for number in best:
            evaluation = read_evaluation(room, number)
            assert dict(evaluation.scores) == {"loss": values[number]}, f"evaluation of trial {number}: {evaluation}"
        if best:
            check_executions(executions_dir(inner.root))

    def _tail(self) -> str:
        return (read_text(self._log) or "")[-6000:]


def _frozen(room: Room, settings: Settings) -> list[FrozenTrial]:
    return load_study(session.reading_storage(room, settings), settings.name).get_trials(deepcopy=False)


def _signal_after_effects(life: Life) -> None:
    """Send this process its signal after a number of effects of its controllers."""
    left = [life.at]
    signals = {
        How.EFFECT: [signal.SIGKILL],
        How.TERMINATED: [signal.SIGTERM],
        How.INTERRUPTED: [signal.SIGINT, signal.SIGINT],
        How.SUSPENDED: [signal.SIGSTOP],
    }[life.how]
    for listener in (line_log.LineLog, line_log.EvaluationLog):
        done = listener.done

        def counted(self: object, effect: object, done: Callable[..., None] = done) -> None:
            done(self, effect)
            left[0] -= 1
            if left[0] == 0:
                for number in signals:
                    os.kill(os.getpid(), number)

        listener.done = counted  # type: ignore[method-assign]


# --- queues -----------------------------------------------------------------------------------------------------------


@contextmanager
def prepared(queue: str) -> Iterator[Path | None]:
    """What schedules of a queue need while the block runs; yields the curves of a simulated one."""
    foreground.SECOND_INTERRUPT_SECONDS = 0.01
    with ExitStack() as stack:
        if queue == "simulated":
            yield write_table(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "curves.npz")
            return
        if queue == "local":
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "server"
            start_server(path, until=os.getpid(), imports=("tests.helpers.fakes",))
            stack.enter_context(warm_processes())
        else:
            cluster = stack.enter_context(Cluster(Path(f"/tmp/sweep-kills-{os.getpid()}"), accounting=False))
            os.environ.update(cluster.env())
            slurm_dispatch.INTENT_SECONDS = 2.0
        yield None


def use_fast_workers() -> None:
    """Have the queues of this process start workers that need no torch."""

    def local(self: LocalBackend, room: Room, settings: Settings, *more: object) -> object:
        return fast_dispatcher(room, settings)

    def slurm(self: SlurmBackend, room: Room, settings: Settings, reads: bool = False) -> SlurmDispatcher:
        assert isinstance(settings.queue, SlurmQueue)
        return replace(fast_slurm(room, settings.queue), reads=reads)

    LocalBackend._dispatcher = local  # type: ignore[method-assign, assignment]
    SlurmBackend._dispatcher = slurm  # type: ignore[method-assign]


def end_workers(root: Path) -> None:
    """End what a failed schedule has left, by the locks that its workers hold."""
    for lock in root.rglob("workers/*/lock"):
        pid = process_id(read_text(lock) or "")
        if held(lock) and pid not in (None, os.getpid()):
            os.kill(pid, signal.SIGKILL)


def run_many(queue: str, schedules: int, seed: int, minutes: float, keep: Path) -> list[Schedule]:
    """Run schedules with successive seeds until their number or the time is reached; returns those that failed."""
    failed: list[Schedule] = []
    began = time.monotonic()
    keep.mkdir(parents=True, exist_ok=True)
    use_fast_workers()
    for name in IMPORTS:
        importlib.import_module(name)
    with prepared(queue) as table:
        for index in range(schedules):
            if time.monotonic() - began > minutes * 60:
                print(f"{index} schedules in {minutes:g} minutes", flush=True)
                return failed
            schedule = draw(queue, seed + index)
            folder = Path(tempfile.mkdtemp(prefix=f"{queue}-{schedule.seed}-", dir=keep))
            try:
                run(schedule, folder, table)
            except Exception as error:
                failed.append(schedule)
                print(f"FAILED {schedule}\n{error}\nrepeat: {schedule.command}\nfiles: {folder}\n", flush=True)
                end_workers(folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)
            if (index + 1) % 20 == 0:
                print(f"{index + 1} schedules, {len(failed)} failed, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{schedules} schedules, {len(failed)} failed, {time.monotonic() - began:.0f} s", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queue", choices=QUEUES, default="simulated")
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=1e9, help="start no schedule after this time")
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the next has the next number")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()), help="where failed ones are kept")
    args = parser.parse_args()
    if args.queue == "slurm" and (os.geteuid() != 0 or missing(accounting=False)):
        sys.exit(f"--queue slurm needs root and the packages {shlex.join(missing(accounting=False))}")
    sys.exit(1 if run_many(args.queue, args.schedules, args.seed, args.minutes, args.keep) else 0)


if __name__ == "__main__":
    main()
