"""Distillation: a student predicts its teacher's distribution. DINO, Caron et al. 2021; Hinton et al. 2015."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from manyviews.objectives._precision import in_float32


@in_float32
def sharpen(teacher_logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """The teacher's distributions: `softmax((logits - center) / temperature)`, without gradient.

    Only the teacher is centered, and its temperature is lower than the student's.

    Args:
        teacher_logits: `b k`.
        center: `k`; see `manyviews.targets.Center`.
        temperature: above 0.

    Returns:
        Float32, `b k`, rows that sum to 1.
    """
    return ((teacher_logits.detach() - center) / temperature).softmax(-1)


@in_float32
def cross_entropy(teacher_probs: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """`-sum_k p_k log softmax(logits / temperature)_k`, mean over rows. DINO, eq. 2, for one pair of views.

    Args:
        teacher_probs: rows that sum to 1, `b k`, or sums of several such rows; receive no gradient.
        student_logits: `b k`.
        temperature: the student's temperature, above 0.

    Returns:
        A scalar, at least the entropy of the teacher's distributions; log k when the student is uniform.
    """
    return -(teacher_probs.detach() * (student_logits / temperature).log_softmax(-1)).sum(-1).mean()


@in_float32
def masked_cross_entropy(teacher_probs: Tensor, student_logits: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """The cross-entropy of masked patches: iBOT (Zhou et al. 2022). The mean over each image's, then over images.

    Images without a masked patch count as zero.

    Args:
        teacher_probs: rows that sum to 1, `b m k`; receive no gradient.
        student_logits: `b m k`.
        mask: bool, `b m`, true for patches that count.
        temperature: the student's, above 0.

    Returns:
        A scalar, at least 0; log k when the student is uniform and every image has a masked patch.
    """
    each = -(teacher_probs.detach() * (student_logits / temperature).log_softmax(-1)).sum(-1)
    return ((each * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


@in_float32
def gram(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared difference of two matrices of similarities between an image's patches (DINOv3, Simeoni et al. 2025).

    The paper prints the sum of squares over the matrix; here it is the mean, so that it does not grow with the image.

    Args:
        student: features of patches, `b n d`, of any length above 0.
        teacher: features of the same patches, `b n k`, of any other width; receive no gradient.

    Returns:
        A scalar in [0, 4], mean over images: 0 if all cosines agree, 1 - 1/n for orthonormal against equal patches.
    """
    s, t = normalize(student, dim=-1), normalize(teacher.detach(), dim=-1)
    return (s @ s.mT - t @ t.mT).square().mean()


@in_float32
def softened_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`T^2 KL( softmax(teacher / T) || softmax(student / T) )`, mean over rows. Hinton et al. 2015, section 2.

    Gradients shrink as 1 / T^2, and the factor makes up for it: as T grows, T^2 KL becomes the mean over classes of
    half the squared difference of the logits, each less its mean.

    Args:
        student_logits: `b k`.
        teacher_logits: `b k`; receive no gradient.
        temperature: T of both, above 0.

    Returns:
        A scalar, at least 0: 0 if the distributions agree.
    """
    p = (teacher_logits.detach() / temperature).log_softmax(-1)
    q = (student_logits / temperature).log_softmax(-1)
    return temperature**2 * (p.exp() * (p - q)).sum(-1).mean()


@in_float32
def relation_cross_entropy(
    student: Tensor, teacher: Tensor, others: Tensor, temperature: float, teacher_temperature: float
) -> Tensor:
    """How similar an image is to others, as the teacher sees it and as the student does: SEED, Fang et al. 2021, eq. 5.

    Both compare their embedding with the teacher's embeddings of the image itself and of other images:

        - sum_j softmax(cos(t_i, d_j) / teacher_temperature)_j  log softmax(cos(s_i, d_j) / temperature)_j

    Args:
        student: embeddings, `b d`, of any length above 0.
        teacher: the teacher's embeddings of the same images, `b d`; receive no gradient.
        others: the teacher's embeddings of other images, `n d`; receive no gradient.
        temperature: the student's, above 0.
        teacher_temperature: the teacher's, above 0.

    Returns:
        A scalar, at least 0, mean over rows; log(n + 1) if the student finds all equally similar.
    """
    s, t, d = normalize(student, dim=-1), normalize(teacher.detach(), dim=-1), normalize(others.detach(), dim=-1)
    theirs = torch.cat([(t * t).sum(-1, keepdim=True), t @ d.T], -1)
    ours = torch.cat([(s * t).sum(-1, keepdim=True), s @ d.T], -1)
    return cross_entropy((theirs / teacher_temperature).softmax(-1), ours, temperature)
