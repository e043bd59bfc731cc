import numpy as np
import pytest
import torch

from diptych.loss import LOSSES
from diptych.loss.softmax import in_batch_accuracy
from tests.ranks import run_ranks

PAIRS, DIM = 12, 5


def features():
    random = np.random.default_rng(0)
    image, text = random.normal(size=(2, PAIRS, DIM))
    return [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (image, text)]


def naive(image, text, log_scale):
    """The paper's pseudo-code (figure 3) in float64, by autograd over the whole batch."""
    image, text, log_scale = (
        torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (image, text, log_scale)
    )
    logits = image @ text.T * log_scale.exp()
    rows = torch.logsumexp(logits, 1) - logits.diagonal()
    columns = torch.logsumexp(logits, 0) - logits.diagonal()
    loss = (rows.mean() + columns.mean()) / 2
    loss.backward()
    return loss.item(), image.grad.numpy(), text.grad.numpy(), log_scale.grad.numpy()


def loss_and_gradients(rank, size, name):
    """A rank's part: its rows through a shared weight, so that parameter gradients need every rank's loss."""
    start, stop = rank * PAIRS // size, (rank + 1) * PAIRS // size
    image, text = (torch.tensor(side[start:stop], dtype=torch.float32, requires_grad=True) for side in features())
    scale = torch.tensor([2.0], requires_grad=True)
    loss = LOSSES[name](image, text, scale, None)
    loss.backward()
    return loss.item(), image.grad.numpy(), text.grad.numpy(), scale.grad.numpy()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_rank_mean_of_gradients_is_the_gradient_of_one_big_batch(name, size):
    loss, image, text, scale = naive(*features(), [2.0])
    ranks = run_ranks(size, loss_and_gradients, size, name)
    assert np.mean([r[0] for r in ranks]) == pytest.approx(loss, abs=1e-6)
    # A parameter's gradient sums over the rows of all ranks; the mean over ranks then divides by their number.
    np.testing.assert_allclose(np.concatenate([r[1] for r in ranks]) / size, image, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([r[2] for r in ranks]) / size, text, atol=1e-6)
    np.testing.assert_allclose(np.mean([r[3] for r in ranks], axis=0), scale, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_fp32_under_autocast(name):
    image, text = (torch.tensor(side, dtype=torch.float32) for side in features())
    expected = LOSSES[name](image, text, torch.tensor([4.6]), None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert LOSSES[name](image, text, torch.tensor([4.6]), None) == expected


def test_a_tie_for_first_place_is_a_miss():
    image = torch.eye(3)
    text = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])
    i2t, t2i = in_batch_accuracy(image, text)
    assert i2t == pytest.approx(1 / 3)  # the first picture's two captions tie, the second has none of its own
    assert t2i == pytest.approx(2 / 3)
