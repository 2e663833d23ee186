"""Sample generation: a conditional variational autoencoder of futures, and a plain regressor.

Both see one agent's past and nothing else. Positions are encoded in a frame that is divided by
5 units, displacements are predicted in units and summed up; `unit` is the length that counts as
a metre, so that the same network serves metres and pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from companion.checks import above, one_dtype, random_source, whole
from companion.papers.desire.trained import OnWindows
from companion.training import upload

ENCODE_SCALE = 5.0
TCONV = 16


class PastEncoder(nn.Module):
    """H_X = GRU(relu(tconv(X))).

    Args:
        hidden: width of the GRU, at least 1.
        unit: the length of a metre in the positions, above 0.
        centred: encode positions relative to the last seen one; else in the scene's frame, which
            tells where in the scene somebody is.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(self, hidden: int, *, unit: float = 1.0, centred: bool = False) -> None:
        super().__init__()
        whole(1, hidden=hidden)
        above(0, unit=unit)
        self.scale, self.centred = ENCODE_SCALE * unit, centred
        self.tconv = nn.Conv1d(2, TCONV, 3, padding=1)
        self.gru = nn.GRU(TCONV, hidden, batch_first=True)

    def forward(self, past: Tensor) -> Tensor:
        """Encode the past.

        Args:
            past: shape (agents, steps, 2).

        Returns:
            Shape (agents, hidden).

        Raises:
            ValueError: for another shape, or a dtype that is not the weights'.
        """
        if past.ndim != 3 or past.shape[-1] != 2 or not past.shape[1]:
            raise ValueError(f"past {tuple(past.shape)}: expected (agents, steps, 2)")
        one_dtype(past=past, weights=self.tconv.weight)
        at = past - past[:, -1:] if self.centred else past
        seen = self.tconv((at / self.scale).transpose(1, 2)).relu().transpose(1, 2)
        return self.gru(seen)[1][0]


class PathDecoder(nn.Module):
    """A GRU driven by one vector, whose linear head gives a displacement a step.

    Args:
        hidden: width of the GRU.
        pred_len: steps to predict, at least 1.
        unit: the length of a metre in the positions.
        every_step: the vector enters at every step; else at the first, and zeros follow.

    Raises:
        ValueError: for a pred_len out of range.
    """

    def __init__(self, hidden: int, pred_len: int, *, unit: float, every_step: bool) -> None:
        super().__init__()
        whole(1, pred_len=pred_len)
        self.pred_len, self.unit, self.every_step = pred_len, unit, every_step
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 2)

    def forward(self, drive: Tensor, last: Tensor) -> Tensor:
        """Decode displacements and sum them up.

        Args:
            drive: shape (paths, hidden).
            last: shape (paths, 2), the last seen positions.

        Returns:
            Shape (paths, pred_len, 2).
        """
        steps = drive[:, None].expand(-1, self.pred_len, -1)
        if not self.every_step:
            steps = torch.cat([steps[:, :1], torch.zeros_like(steps[:, 1:])], 1)
        states, _ = self.gru(steps)
        return last[:, None] + (self.unit * self.head(states)).cumsum(1)


