"""Neural Motifs' recurrent parts box by box with NumPy, from the equations of the official code: an oracle for tests.

Weights come by name from a module's state dict; nothing here imports the suite.
"""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def highway_step(projected, h, c, state_weight, state_bias):
    """One step of one sequence: mapped input [6 H], h and c [H]."""
    size = len(h)
    gates = [projected[n * size : (n + 1) * size] for n in range(6)]
    of_state = state_weight @ h + state_bias
    for n in range(5):
        gates[n] = gates[n] + of_state[n * size : (n + 1) * size]
    c = sigmoid(gates[0]) * np.tanh(gates[2]) + sigmoid(gates[1]) * c
    new = sigmoid(gates[3]) * np.tanh(c)
    highway = sigmoid(gates[4])
    return highway * new + (1 - highway) * gates[5], c


def highway_lstm(sequence, state, prefix=""):
    """All layers over one sequence [T, D]: even ones forwards, odd ones backwards."""
    layer = 0
    while f"{prefix}cells.{layer}.input.weight" in state:
        weights = [state[f"{prefix}cells.{layer}.{n}"] for n in ("input.weight", "state.weight", "state.bias")]
        steps = range(len(sequence)) if layer % 2 == 0 else range(len(sequence) - 1, -1, -1)
        h = c = np.zeros(weights[1].shape[1])
        outputs = [None] * len(sequence)
        for t in steps:
            h, c = highway_step(weights[0] @ sequence[t], h, c, weights[1], weights[2])
            outputs[t] = h
        sequence = np.array(outputs)
        layer += 1
    return sequence


def decode(sequence, state, prefix="", given=None):
    """Logits and labels of one sequence of contexts [T, D]; `given` are labels from 0 on, -1 for background."""
    embedding = state[f"{prefix}embedding.weight"]
    input_weight, input_bias = state[f"{prefix}cell.input.weight"], state[f"{prefix}cell.input.bias"]
    h = c = np.zeros(state[f"{prefix}cell.state.weight"].shape[1])
    word, logits, labels = embedding[0], [], []
    for t, context in enumerate(sequence):
        projected = input_weight @ np.concatenate([context, word]) + input_bias
        h, c = highway_step(projected, h, c, state[f"{prefix}cell.state.weight"], state[f"{prefix}cell.state.bias"])
        logits.append(state[f"{prefix}output.weight"] @ h + state[f"{prefix}output.bias"])
        label = int(np.argmax(logits[-1][1:]))
        if given is not None and given[t] >= 0:
            label = int(given[t])
        labels.append(label)
        word = embedding[label + 2]
    return np.array(logits), labels


def iou(a, b):
    """Of two boxes of pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
    return width * height / (sum(areas) - width * height)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def suppressed(logits, class_boxes):
    """Labels of one image's objects: the most confident (object, category) first, overlapping ones lose it."""
    left = {(i, c): p for i, row in enumerate(softmax(logits)[:, 1:]) for c, p in enumerate(row)}
    labels = {}
    while len(labels) < len(logits):
        i, c = max((key for key in left if key[0] not in labels), key=lambda key: left[key])
        labels[i] = c
        for j in range(len(logits)):
            if iou(class_boxes[i][c], class_boxes[j][c]) >= 0.3:
                left[j, c] = 0.0
    return [labels[i] for i in range(len(logits))]


def rectangles(subject, obj, size):
    """Both boxes in the frame of their union, cell by cell."""
    x1, y1 = min(subject[0], obj[0]), min(subject[1], obj[1])
    width, height = max(subject[2], obj[2]) - x1, max(subject[3], obj[3]) - y1
    drawn = np.zeros((2, size, size))
    for n, box in enumerate((subject, obj)):
        left, right = ((box[k] - x1) * size / width for k in (0, 2))
        top, bottom = ((box[k] - y1) * size / height for k in (1, 3))
        for row in range(size):
            for column in range(size):
                tall = max(0.0, min(row + 1, bottom) - max(row, top))
                wide = max(0.0, min(column + 1, right) - max(column, left))
                drawn[n, row, column] = tall * wide
    return drawn
