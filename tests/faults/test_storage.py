"""Object stores that fail, lie or vanish, caches that are damaged or full: nothing is lost, nothing wrong is read.

The store is real (tests/object_store.py), and so is whatever kills, cuts or damages.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.copy import copy_set
from pipeline.errors import BuildError, ShardError
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig
from pipeline.remask import remask
from pipeline.shards.cache import WHOLE_NS, CacheConfig, FileCache
from pipeline.shards.manifest import read_manifest
from pipeline.shards.reader import ShardSet
from pipeline.shards.storage import ObjectStore
from pipeline.shards.verify import verify_files
from tests.builds import command
from tests.conftest import ROOT
from tests.faults.readers import read_all
from tests.faults.table import Fault
from tests.object_store import BUCKET, Proxy, entries, files, new_url, object_store, objects, s3, wait_for

pytestmark = pytest.mark.fault(Fault.STORAGE)

STORED = Path(__file__).parents[1] / "pipeline" / "shards" / "stored" / "v1"
FIRST = "frames/00000.h5"
HERE = GraphConfig(workers=0)
READ = """
import sys
from pipeline.shards.reader import ShardSet
from tests.faults.readers import read_all
print(len(read_all(ShardSet(sys.argv[1]))))
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Proxy]:
    with object_store(monkeypatch, cache) as proxy:
        yield proxy


@pytest.fixture
def url(store: Proxy) -> str:
    """A copy of STORED."""
    place = new_url()
    copy_set(STORED, place, quiet=True)
    store.requests.clear()
    return place


