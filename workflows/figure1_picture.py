"""The picture of `workflows.figure1`: crops around the car, enlarged, an error map under each."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

COLUMN_PX = 380
"""About the width of a panel; pixels are enlarged a whole number of times."""
GAP_PX, CAPTION_PX, TITLE_PX = 14, 66, 62
CROP_MARGIN_PX = 8
"""Around the car, in pixels of the frame."""
ERROR_TOP = 80
"""Absolute difference, of 255, at which the error map is brightest."""
PAPER, INK, GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)
HOLE, OUTLINE = (255, 0, 255), (40, 255, 80)
FONT = cv2.FONT_HERSHEY_SIMPLEX
CAPTIONS: dict[str, tuple[str, str]] = {
    "source": ("source I_s", "not warped: camera and car both differ"),
    "target": ("target I_t", "camera is right; the car has moved and turned"),
    "inverse": ("(a) inverse warp", "looks up by the TARGET's depth (struct2depth)"),
    "reversed": ("(b) reversed flow", "camera flow of the source, splatted, negated"),
    "forward": ("(c) forward warp (ours)", "carries by the SOURCE's depth, nearest wins"),
    "final": ("final view, against I_t", "inverse warp by camera and true car motion"),
}
"""What is compared: title, and how it is made."""
HEADING = "The source as if the camera had not moved, by three warps with true depth and camera motion"
FOOTNOTE = (
    "error: mean abs. difference of 255 on the car (+ 2 px) and its ghost (where it is in I_t, not in the "
    "truth), holes left out; each error map belongs to the image above it"
)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One image beside what it should be.

    title, note:  what it is, and how it was made.
    image, truth: (H, W, 3) uint8 RGB; truth is None where there is nothing to compare with.
    filled:       (H, W) bool, False in holes.
    outline:      (H, W) bool, where the car should be.
    figures:      the errors, in words.
    """

    title: str
    note: str
    image: np.ndarray
    truth: np.ndarray | None
    filled: np.ndarray
    outline: np.ndarray
    figures: str


def draw_figure(
    rows: list[list[Panel]], heading: str, facts: list[str], frames: dict[str, np.ndarray], area: np.ndarray
) -> np.ndarray:
    """Lay out the figure: whole frames above, rows of panels below, each with its error map.

    Args:
        rows: Panels, as many in each row.
        heading: First line.
        facts: Lines below it.
        frames: (H, W, 3) uint8 whole frames by title, shown with the crop's box.
        area: (H, W) bool that the crops show.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    box = crop_box(area)
    scale = max(1, round(COLUMN_PX / (box[2] - box[0])))
    body = np.vstack([_row([_panel(panel, box, scale) for panel in row]) for row in rows])
    width = body.shape[1]
    top = _canvas(TITLE_PX + 20 * max(0, len(facts) - 1), width)
    _write(top, heading, (GAP_PX, 26), 0.8, thickness=2)
    for line, text in enumerate(facts):
        _write(top, text, (GAP_PX, 52 + 20 * line), 0.5, GREY)
    overview = [_frame(title, image, box, (width - GAP_PX) // len(frames)) for title, image in frames.items()]
    strip = _row(overview)
    strip = cv2.copyMakeBorder(strip, 0, 0, 0, width - strip.shape[1], cv2.BORDER_CONSTANT, value=PAPER)
    return _fewer_colours(np.vstack([top, strip, body]))


def crop_box(area: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) around True pixels with a margin, inside the image."""
    H, W = area.shape
    v, u = np.nonzero(area)
    return (
        max(0, int(u.min()) - CROP_MARGIN_PX),
        max(0, int(v.min()) - CROP_MARGIN_PX),
        min(W, int(u.max()) + 1 + CROP_MARGIN_PX),
        min(H, int(v.max()) + 1 + CROP_MARGIN_PX),
    )


