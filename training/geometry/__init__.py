"""Rigid motions, the pinhole camera, sampling, and the two warps; differentiable tensors throughout."""
