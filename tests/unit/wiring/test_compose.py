"""Every shipped configuration composes and freezes; every mistake is answered in one line."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import DictConfig, OmegaConf

from sweep.config.composition import compose_files
from sweep.config.queues import Queue
from sweep.config.section_reader import read_section
from sweep.config.sections import METRICS, SECTIONS, Objective
from sweep.config.settings import Settings, read_queue, settings_from_json
from sweep.config.torchtune import resolve
from sweep.errors import ConfigError
from sweep.resources import conf_dir, embedded_dir, launch_queues_dir
from sweep.search.build import build_pruner, build_sampler, keeps_one_seed
from sweep.wiring.compose import Composed, compose_config, freeze, recipe_name
from tests.helpers.tables import write_table

LLAMA = "recipe.config=llama3_2/1B_lora_single_device"
GRID = "space.optimizer.lr=choice(1e-4, 1e-3)"


def shipped(folder: Path, group: str) -> list[str]:
    return sorted(f"{group}={path.stem}" for path in folder.glob("*.yaml"))


GROUPS = {path.name: shipped(path, path.name) for path in sorted(conf_dir().iterdir()) if path.is_dir()}
GROUPS["queue"] = shipped(launch_queues_dir(), "queue")
# What a shipped option needs beside it.
BESIDE = {
    "queue=simulated": ["queue.table=ROOT/curves.npz"],
    "recipe=torchtune": [LLAMA],
    "sampler=grid": [GRID],
    "experiment=gsm8k_base1m": ["recipe.overrides.root=ROOT"],
    "queue=launch_sagemaker": ["queue.variables={role: arn:aws:iam::1:role/sweep, bucket: ours}"],
    "queue=launch_vertex": ["queue.variables={bucket: ours}"],
    "evaluate=torchtune": ["evaluate.config=eleuther_evaluation"],
    "evaluate=command": ['evaluate.command="python score.py {adapter} {output}"'],
    "evaluate=lm_eval": ["queue=launch_local_process"],  # whose jobs have an environment of their own
}
# Groups that do not depend on each other are composed side by side, so that each option is seen once.
LENGTH = max(len(GROUPS[group]) for group in ("sampler", "pruner", "objective", "prior", "queue"))
SIDES = [list(islice(cycle(GROUPS[group]), LENGTH)) for group in ("sampler", "pruner", "objective", "prior", "queue")]
ROWS: list[tuple[str, ...]] = list(zip(*SIDES, strict=True))
ROWS += [(word,) for group in ("recipe", "space", "experiment", "wandb", "evaluate") for word in GROUPS[group]]

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(scope="module", autouse=True)
def composed_by_hydra_once() -> Iterator[None]:
    """Words that differ above Hydra's composition only share it."""
    made: dict[tuple[Path | str | None, ...], DictConfig] = {}

    def compose(words: Sequence[str], own: Path | None) -> DictConfig:
        key = (own, *words)
        if key not in made or own is not None:
            made[key] = compose_files(words, own)
        return copy.deepcopy(made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sweep.wiring.compose.compose_files", compose)
        yield


@cache
def composition(*words: str) -> DictConfig:
    return compose_config(words)


@cache
def frozen(*words: str, config_dir: Path | None = None) -> Composed:
    cfg = compose_config(words, config_dir) if config_dir else composition(*words)
    return freeze(cfg, "test", config_dir)


def composed(*words: str) -> Settings:
    return frozen(*words).settings


def changed(changes: dict[str, Any]) -> Settings:
    """What the default composition freezes into with these values: quicker than to compose it again."""
    cfg = copy.deepcopy(composition())
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return freeze(cfg, "test").settings


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the folder of the base with a million parameters."""
    folder: Path = tmp_path_factory.mktemp("bases")
    (folder / "base1m").mkdir()
    (folder / "base1m" / "lora_cpu.yaml").write_text((embedded_dir() / "lora_cpu.yaml").read_text())
    write_table(folder / "curves.npz")
    return folder


def described(settings: Settings) -> dict[str, str]:
    return settings.space.describe()


# --- what is shipped ----------------------------------------------------------------------------------------------


def test_every_shipped_file_is_composed_below() -> None:
    files = {path for folder in (conf_dir(), launch_queues_dir()) for path in folder.rglob("*.yaml")}
    files -= set((conf_dir() / "metric").glob("*.yaml"))  # composed in test_metrics
    words = {word for row in ROWS for word in row}
    assert {path.stem for path in files} == {word.partition("=")[2] for word in words} | {"config"}
    assert len(words) == len(files) - 1


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_every_shipped_option_freezes_into_what_can_be_read_back(row: tuple[str, ...], root: Path) -> None:
    beside = [word.replace("ROOT", str(root)) for option in row for word in BESIDE.get(option, [])]
    settings = composed(*row, *beside)
    assert settings.metric in (*METRICS, *settings.objective.metrics)
    assert len(settings.space) >= 3
    sampler, pruner = build_sampler(settings, 7), build_pruner(settings)
    assert type(sampler).__name__ == settings.sampler["_target_"].rpartition(".")[2]
    assert type(pruner).__name__ == settings.pruner["_target_"].rpartition(".")[2]
    again = settings_from_json(json.loads(json.dumps(settings.to_json())), "here")
    assert again == settings
    assert again.to_json() == settings.to_json()
    first = {p.key: p.domain.values[0] for p in settings.space if hasattr(p.domain, "values")}
    resolve(settings.torchtune, first, settings.derive)


def test_the_default_is_the_embedded_base() -> None:
    made = frozen()
    settings = made.settings
    assert settings.recipe.config == str(embedded_dir() / "lora_cpu.yaml")
    assert made.recipe_text == (embedded_dir() / "lora_cpu.yaml").read_text()
    assert settings.metric == "val_loss"
    assert (settings.search.trials, settings.queue.kind) == (24, "local")
    assert resolve(settings.torchtune, {}, {})["checkpointer"]["checkpoint_dir"] == str(embedded_dir() / "base")
    assert settings.derive == {"model.lora_alpha": "${mul:2,${model.lora_rank}}"}


@pytest.mark.parametrize(
    ("name", "dataset", "validation"),
    [
        ("llama3_2_1b_alpaca", {"split": "train[:12800]"}, {"split": "train[-500:]"}),
        ("llama3_1_8b_alpaca", {"split": "train[:6400]"}, {"split": "train[-500:]"}),
        (
            "llama3_2_1b_dolly_ja",
            {"column_map": {"input": "instruction", "output": "output"}, "packed": False},
            {"column_map": {"input": "instruction", "output": "output"}},
        ),
    ],
)
def test_experiments_on_llama(name: str, dataset: dict[str, Any], validation: dict[str, Any]) -> None:
    settings = composed(f"experiment={name}")
    config = resolve(settings.torchtune, {"model.lora_rank": 8}, settings.derive)
    assert config["dataset"].items() >= dataset.items()
    assert config["dataset_val"].items() >= validation.items()
    assert config["model"]["lora_alpha"] == 16
    assert settings.metric == "val_loss"
    assert config["device"] == "cuda"


def test_the_experiment_on_gsm8k(root: Path) -> None:
    settings = composed("experiment=gsm8k_base1m", f"recipe.overrides.root={root}")
    config = resolve(settings.torchtune, {"gradient_accumulation_steps": 4}, settings.derive)
    assert settings.recipe.config == str((root / "base1m" / "lora_cpu.yaml").resolve())
    assert config["dataset_val"]["data_files"] == f"{root}/gsm8k/val.jsonl"
    assert config["lr_scheduler"]["num_warmup_steps"] == 1
    assert (settings.objective.metric, settings.search.trials) == ("val_loss", 24)


@pytest.mark.parametrize(
    ("target", "one"),
    [
        ("TPESampler", False),
        ("RandomSampler", False),
        ("CmaEsSampler", False),
        ("GridSampler", True),
        ("QMCSampler", True),
    ],
)
def test_which_samplers_keep_one_seed(target: str, one: bool) -> None:
    settings = dataclasses.replace(composed(), sampler={"_target_": f"optuna.samplers.{target}"})
    assert keeps_one_seed(settings) is one


def test_a_sampler_gets_the_seed_unless_the_user_gave_one() -> None:
    def draw(own: int, **given: Any) -> float:
        node = {"_target_": "optuna.samplers.RandomSampler", **given}
        study = optuna.create_study(sampler=build_sampler(dataclasses.replace(composed(), sampler=node), own))
        return study.ask().suggest_float("x", 0, 1)

    assert draw(1) == draw(1, seed=None) != draw(2)
    assert draw(1, seed=5) == draw(2, seed=5) == draw(5)


def test_sampler_and_pruner_take_further_arguments() -> None:
    words = ("sampler=tpe", "sampler.multivariate=true", "pruner=patient", "pruner.wrapped_pruner.n_startup_trials=9")
    settings = composed(*words)
    assert settings.sampler["multivariate"] is True
    assert settings.pruner["wrapped_pruner"]["n_startup_trials"] == 9
    assert build_pruner(settings) is not None


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["space.model.lora_rank=choice(2, 3)", "space.optimizer.lr=interval(1e-3,1e-2)", "space.epochs=range(1,4)"],
            {
                "model.lora_rank": "choice(2, 3)",
                "optimizer.lr": "interval(0.001, 0.01)",
                "epochs": "int(interval(1, 3, step=1))",
            },
        ),
        (
            [
                "space.model.lora_rank='choice(2,3)'",
                'space.batch_size="choice(2,3)"',
                "++space.epochs='choice(2,3)'",
                "space.seed=2,3",
            ],
            dict.fromkeys(("model.lora_rank", "batch_size", "epochs", "seed"), "choice(2, 3)"),
        ),
        (
            [
                "space.optimizer._component_=choice('torch.optim.AdamW', \"torch.optim.SGD\")",
                "space.model.lora_attn_modules=choice([q_proj], ['q_proj', 'v_proj'])",
                "space.dataset.split=choice('train[:64]', 'a b')",
                "space.optimizer.lr=tag(log, interval(1e-3, 1e-2))",
            ],
            {
                "optimizer._component_": "choice(torch.optim.AdamW, torch.optim.SGD)",
                "model.lora_attn_modules": 'choice(["q_proj"], ["q_proj", "v_proj"])',
                "dataset.split": "choice(train[:64], a b)",
                "optimizer.lr": "tag(log, interval(0.001, 0.01))",
            },
        ),
        (
            [
                "space.model.lora_dropout={value: 'interval(0, 0.5)', when: {model.lora_rank: [4, 8]}}",
                "space.optimizer.weight_decay.value=interval(0, 0.5)",
                "space.optimizer.weight_decay.when={model.lora_rank: 4}",
            ],
            {
                "model.lora_dropout": "interval(0, 0.5) when model.lora_rank in ['4', '8']",
                "optimizer.weight_decay": "interval(0, 0.5) when model.lora_rank in ['4']",
            },
        ),
        (
            ["experiment=demo", "space.model.lora_rank=choice(1, 2)", "space.optimizer.lr=null"],
            {"model.lora_rank": "choice(1, 2)", "optimizer.lr": None},
        ),
        ([r"space.output_dir=choice('a\'b', c)"], {"output_dir": "choice(a'b, c)"}),
        (["space=lora_optimizer", "space.optimizer.momentum=null"], {"optimizer.momentum": None}),
        (["space.+optimizer.momentum=interval(0, 1)"], {"optimizer.momentum": "interval(0, 1)"}),
        (["+space.optimizer.momentum=interval(0, 1)"], {"optimizer.momentum": "interval(0, 1)"}),
        (["space.optimizer.+momentum=interval(0, 1)"], {"optimizer.momentum": "interval(0, 1)"}),
        (["space={+optimizer.momentum: 'interval(0, 1)'}"], {"optimizer.momentum": "interval(0, 1)"}),
        (
            ["space=lora_optimizer", "space.optimizer.momentum.value=interval(0, 0.5)"],
            {"optimizer.momentum": "interval(0, 0.5) when optimizer._component_ in ['torch.optim.SGD']"},
        ),
        (
            ["space=lora_optimizer", "space.optimizer.momentum.when.model.lora_rank=4"],
            {"optimizer.momentum": "interval(0, 0.95) when model.lora_rank in ['4']"},
        ),
        (["~space.optimizer.lr", "experiment=null"], {"optimizer.lr": None}),
    ],
)
def test_a_space_on_the_command_line(words: list[str], expected: dict[str, str | None]) -> None:
    found = described(composed(*words))
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["recipe.overrides.+foo=1"], {"foo": 1}),
        (["+recipe.overrides.foo=1"], {"foo": 1}),
        (["recipe.overrides={+foo: 1, batch_size: 4}"], {"foo": 1, "batch_size": 4}),
        (["recipe.overrides.optimizer.+momentum=0.9"], {"optimizer.momentum": 0.9}),
        (["+recipe.overrides.optimizer={momentum: 0.9}"], {"optimizer.momentum": 0.9}),
        (["+recipe.overrides.dataset.data_dir='1'"], {"dataset.data_dir": "1"}),
        (["recipe.overrides.dataset.split=train[:64]"], {"dataset.split": "train[:64]"}),
        (["recipe.overrides.batch_size=3", "recipe.overrides.batch_size=4"], {"batch_size": 4}),
        (["recipe.overrides.dataset_val.split=x", "recipe.overrides.dataset_val=null"], {"dataset_val": None}),
    ],
)
def test_overrides_on_the_command_line(words: list[str], changes: dict[str, Any]) -> None:
    assert composed(*words).changes == {"root": str(embedded_dir()), **changes}


@pytest.mark.parametrize(
    ("words", "derive"),
    [
        (["derive.model.lora_alpha=16"], {"model.lora_alpha": 16}),
        (["derive={model.lora_alpha: 0.5}"], {"model.lora_alpha": 0.5}),
        (["derive.model.lora_alpha=null", "+derive.model.foo='16'"], {"+model.foo": "16"}),
        (["derive.model.lora_alpha=${mul:2,${model.lora_rank}}"], {"model.lora_alpha": "${mul:2,${model.lora_rank}}"}),
        (["~derive.model.lora_alpha"], {}),
        (["derive.model.lora_alpha=null", "+derive.model.foo=16"], {"+model.foo": 16}),
    ],
)
def test_derivations_on_the_command_line(words: list[str], derive: dict[str, Any]) -> None:
    assert composed(*words).derive == derive


@pytest.mark.parametrize(("equal", "steps"), [(True, 4), (False, 16)])
def test_a_limit_of_steps_is_scaled_to_equal_data(equal: bool, steps: int) -> None:
    settings = changed({"recipe.overrides.max_steps_per_epoch": 16, "trial.equal_data": equal})
    config = resolve(settings.torchtune, {"gradient_accumulation_steps": 4}, settings.derive)
    assert config["max_steps_per_epoch"] == steps


def test_a_limit_of_steps_is_scaled_where_the_batch_size_is_an_interpolation() -> None:
    changes = {"recipe.overrides.max_steps_per_epoch": 16, "recipe.overrides.batch_size": "${mul:2,2}"}
    assert resolve(changed(changes).torchtune, {}, {})["batch_size"] == 4


def test_what_is_derived_may_be_a_number() -> None:
    settings = changed({"derive.model.lora_alpha": 16})
    assert resolve(settings.torchtune, {}, settings.derive)["model"]["lora_alpha"] == 16


def test_null_takes_a_derivation_back() -> None:
    assert composed("derive.model.lora_alpha=null").derive == {}


def test_a_rule_is_switched_off_as_its_error_says() -> None:
    assert composed("trial.loss_ratio=.inf").guard.loss_ratio == float("inf")


def test_words_for_every_section() -> None:
    settings = composed(
        "recipe.overrides.batch_size=4",
        "recipe.overrides.dataset.packed=true",
        "recipe.overrides.output_dir=${root}/out",
        "recipe.overrides.dataset_val=null",
        "recipe.components=[mine.]",
        "derive.model.lora_alpha=${mul:4,${model.lora_rank}}",
        "search.trials=null",
        "search.tokens=10",
        "search.seed=3",
        "trial.loss_ratio=inf",
        "queue.env.FOO=1",
        "queue.workers=2",
        "storage=sqlite:///x.db",
        "warm_start.enqueue=[{model.lora_rank: 8, optimizer.lr: 3e-4}]",
    )
    changed = {"batch_size": 4, "dataset.packed": True, "output_dir": "${root}/out", "dataset_val": None}
    assert settings.changes == {"root": str(embedded_dir()), **changed}
    assert settings.torchtune["dataset"]["packed"] is True
    assert settings.metric == "loss"
    assert settings.recipe.components == ["mine."]
    assert settings.derive == {"model.lora_alpha": "${mul:4,${model.lora_rank}}"}
    assert (settings.search.trials, settings.search.tokens, settings.search.seed) == (None, 10, 3)
    assert settings.guard.loss_ratio == float("inf")
    assert (settings.queue.env, settings.queue.workers) == ({"FOO": "1"}, 2)
    assert settings.storage == "sqlite:///x.db"
    assert settings.warm_start.enqueue == [{"model.lora_rank": 8, "optimizer.lr": 3e-4}]


# --- where the recipe comes from ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["recipe.config=embedded"], "lora_cpu.yaml"),
        ([LLAMA], "1B_lora_single_device.yaml"),
        (["recipe.config=qwen2/0.5B_lora_single_device.yaml"], "0.5B_lora_single_device.yaml"),
    ],
)
def test_a_recipe_by_name(words: list[str], file: str) -> None:
    settings = composed(*words)
    assert Path(settings.recipe.config).name == file
    assert Path(settings.recipe.config).is_absolute()
    assert set(settings.changes) == ({"root"} if file == "lora_cpu.yaml" else set())


def test_a_recipe_by_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    settings = composed("recipe.config=base1m/lora_cpu.yaml", "recipe.overrides.epochs=2")
    assert settings.recipe.config == str((root / "base1m" / "lora_cpu.yaml").resolve())
    assert settings.changes == {"epochs": 2}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's configuration directory, with a blank in its name."""
    folder: Path = tmp_path_factory.mktemp("user") / "my conf"
    files = {
        "recipe/mine.yaml": """\
            config: ${embedded:lora_cpu.yaml}
            overrides: {root: '${embedded:}', batch_size: 4, epochs: 3}
            components: [mine.]
            """,
        "recipe/embedded.yaml": """\
            config: ${embedded:lora_cpu.yaml}
            overrides: {root: '${embedded:}', epochs: 5}
            """,
        "experiment/exp.yaml": """\
            # @package _global_
            defaults:
              - override /recipe: mine
            search: {trials: 3}
            space: {model.lora_rank: 'choice(2, 3)'}
            """,
        "experiment/rate.yaml": """\
            # @package _global_
            defaults:
              - override /space: nested
            space: {optimizer.lr: 'choice(1e-4, 1e-3)'}
            """,
        "space/nested.yaml": """\
            # @package _global_
            space: {optimizer: {lr: 'interval(1e-3, 1e-2)'}, model: {lora_rank: 'choice(2, 4)'}}
            """,
        "sampler/nothing.yaml": "n_startup_trials: 3\n",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix(" " * 12) for line in text.splitlines()))
    return folder


