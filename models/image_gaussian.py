"""How far an image as a whole is from the good ones: a Gaussian of its pooled deep features.

Rippel, Mertens, Merhof, "Modeling the distribution of normal data in pre-trained deep features for anomaly detection",
arXiv 2005.14140. The covariance is shrunk towards a multiple of the identity by the rule of Ledoit and Wolf ("A
well-conditioned estimator for large-dimensional covariance matrices", 2004), as there.

Tensors are named by shape: B images, C channels, N good images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ImageGaussian(nn.Module):
    """Mahalanobis distance of pooled features from those of good images, in units of its expected length.

    Parameters
    ----------
    channels
        Of the pooled features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("centre_C", torch.zeros(channels))
        self.register_buffer("whiten_CC", torch.eye(channels))

    @torch.no_grad()
    def learn(self, good_NC: Tensor) -> None:
        """Take mean and shrunk covariance of good images' pooled features."""
        good_NC = good_NC.double()
        centre_C = good_NC.mean(dim=0)
        covariance_CC = ledoit_wolf(good_NC - centre_C)
        # With covariance = L Lᵀ, the length of L⁻¹(x - centre) is the distance.
        lower_CC = torch.linalg.cholesky(covariance_CC)
        identity_CC = torch.eye(len(lower_CC), dtype=lower_CC.dtype, device=lower_CC.device)
        self.centre_C.copy_(centre_C)
        self.whiten_CC.copy_(torch.linalg.solve_triangular(lower_CC, identity_CC, upper=False))

    def forward(self, pooled_BC: Tensor) -> Tensor:
        """Return the distances B; about 1 for good images."""
        return ((pooled_BC - self.centre_C) @ self.whiten_CC.T).square().mean(dim=1).sqrt()


def ledoit_wolf(centred_NC: Tensor) -> Tensor:
    """Return the shrunk covariance C×C of rows whose mean is 0; positive definite unless all rows are 0.

    Of the sample covariance S and the mean variance m it is (1 - s) S + s m I, with the share s that is expected to be
    nearest to the truth.
    """
    count, channels = centred_NC.shape
    sample_CC = centred_NC.T @ centred_NC / count
    mean = sample_CC.diagonal().mean()
    identity_CC = torch.eye(channels, dtype=sample_CC.dtype, device=sample_CC.device)
    away = (sample_CC - mean * identity_CC).square().sum()
    # The mean squared distance of one row's own product from their mean, over the number of rows.
    noise = (centred_NC.square().sum(dim=1).square().mean() - sample_CC.square().sum()) / count
    share = torch.where(away > 0, noise.clamp(min=0) / away.clamp(min=1e-30), torch.ones_like(away)).clamp(max=1)
    return (1 - share) * sample_CC + (share * mean + 1e-9) * identity_CC
