"""Estimate the accuracy of a run from fits to published runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FLOPS_OF_MAC = 6
"""Floating point operations of training for each multiply-add of a forward: each counts as two, and a backward takes
twice a forward."""


@dataclass(frozen=True)
class Fit:
    """log10(error) = a + b log10(GMAC a sample) + c log10(samples seen)."""

    a: float
    b: float
    c: float
    uncertainty: float
    """Mean error of a run that was left out of the fit."""

    def accuracy(self, gmac: float, samples_seen: float) -> float:
        return float(1 - 10**self.a * gmac**self.b * samples_seen**self.c)


@dataclass(frozen=True)
class OneVariableFit:
    """error = factor x C ^ exponent, with C = GMAC a sample x samples seen."""

    factor: float
    exponent: float
    uncertainty: float | None = None
    """Mean error over the runs that were fitted; None if there are too few."""

    def accuracy(self, gmac: float, samples_seen: float) -> float:
        return float(1 - self.factor * (gmac * samples_seen) ** self.exponent)


IMAGENET: Mapping[str, Fit | OneVariableFit] = {
    "LAION-2B": Fit(0.6234, -0.1288, -0.0933, 0.0036),
    "LAION-400M": Fit(0.3793, -0.1304, -0.0680, 0.0055),
    "LAION-80M": Fit(0.1050, -0.0817, -0.0384, 0.0097),
    "OpenAI's WIT": OneVariableFit(23.18, -0.164),
}
"""Data → zero-shot top-1 accuracy on ImageNet.

The runs are those of Cherti et al. (arXiv 2212.07143) with open_clip: 11 on LAION-2B, 9 each on the two subsets. The
fits in two variables are our own, one for each data set, from the table that the paper's authors publish; OpenAI's is
the paper's law for the five CLIP models (figure 1). Samples help less the more often they repeat, hence the smaller
exponents of small data. Better filtered data are an offset: MetaCLIP-400M is 2.5 to 3.3 points above LAION-2B's fit.
"""
RETRIEVAL: Mapping[str, Fit | OneVariableFit] = {
    "LAION": OneVariableFit(2.750, -0.079),
    "OpenAI's WIT": OneVariableFit(1.589, -0.051),
}
"""Data → recall at 5 of pictures by caption on MS COCO (arXiv 2212.07143, figure 1)."""

FITTED_GMAC, FITTED_SAMPLES = (7.0, 300.0), (3e9, 35e9)
"""The range of the runs that were fitted: from ViT-B/32 to g/14, from 3 to 34 G samples seen."""


@dataclass(frozen=True)
class Expected:
    """The accuracy to expect, between 0 and 1."""

    task: str
    data: str
    accuracy: float
    uncertainty: float | None


def gmac_of(flops_of_sample: float) -> float:
    """Billions of multiply-adds of a forward, of which a forward and backward has so many operations."""
    return flops_of_sample / FLOPS_OF_MAC / 1e9


def expected_accuracy(gmac: float, samples_seen: float) -> tuple[Expected, ...]:
    """What the fits predict; empty for a run outside of their range, where they mean nothing.

    The runs are those of Cherti et al. (arXiv 2212.07143, figure 1) and OpenAI's. The paper's fits have one variable,
    GMAC a sample x samples seen; ours of ImageNet on LAION's data have both as variables of their own.

    gmac: billions of multiply-adds of a forward of a whole picture and a caption that fills the context, since the runs
        were trained with both.
    """
    if not (_within(gmac, FITTED_GMAC) and _within(samples_seen, FITTED_SAMPLES)):
        return ()
    tasks = {"ImageNet zero-shot top-1": IMAGENET, "MS COCO recall of pictures at 5": RETRIEVAL}
    return tuple(
        Expected(task, data, fit.accuracy(gmac, samples_seen), fit.uncertainty)
        for task, fits in tasks.items()
        for data, fit in fits.items()
    )


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]
