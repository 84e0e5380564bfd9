"""Words of a command line and files of a person's own: taken as they are meant, or refused in one sentence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sweep.cli.main import main
from sweep.cli.start import compose
from sweep.config.overrides import MAX_WORD
from sweep.errors import ConfigError
from sweep.resources import embedded_dir
from sweep.wiring.compose import MAX_NAME_BYTES
from sweep.wiring.rooms import change_settings, load_settings, save_settings
from trainer.room import Room

# Names of directories with every character that a shell, a YAML or Hydra's grammar gives a meaning.
NAMES = (
    *(
        "ünï",
        "数据",
        "a,b",
        "[a]",
        "a b",
        "it's",
        'q"q',
        "a=b",
        "a#b%c",
        "{a}",
        "~t",
        "(x)",
        "a:b",
        "a;b&c|d",
        "$x",
        "é*?",
    ),
    *("a@b", "null", "-x", "a'b\"c", "\\x", "😀"),
)


def said(*words: str, own: Path | None = None) -> str:
    """The one sentence by which these words are refused."""
    with pytest.raises(ConfigError) as caught:
        compose(words, own)
    text = str(caught.value)
    assert text.strip()
    assert len(text) < 1000
    return text


@pytest.mark.parametrize("name", NAMES)
def test_any_character_may_stand_in_a_path(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    (folder / "space").mkdir(parents=True)
    (folder / "space" / "mine.yaml").write_text(
        "# @package _global_\nspace:\n  model.lora_rank: choice(4, 8)\n", encoding="utf-8"
    )
    shutil.copy(embedded_dir() / "lora_cpu.yaml", folder / "r.yaml")
    words = ("space=mine", f"recipe.config={folder}/r.yaml", f"storage=sqlite:///{folder}/s.db")
    settings = compose(words, folder).settings
    assert settings.space_raw == {"model.lora_rank": "choice(4, 8)"}
    assert settings.recipe.config == f"{folder}/r.yaml"
    assert settings.storage == f"sqlite:///{folder}/s.db"


def test_texts_need_no_quotes_and_may_have_them() -> None:
    settings = compose(["wandb.project=a,b", "wandb.group='c d'", "name=1e3", "wandb.tags=[x, 'y z']"], None).settings
    assert (settings.wandb.project, settings.wandb.group, settings.name) == ("a,b", "c d", "1e3")
    assert settings.wandb.tags == ["x", "y z"]


@pytest.mark.parametrize("text", ["choice(null, 1.0)", "null,1.0", "choice(1.0, null)"])
def test_null_is_a_choice(text: str) -> None:
    space = compose([f"space.clip_grad_norm={text}"], None).settings.space
    assert set(space["clip_grad_norm"].domain.values) == {None, 1.0}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("sampler=[null]", ["sampler=[null] names no option"]),
        ("sampler={_target_: x}", ["names no option"]),
        ("sampler=null", ["sampler=null"]),
        ("sampler=nope", ["sampler=nope does not exist; allowed: cma_es, forecast"]),
        ("recipe=[a, b]", ["recipe=", "does not exist"]),
        ("sampler._partial_=2", ["sampler._partial_ is no argument"]),
        ("storage=12:30:00", ["storage=12:30:00 must be an Optuna URL"]),
        ("storage=[1]", ["storage=[1] must be an Optuna URL"]),
        ("search=1", ["search", "search.KEY=VALUE"]),
        ("search={a: 1}", ["search is a section", "search.KEY=VALUE"]),
        ("space.optimizer.lr=choice(choice(1, 2), 3)", ["space.optimizer.lr", "a value of a choice cannot vary"]),
        ("space.optimizer.lr=interval(-1.7e308, 1.7e308)", ["space.optimizer.lr", "between -1e+100 and 1e+100"]),
        ("space.optimizer.lr=interval(1e308, 1.7e308)", ["between -1e+100 and 1e+100"]),
        ("space.optimizer.lr=tag(log, interval(5e-324, 1))", ["at least 1e-100"]),
        ("space.optimizer.lr=range(0, 1, 1e-300)", ["more steps than"]),
        ("space.epochs=int(interval(0, 1e30))", ["9,007,199,254,740,992"]),
        (f"space.epochs=range(1, {'9' * 400})", ["space.epochs"]),
        ("space.optimizer.lr=int('x')", ["space.optimizer.lr=int('x') cannot be read", "invalid literal"]),
        ("space.optimizer.lr=choice(数, 1)", ["the character '数' must stand within quotes"]),
        ("search.trials=数", ["search.trials", "'数'"]),
        ("search.trials=int('x')", ["search.trials=int('x') cannot be read"]),
        (f"space.epochs={'[' * 60}1{']' * 60}", ["nested more than"]),
        (f"search.trials={'[' * 400}1{']' * 400}", ["search.trials"]),
        ("derive.batch_size=${floordiv:1,0}", ["batch_size", "integer division or modulo by zero"]),
        ("derive.batch_size=${int:x}", ["batch_size", "invalid literal for int()"]),
        ("derive.batch_size=${pow:10,1000000000}", ["batch_size", "more than 1024 bits"]),
        ("derive.batch_size=${mul:a,100000000000}", ["batch_size", "mul takes two numbers"]),
        ("name=${oc.env:NOPE_OF_THIS_TEST}", ["name", "NOPE_OF_THIS_TEST"]),
        ("controller=${a.b}", ["controller", "a.b"]),
        (f"name={'a' * 300}", ["has 300 bytes", str(MAX_NAME_BYTES)]),
        (f"name={'数' * 43}", ["has 129 bytes"]),
        ("evaluate.kind=[]", ["evaluate.kind=[] is not allowed"]),
        ("queue.kind=[1, 2]", ["queue.kind=[1, 2] is not allowed"]),
        ("queue.poll_seconds=.inf", ["queue.poll_seconds=inf is not allowed"]),
        ("search.target=nan", ["search.target=nan is not allowed"]),
        ("recipe.overrides.seed=\udcff", ["no UTF-8"]),
        ("name=a\x07b", ["control character"]),
        (f"name={'a' * (MAX_WORD + 1)}", ["write what is longer", "into a file"]),
        (f"recipe.config={'a' * 5000}", ["is no file"]),
        ("recipe.config=~nobody_of_this_machine/x.yaml", ["is no file"]),
        ("recipe.config=a\tb", ["is no file"]),
    ],
    ids=lambda value: value[:40].encode("ascii", "replace").decode() if isinstance(value, str) else "",
)
def test_a_word_that_is_refused(word: str, words: list[str]) -> None:
    text = said(word)
    for part in words:
        assert part in text, text


@pytest.mark.parametrize("length", [1, MAX_NAME_BYTES])
def test_the_longest_name_fits_into_a_room(length: int, rooms: Path) -> None:
    settings = compose([f"name={'a' * length}"], None).settings
    room = Room(rooms / settings.name)
    room.root.mkdir(parents=True)
    save_settings(room, settings)
    assert load_settings(room).name == settings.name


FILES = {
    "experiment": "# @package _global_\nsearch:\n\ttrials: 3\n",
    "space": "# @package _global_\nspace:\n  model.lora_rank: choice(4, 8\n  optimizer.lr: [1e-4\n",
    "pruner": "_target_: optuna.pruners.NopPruner\n_target_: optuna.pruners.MedianPruner\n",
    "queue": "kind: local\nworkers: 2\n slots: 1\n",
    "recipe": "config: 'x\n",
    "sampler": "seed: @1\n",
    "evaluate": "kind: [none\n",
    "objective": "metric: \x07\n",
    "wandb": "mode: {a: 1\n",
    "prior": "a: *b\n",
}


@pytest.mark.parametrize("group", FILES)
def test_a_mistake_in_the_yaml_of_any_group_names_file_line_and_column(group: str, tmp_path: Path) -> None:
    path = tmp_path / group / "own.yaml"
    path.parent.mkdir()
    path.write_text(FILES[group], encoding="utf-8")
    text = said(f"{group}=own", own=tmp_path)
    assert text.startswith(f"{path}, line ")
    assert ", column " in text


@pytest.mark.parametrize("group", FILES)
@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "- a\n",
        "text\n",
        "defaults: x\n",
        "defaults: [{a: 1, b: 2}]\n",
        "defaults: [1]\n",
        "defaults: [null]\n",
        "defaults: [{override /space: nope}]\n",
        "# @package a b c\na: 1\n",
        "a: " + "[" * 300 + "]" * 300 + "\n",
        "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else '1'}]\n" for n in range(12)),
    ],
    ids=lambda text: text[:12].strip(),
)
def test_a_file_of_another_kind_is_named(group: str, content: str, tmp_path: Path) -> None:
    (tmp_path / group).mkdir()
    (tmp_path / group / "own.yaml").write_text(content, encoding="utf-8")
    text = said(f"{group}=own", own=tmp_path)
    assert "own" in text or "nope" in text


def test_a_mistake_in_a_recipe_names_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model:\n  a: 1\n  a: 2\n", encoding="utf-8")
    text = said(f"recipe.config={path}")
    assert text.startswith(f"{path}, line 3, column 3: found duplicate key a")


def test_the_directory_of_another_program_is_no_mistake() -> None:
    assert compose(["name=a"], Path("/etc")).settings.name == "a"


@pytest.mark.parametrize(
    "change", ["search.trials=${a}", "search.trials=${oc.env:NOPE}", "search.trials=${", "search.a"]
)
def test_a_change_that_holds_an_interpolation(change: str, rooms: Path) -> None:
    room = Room(rooms / "a")
    room.root.mkdir(parents=True)
    save_settings(room, compose(["name=a"], None).settings)
    with pytest.raises(ConfigError) as caught:
        change_settings(room, [change])
    assert "search" in str(caught.value)


# --- the directory of the rooms -----------------------------------------------------------------------------------


def test_rooms_that_are_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    for place, what in (("file", "is a file"), ("file/below", "is a file"), ("nowhere", "leads nowhere")):
        monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / place))
        for words in (["run", "name=a"], ["status"], ["plan", "--no-measure"]):
            assert main(words) == 2
            text = capsys.readouterr().err.splitlines()[-1]
            assert text.startswith("sweep: the directory of the rooms")
            assert what in text


def test_rooms_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWEEP_ROOMS", "/proc/sweeps" if os.geteuid() == 0 else str(tmp_path / "closed/sweeps"))
    (tmp_path / "closed").mkdir(mode=0o500)
    assert main(["run", "name=a", "objective.milestone_tokens=100"]) == 2
    assert "cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["100000", "-1", "x"])
def test_the_samples_of_a_plan_are_bounded(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--no-measure", "-n", count]) == 2
    assert "-n" in capsys.readouterr().err