@pytest.mark.parametrize("word", ["recipe=mine", "recipe.config=mine"])
def test_a_recipe_of_the_users_own(own: Path, word: str) -> None:
    settings = frozen(word, "recipe.overrides.epochs=2", "recipe.components=[yours.]", config_dir=own).settings
    assert settings.recipe.config == str(embedded_dir() / "lora_cpu.yaml")
    assert settings.changes == {"root": str(embedded_dir()), "batch_size": 4, "epochs": 2}
    assert settings.recipe.components[-1] == "yours."


def test_an_experiment_of_the_users_own(own: Path) -> None:
    settings = frozen("experiment=exp", config_dir=own).settings
    assert (settings.search.trials, settings.torchtune["batch_size"]) == (3, 4)
    assert described(settings)["model.lora_rank"] == "choice(2, 3)"


def test_a_users_own_recipe_stands_before_a_shipped_one_by_name(own: Path) -> None:
    assert frozen("recipe.config=embedded", config_dir=own).settings.torchtune["epochs"] == 5


def test_a_space_of_the_users_own_may_be_nested(own: Path) -> None:
    settings = frozen("space=nested", config_dir=own).settings
    assert described(settings) == {"optimizer.lr": "interval(0.001, 0.01)", "model.lora_rank": "choice(2, 4)"}


