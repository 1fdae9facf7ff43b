"""Gradient noise: a Gaussian that fades is added to every gradient."""

import hashlib
from collections.abc import Mapping

import torch

from regplug import Scheduled, Selective, SessionView, hookimpl, local, part
from regplug.errors import SpecError
from regplug.schedules import ScheduleLike

__all__ = ["GradientNoise"]


class GradientNoise(Selective):
    r"""Gradient noise: g ← g + N(0, σ²) once per real step, with σ² = η/(1 + t)^γ at step t.

    It is added to the final gradient, after accumulation, reduction and clipping. The noise is a
    function of the seed, the parameter's name, its shape and the step, nothing else: replicas under
    DDP get the same, shards under FSDP2 get the parts of what the whole would get, and a resumed
    run goes on as one that was never interrupted. CPUs and GPUs draw different numbers.

    Args:
        eta: η, the variance at step 0, a finite number ≥ 0 or a schedule of its own; the authors
            use 0.01, 0.3 and 1.
        gamma: γ, how fast it fades, ≥ 0; 0 for noise that stays, or follows the schedule alone.
        seed: a whole number. Another one gives other noise.
        where: the parameters, by default ``"all"``.
        name: the key of its metrics.

    Raises:
        SpecError: ``eta`` or ``gamma`` is negative or not finite, or ``seed`` is no whole number.
        SelectionError: ``where`` is no selection, or covers nothing.

    References:
        Arvind Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep
        Networks", 2015, https://arxiv.org/abs/1511.06807.

    >>> import regplug
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> session = regplug.attach(model, optimizer, [GradientNoise(0.3)])
    >>> session.metrics()["gradient_noise/deviation"]       # √0.3
    0.5477225575051661
    """

    scaled_gradients = True
    reads_gradients = False
    stochastic = True
    by_pattern = True
    eta = Scheduled()

    def __init__(
        self,
        eta: ScheduleLike = 0.01,
        *,
        gamma: float = 0.55,
        seed: int = 0,
        where: object = "all",
        name: str | None = None,
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise SpecError(f"seed must be a whole number, got {seed!r}")
        if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 <= gamma < 1e9:
            raise SpecError(f"gamma must be a finite number ≥ 0, got {gamma!r}")
        self.eta = eta
        self.gamma = gamma
        self.seed = seed
        self.where = where  # type: ignore[assignment]
        self.name = name

    @property
    def deviation(self) -> float:
        """σ now."""
        return float((self.eta / (1 + self._step) ** self.gamma) ** 0.5)

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Check the selection."""
        session.coverage(self._selection)

    @hookimpl
    def on_gradients(self, session: SessionView) -> None:
        """Add the noise of this step."""
        scale = self.deviation * session.gradient_scale
        if scale == 0:
            return
        strengths = self.strengths_by_part(session) if self._mapped else None
        for entry in session.coverage(self._selection).trainable:
            gradient = entry.parameter.grad
            if gradient is None:
                continue
            if strengths is not None:
                with strengths.at(strengths.parts.number(entry.parameter)):
                    scale = self.deviation * session.gradient_scale
            noise = self._noise(entry.name, session.steps, entry.parameter)
            local_gradient = local(gradient)
            local_gradient.add_(part(noise, entry.parameter).to(local_gradient.dtype), alpha=scale)

    def _noise(self, name: str, step: int, w: torch.Tensor) -> torch.Tensor:
        """Return standard normal numbers for the whole of ``w``, of which shards take a part."""
        key = hashlib.blake2b(f"{self.seed}/{step}/{name}".encode(), digest_size=7)
        generator = torch.Generator(w.device).manual_seed(int.from_bytes(key.digest(), "little"))
        # In one dtype for all weights, so that precision does not change what is drawn.
        return torch.randn(w.shape, generator=generator, dtype=torch.float32, device=w.device)

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, float]:
        """Return η and σ now."""
        by_part = self.figures_by_part(session)
        return {"eta": self.eta, **by_part, "deviation": self.deviation}
