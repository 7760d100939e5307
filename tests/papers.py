"""The papers' formulas once more, token by token, sharing no code with linattn: the judges of its
definitions.

q, k, v: (tokens, heads, head_dim) of one picture, float64; text first, then rows of the picture.
"""

import itertools
import math

import torch
from torch.nn import functional as F


def positions(height, width, text):
    """Return (y, x) of every token, and None for text."""
    return [None] * text + list(itertools.product(range(height), range(width)))


def softmax_read(query, keys, values, scale):
    scores = [scale * torch.dot(query, key).item() for key in keys]
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


def clear(q, k, v, height, width, text, radius, kernel=None, scale=None, weight="one"):
    """Compute CLEAR's attention; `kernel` is the f x f pooling kernel, None without pooling.

    By weight="tokens" a cell is a mean that counts as often as it has tokens.
    """
    heads, dim = q.shape[1:]
    scale = scale or dim**-0.5
    position, out = positions(height, width, text), torch.zeros_like(v)
    for h in range(heads):
        pooled = []
        if kernel is not None:
            pooled = _cells(k[text:, h], v[text:, h], height, width, kernel, weight)
        for i, here in enumerate(position):
            seen = [j for j, there in enumerate(position) if _sees(here, there, radius)]
            keys, values = [k[j, h] for j in seen], [v[j, h] for j in seen]
            if here is not None:
                keys += [key for key, _ in pooled]
                values += [value for _, value in pooled]
            out[i, h] = softmax_read(q[i, h], keys, values, scale)
    return out


def _sees(a, b, radius):
    """Say whether b lies in the disc around a; text sees and is seen by all."""
    if a is None or b is None:
        return True
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 < radius**2


def lolcats(q, k, v, height, width, text, radius, phi_q, phi_k, factor):
    """Compute LoLCATs' attention of features (tokens, heads, features) and a factor a head."""
    heads, dim = q.shape[1:]
    position, out = positions(height, width, text), torch.zeros_like(v)
    for h in range(heads):
        for i, here in enumerate(position):
            seen = [j for j, there in enumerate(position) if _sees(here, there, radius)]
            if here is None:
                out[i, h] = softmax_read(q[i, h], k[:, h], v[:, h], dim**-0.5)
                continue
            scores = {j: torch.dot(q[i, h], k[j, h]) * dim**-0.5 for j in seen}
            top = max(scores.values())
            weights = [
                factor[h] * torch.exp(scores[j] - top)
                if j in scores
                else torch.dot(phi_q[i, h], phi_k[j, h])
                for j in range(len(position))
            ]
            out[i, h] = sum(w * value for w, value in zip(weights, v[:, h], strict=True))
            out[i, h] /= sum(weights)
    return out