def test_the_command_line_wins_over_an_experiment(own: Path) -> None:
    settings = frozen("experiment=rate", "space.optimizer.lr=choice(5, 6)", config_dir=own).settings
    assert described(settings)["optimizer.lr"] == "choice(5, 6)"


def test_the_word_config_dir_must_name_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(ConfigError, match=f"--config-dir={path} is not a directory"):
            compose_config([], path)


# --- mistakes -----------------------------------------------------------------------------------------------------


def complaint_of(act: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sampler=tpee"], ["sampler=tpee does not exist", "cma_es, forecast, gp, grid, qmc, random, tpe"]),
        (["queue=lsf"], ["queue=lsf does not exist", "local"]),
        (["experiment=demoo"], ["experiment=demoo does not exist", "demo", "gsm8k_base1m"]),
        (["search.trialz=3"], ["search: there is no key trialz", "did you mean trials?", "max_attempts"]),
        (["trials=3"], ["configuration: there is no key trials", "search", "trial"]),
        (["search.trials=((("], ["mismatched input"]),
        (["trials"], ["trials is no KEY=VALUE", "`sweep resume trials`"]),
        (["quue=local"], ["there is no key quue", "did you mean queue?", "controller", "prior"]),
        (["recipe=torchtune"], ["recipe.config is not set", "recipe.config=…"]),
        (["experiment=gsm8k_base1m"], ["recipe.overrides.root is not set", "recipe.overrides.root=…"]),
        (["search=x"], ["search"]),
        (["sampler=null"], ["sampler=null", "the name of one of its files"]),
        (["recipe.overrides=3"], ["recipe.overrides=3 is no section", "recipe.overrides.KEY=VALUE"]),
        (["recipe.overrides={a"], ["recipe.overrides={a cannot be read"]),
        (["recipe.overrides.foo=1"], ["no key foo", "write +recipe.overrides.foo=… on the command line or +foo: in"]),
        (["recipe.overrides.batch_size=1,2"], ["recipe.overrides.batch_size=1,2 varies", "space.KEY"]),
        (["recipe.overrides.batch_size=${add:1"], ["recipe.overrides.batch_size: ", "BRACE_CLOSE"]),
        (["derive.model.lora_alpha=${add:1"], ["derive.model.lora_alpha: ", "BRACE_CLOSE"]),
        (["space={epochs: choice(1, 2)}"], ["put quotes around each value"]),
        (["space.=3"], ["space.=3"]),
        (["recipe.overrides.dtype=null"], ["it lacks dtype"]),
        (["storage=5"], ["storage=5 must be an Optuna URL"]),
        (["+recipe.overrides.tokenizer.prompt_template=os.system"], ["tokenizer.prompt_template=os.system is not"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else "",
)
def test_a_mistake_on_the_command_line_is_answered_in_one_line(words: list[str], said: list[str]) -> None:
    text = complaint_of(lambda: frozen(*words))
    for part in said:
        assert part in text


NO_RESOURCE = {"_target_": "optuna.pruners.SuccessiveHalvingPruner", "min_resource": 0}
HALVES = {"_target_": "optuna.pruners.SuccessiveHalvingPruner", "reduction_factor": 2.5}
RUNGS = {"_target_": "sweep.search.strategy.halving.AsynchronousHalving", "min_resource": 1.5}
WORD = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": "ten"}
PATIENT = {"_target_": "optuna.pruners.PatientPruner", "patience": 1, "wrapped_pruner": {"_target_": "os.getcwd"}}
FULL = "llama3_2/1B_full_single_device"
NO_DATA = {"recipe.overrides.dataset_val": None, "objective.metric": "val_loss"}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("recipe", {"config": "no/such"}, ["recipe.config=no/such is no file", "`tune ls`"]),
        ("recipe", {"config": FULL}, ["lora_finetune_single_device", "lacks model.lora_rank"]),
        ("recipe.overrides.batchsize", 4, ["recipe.overrides", "batchsize", "did you mean batch_size?"]),
        ("recipe.overrides.batch_size", "${nothing}", ["batch_size", "${nothing} names a key"]),
        ("recipe.overrides.dtype", "fp16", ["dtype=fp16", "recipe.overrides.dtype=bf16"]),
        ("recipe.overrides.output_dir", "${root}/base/out", ["checkpoint_dir", "recipe.overrides.output_dir"]),
        ("recipe.overrides.loss._component_", "os.system", ["loss._component_=os.system", "recipe.components"]),
        ("recipe.components", "mine.", ["recipe.components"]),
        ("space.optimizer.lr", "1e-3", ["space.optimizer.lr=1e-3 does not vary", "interval(low, high)"]),
        (
            "space.optimizer.lrr",
            "interval(1,2)",
            ["space: there is no key optimizer.lrr", "did you mean optimizer.lr?"],
        ),
        ("derive.optimizer.lr", "${mul:2,1}", ["derive.optimizer.lr", "in the space too"]),
        ("derive.optimizer.rate", "1", ["derive: there is no key optimizer.rate"]),
        ("derive.model.lora_alpha", "${mul:2,${nothing}}", ["model.lora_alpha", "${nothing} names a key"]),
        ("search.trials", None, ["search has no limit", "search.trials", "search.tokens"]),
        ("warm_start.enqueue", [{"model.lora_rank": 5}], ["warm_start.enqueue[0]", "model.lora_rank=5 is outside"]),
        ("warm_start.enqueue", [{}, {"lr": 5}], ["warm_start.enqueue[1]", "lr is not in the space"]),
        ("", NO_DATA, ["objective.metric=val_loss", "dataset_val", "objective.metric=loss"]),
        ("sampler", {"_target_": "optuna.samplers.GridSampler"}, ["sampler=grid", "optimizer.lr", "choice(…)"]),
        ("sampler.inner", [{"_target_": "builtins.print"}], ["_target_=builtins.print is not allowed"]),
        ("sampler.startup", 3, ["sampler: sweep.search.forecast_sampler.ForecastSampler refuses", "startup"]),
        ("sampler._target_", "os.system", ["_target_=os.system is not allowed", "a class of optuna.samplers"]),
        ("pruner", PATIENT, ["_target_=os.getcwd is not allowed"]),
        ("pruner", {"_target_": "optuna.pruners.ThresholdPruner"}, ["ThresholdPruner refuses", "upper"]),
        ("pruner", NO_RESOURCE, ["pruner: optuna.pruners.SuccessiveHalvingPruner refuses", "min_resource"]),
        ("pruner", HALVES, ["pruner.reduction_factor=2.5 must be a whole number (SuccessiveHalvingPruner)"]),
        ("pruner", RUNGS, ["pruner.min_resource=1.5 must be a whole number (AsynchronousHalving)"]),
        ("sampler", WORD, ["sampler.n_startup_trials=ten must be a whole number (TPESampler)"]),
        ("recipe.overrides.output_dir", "${root}/base", ["output_dir="]),
        ("recipe.overrides", {"output_dir": "/tmp/x/out", "checkpointer.checkpoint_dir": "/tmp/x/"}, ["output_dir="]),
        ("recipe", {"config": "torchtune"}, ["recipe.config=torchtune"]),
        ("sampler", {"n_startup_trials": 3}, ["_target_"]),
        ("sampler", {"_target_": "optuna.pruners.NopPruner"}, ["sampler"]),
        ("sampler._target_", "optuna.samplers.NoSuch", ["sampler._target_=optuna.samplers.NoSuch does not exist"]),
        ("sampler._target_", "optuna.samplers.none.Such", ["optuna.samplers.none cannot be imported"]),
        (
            "sampler._target_",
            "sweep.cli.start.run_sweep",
            ["sampler._target_=sweep.cli.start.run_sweep is not allowed"],
        ),
        ("pruner._target_", "sweep.errors.GiveUp", ["pruner._target_=sweep.errors.GiveUp is not allowed"]),
        (
            "recipe.overrides.checkpointer.output_dir",
            "${root}/base/x",
            ["output_dir=", "/base/x is checkpointer."],
        ),
        ("warm_start.enqueue", [{"model.lora_rank": "8"}], ["is outside"]),
    ],
)
def test_a_mistake_in_a_composition_is_answered_in_one_line(key: str, value: Any, said: list[str]) -> None:
    """Without a key, the values are those of several."""
    text = complaint_of(lambda: changed({key: value} if key else value))
    for part in said:
        assert part in text


