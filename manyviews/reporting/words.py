"""Plain words for the numbers of a log: a title, and half a sentence on how to read it."""

from __future__ import annotations

from manyviews.errors import printable

LOSS = "loss/"
"""What the names of the loss's terms begin with in a log."""

MONITOR = "monitor/"
"""What the names of measurements on held-out images begin with."""

_TERMS = {
    "nt_xent": ("contrast within the batch", "NT-Xent: falls as a view is told from those of other images."),
    "mixed_nt_xent": (
        "copies among the batch",
        "NT-Xent: falls as a copy is told from other images, and a mix from those that are not in it.",
    ),
    "info_nce": ("contrast with other images", "InfoNCE: falls as a view is told from those of other images."),
    "clip": ("images and their captions", "Falls as each image is told from the captions of others."),
    "invariance": ("agreement of views", "Falls as the views of an image become alike."),
    "distance": ("agreement of views", "Falls as the views of an image become alike."),
    "redundancy": ("repeated dimensions", "Falls as no dimension repeats another."),
    "covariance": ("repeated dimensions", "Falls as no dimension repeats another."),
    "variance": ("images that differ too little", "0 if every dimension differs enough between images."),
    "sparsity": ("size of the masks", "Falls as an augmentation takes fewer dimensions."),
    "divergence": ("uncertainty of views", "Falls as the views of an image are equally sure of each dimension."),
    "class": ("class token", "Error in the mean feature of the image."),
    "prototypes": ("use of prototypes", "0 if the mean prediction is as the prior says."),
    "use": ("use of prototypes", "0 if the mean prediction is as the prior says."),
    "hinge": ("dimensions that vary too little", "0 if every dimension differs enough between images."),
    "prior": ("size of the uncertainty", "Keeps the uncertainty near 1."),
    "reconstruction": ("rebuilding hidden patches", "Error in the pixels that the encoder did not see."),
    "pixels": ("rebuilding the image", "Error in the pixels of the image that a code stands for."),
    "codes": ("uneven use of the codes", "Grows as patches become sure of their code. 0: every code is as likely."),
    "gradients": ("edges of hidden patches", "Error in the histograms of gradients that the encoder did not see."),
    "tokens": ("names of hidden patches", "Falls as the tokens of hidden patches are told."),
    "features": ("features of hidden patches", "Distance from the teacher's features of hidden patches."),
    "prediction": ("prediction", "Error in features that the network did not see."),
    "patches": ("hidden patches", "Falls as hidden patches are predicted."),
    "koleo": ("distance of neighbors", "KoLeo: keeps the nearest images of a batch apart."),
    "rescue": ("rescue of easy images", "Agreement with strong views of the easiest images."),
    "global": ("large crops", "Falls as they are predicted from other views."),
    "local": ("small crops", "Falls as large crops are predicted from them."),
    "cutout": ("crops with a hole", "Falls as large crops are predicted from them."),
    "rotation": ("turned crops", "Falls as large crops are predicted from them."),
    "shuffle": ("shuffled patches", "Falls as large crops are predicted from them."),
    "copied": ("copies of images", "Falls as edited copies are told from other images."),
    "cutmix": ("mixes of two images", "Falls as large crops are predicted from them."),
    "strong": ("strongly augmented images", "Falls as large crops are predicted from them."),
}

