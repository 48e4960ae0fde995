"""ImageNet weights: what fits is loaded whole, what does not is one line."""

from __future__ import annotations

import pickle
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from torch.testing import assert_close

from pipeline.errors import ConfigError
from training.networks.depth import DepthConfig, ResNetDepth, make_depth_net
from training.networks.layers import ImageNormalisation
from training.networks.pose import PoseConfig, ResNetPose, make_pose_net
from training.networks.resnet import ResNetEncoder
from training.networks.weights import load_encoder


@pytest.fixture(scope="module")
def theirs() -> torchvision.models.ResNet:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return net.eval()


@pytest.fixture(scope="module")
def file(theirs: torchvision.models.ResNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(theirs.state_dict(), path)
    return path


def their_features(net: torchvision.models.ResNet, images: torch.Tensor) -> torch.Tensor:
    x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


def test_an_encoder_answers_as_torchvisions_own(theirs: torchvision.models.ResNet, file: Path) -> None:
    net = make_depth_net(DepthConfig(encoder_weights=file)).eval()
    assert net.starts_from == f"depth: resnet18 encoder starts from {file}"
    assert isinstance(net.body, ResNetDepth)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        ours = net.body.encoder(ImageNormalisation()(images))[-1]
        assert_close(ours, their_features(theirs, ImageNormalisation()(images)), rtol=1e-4, atol=1e-5)


def test_resnet50_has_torchvisions_names_and_shapes() -> None:
    ours = ResNetEncoder("resnet50").state_dict()
    theirs = torchvision.models.resnet50(weights=None).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items() if not name.startswith("fc.")
    }


def test_two_equal_images_get_the_response_of_one(theirs: torchvision.models.ResNet, file: Path) -> None:
    net = make_pose_net(PoseConfig(architecture="resnet18", encoder_weights=file)).eval()
    assert net.starts_from == f"pose: resnet18 encoder starts from {file}"
    assert isinstance(net.body, ResNetPose)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours = net.body.encoder(torch.cat([images, images], 1))[-1]
        assert_close(ours, their_features(theirs, images), rtol=1e-4, atol=1e-5)


def test_files_without_counters_load(theirs: torchvision.models.ResNet, tmp_path: Path) -> None:
    old = {name: value for name, value in theirs.state_dict().items() if "num_batches" not in name}
    torch.save(old, tmp_path / "old.pth")
    make_depth_net(DepthConfig(encoder_weights=tmp_path / "old.pth"))


class Trap:
    def __reduce__(self) -> tuple:
        return pytest.fail, ("the file's code was run",)


def wrong_files(folder: Path, good: dict) -> dict[str, str]:
    """File name -> what the error must say."""
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), folder / "resnet50.pth")
    torch.save({k: v for k, v in good.items() if "layer3" not in k}, folder / "lacking.pth")
    torch.save({**good, "layer9.weight": torch.zeros(1)}, folder / "more.pth")
    torch.save({**good, "layer1.0.conv1.weight": torch.zeros(8, 8, 3, 3)}, folder / "shape.pth")
    torch.save({**good, "conv1.weight": torch.zeros(64)}, folder / "flat.pth")
    torch.save({"model": good}, folder / "nested.pth")
    torch.save([1, 2], folder / "list.pth")
    (folder / "trap.pth").write_bytes(pickle.dumps(Trap()))
    (folder / "text.pth").write_text("not weights\nat all")
    (folder / "empty.pth").write_bytes(b"")
    return {
        "resnet50.pth": "has the unknown layer1.0.bn3.bias",
        "lacking.pth": "lacks layer3.0.bn1.bias",
        "more.pth": "has the unknown layer9.weight (1 such); expected torchvision's resnet18",
        "shape.pth": "layer1.0.conv1.weight of shape (8, 8, 3, 3), expected (64, 64, 3, 3)",
        "flat.pth": "conv1.weight of shape (64,), expected (64, 3, 7, 7)",
        "nested.pth": "not a dictionary of tensors",
        "list.pth": "not a dictionary of tensors",
        "trap.pth": "not a file of plain tensors",
        "text.pth": "not a file of plain tensors",
        "empty.pth": "not a file of plain tensors",
        "absent.pth": "does not exist; set encoder_weights",
        ".": "not a file of plain tensors",
    }


@pytest.mark.parametrize("images", [1, 2])
def test_wrong_files_are_refused_in_one_line_and_change_nothing(
    theirs: torchvision.models.ResNet, tmp_path: Path, images: int
) -> None:
    encoder = ResNetEncoder("resnet18", images=images)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    for name, message in wrong_files(tmp_path, theirs.state_dict()).items():
        with pytest.raises(ConfigError) as caught:
            load_encoder(encoder, "resnet18", tmp_path / name)
        assert message in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("no route"),
        TimeoutError("timed out"),
        RuntimeError('invalid hash value\n(expected "f37072fd", got "0")'),
    ],
)
def test_a_download_that_fails_says_where_to_put_a_copy(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        make_depth_net(DepthConfig(encoder_weights="imagenet"))
    assert "cannot fetch https://download.pytorch.org/models/resnet18-" in str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints" / "resnet18-") in str(caught.value)
    assert "train without" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_download_is_loaded_and_named(
    theirs: torchvision.models.ResNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give(url: str, **options: object) -> dict:
        assert options["weights_only"] is True
        assert options["check_hash"] is True
        return theirs.state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", give)
    net = make_depth_net(DepthConfig(encoder_weights="imagenet"))
    assert (
        net.starts_from == "depth: resnet18 encoder starts from torchvision's ResNet18_Weights.IMAGENET1K_V1"
    )
    assert isinstance(net.body, ResNetDepth)
    assert torch.equal(net.body.encoder.conv1.weight, theirs.conv1.weight)
