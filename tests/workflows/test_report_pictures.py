"""The report: best and worst pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.predictions import (
    ObjectMotions,
    PredictionError,
)
from evaluation.streetworld import score_streetworld
from pipeline.errors import ShardError
from tests.workflows.report_pages import (
    EVEN,
    Parsed,
    predictions_of,
    with_errors,
)
from workflows.report import (
    Page,
    Picture,
    render,
)
from workflows.report_pictures import (
    LIMIT,
    NOT_COUNTED,
    RIGHT,
    TOO_DEEP,
    TOO_NEAR,
    Ranking,
    best_and_worst,
    error_colours,
    error_map,
)


def places(pictures: tuple[Picture, ...]) -> list[str]:
    return [each.caption.split(" (")[0] for each in pictures]


@pytest.fixture(scope="module")
def ranking(streets: Path, street_shards: Path) -> Ranking:
    errors = with_errors(test_0000={5: 0.0, 9: 4.0}, test_0001={2: 0.02}, test_0002={1: 0.05, 4: 9.0, 5: 8.0})
    return best_and_worst(predictions_of(streets, errors), street_shards, streets, count=2)


def test_best_and_worst_frames_are_in_order_and_no_clip_is_shown_twice(ranking: Ranking) -> None:
    assert places(ranking.best) == ["test_0000, frame 5", "test_0001, frame 2"]
    assert places(ranking.worst) == ["test_0002, frame 4", "test_0000, frame 9"]
    numbers = [float(each.title.split()[-1]) for each in (*ranking.best, *ranking.worst)]
    assert numbers[0] < numbers[1] < numbers[3] < numbers[2]
    assert numbers[0] < 1e-3
    assert [each.title.split(":")[0] for each in (*ranking.best, *ranking.worst)] == [
        *("Best 1", "Best 2", "Worst 1", "Worst 2")
    ]
    assert "26 frames of 3 clips" in ranking.text


def test_the_page_puts_best_and_worst_under_their_names(ranking: Ranking) -> None:
    page = render(Page(title="", about="", best=ranking.best, worst=ranking.worst, ranking=ranking.text))
    best, worst = page.index('<div id="best">'), page.index('<div id="worst">')
    assert best < page.index("Best 1: AbsRel") < worst < page.index("Worst 1: AbsRel")
    assert "test_0002, frame 4" not in page[best:worst]
    assert len(Parsed(page).all("img")) == 4 * 4


def test_the_mean_over_frames_is_the_figure_of_the_evaluation(ranking: Ranking, streets: Path) -> None:
    errors = with_errors(test_0000={5: 0.0, 9: 4.0}, test_0001={2: 0.02}, test_0002={1: 0.05, 4: 9.0, 5: 8.0})
    figures = {each.name: each for each in score_streetworld(predictions_of(streets, errors), streets)}
    assert f"mean {figures['AbsRel, all'].value:.4f}" in ranking.text


def test_a_picture_has_image_truth_prediction_and_error(ranking: Ranking, street_shards: Path) -> None:
    from pipeline.shards.reader import ShardSet

    worst = ranking.worst[0]
    assert [each.name for each in worst.panels] == ["image", "true depth", "predicted depth", "error"]
    image, _, _, error = (
        np.asarray(cv2.imdecode(np.frombuffer(each.data, np.uint8), cv2.IMREAD_COLOR))[..., ::-1]
        for each in worst.panels
    )
    assert image.shape == error.shape == (64, 208, 3)
    with ShardSet(street_shards) as shards:
        expected = shards.image(shards.clip("test_0002"), 4)
    assert np.abs(image.astype(int) - expected).mean() < 6
    # The left half is too deep against the right one, whatever the median says.
    redder = (error[..., 0].astype(int) - error[..., 2]).mean(axis=0)
    assert redder[:104].mean() > redder[104:].mean() + 50


def test_a_frame_is_not_both_best_and_worst(streets: Path, street_shards: Path) -> None:
    (clip,) = predictions_of(streets, {"test_0001": EVEN["test_0001"]})
    found = best_and_worst([clip], street_shards, streets, count=3)
    assert len(found.best) == len(found.worst) == 1
    assert places(found.best) != places(found.worst)
    single = replace(
        clip,
        inverse_depth=clip.inverse_depth[:1],
        labels=clip.labels[:1],
        later_T_earlier=clip.later_T_earlier[:0],
        objects=ObjectMotions.empty(),
        timestamps_s=clip.timestamps_s[:1],
    )
    found = best_and_worst([single], street_shards, streets, count=3)
    assert places(found.best) == ["test_0001, frame 0"]
    assert not found.worst


def test_error_colours_say_near_right_and_deep() -> None:
    colours = error_colours(np.array([-9, -LIMIT, 0, LIMIT, 9]))
    assert [tuple(map(int, each)) for each in colours] == [TOO_NEAR, TOO_NEAR, RIGHT, TOO_DEEP, TOO_DEEP]
    truth = np.array([[10.0, 10, 10, np.inf, 90, 0]])
    shown = error_map(np.array([[10.0, 20, 5, 10, 10, 10]]), truth)[0]
    expected = [RIGHT, TOO_DEEP, TOO_NEAR, NOT_COUNTED, NOT_COUNTED, NOT_COUNTED]
    assert [tuple(map(int, each)) for each in shown] == expected


def test_predictions_that_do_not_belong_to_the_rest_are_refused(
    streets: Path, street_shards: Path, tmp_path: Path
) -> None:
    clips = predictions_of(streets, {"test_0001": EVEN["test_0001"]})
    with pytest.raises(PredictionError, match=r"truth\.h5 is missing"):
        best_and_worst(clips, street_shards, tmp_path)
    with pytest.raises(ShardError, match="no shard set"):
        best_and_worst(clips, tmp_path, streets)
    with pytest.raises(PredictionError, match="no frame with valid truth"):
        best_and_worst([], street_shards, streets)
