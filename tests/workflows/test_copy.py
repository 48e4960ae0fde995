"""`instance-motion copy`, and the commands that read what it wrote, against a real object store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig
from pipeline.remask import remask
from pipeline.shards.manifest import read_manifest
from pipeline.shards.reader import ShardSet
from tests.conftest import ROOT
from tests.object_store import Proxy, files, new_url, object_store, objects
from workflows.cli import main

STORED = ROOT / "tests" / "pipeline" / "shards" / "stored" / "v1"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    with object_store(monkeypatch, tmp_path / "cache") as proxy:
        yield proxy


def out_of(capsys: pytest.CaptureFixture[str], *line: object) -> str:
    """Standard output of a command that succeeds."""
    capsys.readouterr()
    code = main(list(map(str, line)))
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def error_of(capsys: pytest.CaptureFixture[str], *line: object) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert main(list(map(str, line))) != 0
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    return errors


def test_a_set_goes_to_the_store_and_back_unchanged(
    store: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, back = new_url(), tmp_path / "back"
    report = json.loads(out_of(capsys, "copy", STORED, url, "--json", "--quiet"))
    total = sum(len(data) for name, data in files(STORED).items() if name.endswith(".h5"))
    assert report == {
        "destination": url,
        "files": 12,
        "copied": 12,
        "bytes": total,
        "layers": ["default", "large"],
    }
    assert objects(url) == files(STORED)
    assert [each for each in store.requests if each.startswith("PUT")][-1].endswith("/shardset.json")
    out_of(capsys, "copy", url, back, "--quiet")
    assert files(back) == files(STORED)
    store.requests.clear()
    line = out_of(capsys, "copy", STORED, url, "--quiet")
    assert line == f"{url}: 0 of 12 files copied, 0.0 MB, 12 were there; masks: default, large\n"
    assert not [each for each in store.requests if each.startswith("PUT")]
    assert "0 of 12 files copied" in out_of(capsys, "copy", url, back, "--quiet")


def test_layers_can_be_chosen_and_added_later(
    store: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = new_url()
    out_of(capsys, "copy", STORED, url, "--layer", "large", "--quiet")
    assert sorted(read_manifest(url).masks) == ["large"]
    assert not [name for name in objects(url) if name.startswith("masks/default")]
    store.requests.clear()
    report = json.loads(out_of(capsys, "copy", STORED, url, "--json", "--quiet"))
    assert (report["files"], report["copied"]) == (12, 3)
    assert objects(url) == files(STORED)
    out_of(capsys, "copy", url, tmp_path / "set", "--layer", "default", "--quiet")
    assert sorted(read_manifest(tmp_path / "set").masks) == ["default"]
    assert "no masks layer 'none'; there are: default, large" in error_of(
        capsys, "copy", STORED, url, "--layer", "none", "--quiet"
    )


def test_a_layer_of_the_same_name_with_other_settings_is_refused(
    store: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, source = new_url(), Path(shutil.copytree(STORED, tmp_path / "set"))
    out_of(capsys, "copy", source, url, "--quiet")
    remask(source, "large", MaskConfig(min_area=5), GraphConfig(workers=0), replace_layer=True, quiet=True)
    line = error_of(capsys, "copy", source, url, "--quiet")
    assert "has a masks layer 'large' with other settings or bytes; copy other layers (--layer)" in line
    assert objects(url) == files(STORED)
    assert "cannot be copied onto itself" in error_of(capsys, "copy", url, f"{url}/", "--quiet")


def test_commands_say_of_a_url_what_they_say_of_a_folder(
    store: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, local = new_url(), Path(shutil.copytree(STORED, tmp_path / "set"))
    out_of(capsys, "copy", STORED, url, "--quiet")
    for line in (("inspect", "--json"), ("verify", "--json", "--quiet")):
        assert out_of(capsys, line[0], url, *line[1:]) == out_of(capsys, line[0], local, *line[1:])
    settings = ("--name", "strict", "--min-score", "0.8", "--workers", "0", "--json", "--quiet")
    assert out_of(capsys, "remask", url, *settings) == out_of(capsys, "remask", local, *settings)
    assert objects(url) == files(local)
    other = ("--name", "soft", "--mask-probability", "0.3", "--workers", "2", "--json", "--quiet")
    assert out_of(capsys, "remask", url, *other) == out_of(capsys, "remask", local, *other)
    assert objects(url) == files(local)  # flow was computed again, by workers, on what they had fetched
    for place in (url, local):
        assert main(["evaluate", "leaks", str(place), str(local), "--json"]) in (0, 1)


def test_sets_at_urls_are_trained_on_predicted_and_reported(
    store: Proxy, street_shards: Path, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, run = new_url(), tmp_path / "run"
    out_of(capsys, "copy", street_shards, url, "--quiet")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""
steps: 2
checkpoint_every: 2
data:
  shards: [{{folder: '{url}', weight: 2.0}}, {{folder: {street_shards}}}]
  frames: 2
  size: [104, 32]
  batch_size: 2
  workers: 1
networks: {{depth: {{width: 0.25}}, ego: {{width: 0.25}}, objects: {{width: 0.25}}}}
""")
    out_of(capsys, "train", "--out", run, "--recipe", recipe, "--quiet")
    assert url in (run / "config.yaml").read_text()
    out_of(capsys, "train", "--out", run, "--recipe", recipe, "--steps", 4, "--resume", "--quiet")
    for name, place in (("remote", url), ("local", street_shards)):
        out_of(capsys, "predict", run, place, tmp_path / name, "--quiet")
    names = sorted(path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*.*"))
    for name in names:
        assert (tmp_path / "remote" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    assert len(names) > 3
    tracks = [
        out_of(capsys, "evaluate", "tracks", place, streets, "--json") for place in (url, street_shards)
    ]
    assert tracks[0] == tracks[1]
    motion = ("--shards", url, "--quiet")
    assert "object" in out_of(capsys, "evaluate", "motion", run, streets, *motion)
    given = ("--predictions", tmp_path / "remote", "--shards", url, "--truth", streets)
    out_of(capsys, "report", run, "--out", tmp_path / "page.html", *given)
    assert f"predict {run} {url}" in (tmp_path / "page.html").read_text()
    store.requests.clear()
    out_of(capsys, "train", url, "--out", tmp_path / "again", "--recipe", recipe, "--quiet")
    with ShardSet(url) as shards:
        assert shards.manifest == read_manifest(street_shards)
    assert not [each for each in store.requests if each.endswith(".h5")]  # all of it was in the cache