def sla(q, k, v, height, width, text, tile, count):
    """Compute SLA's softmax, and its linear read of all tiles and of those without softmax.

    Each is (picture, heads, head_dim).
    """
    cells = {}
    for number, (y, x) in enumerate(itertools.product(range(height), range(width)), text):
        cells.setdefault((y // tile, x // tile), []).append(number)
    outputs = [torch.zeros_like(v[text:]) for _ in range(3)]
    for h, cell in itertools.product(range(q.shape[1]), cells.values()):
        query = q[cell, h].mean(0)
        near = sorted(cells.values(), key=lambda other: -torch.dot(query, k[other, h].mean(0)))
        kept = [*range(text), *itertools.chain(*near[:count])]
        rest = list(itertools.chain(*near[count:]))
        for i in cell:
            exact = softmax_read(q[i, h], k[kept, h], v[kept, h], q.shape[2] ** -0.5)
            outputs[0][i - text, h] = exact
            for out, keys in zip(outputs[1:], (range(text, len(q)), rest), strict=True):
                weights = [torch.dot(q[i, h].softmax(0), k[j, h].softmax(0)) for j in keys]
                read = sum(w * v[j, h] for w, j in zip(weights, keys, strict=True))
                out[i - text, h] = read / sum(weights) if weights else exact
    return outputs


def _cells(k, v, height, width, kernel, weight):
    """Return keys and values of the cells; one that counts n times stands there n times."""
    f, cells = len(kernel), []
    for top in range(0, height, f):
        for left in range(0, width, f):
            ys, xs = range(top, min(top + f, height)), range(left, min(left + f, width))
            inside = list(itertools.product(ys, xs))
            key = sum(kernel[y - top, x - left] * k[y * width + x] for y, x in inside)
            value = sum(kernel[y - top, x - left] * v[y * width + x] for y, x in inside)
            if weight == "one":
                cells.append((key, value))
            else:
                factor = f * f / len(inside)
                cells += [(factor * key, factor * value)] * len(inside)
    return cells


def linear(q, k, v, heads, phi, eps):
    """Compute the linear attention of LinFusion and LiT.

    The epsilon is added to the denominator divided by the number of tokens.
    """
    tokens = len(q)
    q, k, values = (tensor.reshape(tokens, heads, -1) for tensor in (q, k, v))
    out = torch.zeros_like(values)
    for h in range(heads):
        queries, keys = phi(q[:, h]), phi(k[:, h])
        mean = sum(keys) / tokens
        for i in range(tokens):
            total = sum(torch.dot(queries[i], keys[j]) * values[j, h] for j in range(tokens))
            out[i, h] = total / tokens / (torch.dot(queries[i], mean) + eps)
    return out.reshape(v.shape)


def subtracted(q, k, v, heads, phi):
    """Compute LINA's linear attention: O = q S + (1 - q z) mean(v), sums over tokens as means."""
    tokens = len(q)
    q, k, values = (tensor.reshape(tokens, heads, -1) for tensor in (q, k, v))
    out = torch.zeros_like(values)
    for h in range(heads):
        queries, keys = phi(q[:, h]), phi(k[:, h])
        mean = sum(values[:, h]) / tokens
        for i in range(tokens):
            weights = [torch.dot(queries[i], keys[j]) / tokens for j in range(tokens)]
            read = sum(w * values[j, h] for j, w in enumerate(weights))
            out[i, h] = read + (1 - sum(weights)) * mean
    return out.reshape(v.shape)


def rotated_after(q, k, v, heads, phi, eps, angles):
    """Compute SANA-Video's linear attention of q and k that are not rotated yet.

    `angles`: (tokens, head_dim / 2); two neighbours of a head's channels are one complex number.
    """

    def turned(x):
        return torch.view_as_real(
            torch.view_as_complex(x.unflatten(2, (-1, 2))) * torch.exp(1j * angles[:, None])
        ).flatten(2)

    tokens = len(q)
    q, k = phi(q), phi(k)
    pairs = [tensor.reshape(tokens, heads, -1) for tensor in (turned(q), turned(k), q, k)]
    values = v.reshape(tokens, heads, -1)
    out = torch.zeros_like(values)
    for h in range(heads):
        num_q, num_k, den_q, den_k = (tensor[:, h] for tensor in pairs)
        for i in range(tokens):
            num = sum(torch.dot(num_q[i], num_k[j]) * values[j, h] for j in range(tokens)) / tokens
            den = sum(torch.dot(den_q[i], den_k[j]) for j in range(tokens)) / tokens
            out[i, h] = num / (den + eps)
    return out.reshape(v.shape)


def elu1(x):
    return torch.where(x > 0, x + 1, x.exp())


def relu(x):
    return x * (x > 0) + 1e-6


def convolution(v, height, width, text, weight, bias):
    """weight: (channels, side, side), one for each of the merged heads' channels."""
    merged, out = v.flatten(1), torch.zeros_like(v.flatten(1))
    half = weight.shape[-1] // 2
    for y in range(height):
        for x in range(width):
            total = bias.clone()
            for dy in range(-half, half + 1):
                for dx in range(-half, half + 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        total += (
                            weight[:, half + dy, half + dx]
                            * merged[text + (y + dy) * width + x + dx]
                        )
            out[text + y * width + x] = total
    return out.reshape(v.shape)


def mediator(
    q, k, v, height, width, text, rows, columns, tokens=None, answers=None, reading=None, query=None
):
    """Compute attention through mediators.

    `tokens` are learned mediators (mediators, heads, head_dim) in place of pooled queries, and
    queries read `answers` in place of them.
    `reading`, (heads, mediators, picture), and `query`, (heads, picture, mediators), are added to
    the scores of the two softmaxes.
    """
    heads, dim = q.shape[1:]
    number, everything, out = rows * columns, len(q), torch.zeros_like(v)
    if tokens is None:
        tokens = torch.stack(
            [_cell_mean(q[text:], height, width, rows, columns, n) for n in range(number)]
        )
    answers = tokens if answers is None else answers
    for h in range(heads):
        read = []
        for n in range(number):
            scores = torch.stack(
                [torch.dot(tokens[n, h], k[j, h]) * dim**-0.5 for j in range(everything)]
            )
            if reading is not None:
                scores[text:] += reading[h, n]
            read.append(sum(w * v[j, h] for j, w in enumerate(F.softmax(scores, 0))))
        for i in range(everything):
            scores = torch.stack(
                [torch.dot(q[i, h], answers[n, h]) * dim**-0.5 for n in range(number)]
            )
            if query is not None and i >= text:
                scores += query[h, i - text]
            out[i, h] = sum(w * read[n] for n, w in enumerate(F.softmax(scores, 0)))
    return out


def _cell_mean(q, height, width, rows, columns, n):
    r, c = divmod(n, columns)
    ys = range(math.floor(r * height / rows), math.ceil((r + 1) * height / rows))
    xs = range(math.floor(c * width / columns), math.ceil((c + 1) * width / columns))
    inside = list(itertools.product(ys, xs))
    return sum(q[y * width + x] for y, x in inside) / len(inside)


def pisa(q, k, v, height, width, text, density, tile, order=1, threshold=None):
    """Compute PISA's attention with text, and the first-order term's one matrix for all tiles."""
    heads, dim = q.shape[1:]
    scale, out = dim**-0.5, torch.zeros_like(v)
    tiles = _tiles(height, width, text, tile)
    count = math.ceil(round(density * len(tiles), 6))
    for h in range(heads):
        means = [k[tokens, h].mean(0) for tokens in tiles]
        slope = sum(
            torch.outer(k[j, h] - means[t], v[j, h])
            for t, tokens in enumerate(tiles)
            for j in tokens
        )
        for i in range(text):
            out[i, h] = softmax_read(q[i, h], k[:, h], v[:, h], scale)
        for queries in tiles:
            mean_q = q[queries, h].mean(0)
            best = sorted(range(len(tiles)), key=lambda t: -torch.dot(mean_q, means[t]).item())
            for i in queries:
                read = [(j, None) for j in range(text)]
                read += [(j, None) for t in best[:count] for j in tiles[t]]
                read += [(None, t) for t in best[count:]]
                out[i, h] = _piecewise(
                    q[i, h], k[:, h], v[:, h], means, tiles, read, text, threshold, scale,
                    order * scale * (q[i, h] @ slope) / (height * width),
                )  # fmt: skip
    return out


def _piecewise(query, k, v, means, tiles, read, text, threshold, scale, first_order):
    """Read keys j and means of tiles t, each a pair (j, None) or (None, t)."""
    scores = [scale * torch.dot(query, k[j] if t is None else means[t]).item() for j, t in read]
    top = max(scores)
    num, den = 0, 0
    for (j, t), score in zip(read, scores, strict=True):
        weight = math.exp(score - top)
        is_text = t is None and j < text
        if threshold is not None and not is_text and weight < threshold:
            continue
        if t is None:
            num, den = num + weight * v[j], den + weight
        else:
            all_weight = weight * len(tiles[t])
            num, den = (
                num + weight * v[tiles[t]].sum(0) + all_weight * first_order,
                den + all_weight,
            )
    return num / den


def _tiles(height, width, text, tile):
    """Return the tokens of each tile, tiles row by row."""
    return [
        [text + y * width + x for y, x in itertools.product(
            range(top, min(top + tile, height)), range(left, min(left + tile, width))
        )]
        for top, left in itertools.product(range(0, height, tile), range(0, width, tile))
    ]  # fmt: skip
