import torch

from riverrun.kernels.rope import angles, angles_3d, axis_dims, rotate, rotate_halves, rotation


def test_relative_positions_only() -> None:
    """q.k after rotation depends on the distance alone, also far beyond any table."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 32)

    def dot(at_q: int, at_k: int) -> torch.Tensor:
        turned = [
            rotate(x.double(), rotation(angles(torch.tensor([p]), 32), torch.float64))
            for x, p in ((q, at_q), (k, at_k))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(dot(5, 3), dot(5_000_005, 5_000_003), atol=1e-7, rtol=0)


def test_axes_of_the_released_model() -> None:
    assert axis_dims(128) == (44, 42, 42)


def test_tokens_are_in_frame_row_column_order() -> None:
    got = angles_3d(torch.tensor([3, 4]), 2, 3, 24)
    assert got.shape == (12, 12)
    time, rows, columns = 4, 4, 4  # pairs: 24 - 2*8 = 8 channels, 8, 8
    torch.testing.assert_close(got[7, :time], angles(torch.tensor([4]), 8)[0])  # frame 1, row 0, column 1
    torch.testing.assert_close(got[7, time : time + rows], angles(torch.tensor([0]), 8)[0])
    torch.testing.assert_close(got[7, -columns:], angles(torch.tensor([1]), 8)[0])


def test_halves_are_the_same_turns_in_another_order() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8)
    turn = rotation(angles(torch.arange(5), 8))
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # pairs (j, j + 4) put side by side
    torch.testing.assert_close(rotate_halves(x, turn)[..., order], rotate(x[..., order], turn))
