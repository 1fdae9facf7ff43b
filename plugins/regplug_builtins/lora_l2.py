"""L2 of low-rank adapters as they act: λ·‖B·A‖², of the product and not of its factors."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from regplug import JointPenalty, SessionView
from regplug.errors import SelectionError, SpecError
from regplug.schedules import ScheduleLike
from regplug_builtins._samples import adapted

__all__ = ["LoraL2"]

_NAMES = (("lora_B", "lora_A"), ("lora_b", "lora_a"), ("lora_embedding_B", "lora_embedding_A"))


class LoraL2(JointPenalty):
    r"""λ·Σ‖B·A‖²_F over all low-rank adapters, that is λ·Σ tr((BᵀB)(AAᵀ)).

    An adapter changes a weight by ΔW = s·B·A with its scaling s. Decay of the factors is no decay
    of that: λ(‖A‖² + ‖B‖²) is the nuclear norm's, at its least, and it depends on how the product
    is shared between them. This is L2 of the product itself, λ·‖W − W₀‖² up to s², and pulls the
    tuned weight towards the pre-trained one. The product is never formed: two r × r matrices are,
    for rank r.

    Found by attributes: ``lora_A`` and ``lora_B`` of PEFT's layers (linear, embedding,
    convolution; each adapter by itself, those that are not trained are left out) and of loralib's,
    ``lora_a`` and ``lora_b`` of torchtune's. Of adapters that the optimizer holds, those count that
    are trained now, so that one may be switched to. Where one of both factors is frozen, it is a
    constant. Exact under DDP, FSDP2 and tensor parallelism, where the factors, which are small, are
    gathered.

    Args:
        strength: λ, a finite number ≥ 0 or a schedule of the step count.
        scaled: whether to multiply by s², so that it is λ·‖ΔW‖². s is PEFT's
            ``scaling[adapter]`` (α/r), torchtune's ``alpha / rank``.
        where: the parameters, by default ``"weights"``.
        delivery: ``"auto"``, ``"loss"`` or ``"step"``; see :class:`regplug.Penalty`.
        name: the key of its state and metrics.

    Raises:
        SpecError: ``strength`` is negative or not finite, or ``delivery`` is none of these.
        SelectionError: there is no adapter in the model, or none that is trained and selected; or
            one whose factors don't fit each other, or that has a third, as AdaLoRA's.

    References:
        Edward J. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021,
        https://arxiv.org/abs/2106.09685 (the adapters).
        Nathan Srebro, Jason Rennie, Tommi Jaakkola, "Maximum-Margin Matrix Factorization", 2004,
        https://papers.nips.cc/paper/2655-maximum-margin-matrix-factorization (lemma 1, on decay of
        the factors).

    >>> b, a = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 0.0, 4.0]])
    >>> LoraL2(1.0).value(b, a), (b @ a).square().sum()
    (tensor(125.), tensor(125.))
    """

    exam_model = staticmethod(adapted)

    def __init__(
        self,
        strength: ScheduleLike,
        *,
        scaled: bool = False,
        where: object = "weights",
        delivery: str = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(strength, where=where, delivery=delivery, name=name)  # type: ignore[arg-type]
        if not isinstance(scaled, bool):
            raise SpecError(f"scaled must be True or False, got {scaled!r}")
        self.scaled = scaled
        self._scalings: dict[tuple[int, int], float] = {}

    def groups(self, session: SessionView) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (B, A) of each adapter, of which those count that have a factor to train."""
        self._scalings = {}
        for path, module in session.model.named_modules():
            for names in _NAMES:
                factors = [getattr(module, name, None) for name in names]
                if any(factor is None for factor in factors):
                    continue
                for adapter, b, a in _adapters(*factors):
                    trained = b.requires_grad or a.requires_grad
                    if trained and _between(module, adapter) is not None:
                        raise SelectionError(
                            f"{self.name}: {path} has a factor lora_E between {names[0]} and "
                            f"{names[1]}, as AdaLoRA's, whose product is not B·A: exclude it with "
                            f"where=['weights', '!{path}.*']"
                        )
                    if b.ndim < 2 or a.ndim < 2 or b.flatten(1).shape[1] != a.shape[0]:
                        if not trained:
                            continue
                        raise SelectionError(
                            f"{self.name}: {path}.{names[0]} has shape {tuple(b.shape)} and "
                            f"{names[1]} {tuple(a.shape)}, of which there is no product B·A: "
                            f"exclude them with where=['weights', '!{path}.*']"
                        )
                    self._scalings[id(b), id(a)] = _scaling(module, adapter)
                    yield b, a

    def factor(self, *parameters: torch.Tensor) -> float:
        """Return s² of an adapter, 1 if ``scaled`` is not wanted."""
        b, a = parameters
        return self._scalings[id(b), id(a)] ** 2 if self.scaled else 1.0

    def value(self, *ws: torch.Tensor) -> torch.Tensor:
        """Return tr((BᵀB)(AAᵀ))."""
        b, a = (w.flatten(1) for w in ws)
        # Both are symmetric, so the trace of their product is the sum of the elements' products.
        found: torch.Tensor = ((b.T @ b) * (a @ a.T)).sum()
        return found

    def nothing_found(self, session: SessionView) -> str:
        """Say what was looked for."""
        return (
            "there is no adapter with a factor that is trained and selected (modules with lora_A "
            "and lora_B, or lora_a and lora_b): attach after the adapters are put in"
        )


def _adapters(b: Any, a: Any) -> Iterator[tuple[str | None, torch.Tensor, torch.Tensor]]:
    """Yield each adapter's name and factors: a module holds one, or several by name."""
    if isinstance(b, nn.ModuleDict | nn.ParameterDict | Mapping):
        for name in b:
            if name in a:
                yield name, _weight(b[name]), _weight(a[name])
    else:
        yield None, _weight(b), _weight(a)


def _between(module: nn.Module, adapter: str | None) -> object:
    """Return what AdaLoRA has between the factors, None where there is nothing."""
    values: Any = getattr(module, "lora_E", None)
    return values if adapter is None or values is None else dict(values.items()).get(adapter)


def _weight(factor: Any) -> torch.Tensor:
    weight: torch.Tensor = factor if isinstance(factor, torch.Tensor) else factor.weight
    return weight


def _scaling(module: nn.Module, adapter: str | None) -> float:
    """Return what the product is multiplied by: 1 where a module does not say."""
    scaling: Any = getattr(module, "scaling", None)
    if isinstance(scaling, Mapping):
        scaling = scaling.get(adapter)
    alpha: Any = getattr(module, "alpha", None)
    rank: Any = getattr(module, "rank", None)
    if scaling is None and alpha is not None and rank is not None:
        scaling = alpha / rank
    return 1.0 if scaling is None else float(scaling)