def start(*line: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(map(str, line)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def read_in_child(url: str) -> subprocess.Popen[str]:
    return start(sys.executable, "-c", READ, url)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def put(url: str, name: str, data: bytes) -> None:
    s3().pipe_file(f"{url.removeprefix('s3://')}/{name}", data)  # type: ignore[attr-defined]


def entry_path(cache: Path, name: str = FIRST) -> Path:
    sha256 = read_manifest(STORED).frames[name.removeprefix("frames/")].sha256
    return cache / sha256[:2] / f"{sha256}.h5"


def test_a_killed_upload_is_no_shard_set_and_goes_on_to_the_same_bytes(store: Proxy) -> None:
    url = new_url()
    trouble = store.trouble("PUT", "masks/default/00001.h5")
    process = start(*command("copy", STORED, url, "--threads", "1", "--quiet", workers=None))
    trouble.wait()
    kill(process)
    there = objects(url)
    assert 6 < len(there) < 12  # frames and evidence, the note, and no more
    assert "shardset.json" not in there
    with pytest.raises(ShardError, match="an unfinished copy; run the same `instance-motion copy` again"):
        ShardSet(url)
    store.requests.clear()
    report = copy_set(STORED, url, quiet=True)
    assert objects(url) == files(STORED)  # the note is gone as well
    assert report.copied == report.files - (len(there) - 1)
    assert store.count("PUT", FIRST) == 0


def test_objects_of_a_layer_made_again_since_do_not_pass_for_the_new_ones(
    store: Proxy, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(STORED, tmp_path / "set"))
    url = new_url()
    trouble = store.trouble("PUT", "masks/large/00000.h5")
    process = start(*command("copy", source, url, "--threads", "1", "--quiet", workers=None))
    trouble.wait()
    kill(process)
    old = objects(url)["masks/default/00000.h5"]
    remask(source, "default", MaskConfig(min_score=0.7), HERE, replace_layer=True, quiet=True)
    new = (source / "masks/default/00000.h5").read_bytes()
    assert len(old) == len(new)  # what looks at sizes alone is misled
    assert old != new
    trouble = store.trouble("PUT", "masks/default/00000.h5")
    process = start(*command("copy", source, url, "--threads", "1", "--quiet", workers=None))
    trouble.wait()  # the note speaks of the new layer; none of its objects is there
    kill(process)
    copy_set(source, url, quiet=True)
    assert objects(url) == files(source)


def test_an_object_of_the_right_size_that_no_list_speaks_of_is_written_again(store: Proxy) -> None:
    url, data = new_url(), (STORED / FIRST).read_bytes()
    put(url, FIRST, data[::-1])
    assert copy_set(STORED, url, quiet=True).copied == 12
    assert objects(url) == files(STORED)


def test_objects_from_before_do_not_pass_for_those_of_a_copy_that_was_killed(store: Proxy) -> None:
    """As another machine built the set: of the same sizes, of other bytes."""
    url = new_url()
    for name, data in files(STORED).items():
        if name.endswith(".h5"):
            put(url, name, data[::-1])
    trouble = store.trouble("PUT", "masks/default/00001.h5")
    process = start(*command("copy", STORED, url, "--threads", "1", "--quiet", workers=None))
    trouble.wait()
    kill(process)
    copy_set(STORED, url, quiet=True)
    assert objects(url) == files(STORED)


def damage(data: bytes) -> dict[str, bytes | None]:
    middle = len(data) // 2
    return {
        "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "cut": data[:middle],
        "longer": data + b"more",
        "gone": None,
    }


@pytest.mark.parametrize("kind", ["flipped", "cut", "longer", "gone"])
def test_a_damaged_object_is_named_is_never_cached_and_is_mended_by_copying_again(
    url: str, cache: Path, kind: str
) -> None:
    bad = damage(objects(url)[FIRST])[kind]
    if bad is None:
        s3().rm_file(f"{url.removeprefix('s3://')}/{FIRST}")  # type: ignore[attr-defined]
    else:
        put(url, FIRST, bad)
    assert objects(url).get(FIRST) == bad
    with ShardSet(url) as shards:
        with pytest.raises(ShardError, match=f"{url}/{FIRST}: ") as raised:
            shards.image(shards.clip("first"), 0)
        found = [finding.where for _, finding in verify_files(shards) if finding]
    assert "\n" not in str(raised.value)
    assert found == [FIRST]
    assert not entry_path(cache).exists()
    assert not entries(cache, "download")
    report = copy_set(STORED, url, check=True, quiet=True)
    assert report.copied == 1
    assert objects(url) == files(STORED)
    with ShardSet(url) as shards, ShardSet(STORED) as local:
        assert read_all(shards) == read_all(local)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    image = data.index(b"IDAT") + 40  # within an image's bytes
    data[image] ^= 1
    path.write_bytes(data)


def rot(path: Path) -> None:
    """As a disk does it: other bytes, and times that say nothing."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == WHOLE_NS


def cut(path: Path) -> None:
    os.truncate(path, 1000)


@pytest.mark.parametrize(
    ("spoil", "opened"),
    [
        (flip, False),
        (rot, False),
        (cut, False),
        (Path.unlink, False),
        (rot, True),
        (cut, True),
        (Path.unlink, True),
    ],
)
def test_a_damaged_cache_entry_is_found_and_fetched_again(
    store: Proxy, url: str, cache: Path, spoil: Callable[[Path], None], opened: bool
) -> None:
    with ShardSet(url) as shards, ShardSet(STORED) as local:
        expected = read_all(local)
        if opened:
            shards.frames_file(0)
        else:
            assert read_all(shards) == expected
            shards.close()
        whole = entry_path(cache).read_bytes()
        spoil(entry_path(cache))
        assert not entry_path(cache).exists() or entry_path(cache).read_bytes() != whole
        if not opened and spoil is not rot:  # size and time tell, before anything is read
            shards.frames_file(0)
            assert entry_path(cache).read_bytes() == whole
        assert read_all(shards) == expected
    if not (opened and spoil is Path.unlink):  # an open file outlives its name
        assert store.count("GET", FIRST) == 2
        assert entry_path(cache).read_bytes() == whole


def test_readers_with_a_damaged_entry_open_all_get_the_whole_one(store: Proxy, url: str, cache: Path) -> None:
    readers = [ShardSet(url) for _ in range(3)]
    for shards in readers:
        shards.frames_file(0)
    rot(entry_path(cache))
    with ShardSet(STORED) as local:
        assert all(read_all(shards) == read_all(local) for shards in readers)
    assert store.count("GET", FIRST) == 2  # the first to notice fetched it for all
    for shards in readers:
        shards.close()


def test_a_killed_download_leaves_nothing_that_is_taken_for_whole(
    store: Proxy, url: str, cache: Path
) -> None:
    trouble = store.trouble("GET", FIRST, after=20_000)
    process = read_in_child(url)
    trouble.wait()
    wait_for(lambda: any(path.stat().st_size for path in entries(cache, "download")), process)
    kill(process)
    assert not entry_path(cache).exists()
    left = entries(cache, "download")
    assert [0 < path.stat().st_size < 34_970 for path in left] == [True]
    trouble.go.set()
    with ShardSet(url) as shards, ShardSet(STORED) as local:
        assert read_all(shards) == read_all(local)
    assert not entries(cache, "download")
    assert not entries(cache, "lock")


def test_two_processes_fetch_a_file_once(store: Proxy, url: str, cache: Path) -> None:
    trouble = store.trouble("GET", FIRST, after=20_000)
    first = read_in_child(url)
    trouble.wait()
    second = read_in_child(url)
    wait_for(lambda: waits_for_lock(second.pid), second)  # or asks the store itself, and never waits
    assert store.count("GET", FIRST) == 1
    trouble.go.set()
    for process in (first, second):
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, "7\n"), errors
    names = [name for name in files(STORED) if name.startswith(("frames", "masks/default"))]
    assert [store.count("GET", name) for name in names] == [1] * len(names)


def waits_for_lock(pid: int) -> bool:
    """Whether a process waits for a flock, by the kernel's own list."""
    return any("->" in line and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines())


def test_children_of_a_process_that_has_read_from_a_store_read_too(url: str, cache: Path) -> None:
    with ShardSet(url) as shards, ShardSet(STORED) as local:
        shards.frames_file(0)  # the driver has its connections and its thread
        for method in ("fork", "spawn"):
            shutil.rmtree(cache)
            context = multiprocessing.get_context(method)
            with context.Pool(2) as pool:
                found = pool.starmap_async(read_all, [(shards, 0), (shards, 1)]).get(timeout=120)
            expected = read_all(local)
            assert found == [expected, expected]


def test_a_download_that_is_cut_is_made_again(store: Proxy, url: str) -> None:
    trouble = store.trouble("GET", FIRST, after=20_000, cut=True)
    with ShardSet(url) as shards, ShardSet(STORED) as local:
        assert read_all(shards) == read_all(local)
    assert trouble.happened.is_set()
    assert store.count("GET", FIRST) == 2


def test_a_store_that_is_gone_is_one_line(store: Proxy, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # of the driver's library alone; the other attempts are ours
    shards = ShardSet(url)
    shards.evidence_file(0)  # it answers
    store.close()
    process = start(*command("inspect", url, workers=None))
    with pytest.raises(
        ShardError, match=f"{url}/evidence/00001.h5: .*the network, then run the same"
    ) as raised:
        shards.evidence_file(1)  # while its reader works
    assert "\n" not in str(raised.value)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith(f"error: {url}/shardset.json: ")
    assert len(errors.splitlines()) == 1


def test_a_full_disk_under_the_cache_is_one_line_and_leaves_nothing(url: str, cache: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk: write() fails

    line = command("verify", url, "--quiet", workers=None)
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=60, preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {cache}: the disk is full, 34970 bytes of {url}/{FIRST}")
    assert len(done.stderr.splitlines()) == 1
    assert not entries(cache)
    assert not entries(cache, "download")
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_cache_that_cannot_be_written_is_one_line(url: str, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with (
        ShardSet(url) as shards,
        pytest.raises(ShardError, match="cannot keep files there .*INSTANCE_MOTION_CACHE"),
    ):
        shards.frames_file(0)


def test_entries_opened_longest_ago_go_first_and_one_that_is_being_opened_stays(
    url: str, cache: Path
) -> None:
    manifest = read_manifest(STORED)
    everything = sum(entry.bytes for entry in manifest.frames.values())
    small = FileCache(CacheConfig(folder=cache, limit_gb=(everything - 1) / 1e9))
    remote = ObjectStore(url)

    def open_one(name: str) -> None:
        with small.opened(remote, f"frames/{name}", manifest.frames[name]) as path:
            assert path.stat().st_size == manifest.frames[name].bytes

    open_one("00000.h5")
    open_one("00001.h5")
    open_one("00000.h5")  # now 00001 was opened longest ago
    open_one("00002.h5")
    assert entries(cache) == sorted(entry_path(cache, f"frames/{name}") for name in ("00000.h5", "00002.h5"))
    tiny = FileCache(CacheConfig(folder=cache, limit_gb=1e-9))
    with small.opened(remote, FIRST, manifest.frames["00000.h5"]) as held:
        with tiny.opened(remote, "frames/00001.h5", manifest.frames["00001.h5"]) as path:
            assert held.exists()
            assert path.exists()
        assert entries(cache) == sorted([held, path])  # 00002 has gone


def test_training_reads_the_same_through_a_cache_smaller_than_a_file(
    store: Proxy, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.data import DataConfig, ShardSource, make_loader

    monkeypatch.setenv("INSTANCE_MOTION_CACHE_GB", "0.000001")

    def batches(place: str | Path) -> list[np.ndarray]:
        config = DataConfig(
            shards=(ShardSource(place),), frames=2, skip_static=False, batch_size=1, workers=2
        )
        return [batch.images.numpy() for batch in make_loader(config)]

    expected = batches(STORED)
    found = batches(url)
    assert len(expected) == len(found) > 3
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    fetched = sum(each.startswith("GET") and each.endswith(".h5") for each in store.requests)
    names = [name for name in objects(url) if name.startswith(("frames/", "masks/default/"))]
    assert fetched > len(names)  # files were removed, and fetched again
    assert len(entries(cache)) <= 3  # one for each process that was opening its own


def open_files_of(process: int) -> int:
    """Files below a cache that a process still has open though they have been removed."""
    links = [os.readlink(each) for each in Path(f"/proc/{process}/fd").iterdir() if each.is_symlink()]
    return sum(link.endswith(".h5 (deleted)") for link in links)


def test_a_reader_lets_go_of_files_that_have_left_the_cache(url: str, cache: Path) -> None:
    before = open_files_of(os.getpid())
    with ShardSet(url, cache=CacheConfig(folder=cache, limit_gb=1e-9)) as shards:
        for _ in range(3):
            for index in range(3):
                shards.frames_file(index)
                shards.masks_file("default", index)
        assert open_files_of(os.getpid()) - before <= 1


def test_another_set_at_the_destination_is_left_alone(store: Proxy, url: str, tmp_path: Path) -> None:
    other, before = Path(shutil.copytree(STORED, tmp_path / "other")), objects(url)
    data = json.loads((other / "shardset.json").read_text())
    (other / "shardset.json").write_text(json.dumps({**data, "set_id": "f" * 64}))
    with pytest.raises(BuildError, match=f"{url} holds another shard set"):
        copy_set(other, url, quiet=True)
    assert objects(url) == before
    local = Path(shutil.copytree(STORED, tmp_path / "set"))
    with pytest.raises(BuildError, match="holds another shard set"):
        copy_set(other, local, quiet=True)
    assert files(local) == files(STORED)
    unfinished = new_url()
    put(unfinished, "unfinished-copy.json", (STORED / "shardset.json").read_bytes())
    with pytest.raises(BuildError, match="holds an unfinished copy of another shard set"):
        copy_set(other, unfinished, quiet=True)
    assert list(objects(unfinished)) == ["unfinished-copy.json"]


def test_a_damaged_source_is_not_copied(store: Proxy, tmp_path: Path) -> None:
    source = Path(shutil.copytree(STORED, tmp_path / "set"))
    flip(source / FIRST)
    url = new_url()
    with pytest.raises(ShardError, match=f"{source / FIRST}: SHA-256 differs"):
        copy_set(source, url, quiet=True)
    assert "shardset.json" not in objects(url)
    assert FIRST not in objects(url)


def test_a_remask_that_is_killed_half_way_changes_nothing_and_is_made_again(store: Proxy, url: str) -> None:
    before = objects(url)
    trouble = store.trouble("PUT", "masks/strict/00002.h5")
    process = start(*command("remask", url, "--name", "strict", "--min-score", "0.8", "--quiet"))
    trouble.wait()
    kill(process)
    there = objects(url)
    assert {name for name in there if name.startswith("masks/strict")} == {
        "masks/strict/00000.h5",
        "masks/strict/00001.h5",
    }
    assert {name: there[name] for name in before} == before
    remask(url, "strict", MaskConfig(min_score=0.8), HERE, quiet=True)
    with ShardSet(url) as shards:
        assert [finding for _, finding in verify_files(shards) if finding] == []


def test_layers_that_two_processes_add_at_once_are_both_kept(store: Proxy, url: str, tmp_path: Path) -> None:
    trouble = store.trouble("PUT", "shardset.json")
    first = threading.Thread(
        target=remask, args=(url, "one", MaskConfig(min_area=100), HERE), kwargs={"quiet": True}
    )
    first.start()
    trouble.wait()  # the first has read the manifest, and is about to replace it
    remask(url, "two", MaskConfig(min_area=200), HERE, quiet=True)
    assert sorted(read_manifest(url).masks) == ["default", "large", "two"]
    trouble.go.set()
    first.join(timeout=60)
    assert sorted(read_manifest(url).masks) == ["default", "large", "one", "two"]
    local = Path(shutil.copytree(STORED, tmp_path / "set"))
    remask(local, "one", MaskConfig(min_area=100), HERE, quiet=True)
    remask(local, "two", MaskConfig(min_area=200), HERE, quiet=True)
    assert objects(url) == files(local)


def test_one_layer_made_twice_at_once_under_different_settings_is_an_error(store: Proxy, url: str) -> None:
    trouble = store.trouble("PUT", "shardset.json")
    errors: list[BuildError] = []

    def make() -> None:
        try:
            remask(url, "one", MaskConfig(min_area=100), HERE, quiet=True)
        except BuildError as error:
            errors.append(error)

    first = threading.Thread(target=make)
    first.start()
    trouble.wait()
    remask(url, "one", MaskConfig(min_area=200), HERE, quiet=True)
    trouble.go.set()
    first.join(timeout=60)
    assert [str(each).partition(";")[0] for each in errors] == [
        f"{url}: another process has made layer 'one' with other settings meanwhile, "
        "and files of both may be mixed"
    ]
    remask(url, "one", MaskConfig(min_area=200), HERE, replace_layer=True, quiet=True)
    with ShardSet(url) as shards:
        assert [finding for _, finding in verify_files(shards) if finding] == []


def test_a_hostile_manifest_in_a_store_is_refused(url: str) -> None:
    data = json.loads((STORED / "shardset.json").read_text())
    data["frames"]["00000.h5"]["sha256"] = "../" * 20 + "etcx"
    put(url, "shardset.json", json.dumps(data).encode())
    with ShardSet(url) as shards, pytest.raises(ShardError, match="is no SHA-256"):
        shards.frames_file(0)
    for content in (b"", b"[]", b"\xff\xfe", b'{"format": "other", "version": 1}'):
        put(url, "shardset.json", content)
        with pytest.raises(ShardError, match=f"{url}/shardset.json: ") as raised:
            ShardSet(url)
        assert "\n" not in str(raised.value)


def test_no_such_bucket_is_one_line(store: Proxy) -> None:
    with pytest.raises(ShardError, match="s3://nowhere/kitti: no shard set"):
        ShardSet("s3://nowhere/kitti")
    with pytest.raises(ShardError, match="s3://nowhere/kitti/") as raised:
        copy_set(STORED, "s3://nowhere/kitti", quiet=True)
    assert "\n" not in str(raised.value)
    assert BUCKET != "nowhere"