@pytest.mark.parametrize("name", ["a/b", "../x", "", ".hidden", "a b", "a\n"])
def test_a_name_is_that_of_one_directory(name: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed; it may have letters"):
        freeze(composition(), name)


@pytest.mark.parametrize(
    ("section", "raw", "said"),
    [
        ("search", {"trials": "many"}, ["search.trials", "'many'", "Integer"]),
        ("search", {"trials": 2.5}, ["search.trials", "2.5", "Integer"]),
        ("search", {"trials": 0}, ["search.trials=0 is not allowed; it must be at least 1"]),
        ("search", {"tokens": 0}, ["search.tokens=0", "at least 1"]),
        ("search", {"seconds": 0}, ["search.seconds=0.0", "above 0"]),
        ("search", {"target": "low"}, ["search.target", "'low'"]),
        ("search", {"seed": None}, ["search.seed"]),
        ("search", {"max_attempts": 0}, ["search.max_attempts=0"]),
        ("search", {"max_failure_share": 1.5}, ["search.max_failure_share=1.5", "between 0 and 1"]),
        ("search", {"trialz": 1}, ["search: there is no key trialz", "did you mean trials?"]),
        ("objective", {"metric": "accuracy"}, ["objective.metric=accuracy", "auto, val_loss or loss"]),
        ("objective", {"milestones": 0}, ["objective.milestones=0", "at least 1"]),
        ("objective", {"milestones": [1]}, ["objective.milestones"]),
        ("objective", {"milestone_tokens": 0}, ["objective.milestone_tokens=0"]),
        ("trial", {"loss_ratio": 1}, ["trial.loss_ratio=1.0", "above 1"]),
        ("trial", {"grad_norm_ratio": 0.5}, ["trial.grad_norm_ratio=0.5", "above 1"]),
        ("trial", {"checkpoint_every": -1}, ["trial.checkpoint_every=-1", "0 or more"]),
        ("queue", {"kind": "lsf"}, ["queue.kind=lsf", "local or simulated or slurm"]),
        ("queue", {"slots": 0}, ["queue.slots=0", "between 1 and 1024, or auto"]),
        ("queue", {"slots": "many"}, ["queue.slots=many", "between 1 and 1024, or auto"]),
        ("queue", {"workers": 0}, ["queue.workers=0", "between 1 and 100,000"]),
        ("queue", {"poll_seconds": 0}, ["queue.poll_seconds=0", "above 0"]),
        ("queue", {"env": 3}, ["queue.env"]),
        ("queue", {"slotz": 1}, ["queue: there is no key slotz", "did you mean slots?"]),
        ("queue", {"slurm_partition": "gpu"}, ["queue: there is no key slurm_partition"]),
        ("queue", {"kind": "slurm", "slurm_partitoin": "a"}, ["did you mean slurm_partition?", "slurm_wckey"]),
        ("queue", {"kind": "slurm", "timeout_min": 0}, ["queue.timeout_min=0", "at least 1"]),
        ("queue", {"kind": "slurm", "slurm_setup": "module load x"}, ["queue.slurm_setup"]),
        ("queue", {"kind": "slurm", "controller": {"time": 3}}, ["queue.controller: there is no key time"]),
        ("queue", {"kind": "slurm", "controller": {"timeout_min": 0}}, ["queue.controller.timeout_min=0"]),
        ("warm_start", {"enqueue": 3}, ["warm_start.enqueue"]),
        ("warm_start", {"enqueue": [3]}, ["warm_start"]),
        ("recipe", {"config": "x", "overrides": 3}, ["recipe.overrides"]),
        ("recipe", {"config": "x", "override": {}}, ["recipe: there is no key override", "did you mean overrides?"]),
    ],
)
def test_a_wrong_value_of_a_section(section: str, raw: dict[str, Any], said: list[str]) -> None:
    text = complaint_of(
        lambda: read_queue(raw) if section == "queue" else read_section(SECTIONS[section], raw, section)
    )
    for part in said:
        assert part in text


@pytest.mark.parametrize("section", [*(name for name in SECTIONS if name != "recipe"), "queue"])
def test_the_shipped_sections_hold_the_defaults_that_a_user_of_python_gets(section: str) -> None:
    """`conf/` and `sweep.config.settings` must not say different things."""
    written: Any = OmegaConf.to_container(composition()[section], resolve=True)
    kind: type[Any] = SECTIONS.get(section, Queue)
    assert read_section(kind, written, section) == read_section(kind, {}, section)
    assert set(written) == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("section", "target", "complaint"),
    [
        ("sampler", "optuna.samplers.TPESampler", None),
        ("sampler", "sweep.search.forecast_sampler.ForecastSampler", None),
        ("sampler", "sweep.sampler.ForecastSampler", None),  # its name in version 0.1
        ("pruner", "optuna.pruners.NopPruner", None),
        ("pruner", "sweep.search.strategy.halving.AsynchronousHalving", None),
        ("pruner", "optuna.samplers.TPESampler", "is no pruner"),
        ("sampler", "optuna.pruners.NopPruner", "is no sampler"),
        ("sampler", "optuna.samplers.nsgaii.UniformCrossover", "is no sampler"),
        ("sampler", "sweep.queues.slurm.commands.command", "is not allowed"),
        ("sampler", "sweep.search.forecast_sampler.np.load", "is not allowed"),
        ("sampler", "optuna.samplersX.Y", "is not allowed"),
        ("sampler", "optuna.samplers._tpe.sampler.TPESampler", "is not allowed"),
        ("sampler", "optuna.samplers.nope", "does not exist"),
        ("sampler", "optuna.samplers.", "is not allowed"),
        ("sampler", "optuna.samplers..TPESampler", "is not allowed"),
        ("sampler", "optuna.samplers.TPESampler.hyperopt_parameters", "cannot be imported"),
        ("sampler", "optuna.study.create_study", "is not allowed"),
        ("sampler", "os.system", "is not allowed"),
        ("pruner", "sweepx.y", "is not allowed"),
        ("pruner", "", "is not allowed"),
    ],
)
def test_only_samplers_and_pruners_are_built(section: str, target: str, complaint: str | None) -> None:
    node: Any = {section: {"_target_": target}}
    settings = dataclasses.replace(composed(), **node)

    def build() -> object:
        return build_sampler(settings, 0) if section == "sampler" else build_pruner(settings)

    if complaint is None:
        assert type(build()).__name__ == target.rpartition(".")[2]
        return
    with pytest.raises(ConfigError, match=re.escape(f"{section}._target_")) as caught:
        build()
    assert complaint in str(caught.value)


