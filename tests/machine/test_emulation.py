"""16-bit products in fp32 are those of 16-bit instructions, rounded once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fromscratch.config.model import GPTConfig
from fromscratch.machine.emulation import EmulatedProducts, needs_emulation
from fromscratch.machine.precision import Precision
from fromscratch.models.factory import build_empty, initialise

CPU = torch.device("cpu")
ONE_STEP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}  # between neighbouring numbers, relative


def matrices(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "product",
    [
        lambda a, b, c: a @ b,
        lambda a, b, c: torch.addmm(c, a, b),
        lambda a, b, c: torch.nn.functional.linear(a, b.T, c[0]),
        lambda a, b, c: torch.bmm(a.expand(2, -1, -1), b.expand(2, -1, -1)),
        lambda a, b, c: torch.mm(a, b, out=torch.empty_like(c)),
        lambda a, b, c: a @ b[:, 0],
        lambda a, b, c: c.clone().addmm_(a, b),
    ],
    ids=["mm", "addmm", "linear", "bmm", "mm out", "mv", "addmm_"],
)
def test_a_product_is_the_exact_one_rounded(dtype: torch.dtype, product: Callable[..., Tensor]) -> None:
    a, b, c = matrices(dtype, (5, 70), (70, 3), (5, 3))
    exact = product(*(x.double() for x in (a, b, c)))
    for context in (torch.inference_mode, torch.enable_grad):
        with context(), EmulatedProducts():  # type: ignore[no-untyped-call]
            found = product(a, b, c)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=ONE_STEP[dtype], atol=1e-3)


def test_results_go_where_they_are_wanted_and_overflow_as_they_would() -> None:
    a, b = matrices(torch.float16, (4, 8), (8, 4))
    out = torch.zeros(4, 9, dtype=torch.float16)
    with EmulatedProducts():  # type: ignore[no-untyped-call]
        torch.mm(a, b, out=out[:, 2:6])
        assert torch.equal(out[:, 2:6], a @ b) and not out[:, :2].any() and not out[:, 6:].any()
        assert torch.isinf((a.abs() * 1e4) @ (b.abs() * 1e4)).all()  # above 65,504
        assert (a.float() @ b.float()).dtype == torch.float32


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_a_model_computes_what_it_computes_natively(kind: str) -> None:
    shape = {"vocab_size": 61, "context_length": 16, "num_layers": 2, "num_heads": 2, "embedding_dim": 16}
    config = GPTConfig.model_validate({**shape, "dropout": 0.0})
    tokens = torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(2))
    losses, gradients = [], []
    for emulated in (False, True):
        model = build_empty(config, CPU)
        initialise(model, config, seed=1)
        precision = Precision(kind, CPU)
        precision.emulated = emulated
        with precision.arithmetic():
            loss = model.losses(tokens[:, :-1], tokens[:, 1:]).mean()
        precision.backward(loss)
        losses.append(loss.item())
        scale = float(precision.loss_scale()) if kind == "fp16" else 1.0
        gradients.append(torch.cat([p.grad.flatten() / scale for p in model.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 0.02


def test_only_what_is_slow_is_emulated() -> None:
    assert not needs_emulation("fp32", CPU) and not needs_emulation("tf32", CPU)
    assert not needs_emulation("bf16", torch.device("cuda"))
    assert needs_emulation("bf16", CPU) is not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_tf32_is_on_in_forward_and_backward_and_nowhere_else() -> None:
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: object, x: Tensor) -> Tensor:
            seen.append(torch.get_float32_matmul_precision())
            return x.clone()

        @staticmethod
        def backward(_ctx: object, upstream: Tensor) -> Tensor:
            seen.append(torch.get_float32_matmul_precision())
            return upstream

    before = torch.get_float32_matmul_precision()
    for kind, setting in (("tf32", "high"), ("fp32", "highest")):
        precision = Precision(kind, CPU)
        with precision.arithmetic():
            loss = Watch.apply(torch.ones((), requires_grad=True))  # type: ignore[no-untyped-call]
        precision.backward(loss)
        assert seen == [setting, setting] and torch.get_float32_matmul_precision() == before
        seen.clear()
