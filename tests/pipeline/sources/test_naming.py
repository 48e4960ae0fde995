"""Names: natural order, and clip names that are safe wherever they end up."""

from __future__ import annotations

import os
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.naming import edge_digest, files_below, natural_key, safe_clip_name, show, unique_names
from tests.faults.table import Fault

level = st.binary(min_size=1, max_size=12).filter(lambda name: b"/" not in name and b"\0" not in name)


def test_natural_order():
    names = ["10", "9", "1", "clip10", "clip2", "a", "Ä", "02", "2"]
    assert sorted(names, key=natural_key) == ["1", "02", "2", "9", "10", "a", "clip2", "clip10", "Ä"]


@given(st.lists(st.text(), max_size=6))
def test_any_names_can_be_ordered_and_only_equal_names_tie(names):
    keys = [natural_key(name) for name in names]
    assert sorted(keys) is not None
    assert len(set(keys)) == len(set(names))


@pytest.mark.fault(Fault.ODD_NAMES)
@given(st.lists(level, min_size=1, max_size=4))
def test_clip_names_are_safe_whatever_the_files_are_called(levels):
    name = safe_clip_name(PurePath(os.fsdecode(b"/".join(levels))))
    assert name
    assert not name.startswith("/")
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-/%")
    assert not {"", ".", ".."} & set(name.split("/"))


@pytest.mark.fault(Fault.ODD_NAMES)
@given(level, level)
def test_different_files_keep_different_names(a, b):
    if a != b:
        assert safe_clip_name(os.fsdecode(a)) != safe_clip_name(os.fsdecode(b))


def test_clip_names_by_hand():
    assert safe_clip_name("2011_09_26/image_02") == "2011_09_26/image_02"
    assert safe_clip_name("../a b/é") == "%2E%2E/a%20b/%C3%A9"
    assert safe_clip_name("100%") == "100%25"


@pytest.mark.fault(Fault.ODD_NAMES)
@given(st.lists(st.sampled_from(["a", "a-2", "a-3", "b"]), max_size=8))
def test_unique_names(names):
    unique = unique_names(names)
    assert len(set(unique)) == len(names)
    assert all(new == old or new.startswith(f"{old}-") for old, new in zip(names, unique, strict=True))
    assert all(unique[names.index(name)] == name for name in set(names))


@pytest.mark.fault(Fault.ODD_NAMES)
def test_files_below_are_found_in_natural_order_and_loops_end(tmp_path):
    for name in ["b10/x.mp4", "b2/x.MP4", "b2/._x.mp4", ".trash/x.mp4", "b2/notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b2" / "loop").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in files_below(tmp_path, frozenset([".mp4"]))]
    assert found == ["b2/x.MP4", "b10/x.mp4"]


def test_edges_of_a_file_are_digested(tmp_path):
    path = tmp_path / "large"
    digests = set()
    for data in [b"a" * 300_000, b"b" + b"a" * 299_999, b"a" * 299_999 + b"b", b"", b"a"]:
        path.write_bytes(data)
        digests.add(edge_digest(path))
    assert len(digests) == 5


@pytest.mark.fault(Fault.ODD_NAMES)
@given(level)
def test_shown_paths_are_printable(name):
    assert show(os.fsdecode(name)).isprintable()
