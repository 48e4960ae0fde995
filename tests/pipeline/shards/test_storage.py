"""Locations, and shard sets read from other places than a local folder."""

from __future__ import annotations

import http.server
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import tyro
import yaml

from pipeline.configuration import from_dict, to_dict
from pipeline.copy import copy_set
from pipeline.errors import ConfigError, ShardError
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig
from pipeline.remask import remask
from pipeline.shards.cache import CacheConfig
from pipeline.shards.manifest import MANIFEST, read_manifest
from pipeline.shards.reader import ShardSet
from pipeline.shards.storage import (
    LocalFolder,
    Location,
    ObjectStore,
    location_name,
    open_store,
    parse_location,
)
from pipeline.shards.verify import verify_clip, verify_files
from tests.conftest import ROOT
from tests.faults.readers import read_all
from tests.faults.table import Fault
from training.data import DataConfig, ShardSource
from workflows.locations import ShardLocation

STORED = Path(__file__).parent / "stored" / "v1"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTANCE_MOTION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A plain web server with STORED; it lists no folder."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def list_directory(self, path: object) -> None:
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Handler, directory=str(STORED.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/{STORED.name}"
        running.shutdown()


@pytest.mark.parametrize(
    ("text", "location", "name"),
    [
        ("kitti", Path("kitti"), "kitti"),
        ("shards/kitti/", Path("shards/kitti"), "kitti"),
        ("/data/s3:/kitti", Path("/data/s3:/kitti"), "kitti"),
        ("a::b", Path("a::b"), "a::b"),
        ("file:///data/kitti", Path("/data/kitti"), "kitti"),
        ("s3://bucket/kitti", "s3://bucket/kitti", "kitti"),
        ("s3://bucket/kitti//", "s3://bucket/kitti", "kitti"),
        ("memory://kitti", "memory://kitti", "kitti"),
        ("https://host/a/kitti", "https://host/a/kitti", "kitti"),
        (Path("kitti"), Path("kitti"), "kitti"),
    ],
)
def test_text_is_a_folder_or_a_url(text: str | Path, location: Location, name: str) -> None:
    found = parse_location(text)
    assert (found, type(found) is str) == (location, isinstance(location, str))
    assert parse_location(found) == found
    assert location_name(found) == name


@pytest.mark.parametrize("text", ["s3://", "s3:///", Path("s3://bucket/kitti")])
def test_what_names_no_place_is_refused(text: str | Path) -> None:
    with pytest.raises(ConfigError, match=r"s3://"):
        parse_location(text)


def test_the_command_line_takes_both_and_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    def parse(
        sets: tyro.conf.Positional[tuple[ShardLocation, ...]], other: ShardLocation | None = None
    ) -> object:
        return sets, other

    line = ["s3://bucket/kitti/", "shards/", "--other", "gs://b/k"]
    assert tyro.cli(parse, args=line) == (("s3://bucket/kitti", Path("shards")), "gs://b/k")
    assert tyro.cli(parse, args=["none"]) == ((Path("none"),), None)
    with pytest.raises(SystemExit):
        tyro.cli(parse, args=["--help"])
    assert "FOLDER|URL" in capsys.readouterr().out


def test_settings_keep_urls_and_folders_through_files() -> None:
    config = DataConfig(shards=(ShardSource(Path("a")), ShardSource("s3://bucket/kitti/", weight=2.0)))
    assert config.shards[1].folder == "s3://bucket/kitti"
    text = yaml.safe_dump(to_dict(config))
    assert from_dict(DataConfig, yaml.safe_load(text)) == config
    recipe = "shards: [{folder: a}, {folder: 's3://bucket/kitti', weight: 2.0}]"
    assert from_dict(DataConfig, yaml.safe_load(recipe)) == config


def test_a_local_set_loads_no_driver_and_makes_no_cache(cache: Path) -> None:
    script = (
        "import sys; from pipeline.shards.reader import ShardSet; "
        f"s = ShardSet({str(STORED)!r}); s.image(s.manifest.clips[0], 0); "
        "assert not {'fsspec', 's3fs', 'aiohttp', 'torch', 'dask'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not cache.exists()


def test_a_set_in_memory_is_read_and_copied_as_a_local_one(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/set"
    copy_set(STORED, url, quiet=True)
    with ShardSet(url) as shards, ShardSet(STORED) as local:
        assert read_all(shards) == read_all(local)
        assert shards.name == "set"
        assert [finding for _, finding in verify_files(shards) if finding] == []
    copy_set(url, tmp_path / "back", quiet=True)
    assert read_manifest(tmp_path / "back") == read_manifest(STORED)
    with pytest.raises(ShardError, match=f"memory://{tmp_path.name}/none: no shard set"):
        ShardSet(f"memory://{tmp_path.name}/none")


def test_a_set_on_a_web_server_is_read_and_verified(server: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    with ShardSet(server) as shards, ShardSet(STORED) as local:
        assert read_all(shards) == read_all(local)
        found = [finding for _, finding in verify_files(shards)]
        found += [each for clip in shards.manifest.clips for each in verify_clip(shards, clip)]
        assert not [each for each in found if each]
    copy_set(server, tmp_path / "back", quiet=True)
    assert (tmp_path / "back" / MANIFEST).read_bytes() == (STORED / MANIFEST).read_bytes()
    with pytest.raises(ShardError, match=f"{server}/none: no shard set"):
        ShardSet(f"{server}/none")
    entry = read_manifest(server).masks[
        "default"
    ]  # is left as it is, though the server cannot list its files
    config = from_dict(MaskConfig, entry.config, "masks")
    assert remask(server, "default", config, GraphConfig(workers=0), quiet=True) == entry


@pytest.mark.fault(Fault.STORAGE)
@pytest.mark.parametrize("cuts", [1, 9])
def test_a_connection_that_is_cut_is_tried_again_but_not_for_ever(tmp_path: Path, cuts: int) -> None:
    pytest.importorskip("aiohttp")
    data, asked = b"x" * 100_000, []

    class Cutting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: 5000 if len(asked) <= cuts else None])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cutting) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/set"
        store = ObjectStore(url)
        if cuts == 1:
            store.fetch("frames/00000.h5", tmp_path / "file")
            assert (tmp_path / "file").read_bytes() == data
            assert len(asked) == 2
        else:
            with pytest.raises(
                ShardError, match=f"{url}/frames/00000.h5: .* then run the same command again"
            ):
                store.fetch("frames/00000.h5", tmp_path / "file")
            assert len(asked) == 4
        running.shutdown()


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("gs://bucket/kitti", "the driver for gs:// is not installed; `pip install gcsfs`"),
        ("nope://host/kitti", "Protocol not known: nope; expected a folder, s3://, gs:// or http://"),
    ],
)
def test_a_url_without_a_driver_is_one_line_with_the_remedy(url: str, line: str) -> None:
    if url.startswith("gs:") and importlib.util.find_spec("gcsfs"):
        pytest.skip("the driver is installed here")
    with pytest.raises(ShardError) as raised:
        ShardSet(url)
    assert str(raised.value) == f"{url}: {line}"


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INSTANCE_MOTION_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("INSTANCE_MOTION_CACHE_GB", "2.5")
    assert CacheConfig.from_environment() == CacheConfig(folder=tmp_path / "here", limit_gb=2.5)
    monkeypatch.delenv("INSTANCE_MOTION_CACHE")
    monkeypatch.delenv("INSTANCE_MOTION_CACHE_GB")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert CacheConfig.from_environment() == CacheConfig(folder=tmp_path / "xdg" / "instance-motion")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by its specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert CacheConfig.from_environment().folder == tmp_path / "home" / ".cache" / "instance-motion"


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "much"])
def test_a_limit_that_is_no_positive_number_is_refused(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("INSTANCE_MOTION_CACHE_GB", limit)
    with pytest.raises(ConfigError, match="INSTANCE_MOTION_CACHE_GB must be a positive number"):
        ShardSet("memory://any/set")


def test_both_kinds_of_store_agree(tmp_path: Path) -> None:
    local, remote = open_store(tmp_path), open_store(f"memory://{tmp_path.name}/agree")
    assert isinstance(local, LocalFolder)
    assert isinstance(remote, ObjectStore)
    for store in (local, remote):
        assert store.sizes("frames") == {}
        store.write("frames/00000.h5", b"12345")
        store.write("frames/other.txt", b"1")
        assert store.sizes("frames") == {"00000.h5": 5}
        assert store.read("frames/00000.h5", 5) == b"12345"
        assert store.read("frames/00000.h5", 2) == b"123"  # enough to see that it is too long
        store.remove("frames/00000.h5")
        store.remove("frames/00000.h5")
        assert store.sizes("frames") == {}
        with pytest.raises(ShardError, match=r"frames/00000.h5: missing"):
            store.read("frames/00000.h5", 5)
