"""The causal VAE as a stream: any cut gives the whole clip, batches, restored histories, training, wrong input."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from riverrun.kernels.histories import Histories
from riverrun.models.wan.vae import WAN21_VAE, VAEConfig, WanVAE

CONFIG = VAEConfig(
    dim=3,
    z_dim=4,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    mean=(0.1, -0.2, 0.3, 0.0),
    std=(1.5, 0.5, 1.0, 2.0),
)


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(CONFIG).eval()


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(2, 6, 4, 3, 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("cut", [[6], [1] * 6, [1, 5], [2, 4], [3, 3], [1, 1, 4], [4, 1, 1]])
def test_any_cut_decodes_to_the_whole_clip(vae: WanVAE, latents: Tensor, cut: list[int]) -> None:
    histories = Histories()
    parts = [vae.decode(part, histories) for part in latents.split(cut, dim=1)]
    assert [part.shape[1] for part in parts] == [4 * n - (3 if i == 0 else 0) for i, n in enumerate(cut)]
    whole = vae.decode_clip(latents).clamp(-1, 1)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cut", [[17], [1, 4, 4, 4, 4], [1, 16], [5, 12], [9, 4, 4]])
def test_any_cut_encodes_to_the_whole_clip(vae: WanVAE, cut: list[int]) -> None:
    pixels = torch.rand(1, 17, 3, 8, 12, generator=torch.Generator().manual_seed(2)) * 2 - 1
    histories = Histories()
    parts = [vae.encode(part, histories) for part in pixels.split(cut, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), vae.encode_clip(pixels), atol=1e-5, rtol=1e-5)


def test_streams_of_one_phase_decode_as_a_batch(vae: WanVAE, latents: Tensor) -> None:
    alone = [Histories(), Histories()]
    for row, histories in enumerate(alone):
        vae.decode(latents[row : row + 1, :2], histories)
    together = Histories.stack(alone)
    batched = vae.decode(latents[:, 2:4], together)
    for row, histories in enumerate(alone):
        single = vae.decode(latents[row : row + 1, 2:4], histories)
        torch.testing.assert_close(batched[row : row + 1], single, atol=1e-5, rtol=1e-5)
        again = vae.decode(latents[row : row + 1, 4:], together.unstack()[row])
        torch.testing.assert_close(again, vae.decode(latents[row : row + 1, 4:], histories), atol=1e-5, rtol=1e-5)


def decode_some(vae: WanVAE, latents: Tensor, histories: Histories, frames: range) -> list[Tensor]:
    return [vae.decode(latents[:1, i : i + 1], histories) for i in frames]


@pytest.mark.parametrize("seen", [0, 1, 2, 3])
def test_restored_histories_go_on_bit_equal(vae: WanVAE, latents: Tensor, seen: int) -> None:
    old, untouched = Histories(), Histories()
    decode_some(vae, latents, old, range(seen))
    decode_some(vae, latents, untouched, range(seen))
    meta, tensors = old.snapshot()
    copies = {path: torch.from_numpy(tensor.numpy().copy()) for path, tensor in tensors.items()}
    restored = Histories.restore(json.loads(json.dumps(meta)), copies)
    for tensor in tensors.values():  # nothing of the old stream may be reached
        tensor.fill_(torch.nan)
    rest = range(seen, 6)
    for one, other in zip(
        decode_some(vae, latents, restored, rest), decode_some(vae, latents, untouched, rest), strict=True
    ):
        assert torch.equal(one, other)


def test_history_does_not_grow(vae: WanVAE, latents: Tensor) -> None:
    histories = Histories()
    sizes = []
    for latent in latents.split(1, dim=1):
        vae.decode(latent, histories)
        sizes.append(histories.nbytes)
    assert sizes[0] < sizes[2] == sizes[-1]


def test_both_directions_share_one_histories(vae: WanVAE, latents: Tensor) -> None:
    shared, own = Histories(), Histories()
    pixels = torch.zeros(2, 1, 3, 12, 8)
    vae.encode(pixels, shared)
    assert torch.equal(vae.decode(latents[:, :2], shared), vae.decode(latents[:, :2], own))
    with pytest.raises(ValueError, match="4n frames, got 1"):
        vae.encode(pixels, shared)


def test_clips_train(vae: WanVAE) -> None:
    pixels = torch.rand(1, 5, 3, 8, 8)
    mean, log_variance = vae.moments(pixels)
    loss = (vae.decode_clip(vae.normalise(mean)) - pixels).square().mean() + log_variance.square().mean()
    loss.backward()
    without = [name for name, parameter in vae.named_parameters() if parameter.grad is None]
    assert without == []
    vae.zero_grad()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 3, 8, 8), r"4n \+ 1 frames at the start of a stream, got 2"),
        ((1, 1, 3, 8, 6), "multiples of 4, got 8 x 6"),
        ((1, 1, 4, 8, 8), r"pixels must be \(B, T >= 1, 3, H, W\), got \(1, 1, 4, 8, 8\)"),
        ((1, 3, 8, 8), "pixels must be"),
    ],
)
def test_wrong_pixels_are_refused_before_anything_is_remembered(
    vae: WanVAE, shape: tuple[int, ...], message: str
) -> None:
    histories = Histories()
    with pytest.raises(ValueError, match=message):
        vae.encode(torch.zeros(shape), histories)
    assert list(histories.paths()) == []


def test_config_must_fit_itself() -> None:
    with pytest.raises(ValueError, match="mean and std need 2 values, got 1 and 2"):
        VAEConfig(3, 2, (1, 2), 1, (True,), (0.0,), (1.0, 1.0))
    with pytest.raises(ValueError, match="one flag between each two of the 3 stages, got 1"):
        VAEConfig(3, 1, (1, 2, 2), 1, (True,), (0.0,), (1.0,))


def test_bfloat16_decodes(latents: Tensor) -> None:
    torch.manual_seed(0)
    vae = WanVAE(CONFIG).eval()
    exact = vae.decode_clip(latents)
    rounded = vae.to(torch.bfloat16).decode(latents, Histories())
    assert rounded.dtype == torch.float32
    assert (rounded - exact.clamp(-1, 1)).abs().max() < 0.1


def test_the_released_vae() -> None:
    with torch.device("meta"):
        vae = WanVAE(WAN21_VAE)
    assert len(vae.state_dict()) == 194
    assert sum(p.numel() for p in vae.parameters()) == 126_892_531
