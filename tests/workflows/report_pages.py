"""Made pages, parsed pages and made predictions, for the tests of the report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from evaluation.figure import Figure
from evaluation.predictions import (
    ClipPrediction,
)
from pipeline.streetworld.truth import TRUTH_FILE, read_truth
from tests.evaluation.made import truth_as_prediction
from workflows.report import (
    Link,
    Page,
    Panel,
    Picture,
    figure_tables,
)

VOID = {"meta", "img", "br"}
HOSTILE = "</title></style><script>alert(1)</script>\"' onload='x' <img src=http://a.b/c> &amp; \udcff"
ODD_NAME = "a b#1?<i>&%41.json"


class Parsed(HTMLParser):
    """Elements with their attributes, all text, and a complaint where tags do not match."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag}: an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> closes itself in SVG only"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(key.strip("_")) == value for key, value in attributes.items())
        ]


def figure(name: str = "AbsRel", value: float = 0.125, protocol: str = "p", scale: str = "", count: int = 9):
    return Figure(name=name, value=value, unit="fraction", protocol=protocol, count=count, scale=scale)


def rows(count: int, kind: str = "train", /, **values: float) -> list[dict]:
    return [
        {"step": 10 * k, "kind": kind, **{name: v + math.sin(k) for name, v in values.items()}}
        for k in range(count)
    ]


def full_page(text: str = "plain") -> Page:
    """Something in every field, with `text` wherever a text can stand."""
    panel = Panel(name=text, data=b"picture")
    picture = Picture(title=text, caption=text, panels=(panel, panel))
    named = replace(figure(text, protocol=text, scale=text), unit=text)
    return Page(
        title=text,
        about=text,
        facts=((text, text),),
        commands=(text,),
        configuration=text,
        metrics=[*rows(30, **{text: 1.0}), *rows(3, "validation", **{text: 1.0})],
        tables=tuple(figure_tables({text: [named]})),
        ranking=text,
        legend=(panel,),
        best=(picture,),
        worst=(picture,),
        links=(Link(group=text, name=text, target="f/" + text.replace("/", "")),),
    )


def require_self_contained(page: str) -> Parsed:
    parsed = Parsed(page)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "video", "use", "image"}
    for tag, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        assert "srcset" not in attributes
        assert "style" not in attributes
        assert attributes.get("src", "data:image/").startswith("data:image/")
        href = attributes.get("href", "#x")
        assert not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|/|\\", href), href
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = parsed.all("meta", http_equiv="") or [
        each for each in parsed.all("meta") if each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy["content"].startswith("default-src 'none'")
    return parsed


# How much the left half of each frame is too deep: the order of AbsRel, by construction.
EVEN: dict[str, list[float]] = {"test_0000": [0.3] * 14, "test_0001": [0.3] * 6, "test_0002": [0.3] * 6}


def predictions_of(streets: Path, too_deep: Mapping[str, list[float]]) -> list[ClipPrediction]:
    clips = []
    for name, errors in too_deep.items():
        clip = truth_as_prediction(read_truth(streets / name / TRUTH_FILE), name, scale=5.0)
        inverse_depth = clip.inverse_depth.copy()
        half = inverse_depth.shape[2] // 2
        inverse_depth[:, :, :half] /= 1 + np.array(errors)[:, None, None]
        clips.append(replace(clip, inverse_depth=inverse_depth))
    return clips


def with_errors(**changed: dict[int, float]) -> dict[str, list[float]]:
    return {name: [changed.get(name, {}).get(k, e) for k, e in enumerate(row)] for name, row in EVEN.items()}


def cells(page: str) -> list[list[str]]:
    """Text of the cells of every table row of a page without other markup inside them."""
    found = re.findall(r"<tr>(.*?)</tr>", page)
    return [[Parsed(each).text for each in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in found]


def points(markup: str, tag: str, kind: str) -> list[int]:
    """Points of each curve of a kind."""
    parsed = Parsed(markup)
    if tag == "circle":
        return [len(parsed.all("circle", class_=kind))]
    return [len(found["points"].split()) for found in parsed.all("polyline", class_=kind)]