TPE = "optuna.samplers.TPESampler"
EVIL: dict[str, Any] = {"_target_": "os.getcwd"}


@pytest.mark.parametrize(
    ("node", "key"),
    [
        ({"_target_": TPE, "gamma": EVIL}, "sampler.gamma._target_=os.getcwd is not allowed"),
        ({"_target_": TPE, "gamma": [{"x": EVIL}]}, r"sampler.gamma\[0\].x._target_=os.getcwd is not allowed"),
        ({"_target_": TPE, "gamma": {"_target_": EVIL}}, "sampler.gamma._target_={'_target_': 'os.getcwd'} is not"),
        (
            {"_target_": TPE, "gamma": {"_target_": "sweep.queues.slurm.commands.command", "words": ["touch", "x"]}},
            "sampler.gamma._target_=sweep.queues.slurm.commands.command is not allowed",
        ),
        ({"_target_": TPE, "_partial_": True}, "sampler._partial_ is no argument of TPESampler"),
        ({"_target_": TPE, "_args_": [1]}, "sampler._args_ is no argument of TPESampler"),
        ({"_target_": TPE, "a.b": 1}, "sampler.a.b is no argument of TPESampler"),
        ({"_target_": "${oc.env:HOME}"}, r"sampler._target_=\${oc.env:HOME} is not allowed"),
    ],
)
def test_nothing_else_is_built_at_any_depth(node: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=key.replace("{", r"\{").replace("}", r"\}")):
        build_sampler(dataclasses.replace(composed(), sampler=node), 0)


