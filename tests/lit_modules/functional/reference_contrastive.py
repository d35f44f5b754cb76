"""The graphical contrastive losses as nested loops over the paper's sets: an oracle for tests and benchmarks.

Written from equations 1 to 7 of the RelDN paper with plain Python control flow. Nothing here imports the suite.
"""

from __future__ import annotations

import torch


def reference_affinity(logits):
    """Equation 1."""
    return 1 - torch.softmax(logits, dim=1)[:, 0]


def reference_side_losses(
    phi, predicates, predicted, anchor, partner_class, margins, reduction="official", num_anchors=None
):
    """L1, L2 and L3 of one side.

    `phi` is a float tensor `[N]`, which may require grad; the other per-pair arguments are lists of N integers, with
    predicate 0 for no relation and partner class -1 for no class. Returns three scalar tensors.
    """
    pairs = range(len(predicates))
    positive_anchors = []
    for n in pairs:
        if predicates[n] > 0 and anchor[n] not in positive_anchors:
            positive_anchors.append(anchor[n])
    values = phi.detach().tolist()
    zero = phi.sum() * 0
    terms = ([], [], [])  # L1, L2, L3: one (weight of the paper's inner mean, hinge) for each term
    for i in positive_anchors:
        positives = [n for n in pairs if anchor[n] == i and predicates[n] > 0]
        negatives = [n for n in pairs if anchor[n] == i and predicates[n] == 0]
        _add_term(terms[0], 1, phi, values, positives, negatives, margins[0])
        classes = sorted({partner_class[n] for n in positives if partner_class[n] >= 0})
        for c in classes:
            of_class = [n for n in positives if partner_class[n] == c]
            against = [n for n in negatives if partner_class[n] == c]
            _add_term(terms[1], 1 / len(classes), phi, values, of_class, against, margins[1])
        relations = sorted({predicates[n] for n in positives})
        for e in relations:
            with_predicate = [n for n in positives if predicates[n] == e]
            against = [n for n in negatives if predicted[n] == e]
            _add_term(terms[2], 1 / len(relations), phi, values, with_predicate, against, margins[2])
    if reduction == "official":
        return tuple(sum((hinge for _, hinge in loss), zero) / (len(loss) + 1) for loss in terms)
    count = max(len(positive_anchors) if num_anchors is None else num_anchors, 1)
    return tuple(sum((weight * hinge for weight, hinge in loss), zero) / count for loss in terms)


def _add_term(terms, weight, phi, values, positives, negatives, margin):
    """Append the hinge of one group, if it can be formed."""
    if positives and negatives:
        least = min(positives, key=values.__getitem__)
        greatest = max(negatives, key=values.__getitem__)
        terms.append((weight, (margin - (phi[least] - phi[greatest])).clamp(min=0)))


def reference_losses(
    logits,
    predicates,
    subject_anchor,
    object_anchor,
    subject_class,
    object_class,
    margins,
    reduction="official",
    num_entities=None,
):
    """L1, L2 and L3, both sides added. All arguments but `logits` `[N, P + 1]` are integer tensors `[N]`."""
    phi = reference_affinity(logits)
    predicted = (logits.detach()[:, 1:].argmax(dim=1) + 1).tolist()
    lists = [t.tolist() for t in (predicates, subject_anchor, object_anchor, subject_class, object_class)]
    settings = (margins, reduction, num_entities)
    by_subject = reference_side_losses(phi, lists[0], predicted, lists[1], lists[4], *settings)
    by_object = reference_side_losses(phi, lists[0], predicted, lists[2], lists[3], *settings)
    return tuple(s + o for s, o in zip(by_subject, by_object, strict=True))


def random_pairs(seed, num_pairs=512, num_anchors=64, num_classes=20, num_predicates=50, dtype=torch.float32):
    """Random arguments of `reference_losses` before the margins: about a quarter of the pairs are positive."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high, size):
        return torch.randint(low, high, (size,), generator=generator)

    logits = torch.randn(num_pairs, num_predicates + 1, generator=generator, dtype=dtype)
    logits[:, 0] += 1 + torch.tensor(float(num_predicates)).log().to(dtype)  # affinities around one half
    related = torch.rand(num_pairs, generator=generator) < 0.25
    predicates = torch.where(related, integers(1, num_predicates + 1, num_pairs), 0)
    subject_anchor, object_anchor = integers(0, num_anchors, num_pairs), integers(0, num_anchors, num_pairs)
    classes = integers(-1, num_classes, num_anchors)
    return logits, predicates, subject_anchor, object_anchor, classes[subject_anchor], classes[object_anchor]