_NUMBERS = {
    "loss": ("loss", "What training minimizes. It may fall while the features get worse."),
    "monitor/knn": (
        "accuracy of nearest neighbors",
        "k-NN: do the nearest neighbors of an image share its label? Measured on images held out of training, which "
        "are not those of an evaluation.",
    ),
    "monitor/linear": (
        "accuracy of a linear probe",
        "A linear classifier on the features. Measured on images held out of training, which are not those of an "
        "evaluation.",
    ),
    "monitor/old_knn": (
        "nearest neighbors on the old images",
        "k-NN on images of the kind that the weights come from. It falls as they are forgotten.",
    ),
    "monitor/cka": (
        "features like those at the start",
        "Linear CKA of features of held-out images: 1 is all kept, whatever their rotation and scale.",
    ),
    "monitor/cosine": ("cosine with the start", "Of each image's features with those at the start."),
    "monitor/moved": ("distance from the start", "Of the weights, relative to their size at the start."),
    "monitor/rankme": ("dimensions in use", "RankMe: roughly how many the features use. Compare it within one run."),
    "monitor/spread": ("spread", "1: features are even over the sphere. 0: they collapsed to one point."),
    "monitor/alignment": (
        "distance between views",
        "Alignment of two views of an image. Low is good if the features stay spread out.",
    ),
    "monitor/uniformity": ("evenness", "Uniformity: lower means more evenly spread. 0 means collapse."),
    "lr": ("learning rate", "It peaks after the warm-up."),
    "momentum": ("momentum of the target", "The share of itself that the target keeps in a step."),
    "grad_norm": ("size of the gradient", "Its norm. A sudden jump is a warning of trouble."),
    "grad_peak": ("largest gradient of the first layer", "Its spikes announce a divergence of transformers."),
    "watch/teacher_entropy": ("entropy of the teacher", "1: uniform over the prototypes. 0: on one of them."),
    "watch/kl": ("student from teacher", "KL divergence in nats. 0 is agreement, or collapse."),
    "watch/information": ("what prototypes tell", "Nats that an image's distribution tells about it. 0 is collapse."),
    "watch/perplexity": ("prototypes in use", "Perplexity of the mean distribution since the last line."),
    "watch/unused": ("unused prototypes", "Share with less than a tenth of an even use since the last line."),
    "watch/patch_teacher_entropy": ("entropy of the teacher for patches", "1: uniform. 0: on one prototype."),
    "watch/patch_kl": ("student from teacher, patches", "KL divergence of hidden patches, in nats."),
    "watch/patch_information": ("what prototypes tell of patches", "Nats about a hidden patch. 0 is collapse."),
    "watch/patch_perplexity": ("prototypes in use by patches", "Perplexity of the mean distribution."),
    "watch/patch_unused": ("prototypes that no patch uses", "Share with less than a tenth of an even use."),
    "watch/target_spread": ("spread of the targets", "Of features to predict, over patches. 0 is collapse."),
    "watch/visible_error": ("error of visible patches", "Not trained. Compare it with the loss, that of hidden ones."),
    "images_per_second": ("speed", "Training images per second."),
    "data_wait": ("waiting for images", "If high, decoding is slower than training."),
    "loss_scale": ("scale of the loss", "Keeps gradients of float16 in range."),
    "skipped_steps": ("skipped steps", "Steps whose gradients left the range of float16."),
    "monitor/projection_rankme": (
        "dimensions in use by projections",
        "RankMe of what the loss compares. Projections collapse before features do.",
    ),
    "monitor/projection_spread": ("spread of projections", "What the loss compares collapses first."),
    "monitor/participation": ("dimensions with most variance", "Participation ratio of the variances."),
    "monitor/alpha_req": ("decay of the variances", "Alpha-ReQ: the exponent of their power law. Near 1 is best."),
    "monitor/auc": (
        "concentration of the variance",
        "Area under the explained variance. 0.5 is even; 1 is one dimension.",
    ),
    "monitor/correlation": ("correlation of dimensions", "Mean squared. Low means that they say different things."),
    "monitor/patch_rankme": ("dimensions in use by patches", "RankMe of the features of patches."),
    "monitor/patch_spread": ("spread of patches", "1: even over the sphere. 0: they collapsed to one point."),
    "monitor/patch_cosine": (
        "likeness of patches and image",
        "Cosine of a patch and the class token or mean patch. A rise late in a run is a decay of patch features.",
    ),
    "monitor/constant": ("constant dimensions", "Dimensions that are the same for all images."),
}

PROTOCOLS = {
    "knn": "An image gets the class of the training images whose features are nearest. Nothing is trained.",
    "knn_majority": "An image gets the most frequent class of the nearest training images. Nothing is trained.",
    "linear": "A linear classifier learns from the training images' labels. The encoder stays as it is.",
    "logistic": "A linear classifier learns from the training images' labels. The encoder stays as it is.",
    "mlp": "A small network learns from the training images' labels. The encoder stays as it is.",
    "finetune": "The whole encoder is trained further with the training images' labels.",
}
"""What the most frequent protocols do."""


def named(key: str) -> tuple[str, str]:
    """Title and hint of a number in a log; one that another package logs keeps its name."""
    if key in _NUMBERS:
        return _NUMBERS[key]
    if key.startswith(LOSS):
        term = key.removeprefix(LOSS)
        title, hint = _TERMS.get(term, (printable(term, 40), "A term of the loss."))
        return f"loss: {title}", hint
    return printable(key.removeprefix(MONITOR).replace("_", " "), 40), "As logged."


def capital(text: str) -> str:
    """The text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]