def test_an_argument_is_taken_as_it_is_written() -> None:
    """Hydra would resolve it once more when it builds the object."""
    node = {"_target_": "optuna.pruners.PatientPruner", "patience": 1, "wrapped_pruner": None, "min_delta": 0.5}
    built = build_pruner(dataclasses.replace(composed(), pruner=node))
    assert (built._patience, built._min_delta) == (1, 0.5)
    inner = {"_target_": "optuna.pruners.PercentilePruner", "percentile": 30.0}
    built = build_pruner(dataclasses.replace(composed(), pruner={**node, "wrapped_pruner": inner}))
    assert built._wrapped_pruner._percentile == 30.0


@pytest.mark.parametrize("building", [build_sampler, lambda settings, _: build_pruner(settings)])
def test_a_frozen_sweep_is_checked_again_before_it_is_built(building: Callable[[Settings, int], Any]) -> None:
    """`sweep.json` may have been edited."""
    sampler = {"_target_": "optuna.samplers.TPESampler", "gamma": {"_target_": "os.getcwd"}}
    settings = dataclasses.replace(composed(), sampler=sampler, pruner=PATIENT)
    with pytest.raises(ConfigError, match=r"_target_=os\.getcwd is not allowed"):
        building(settings, 0)


def test_recipe_name_of_a_composition() -> None:
    assert recipe_name(compose_config([LLAMA])) == "llama3_2/1B_lora_single_device"
    assert recipe_name(compose_config([])) == str(embedded_dir() / "lora_cpu.yaml")