def colour_error(image: np.ndarray, truth: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: mean absolute difference from black to yellow, holes in their own colour."""
    difference = np.abs(image.astype(np.float32) - truth).mean(2)
    grey = np.clip(difference / ERROR_TOP * 255, 0, 255).astype(np.uint8)
    coloured = cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)[..., ::-1].copy()
    coloured[~filled] = HOLE
    return coloured


def _fewer_colours(image: np.ndarray) -> np.ndarray:
    """63 equal steps a channel instead of 255: hardly visible, and the PNG is much smaller."""
    return np.round(np.round(image / 255.0 * 63) * (255 / 63)).astype(np.uint8)


def _panel(panel: Panel, box: tuple[int, int, int, int], scale: int) -> np.ndarray:
    """Caption, enlarged crop with the car's true outline, and the error map or the legend."""
    left, top, right, bottom = box
    crop = slice(top, bottom), slice(left, right)
    image = panel.image.copy()
    image[~panel.filled] = HOLE
    picture = _enlarge(image[crop], scale)
    outline = _enlarge(panel.outline[crop].astype(np.uint8), scale)
    edges, _ = cv2.findContours(outline, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, edges, -1, OUTLINE, 1)
    if panel.truth is None:
        error = _legend(*picture.shape[:2])
    else:
        error = _enlarge(colour_error(panel.image, panel.truth, panel.filled)[crop], scale)
        cv2.drawContours(error, edges, -1, OUTLINE, 1)
    caption = _canvas(CAPTION_PX, picture.shape[1])
    _write(caption, panel.title, (0, 18), 0.58, thickness=2)
    _write(caption, panel.note, (0, 38), 0.43, GREY)
    _write(caption, panel.figures, (0, 58), 0.43)
    return np.vstack([caption, picture, _canvas(4, picture.shape[1]), error])


def _frame(title: str, image: np.ndarray, box: tuple[int, int, int, int], width: int) -> np.ndarray:
    """A whole frame with the crop's box and its title."""
    width -= GAP_PX
    scale = width / image.shape[1]
    small = cv2.resize(image, (width, round(image.shape[0] * scale)), interpolation=cv2.INTER_AREA)
    left, top, right, bottom = (round(n * scale) for n in box)
    cv2.rectangle(small, (left, top), (right - 1, bottom - 1), PAPER, 1)
    caption = _canvas(26, width)
    _write(caption, title, (0, 18), 0.5)
    return np.vstack([caption, small])


def _legend(height: int, width: int) -> np.ndarray:
    """What colours mean, in place of an error map."""
    area = _canvas(height, width)
    bar = np.linspace(0, 255, width - 60).astype(np.uint8)[None].repeat(14, 0)
    area[34:48, : width - 60] = cv2.applyColorMap(bar, cv2.COLORMAP_INFERNO)[..., ::-1]
    _write(area, "error maps: mean abs. difference", (0, 24), 0.45)
    _write(area, "0", (0, 64), 0.42)
    _write(area, f"{ERROR_TOP} of 255", (width - 130, 64), 0.42)
    for row, (colour, text) in enumerate(((OUTLINE, "where the car should be"), (HOLE, "hole: no value"))):
        y = 88 + 24 * row
        cv2.rectangle(area, (0, y - 11), (14, y + 2), colour, -1)
        _write(area, text, (24, y), 0.45)
    return area


def _row(blocks: list[np.ndarray]) -> np.ndarray:
    """Blocks of one height side by side, with gaps around and below."""
    height = blocks[0].shape[0] + GAP_PX
    gap = _canvas(height, GAP_PX)
    parts = [gap]
    for block in blocks:
        parts += [np.vstack([block, _canvas(GAP_PX, block.shape[1])]), gap]
    return np.hstack(parts)


def _enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """Every pixel scale times as wide and high: nothing is invented."""
    return np.ascontiguousarray(image.repeat(scale, 0).repeat(scale, 1))


def _canvas(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER, np.uint8)


def _write(
    image: np.ndarray,
    text: str,
    at: tuple[int, int],
    size: float,
    colour: tuple[int, int, int] = INK,
    thickness: int = 1,
) -> None:
    """One line of text, made smaller if it is too long for the image."""
    (width, _), _ = cv2.getTextSize(text, FONT, size, thickness)
    size *= min(1.0, 0.95 * (image.shape[1] - at[0]) / max(width, 1))
    cv2.putText(image, text, at, FONT, size, colour, thickness, cv2.LINE_AA)
