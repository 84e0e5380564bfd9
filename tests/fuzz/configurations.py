"""Random configurations: words of a command line and files of a person's own, drawn from a seed.

A case begins as a configuration that composes, and is then changed a few times: a word's key or value, a file's text or
a value in its tree. Most changes know the grammar, so that a case gets past the first check.

Invariant: pure. A case is a function of its seed and of the files that are shipped.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sweep.resources import conf_dir, embedded_dir, launch_queues_dir

OWN = "own"  # the name of a file of each group in a person's directory
RECIPE = "recipe.yaml"  # a torchtune configuration beside these

OPTIONS = {
    "experiment": ("demo", "llama3_2_1b_alpaca", "null", OWN),
    "space": ("lora", "lora_optimizer", OWN),
    "sampler": ("tpe", "random", "qmc", "grid", "gp", "cma_es", "forecast", OWN),
    "pruner": ("asha", "none", "median", "hyperband", "patient", "wilcoxon", "freeze_thaw", OWN),
    "queue": ("local", "slurm", "launch_kubernetes", "launch_docker", "slurm_cpu", OWN),
    "evaluate": ("none", "heldout", "command", "torchtune", OWN),
    "objective": ("auto", "loss", "val_loss", OWN),
    "wandb": ("auto", "disabled", "offline", OWN),
    "prior": ("none", "lora", OWN),
    "recipe": ("embedded", "torchtune", OWN),
}
KEYS = (
    *("name", "storage", "controller", "recipe.config", "recipe.components", "room.group"),
    *("search.trials", "search.tokens", "search.seconds", "search.target", "search.gpu_hours", "search.seed"),
    *("search.finalists", "search.max_failure_share", "search.history", "search.min_gain_per_gpu_hour"),
    *("objective.metric", "objective.milestones", "objective.milestone_tokens"),
    *("trial.checkpoint_every", "trial.equal_data", "trial.loss_ratio", "trial.grad_norm_ratio"),
    *("warm_start.enqueue", "warm_start.import_from", "wandb.mode", "wandb.project", "wandb.tags", "wandb.init.notes"),
    *("queue.kind", "queue.workers", "queue.slots", "queue.env", "queue.env.A", "queue.threads", "queue.poll_seconds"),
    *("sampler._target_", "sampler.seed", "sampler._partial_", "pruner._target_", "pruner.min_resource"),
    *("evaluate.kind", "evaluate.dataset", "evaluate.command", "evaluate.config", "evaluate.seconds"),
    *("space.model.lora_rank", "space.optimizer.lr", "+space.optimizer.momentum", "space.batch_size", "space.epochs"),
    *("space.optimizer.lr.when", "space.optimizer.lr.value", "~space.model.lora_rank", "space", "derive", "experiment"),
    *("derive.model.lora_alpha", "derive.lr_scheduler.num_warmup_steps", "+derive.x", "space.dataset.data_files"),
    *("recipe.overrides.batch_size", "recipe.overrides.dataset.split", "recipe.overrides", "+recipe.overrides.x.y"),
    *("recipe.overrides.optimizer._component_", "recipe.overrides.model.lora_attn_modules", "recipe.overrides.seed"),
)
DOMAINS = (
    *("choice(1, 2, 4)", "choice(null, 1.0)", "null,1.0", "tag(log, interval(1e-5, 1e-3))", "interval(0, 1)"),
    *(
        "int(interval(1, 64))",
        "range(1, 9, 2)",
        "choice([1, 2], [3])",
        "choice({a: 1}, {a: 2})",
        "choice('[/a]', '[b]')",
    ),
    *("choice(choice(1, 2), 3)", "interval(-1.7e308, 1.7e308)", "range(0, 1e300)", "tag(log, interval(5e-324, 1e308))"),
    *(
        "int(interval(0, 1e30))",
        "range(0, 1, 1e-300)",
        "choice(true, 1)",
        "shuffle(range(3))",
        "sort(3, 1, 2)",
        "glob(*)",
    ),
    *(
        "interval(nan, inf)",
        "tag(log, int, interval(1, 10))",
        "range(9, 1, -1)",
        "choice(1e999, 2)",
        "interval(0, 1, 2)",
    ),
)
VALUES = (
    *("1", "0", "-1", "1.5", "true", "null", "", "abc", "auto", "1e-3", "1e999", "nan", "inf", ".inf", "007", "0x1F"),
    *(
        "1" * 400,
        "9" * 5000,
        "a" * 300,
        "12:30:00",
        "2020-01-01",
        "[1,2]",
        "[null]",
        "[]",
        "{}",
        "{a: 1}",
        "{a: {b: c}}",
    ),
    *(
        "'quoted'",
        '"double"',
        "'open",
        "a,b",
        "a b",
        "a=b",
        "a:b",
        "a#b",
        "100%",
        "~/x",
        "../x",
        "/etc",
        "/dev/null",
        ".",
    ),
    *("数据/x.yaml", "ünï", "a\tb", "a\nb", "\x1b[31m", "\u202e", "😀", "[/a]", "[b]bold[/b]", "<script>", "{{ x }}"),
    *("${oc.env:NOPE}", "${oc.env:HOME}", "${a.b}", "${name}", "${", "${floordiv:1,0}", "${int:x}", "${pow:10,1e9}"),
    *("${mul:a,100000000}", "${oc.decode:'['}", "${oc.select:x,y}", "${embedded:}", "${add:1}", "${recipe.config}"),
    *("sqlite:///x.db", "sqlite://", "postgresql://u:p@h/d", "s3://x/y", "http://x", "mysql://", "://"),
    *(
        "torch.optim.AdamW",
        "optuna.samplers.TPESampler",
        "os.system",
        "a.b.c",
        "[[[[1]]]]",
        "[" * 60,
        "(" * 60,
        "{" * 60,
    ),
    *(
        "choice(",
        "interval(1)",
        "range()",
        "int('x')",
        "str(1)",
        "tag(a, b)",
        "unknown(1)",
        "choice()",
        "a@b",
        "@",
        "+",
        "~",
    ),
)
SPACES = ("space.model.lora_rank", "space.optimizer.lr", "space.clip_grad_norm", "space.batch_size", "+space.a.b")
# The embedded recipe; `written` puts the directory in the place of the word.
EMBEDDED = (embedded_dir() / "lora_cpu.yaml").read_text(encoding="utf-8").replace("root: .", "root: EMBEDDED")
FEW = (1, 1, 1, 2, 3)  # changes of a case
TOKENS = (
    *"[]{}()'\"\\,:=#%&*!|>?@`~+-$ \t\n\x00\x07\ud800é数😀",
    "${",
    "}",
    "null",
    "- ",
    ": ",
    "&a",
    "*a",
    "!!",
    "<<: ",
)
SCALARS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    1.5,
    1e300,
    float("inf"),
    float("nan"),
    10**30,
    "",
    "x",
    [],
    {},
    [1],
    [None],
    {"a": 1},
)
YAML_TEXTS = (
    *(
        "{}",
        "[]",
        "",
        "null",
        "a",
        "- a\n- b\n",
        "a: [1\n",
        "a: b: c\n",
        "\ta: 1\n",
        "a: 1\na: 2\n",
        "a: 'x\n",
        "? [a]\n: 1\n",
    ),
    *(
        "a: &x [*x]\n",
        "a: !!python/object:os.system x\n",
        "a: !!float x\n",
        "a: !!int ''\n",
        "a: 0b_\n",
        "a: !!timestamp x\n",
    ),
    *(
        "a: !!set {x}\n",
        "a: =\n",
        "a: '\\x'\nb: \"\\ud800\"\n",
        "%YAML 9.9\n---\na: 1\n",
        "a: 1\n---\nb: 2\n",
        "[" * 200,
    ),
    *(
        "# @package a b c\na: 1\n",
        "# @package\na: 1\n",
        "defaults: x\n",
        "defaults: [1]\n",
        "defaults: [{a: 1, b: 2}]\n",
    ),
    *(
        "defaults: [{override /space: nope}]\n",
        "defaults: [_self_, own]\n",
        "defaults: [null]\n",
        "a: ${a}\n",
        "a: ${\n",
    ),
    *(
        "{1: 2, null: 3, 1.5: 4}\n",
        "a: " + "[" * 100 + "]" * 100,
        "\ufeffa: 1\n",
        "a: \x00\n",
        "a: \x7f\n",
        "a: @b\n",
        "a: `b\n",
    ),
    "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else '1'}]\n" for n in range(12)),
)


@dataclass(frozen=True)
class Case:
    """A configuration to compose.

    Args:
        words: overrides of the command line.
        files: the person's own directory, as texts by path; empty: no `--config-dir`.
        changes: overrides of `sweep resume`, for a sweep that composed.
    """

    words: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The form in which failing cases are kept."""
        return json.dumps({"words": self.words, "files": dict(self.files), "changes": self.changes}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Case:
        """The case that `to_json` wrote."""
        raw = json.loads(text)
        return cls(tuple(raw["words"]), raw["files"], tuple(raw["changes"]))


def draw(seed: int) -> Case:
    """The case of a seed."""
    rng = random.Random(f"configuration {seed}")
    chosen = {group: rng.choice(names) for group, names in OPTIONS.items() if rng.random() < 0.2}
    chosen = {group: name for group, name in chosen.items() if name != OWN and group != "recipe"}
    files: dict[str, str] = {}
    words: list[str] = []
    changes: list[str] = []
    for kind in rng.choices(
        ("word", "domain", "file", "recipe", "text", "change"), (4, 3, 4, 3, 1, 2), k=rng.choice(FEW)
    ):
        if kind == "word":
            words.append(_word(rng))
        elif kind == "domain":
            words.append(f"{rng.choice(SPACES)}={rng.choice(DOMAINS)}")
        elif kind == "file":
            group = rng.choice(sorted(OPTIONS))
            files[f"{group}/{OWN}.yaml"] = _changed_file(rng, _shipped(rng, group))
            chosen[group] = OWN
        elif kind == "recipe":
            files[RECIPE] = _changed_file(rng, EMBEDDED)
            words.append(f"recipe.config=DIR/{RECIPE}")
        elif kind == "change":
            changes.append(_change(rng))
        elif words:
            at = rng.randrange(len(words))
            words[at] = _changed_text(rng, words[at])
    words += [f"{group}={name}" for group, name in chosen.items()]
    rng.shuffle(words)
    return Case(tuple(words), files, tuple(changes))


def _word(rng: random.Random) -> str:
    key = rng.choice(KEYS)
    value = rng.choice(DOMAINS if key.lstrip("+~").startswith("space") and rng.random() < 0.7 else VALUES)
    prefix = rng.choice(("", "", "", "", "+", "++", "~"))
    return f"{prefix}{key}={value}"


def _change(rng: random.Random) -> str:
    keys = [key for key in KEYS if key.startswith(("search.", "queue."))]
    return f"{rng.choice(keys)}={rng.choice(VALUES)}"


def _shipped(rng: random.Random, group: str) -> str:
    folder = launch_queues_dir() if group == "queue" else conf_dir() / group
    path = rng.choice(sorted(folder.glob("*.yaml")))
    return path.read_text(encoding="utf-8")


def _changed_file(rng: random.Random, text: str) -> str:
    way: Callable[[random.Random, str], str] = rng.choice(
        (_changed_tree, _changed_tree, _changed_text, _replaced, _same)
    )
    for _ in range(rng.choice((1, 1, 2, 4))):
        text = way(rng, text)
    return text


def _same(rng: random.Random, text: str) -> str:
    return text


def _replaced(rng: random.Random, text: str) -> str:
    """Another text in the place of the file, or at its end."""
    other = rng.choice(YAML_TEXTS)
    return other if rng.random() < 0.6 else f"{text}\n{other}"


def _changed_text(rng: random.Random, text: str) -> str:
    """The text with a piece put in, taken out, doubled or exchanged."""
    at = rng.randrange(len(text) + 1)
    until = min(len(text), at + rng.choice((0, 1, 1, 3, 10)))
    piece = rng.choice((rng.choice(TOKENS), rng.choice(VALUES), text[at:until] * 2, ""))
    return text[:at] + piece + text[until:]


def _changed_tree(rng: random.Random, text: str) -> str:
    """The YAML with a value exchanged, moved, nested or removed, or a key renamed."""
    header = next((line for line in text.splitlines() if line.startswith("# @")), "")
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return _changed_text(rng, text)
    places = list(_places(tree))
    if not places:
        return text
    holder, key = rng.choice(places)
    _change_at(rng, holder, key)
    try:
        return f"{header}\n{yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)}"
    except (yaml.YAMLError, RecursionError, TypeError):
        return text


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every value of a tree, as what holds it and its key there."""
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    return [place for key, value in items for place in ((tree, key), *_places(value))]


def _change_at(rng: random.Random, holder: Any, key: Any) -> None:
    way = rng.randrange(6)
    if way == 0:
        holder[key] = rng.choice(SCALARS)
    elif way == 1:
        holder[key] = rng.choice(VALUES)
    elif way == 2:
        holder[key] = rng.choice(({"a": holder[key]}, [holder[key]], {str(key): holder[key]}, str(holder[key])))
    elif way == 3:
        del holder[key]
    elif way == 4 and isinstance(holder, dict):
        holder[rng.choice((f"{key}x", f"+{key}", f"{key}.x", 1, "", "a b", "数"))] = holder.pop(key)
    else:
        holder[key] = rng.choice(DOMAINS)


def written(case: Case, directory: Path) -> Path | None:
    """Write the files of a case below a directory; returns it, or None if there are none."""
    for name, text in case.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.replace("EMBEDDED", str(embedded_dir())).encode("utf-8", "surrogatepass"))
    return directory if case.files else None
