"""Sampling: exact inversion, exact log-probs, streams that depend on nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentvision.policies._sampling import RowSampling, sample, stream_key, uniforms

WORD = (1 << 64) - 1


def rows(n, *, temperature=1.0, top_p=1.0, top_k=0):
    return RowSampling(
        temperature=torch.full((n,), temperature),
        top_p=torch.full((n,), top_p),
        top_k=torch.full((n,), top_k),
        any_greedy=temperature == 0,
        any_random=temperature > 0,
        any_filter=top_p < 1 or top_k > 0,
    )


@given(key=st.integers(-(1 << 63), (1 << 63) - 1), index=st.integers(0, 1 << 20))
def test_uniforms_are_splitmix64(key, index):
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    z ^= z >> 31
    assert uniforms(torch.tensor([key]), torch.tensor([index])).item() == (z >> 11) / 2**53


def test_streams_are_uniform_and_unlike_their_neighbours():
    keys = torch.tensor([stream_key(seed, turn) for seed in range(100) for turn in range(3)])
    draws = torch.stack([uniforms(keys, torch.full_like(keys, k)) for k in range(100)])  # (100, 300)
    counts = torch.histc(draws, 20, 0, 1)
    assert ((counts - 1500) ** 2 / 1500).sum() < 45  # chi-square with 19 degrees of freedom: p < 0.001 above 43.8
    correlation = torch.corrcoef(draws.T).fill_diagonal_(0).abs().max()
    assert correlation < 0.5
    assert len(set(keys.tolist())) == 300


@pytest.mark.parametrize("seed", [0, -1, 1 << 70, -(1 << 70)])
def test_any_integer_is_a_seed(seed):
    assert -(1 << 63) <= stream_key(seed, 0) < 1 << 63


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_the_probabilities_recorded(temperature):
    n = 4001
    logits = torch.tensor([0.3, -1.0, 2.0, 5.0, 0.0]).expand(n, -1)
    ban = torch.tensor([0.0, 0.0, 0.0, -torch.inf, 0.0])
    draws = (torch.arange(n) + 0.5).double() / n
    drawn = sample(logits, ban, draws, rows(n, temperature=temperature))
    expected = (logits[0] / temperature + ban).softmax(-1)
    assert (drawn.ids.bincount(minlength=5) - n * expected).abs().max() <= 1.01
    torch.testing.assert_close(drawn.logprobs, expected.log()[drawn.ids])


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_never_give_a_banned_id(draw):
    logits = torch.zeros(1, 6)
    ban = torch.tensor([-torch.inf, -torch.inf, 0.0, 0.0, -torch.inf, -torch.inf])
    drawn = sample(logits, ban, torch.tensor([draw], dtype=torch.float64), rows(1))
    assert drawn.ids.item() in (2, 3)
    assert drawn.logprobs.item() == pytest.approx(-0.6931, abs=1e-3)


def test_greedy_and_random_rows_share_a_batch():
    logits = torch.tensor([[0.0, 1.0, 3.0], [0.0, 1.0, 3.0]])
    mixed = RowSampling(
        temperature=torch.tensor([0.0, 2.0]),
        top_p=torch.ones(2),
        top_k=torch.zeros(2, dtype=torch.int64),
        any_greedy=True,
        any_random=True,
        any_filter=False,
    )
    drawn = sample(logits, torch.zeros(3), torch.zeros(2, dtype=torch.float64), mixed)
    assert drawn.ids.tolist() == [2, 0]
    torch.testing.assert_close(
        drawn.logprobs, torch.stack([logits[0].log_softmax(-1)[2], (logits[1] / 2).log_softmax(-1)[0]])
    )


@given(
    logits=st.lists(st.integers(-40, 40), min_size=2, max_size=8, unique=True),
    top_k=st.integers(0, 9),
    top_p=st.floats(0.05, 1.0),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_filters_keep_the_most_likely_and_normalise(logits, top_k, top_p, draw):
    probabilities = (torch.tensor(logits, dtype=torch.float64) / 10).softmax(-1)
    ranked = probabilities.argsort(descending=True).tolist()[: top_k or None]
    kept, mass, total = [], 0.0, probabilities[ranked].sum()
    for i in ranked:
        if kept and top_p < 1 and mass >= top_p - 1e-9:
            break
        kept.append(i)
        mass += (probabilities[i] / total).item()
    setting = rows(1, top_p=top_p, top_k=top_k)
    drawn = sample(
        torch.tensor([logits]) / 10, torch.zeros(len(logits)), torch.tensor([draw], dtype=torch.float64), setting
    )
    edge = any(abs(s - top_p) < 1e-5 for s in torch.cumsum(probabilities[ranked] / total, 0).tolist())
    if not edge:
        assert drawn.ids.item() in kept
        expected = (probabilities[drawn.ids.item()] / probabilities[kept].sum()).log().item()
        assert drawn.logprobs.item() == pytest.approx(expected, abs=1e-4)


def test_logits_that_are_not_finite_show_in_the_log_prob():
    logits = torch.tensor([[0.0, torch.nan], [0.0, 1.0]])
    drawn = sample(logits, torch.zeros(2), torch.full((2,), 0.5).double(), rows(2))
    assert drawn.logprobs.isfinite().tolist() == [False, True]