class Regressor(nn.Module):
    """RNN ED: one future for one past; trained on the distance, it averages what may happen.

    Args:
        pred_len: steps to predict, at least 1.
        hidden: width of the GRUs.
        unit: the length of a metre in the positions.
        centred: as in `PastEncoder`.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(
        self, pred_len: int, *, hidden: int = 48, unit: float = 1.0, centred: bool = False
    ) -> None:
        super().__init__()
        self.encoder = PastEncoder(hidden, unit=unit, centred=centred)
        self.decoder = PathDecoder(hidden, pred_len, unit=unit, every_step=True)

    def forward(self, past: Tensor) -> Tensor:
        """Predict one path of each agent.

        Args:
            past: shape (..., agents, steps, 2).

        Returns:
            Shape (..., agents, pred_len, 2).

        Raises:
            ValueError: for another shape, or a dtype that is not the weights'.
        """
        if past.ndim < 3:
            raise ValueError(f"past {tuple(past.shape)}: expected (..., agents, steps, 2)")
        flat = past.flatten(0, -3)
        path = self.decoder(self.encoder(flat), flat[:, -1])
        return path.unflatten(0, past.shape[:-2])


class SampleGenerator(OnWindows):
    """The first module of DESIRE: futures from a past and a latent variable.

    Args:
        pred_len: steps to predict, at least 1.
        hidden: width of the GRUs, at least 1.
        latent: width of z, at least 1.
        mask_scale: multiply the softmax mask by `hidden`, so that it is 1 on average.
        every_step: feed the masked past to the decoder at every step, or at the first only.
        unit: the length of a metre in the positions, above 0.
        centred: as in `PastEncoder`.

    Raises:
        ValueError: for numbers out of range.

    References:
        Lee et al. (2017), section "Diverse sample generation with CVAE".

    >>> sampler, g = SampleGenerator(12, hidden=8, latent=4), torch.Generator().manual_seed(0)
    >>> sampler.sample(torch.zeros(3, 8, 2), 20, generator=g).shape
    torch.Size([3, 20, 12, 2])
    """

    def __init__(
        self,
        pred_len: int,
        *,
        hidden: int = 48,
        latent: int = 48,
        mask_scale: bool = True,
        every_step: bool = True,
        unit: float = 1.0,
        centred: bool = False,
    ) -> None:
        super().__init__()
        whole(1, latent=latent)
        self.latent, self.mask_scale, self.unit = latent, mask_scale, unit
        self.past_encoder = PastEncoder(hidden, unit=unit, centred=centred)
        self.future_tconv = nn.Conv1d(2, TCONV, 1)
        self.future_gru = nn.GRU(TCONV, hidden, batch_first=True)
        self.joint = nn.Linear(2 * hidden, hidden)
        self.mean, self.log_sigma = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.mask = nn.Linear(latent, hidden, bias=False)
        self.decoder = PathDecoder(hidden, pred_len, unit=unit, every_step=every_step)

    def encode(self, past: Tensor) -> Tensor:
        """H_X of shape (agents, hidden) of a past of shape (agents, steps, 2)."""
        return self.past_encoder(past)

    def posterior(self, past: Tensor, future: Tensor, h_x: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution of z that has seen the future.

        Args:
            past: shape (agents, steps, 2).
            future: shape (agents, pred_len, 2).
            h_x: what `encode` makes of the past.

        Returns:
            Mean and log of the standard deviation, each of shape (agents, latent).
        """
        at = future - past[:, -1:] if self.past_encoder.centred else future
        scaled = (at / self.past_encoder.scale).transpose(1, 2)
        h_y = self.future_gru(self.future_tconv(scaled).relu().transpose(1, 2))[1][0]
        e = self.joint(torch.cat([h_x, h_y], -1)).relu()
        return self.mean(e), self.log_sigma(e).clamp(-6, 4)

    def beta(self, z: Tensor) -> Tensor:
        """The mask on H_X.

        Args:
            z: shape (..., latent).

        Returns:
            Shape (..., hidden), summing to 1, or to `hidden` if scaled.
        """
        share = self.mask(z).softmax(-1)
        return share * share.shape[-1] if self.mask_scale else share

    def decode(self, h_x: Tensor, z: Tensor, last: Tensor) -> Tensor:
        """Futures of given latent variables.

        Args:
            h_x: shape (agents, hidden).
            z: shape (agents, samples, latent).
            last: shape (agents, 2), the last seen positions.

        Returns:
            Shape (agents, samples, pred_len, 2).
        """
        drive = h_x[:, None] * self.beta(z)  # eq. (9.1)
        start = last[:, None].expand(-1, z.shape[1], -1)
        return self.decoder(drive.flatten(0, 1), start.flatten(0, 1)).unflatten(0, z.shape[:2])

    def _normal(self, past: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
        whole(1, n_samples=n_samples)
        random_source(generator=generator)
        shape = len(past), n_samples, self.latent
        return upload(torch.randn(shape, generator=generator).to(past.dtype), past.device)

    def sample(
        self,
        past: Tensor,
        n_samples: int,
        *,
        generator: torch.Generator,
        h_x: Tensor | None = None,
    ) -> Tensor:
        """Draw futures as at test time: z is standard normal.

        Args:
            past: shape (agents, steps, 2).
            n_samples: futures an agent, at least 1.
            generator: a CPU generator, so that all devices draw the same.
            h_x: what `encode` makes of the past, if that is known already.

        Returns:
            Shape (agents, n_samples, pred_len, 2).

        Raises:
            ValueError: for other shapes or dtypes, no samples, and a seed in place of a generator.
        """
        h_x = self.encode(past) if h_x is None else h_x
        z = self._normal(past, n_samples, generator)
        return self.decode(h_x, z, past[:, -1])

    def reconstruct(
        self, past: Tensor, future: Tensor, n_samples: int, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw futures with z from the posterior, which has seen the future; for training only.

        Args:
            past: shape (agents, steps, 2).
            future: shape (agents, pred_len, 2).
            n_samples: futures an agent, at least 1.
            generator: a CPU generator.

        Returns:
            Shape (agents, n_samples, pred_len, 2), and the posterior's mean and log sigma.

        Raises:
            ValueError: as `sample`.
        """
        h_x = self.encode(past)
        mean, log_sigma = self.posterior(past, future, h_x)
        noise = self._normal(past, n_samples, generator)
        z = mean[:, None] + log_sigma.exp()[:, None] * noise
        return self.decode(h_x, z, past[:, -1]), mean, log_sigma


def kl_divergence(mean: Tensor, log_sigma: Tensor) -> Tensor:
    """D_KL(N(mean, sigma²) ‖ N(0, 1)) summed over the last axis.

    Args:
        mean: shape (..., latent).
        log_sigma: likewise, log of the standard deviation.

    Returns:
        Shape (...), nats.

    >>> kl_divergence(torch.tensor([1.0, 0.0]), torch.zeros(2)).item()
    0.5
    """
    return 0.5 * (mean.square() + (2 * log_sigma).exp() - 2 * log_sigma - 1).sum(-1)
