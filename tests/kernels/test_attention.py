import pytest
import torch

from riverrun.kernels.attention import attention, reference_attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys", "heads", "key_heads"), [(1, 7, 2, 2), (5, 5, 2, 2), (3, 9, 4, 2)])
def test_sdpa_equals_reference(causal: bool, queries: int, keys: int, heads: int, key_heads: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, queries, heads, 8)
    k, v = (torch.randn(2, keys, key_heads, 8) for _ in range(2))
    expected = reference_attention(q, k, v, causal=causal, scale=0.3)
    torch.testing.assert_close(attention(q, k, v, causal=causal, scale=0.3, backend="sdpa"), expected)


def test_causal_is_aligned_at_the_end() -> None:
    """The first of two queries over four keys sees three of them."""
    q, k = torch.zeros(1, 2, 1, 4), torch.zeros(1, 4, 1, 4)
    v = torch.tensor([0.0, 0.0, 0.0, 4.0]).view(1, 4, 1, 1).expand(1, 4, 1, 4)
    out = attention(q, k, v, causal=True)[0, :, 0, 0]
    torch.testing.assert_close(out, torch.tensor([0.0, 1.0]))


def test_unknown_backend_is_named() -> None:
    q = torch.zeros(1, 1, 1, 4)
    with pytest.raises(ValueError, match=r"'fast'.*flash, sdpa, reference"):
        attention(q, q, q, backend="fast")


def test_a_mask_says_who_sees_whom() -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 3, 4, 8)
    k, v = (torch.randn(1, 5, 2, 8) for _ in range(2))
    mask = torch.tensor([[1, 0, 0, 0, 1], [1, 1, 0, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)
    out = attention(q, k, v, mask=mask)
    torch.testing.assert_close(out, reference_attention(q, k, v, mask=mask))
    torch.testing.assert_close(out[0, 2], v[0, 2].repeat_interleave(2, dim=0))  # the third sees one key only
    with pytest.raises(ValueError, match="causal or has a mask"):
        attention(q, k, v, causal=True, mask=mask)