# --- the frozen form ----------------------------------------------------------------------------------------------


def test_settings_come_back_from_json_with_all_that_a_user_can_say() -> None:
    settings = composed(
        "space=lora_optimizer",
        "space.model.lora_attn_modules=choice([q_proj], [q_proj, 'v_proj'])",
        "trial.grad_norm_ratio=inf",
        "search.target=1.5",
        "queue.env.FOO=bar",
        "warm_start.enqueue=[{model.lora_rank: 8, model.lora_attn_modules: [q_proj]}]",
        "storage=sqlite:///x.db",
        "recipe.components=[mine.]",
    )
    settings = dataclasses.replace(settings, trial_tokens=1234, created=5.5)
    again = settings_from_json(json.loads(json.dumps(settings.to_json())), "here")
    assert again == settings
    assert again.space == settings.space
    assert (again.limits(2), again.guard, again.milestone_tokens) == (
        settings.limits(2),
        settings.guard,
        settings.milestone_tokens,
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"v": 2}, "here has schema version 2; this program reads 1"),
        ({"v": None}, "here has schema version None"),
        ({"sampler": [1]}, r"here: sampler=\[1\] must be a mapping"),
        ({"storage": ["x"]}, "must be a text or null"),
        ({"torchtune": "x"}, "here: torchtune=x must be a mapping"),
        ({"created": "then"}, "here: created=then must be a number"),
        ({"search": {"trials": 0}}, "search.trials=0"),
        ({"search": {"trialz": 5}}, "no key trialz"),
        ({"queue": None}, "queue"),
        ({"another": 1}, "here"),
    ],
)
def test_a_frozen_form_of_something_else_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        settings_from_json({**composed().to_json(), **change}, "here")


@pytest.mark.parametrize("raw", [{"v": 1}, {"v": 1, "name": "x"}])
def test_a_frozen_form_that_lacks_sections_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        settings_from_json(raw, "here")


@pytest.mark.parametrize(
    ("milestones", "every", "tokens", "expected"),
    [(12, None, 1200, 100), (12, None, 5, 1), (12, 77, 1200, 77), (1, None, 0, 1)],
)
def test_tokens_between_milestones(milestones: int, every: int | None, tokens: int, expected: int) -> None:
    objective = Objective(milestones=milestones, milestone_tokens=every)
    settings = dataclasses.replace(composed(), objective=objective, trial_tokens=tokens)
    assert settings.milestone_tokens == expected
