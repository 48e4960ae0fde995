"""ONNX files answer as the networks do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from training.networks.depth import DepthConfig, make_depth_net
from training.networks.export import to_onnx
from training.networks.pose import PoseConfig, make_pose_net

SIZE = (75, 44)


def trained(net: torch.nn.Module, *inputs: torch.Tensor) -> torch.nn.Module:
    """Running statistics, weights and outputs away from where they begin."""
    optimiser = torch.optim.SGD(net.parameters(), 1e-3)
    for _ in range(2):
        out = net(*inputs)
        (out[0] if isinstance(out, tuple) else 100 * out).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimiser.step()
    return net


@pytest.mark.parametrize(
    ("depth", "pose"),
    [
        pytest.param(DepthConfig(width=0.25, scales=2), PoseConfig(width=0.5), id="resnet18-conv7"),
        pytest.param(
            DepthConfig(architecture="dispresnet", width=0.125, norm="group"),
            PoseConfig(architecture="resnet18", width=0.25),
            id="dispresnet-resnet18",
            marks=pytest.mark.slow,  # the exporter takes its time with deep networks
        ),
    ],
)
def test_exported_networks_answer_alike_for_any_batch(
    depth: DepthConfig, pose: PoseConfig, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    a, b = torch.rand(3, 3, SIZE[1], SIZE[0]), torch.rand(3, 3, SIZE[1], SIZE[0])
    depth_net = trained(make_depth_net(depth), a)
    pose_net = trained(make_pose_net(pose), a, b)
    assert depth_net.training

    files = to_onnx(depth_net, pose_net, SIZE, tmp_path / "onnx")

    assert depth_net.training, "export changed the network"
    assert pose_net.training
    assert sorted(tmp_path.rglob("*.*")) == sorted(files)
    depth_net.eval()
    pose_net.eval()
    run_depth, run_pose = (runtime.InferenceSession(file) for file in files)
    for n in (1, 3):
        with torch.no_grad():
            inverse_depth, motion = depth_net(a[:n])[0].numpy(), pose_net(a[:n], b[:n]).numpy()
        (found,) = run_depth.run(["inverse_depth"], {"images": a[:n].numpy()})
        assert found.shape == (n, 1, SIZE[1], SIZE[0])
        np.testing.assert_allclose(found, inverse_depth, rtol=1e-4, atol=1e-6)
        (found,) = run_pose.run(["motion"], {"earlier": a[:n].numpy(), "later": b[:n].numpy()})
        assert found.shape == (n, 6)
        np.testing.assert_allclose(found, motion, rtol=1e-4, atol=1e-7)


def test_missing_tools_and_small_sizes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = make_depth_net(DepthConfig(width=0.125)), make_pose_net(PoseConfig(width=0.125))
    with pytest.raises(ConfigError, match="cannot export for images of 64x16; sides must be 32 or more"):
        to_onnx(*nets, (64, 16), tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="exporting needs onnx, .* pip install onnx onnxscript"):
        to_onnx(*nets, (64, 64), tmp_path)
    assert not list(tmp_path.iterdir())
