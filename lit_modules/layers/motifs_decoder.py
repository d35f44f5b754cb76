"""The object decoder of Neural Motifs: labels one after another, each knowing the one before."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torchvision.ops import nms

from lit_modules.functional.boxes import paired_iou
from lit_modules.layers.highway_lstm import HighwayCell, Packing

NMS_OVERLAP = 0.3


class LabelDecoder(nn.Module):
    """A highway LSTM whose step gets an object's context and the label of the object before.

    Args:
        input_dim: Length of a context.
        hidden_dim: Length of the state.
        embeddings: float `[C + 2, W]`, initial word vectors of the start, of background and of every category.
        dropout: Probability, see `AlternatingHighwayLSTM`.
    """

    def __init__(self, input_dim: int, hidden_dim: int, embeddings: Tensor, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(embeddings.detach().float().clone(), freeze=False)
        self.cell = HighwayCell(input_dim + embeddings.shape[1], hidden_dim, input_bias=True)
        self.output = nn.Linear(hidden_dim, len(embeddings) - 1)
        self.input_dim, self.dropout = input_dim, dropout

    def forward(self, inputs: Tensor, packing: Packing, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Classify packed objects.

        Args:
            inputs: `[N, input_dim]`, packed.
            packing: Of the images' objects.
            labels: int64 `[N]`, packed, 0-based, -1 for background: what the next step gets (teacher forcing). Where
                there are none, and after background, it gets the best category.

        Returns:
            Logits `[N, C + 1]` of background and every category, and the labels int64 `[N]` that were passed on.
        """
        if not packing.sizes:
            return self.output(inputs.new_zeros(0, self.cell.hidden_dim)), packing.rows.new_zeros(0)
        weight, bias = self.cell.input.weight, self.cell.input.bias
        projected = linear(inputs, weight[:, : self.input_dim], bias)
        words = linear(self.embedding.weight, weight[:, self.input_dim :])  # [C + 2, 6 H]: one row is added at a step
        output, memory, mask = self.cell.start(projected, packing.sizes[0], self.dropout)
        word = words[:1].expand(packing.sizes[0], -1)
        logits, passed, start = [], [], 0
        for size in packing.sizes:
            step, kept = projected[start : start + size] + word[:size], None if mask is None else mask[:size]
            output, memory = self.cell.step(step, output[:size], memory[:size], kept)
            logits.append(self.output(output))
            label = logits[-1][:, 1:].argmax(dim=1)
            if labels is not None:
                given = labels[start : start + size]
                label = torch.where(given >= 0, given, label)
            word = words[label + 2]
            passed.append(label)
            start += size
        return torch.cat(logits), torch.cat(passed)


def suppressed_labels(logits: Tensor, class_boxes_xyxy: Tensor, image_index: Tensor) -> Tensor:
    """Give out labels in each image by confidence, none twice to boxes that overlap for that category.

    The most confident pair of object and category is taken; then objects whose box for it overlaps by 0.3 or more lose
    the category; and so on. An object that loses all gets the first one; the official code overwrites the label of
    another object then.

    Args:
        logits: `[N, C + 1]` of background and every category.
        class_boxes_xyxy: `[N, C, 4]`, each object's box for each category, pixels.
        image_index: int64 `[N]`.

    Returns:
        int64 `[N]`, 0-based.
    """
    probabilities = logits.detach().float().softmax(dim=1)[:, 1:].cpu()
    boxes, images = class_boxes_xyxy.detach().cpu(), image_index.cpu()
    labels = torch.zeros(len(logits), dtype=torch.int64)
    for image in images.unique():
        rows = torch.nonzero(images == image).flatten()
        left, box = probabilities[rows], boxes[rows]
        overlaps = paired_iou(box[:, None], box[None]) >= NMS_OVERLAP  # [n, n, C]
        for _ in rows:
            row, label = divmod(int(left.argmax()), left.shape[1])
            labels[rows[row]] = label
            left[:, label] = torch.where(overlaps[row, :, label], left[:, label].clamp(max=0), left[:, label])
            left[row] = -1
    return labels.to(logits.device)


def separately_suppressed_labels(logits: Tensor, class_boxes_xyxy: Tensor, image_index: Tensor) -> Tensor:
    """Give each object its best category among those that greedy suppression, category by category, leaves it.

    For the model without object context; arguments and result are those of `suppressed_labels`. An object that is left
    with none gets the first category.
    """
    probabilities = logits.detach().float().softmax(dim=1)[:, 1:]
    edges = class_boxes_xyxy.detach() + class_boxes_xyxy.new_tensor([0, 0, 1, 1])  # nms() wants edges, not pixels
    kept = torch.zeros_like(probabilities, dtype=torch.bool)
    for image in image_index.unique():
        rows = torch.nonzero(image_index == image).flatten()
        for label in range(probabilities.shape[1]):
            kept[rows[nms(edges[rows, label], probabilities[rows, label], NMS_OVERLAP)], label] = True
    return torch.where(kept, probabilities, 0).argmax(dim=1)
