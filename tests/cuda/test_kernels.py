"""Masks, attention with dropout, and the head on a GPU, against the CPU, against fp64 and divided differently."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fromscratch.models import flash
from fromscratch.models.attention import FusedAttention
from fromscratch.models.dropout import Dropout, set_sequence_keys
from fromscratch.models.head import ChunkedHead, RowFunction
from fromscratch.models.layers import LinearHead
from fromscratch.models.mechanism import Sizes
from tests.cuda.small import cuda
from tests.models.rows import check_rows

KEYS = (0, 5, 2**32 - 1, 2**63 + 77)


@pytest.mark.parametrize("compiled", [False, True])
def test_masks_are_those_of_a_cpu(compiled: bool) -> None:
    torch.compiler.reset()
    dropout = Dropout(0.1)
    dropout.site = 7
    x = torch.ones(4, 33, 769)
    set_sequence_keys(dropout, KEYS)
    wanted = dropout(x)
    assert dropout.keys is not None
    dropout.keys = dropout.keys.to(cuda())
    call = torch.compile(dropout, dynamic=False) if compiled else dropout
    found = call(x.to(cuda())).cpu()
    assert torch.equal(found == 0, wanted == 0)
    torch.testing.assert_close(found, wanted)


def triton_rows() -> RowFunction:
    """Imported late: machines without a GPU have no Triton."""
    from fromscratch.machine import head_kernel

    return head_kernel.triton_rows


def attend(x: Tensor, sizes: list[int], *, p: float = 0.25, site: int = 3) -> Tensor:
    parts, first = [], 40
    for part in x.split(sizes):
        parts.append(flash.attend_with_dropout(part, part, part, torch.tensor([11, first]), site, p))
        first += len(part)
    return torch.cat(parts)


def test_attention_masks_stay_when_a_batch_is_divided_and_the_generator_is_left_alone() -> None:
    assert flash.kernel_counts_sequences(cuda())
    x = torch.randn(8, 6, 300, 64, device=cuda(), dtype=torch.bfloat16, requires_grad=True)
    before = torch.cuda.get_rng_state()
    results = []
    for sizes in ([8], [1, 3, 4]):
        output = attend(x, sizes)
        (gradient,) = torch.autograd.grad(output.float().square().sum(), x)
        results.append((output, gradient))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0.02, atol=0.02)  # dQ is added atomically
    assert not torch.equal(attend(x, [8], site=4), results[0][0])


def test_the_share_that_attention_keeps() -> None:
    """Equal scores and values of one: every output is the share kept, divided by 1 - p."""
    x = torch.zeros(4, 4, 1_024, 64, device=cuda(), dtype=torch.float16)
    ones = torch.ones_like(x)
    output = flash.attend_with_dropout(x, x, ones, torch.tensor([1, 0]), 0, 0.1)
    assert output[:, :, 256:].float().mean().item() == pytest.approx(1.0, abs=0.01)
    assert output[:, :, 256:].float().std().item() > 0.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_in_attention_divided(dtype: torch.dtype) -> None:
    """The module, by whichever way it takes."""
    attention = FusedAttention(Sizes(2, 64, 1, 4, 128, dropout=0.2, attention_bias=False, tied_head=False), 0)
    attention = attention.to(cuda(), dtype).train()
    x, positions = torch.randn(4, 64, 128, device=cuda(), dtype=dtype), torch.arange(64, device=cuda())[None]
    set_sequence_keys(attention, KEYS, (9, 0))
    together = attention(x, positions)
    for row, key in enumerate(KEYS):
        set_sequence_keys(attention, (key,), (9, row))
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(attention(x[row : row + 1], positions)[0], together[row], atol=tolerance, rtol=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kernel", [False, True])
def test_the_head_against_fp64(precision: str, kernel: bool) -> None:
    sizes = Sizes(50_257, 512, 1, 1, 128, dropout=0.0, attention_bias=True, tied_head=False)
    head, tokens = ChunkedHead(sizes).to(cuda()), 2 * 512 + 37  # eager: two whole chunks and a ragged one
    with torch.no_grad():
        head.weight.normal_(std=0.05)
    if kernel:
        head.use_kernel(triton_rows())
    hidden = torch.randn(1, tokens, 128, device=cuda(), requires_grad=True)
    targets = torch.randint(0, 50_257, (1, tokens), device=cuda())
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.autocast("cuda", dtype, enabled=dtype is not None):
        losses = head.losses(hidden, targets)
    losses.mean().backward()
    exact, matrix = (t.detach().double().requires_grad_() for t in (hidden, head.weight))
    wanted = F.cross_entropy((exact @ matrix.T)[0], targets[0], reduction="none")
    wanted.mean().backward()
    tolerance = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 2e-3}[precision]
    for found, other in ((losses[0], wanted), (hidden.grad, exact.grad), (head.weight.grad, matrix.grad)):
        assert found is not None and other is not None
        assert (found.double() - other).norm() < tolerance * other.norm()


def test_the_kernel_of_the_head_is_the_loss_and_its_gradient_in_fp64() -> None:
    check_rows(triton_rows(), "cuda")


def test_a_head_of_more_than_2_to_the_31_logits() -> None:
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free GPU memory")
    sizes = Sizes(50_257, 1_024, 1, 1, 64, dropout=0.0, attention_bias=True, tied_head=False)
    linear, head, batch = LinearHead(sizes).to(cuda()), ChunkedHead(sizes).to(cuda()), 44
    head.load_state_dict(linear.state_dict())
    head.use_kernel(triton_rows())
    hidden = torch.randn(batch, 1_024, 64, device=cuda(), requires_grad=True)
    targets = torch.randint(0, 50_257, (batch, 1_024), device=cuda())
    with torch.autocast("cuda", torch.bfloat16):
        losses = head.losses(hidden, targets)
        wanted = torch.cat(
            [linear.losses(part[None], one[None]) for part, one in zip(hidden[-2:], targets[-2:], strict=True)]
        )
    (gradient,) = torch.autograd.grad(losses.sum(), hidden)
    (other,) = torch.autograd.grad(wanted.sum(), hidden)
    torch.testing.assert_close(losses[-2:], wanted, rtol=1e-3, atol=1e-3)
    assert (gradient[-2:] - other[-2:]).norm() < 0.01 * other[-2:].norm()
