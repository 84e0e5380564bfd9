"""Artifacts: files, references, aliases, metadata, lineage, and the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.standin.server import StandIn

pytestmark = pytest.mark.slow


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    (tmp_path / "adapter" / "weights.bin").write_bytes(bytes(1000))
    return tmp_path / "adapter"


def log(wandb_here: Any, run: Any, adapter: Path, aliases: list[str], **metadata: object) -> Any:
    artifact = wandb_here.Artifact("adapters", type="model", metadata=metadata)
    artifact.add_dir(str(adapter))
    return run.log_artifact(artifact, aliases=aliases).wait()


def test_files_metadata_and_aliases(standin: StandIn, wandb_here: Any, adapter: Path, tmp_path: Path) -> None:
    with wandb_here.init(project="p", id="one") as run:
        log(wandb_here, run, adapter, ["trial-1", "best"], seed=1, val_loss=2.5)
    told = standin.artifacts["team/p/adapters:v0"]
    assert (told.type, told.metadata, told.logged_by) == ("model", {"seed": 1, "val_loss": 2.5}, "team/p/one")
    assert standin.aliases(told) == {"latest", "trial-1", "best"}
    assert set(standin.manifest(told)) == {"adapter_config.json", "weights.bin"}
    assert standin.content(told, "weights.bin") == bytes(1000)
    read = wandb_here.Api().artifact("team/p/adapters:best")
    assert (read.version, read.metadata["seed"]) == ("v0", 1)
    assert {path.name for path in Path(read.download(str(tmp_path / "back"))).iterdir()} == set(standin.manifest(told))


def test_an_alias_moves_to_the_next_version(standin: StandIn, wandb_here: Any, adapter: Path) -> None:
    with wandb_here.init(project="p", id="one") as run:
        log(wandb_here, run, adapter, ["trial-1", "best"])
        (adapter / "weights.bin").write_bytes(bytes(1001))
        log(wandb_here, run, adapter, ["trial-2", "best"])
    first, second = (standin.artifacts[f"team/p/adapters:v{index}"] for index in range(2))
    assert (standin.aliases(first), standin.aliases(second)) == ({"trial-1"}, {"trial-2", "best", "latest"})


def test_the_same_files_are_the_same_version(standin: StandIn, wandb_here: Any, adapter: Path) -> None:
    with wandb_here.init(project="p", id="one") as run:
        log(wandb_here, run, adapter, ["trial-1"])
        log(wandb_here, run, adapter, ["again"])
    assert list(standin.artifacts) == ["team/p/adapters:v0"]
    assert standin.aliases(standin.artifacts["team/p/adapters:v0"]) == {"latest", "trial-1", "again"}


def test_what_is_saved_later(standin: StandIn, wandb_here: Any, adapter: Path) -> None:
    with wandb_here.init(project="p", id="one") as run:
        log(wandb_here, run, adapter, ["trial-1"])
    read = wandb_here.Api().artifact("team/p/adapters:trial-1")
    read.aliases.append("best")
    read.aliases.remove("trial-1")
    read.metadata["perplexity"] = 7.5
    read.description = "the best one"
    read.save()
    told = standin.artifacts["team/p/adapters:v0"]
    assert standin.aliases(told) == {"latest", "best"}
    assert (told.metadata, told.description) == ({"perplexity": 7.5}, "the best one")


def test_lineage_says_which_data_and_base_made_which_adapter(standin: StandIn, wandb_here: Any, adapter: Path) -> None:
    data = wandb_here.Artifact("alpaca", type="dataset")
    data.add_reference("s3://bucket/alpaca.json", checksum=False)
    with wandb_here.init(project="p", id="one") as run:
        run.use_artifact(data)
        log(wandb_here, run, adapter, [])
    with wandb_here.init(project="p", id="two") as run:
        run.use_artifact("alpaca:latest")
    told = standin.artifacts["team/p/alpaca:v0"]
    assert [entry["ref"] for entry in standin.manifest(told).values()] == ["s3://bucket/alpaca.json"]
    assert told.used_by == ["team/p/one", "team/p/two"]
    api = wandb_here.Api()
    assert api.artifact("team/p/adapters:v0").logged_by().id == "one"
    assert [run.id for run in api.artifact("team/p/alpaca:v0").used_by()] == ["one", "two"]
    assert [found.name for found in api.run("team/p/one").used_artifacts()] == ["alpaca:v0"]
    assert [found.name for found in api.run("team/p/one").logged_artifacts()] == ["adapters:v0"]


def test_a_registry_collection(standin: StandIn, wandb_here: Any, adapter: Path) -> None:
    with wandb_here.init(project="p", id="one") as run:
        artifact = log(wandb_here, run, adapter, ["best"])
        run.link_artifact(artifact, "wandb-registry-model/adapters-of-ours", aliases=["champion"])
    portfolio = standin.collections["org/wandb-registry-model/adapters-of-ours"]
    assert [member.aliases for member in portfolio.members] == [["champion", "latest"]]
    api = wandb_here.Api()
    linked = api.artifact("wandb-registry-model/adapters-of-ours:champion")
    assert linked.is_link
    assert (linked.source_name, linked.name) == ("adapters:v0", "adapters-of-ours:champion")
    names = {found.name for found in api.artifact("team/p/adapters:best").linked_artifacts}
    assert names == {"adapters-of-ours:v0"}


def test_a_link_made_by_the_api(standin: StandIn, wandb_here: Any, adapter: Path) -> None:
    with wandb_here.init(project="p", id="one") as run:
        log(wandb_here, run, adapter, ["best"])
    artifact = wandb_here.Api().artifact("team/p/adapters:best")
    artifact.link("wandb-registry-model/mine", aliases=["first"])
    artifact.link("wandb-registry-model/mine", aliases=["again"])
    members = standin.collections["org/wandb-registry-model/mine"].members
    assert [(member.version, member.aliases) for member in members] == [(0, ["first", "latest", "again"])]


def test_a_registry_that_is_not_there(standin: StandIn, wandb_here: Any, adapter: Path) -> None:
    with wandb_here.init(project="p", id="one") as run:
        artifact = log(wandb_here, run, adapter, ["best"])
        with pytest.raises(Exception, match="wandb-registry-nowhere not found"):
            run.link_artifact(artifact, "wandb-registry-nowhere/adapters")
    assert "org/wandb-registry-nowhere/adapters" not in standin.collections


def test_registries_are_found_and_made(standin: StandIn, wandb_here: Any) -> None:
    api = wandb_here.Api()
    assert {registry.name for registry in api.registries(organization="org")} == {"model", "dataset"}
    api.create_registry(name="lora", visibility="organization", organization="org")
    assert api.registry("lora", organization="org").full_name == "wandb-registry-lora"


def test_a_used_artifact_that_is_not_there(standin: StandIn, wandb_here: Any) -> None:
    with wandb_here.init(project="p", id="one") as run, pytest.raises(wandb_here.errors.CommError):
        run.use_artifact("nothing:latest")
    assert standin.artifacts == {}
