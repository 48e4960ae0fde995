"""Weights files are read without running them, fetched once, and errors say what to do."""

from __future__ import annotations

import hashlib
import io
import pickle
import urllib.error
from email.message import Message

import numpy as np
import pytest
import torch

from pipeline import detector_weights
from pipeline.detector_weights import fetch, read_pickled_arrays, read_torch_file, sha256
from pipeline.errors import DetectorError

URL = "https://example.org/models/r50/model.pkl"


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_come_back_from_a_pickle(tmp_path, protocol):
    content = {
        "model": {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(0.5), "c": np.zeros((0, 4), np.int64)},
        "__author__": "Model Zoo",
    }
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    loaded = read_pickled_arrays(path)
    assert loaded["__author__"] == "Model Zoo"
    for name, array in content["model"].items():
        np.testing.assert_array_equal(loaded["model"][name], array)


@pytest.mark.parametrize("read", [read_pickled_arrays, read_torch_file])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, read):
    path, trace = tmp_path / "model.pkl", tmp_path / "ran"
    if read is read_torch_file:
        torch.save({"model": Touch(str(trace))}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Touch(str(trace)), "__author__": "x"}))
    with pytest.raises(DetectorError, match=r"model\.pkl"):
        read(path)
    assert not trace.exists()


@pytest.mark.parametrize("read", [read_pickled_arrays, read_torch_file])
@pytest.mark.parametrize("content", [b"", b"not a file of weights", pickle.dumps([1, 2])])
def test_damaged_files_are_one_line(tmp_path, read, content):
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(DetectorError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Response(io.BytesIO):
    def __init__(self, body: bytes, length: int) -> None:
        super().__init__(body)
        self.headers = Message()
        self.headers["Content-Length"] = str(length)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    return tmp_path


def test_files_are_fetched_once_to_where_detectron2_looks(cache, monkeypatch):
    asked = []

    def urlopen(url, timeout):
        asked.append((url, timeout))
        return Response(b"weights", 7)

    monkeypatch.setattr(detector_weights.urllib.request, "urlopen", urlopen)
    path = fetch(URL)
    assert (path, path.read_bytes()) == (cache / "models/r50/model.pkl", b"weights")
    assert sha256(path) == hashlib.sha256(b"weights").hexdigest()
    assert fetch(URL) == path
    assert asked == [(URL, detector_weights.TIMEOUT_S)]


@pytest.mark.parametrize(
    "answer",
    [urllib.error.URLError("Name or service not known"), TimeoutError("timed out"), Response(b"wei", 7)],
)
def test_what_cannot_be_fetched_says_where_to_put_it(cache, monkeypatch, answer):
    def urlopen(url, timeout):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(detector_weights.urllib.request, "urlopen", urlopen)
    with pytest.raises(
        DetectorError, match=r"cannot fetch https://example\.org.*put it at .*--weights FILE"
    ) as caught:
        fetch(URL)
    assert str(cache / "models/r50/model.pkl") in str(caught.value)
    assert [p for p in cache.rglob("*") if p.is_file()] == []  # nothing half done stays behind


def test_only_https_is_fetched(cache):
    with pytest.raises(DetectorError, match="not an https address"):
        fetch("http://example.org/model.pkl")
