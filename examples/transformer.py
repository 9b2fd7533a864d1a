"""A small transformer language model and its gradients in NumPy; the attention is attnfast's.

Every part returns its output and a pullback, a function from the derivative of the loss by the
output to those by the input and by the weights. The examples that train share this module.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray
Pullback = Callable[[Array], tuple[Array, dict[str, Array]]]


def norm(x: Array, gain: Array) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """Divide rows by their root mean square."""
    factor = 1 / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-6)
    y = x * factor

    def pullback(grad: Array) -> tuple[Array, Array]:
        by_y = grad * gain
        by_x = factor * (by_y - y * (by_y * y).mean(axis=-1, keepdims=True))
        return by_x, (grad * y).sum(axis=0)

    return y * gain, pullback


class Transformer:
    """Embedding, layers of attention and of two linear maps, and a readout.

    A layer of `attention` has a method ``vjp(x)``, as those of `attnfast.layers` have it, and
    `weights` with their arrays by name; None leaves attention out. Without `positions` tokens do
    not know where they are: the attention has to tell them. What is drawn depends on the seed
    alone, so that two models which differ in their attention begin with the same weights.
    """

    def __init__(
        self, symbols: int, width: int, attention: Sequence[Any], positions: int, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        self.attention = attention
        self.given: list[Any] = [None] * len(attention)  # what each layer attended to last
        self.seconds = 0.0  # in attention, its projections and their gradients
        shapes = {"embedding": (symbols, width), "readout": (width, symbols)}
        if positions:
            shapes["position"] = (positions, width)
        for n in range(len(attention)):
            shapes |= {f"{n}.up": (width, 4 * width), f"{n}.down": (4 * width, width)}
        self.weights = {
            name: (rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)
            for name, shape in shapes.items()
        }
        for name in {"embedding", "position"} & shapes.keys():
            self.weights[name] *= 0.1 * shapes[name][0] ** 0.5
        for n, layer in enumerate(attention):
            self.weights[f"{n}.mlp_gain"] = np.ones(width, np.float32)
            if layer is not None:
                self.weights[f"{n}.gain"] = np.ones(width, np.float32)
                arrays = layer.weights.arrays().items()
                self.weights |= {f"{n}.{name}": array for name, array in arrays}
        self.weights["gain"] = np.ones(width, np.float32)

    def vjp(self, tokens: Array) -> tuple[Array, Callable[[Array], dict[str, Array]]]:
        """Log-probabilities of the symbols after each token, ``(B * L, symbols)``."""
        w, length = self.weights, tokens.shape[1]
        one_hot = np.eye(len(w["embedding"]), dtype=np.float32)[tokens.ravel()]
        x = w["embedding"][tokens]
        if "position" in w:
            x += w["position"][:length]
        x, backs = x.reshape(-1, x.shape[-1]), []
        for n, layer in enumerate(self.attention):
            for part in (self._attend, self._mlp) if layer is not None else (self._mlp,):
                y, back = part(n, x, tokens.shape)
                x = x + y
                backs.append(back)
        last, norm_back = norm(x, w["gain"])
        logits = last @ w["readout"]
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

        def pullback(grad: Array) -> dict[str, Array]:
            by_logits = grad - np.exp(log_p) * grad.sum(axis=1, keepdims=True)
            by_x, by_gain = norm_back(by_logits @ w["readout"].T)
            grads = {"readout": last.T @ by_logits, "gain": by_gain}
            for back in reversed(backs):
                by_input, by_weights = back(by_x)
                by_x = by_x + by_input
                grads |= by_weights
            grads["embedding"] = one_hot.T @ by_x
            if "position" in w:
                grads["position"] = np.zeros_like(w["position"])
                grads["position"][:length] = by_x.reshape(*tokens.shape, -1).sum(axis=0)
            return grads

        return log_p, pullback

    def loss(self, tokens: Array) -> tuple[float, Callable[[], dict[str, Array]]]:
        """Mean loss of telling each token, ``(B, L + 1)``, from those before; its gradients."""
        log_p, pullback = self.vjp(tokens[:, :-1])
        rows, told = np.arange(len(log_p)), tokens[:, 1:].ravel()

        def gradients() -> dict[str, Array]:
            grad = np.zeros_like(log_p)
            grad[rows, told] = -1 / len(rows)
            return pullback(grad)

        return float(-log_p[rows, told].mean()), gradients

    def _attend(self, n: int, x: Array, shape: tuple[int, int]) -> tuple[Array, Pullback]:
        began = time.perf_counter()
        y, norm_back = norm(x, self.weights[f"{n}.gain"])
        self.given[n] = y.reshape(*shape, -1)
        y, layer_back = self.attention[n].vjp(self.given[n], is_causal=True)
        self.seconds += time.perf_counter() - began

        def pullback(grad: Array) -> tuple[Array, dict[str, Array]]:
            began = time.perf_counter()
            inputs, grads = layer_back(grad.reshape(y.shape))
            by_x, by_gain = norm_back(inputs["query"].reshape(grad.shape))
            self.seconds += time.perf_counter() - began
            return by_x, {f"{n}.gain": by_gain} | {f"{n}.{k}": g for k, g in grads.items()}

        return y.reshape(x.shape), pullback

    def _mlp(self, n: int, x: Array, shape: tuple[int, int]) -> tuple[Array, Pullback]:
        up, down = self.weights[f"{n}.up"], self.weights[f"{n}.down"]
        y, norm_back = norm(x, self.weights[f"{n}.mlp_gain"])
        hidden = np.maximum(y @ up, 0)

        def pullback(grad: Array) -> tuple[Array, dict[str, Array]]:
            by_hidden = (grad @ down.T) * (hidden > 0)
            by_x, by_gain = norm_back(by_hidden @ up.T)
            maps = {f"{n}.up": y.T @ by_hidden, f"{n}.down": hidden.T @ grad}
            return by_x, {f"{n}.mlp_gain": by_gain} | maps

        return hidden @ down, pullback


class Adam:
    """Adam (Kingma and Ba, 2015)."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self.weights, self.steps = weights, 0
        self.moments = {name: np.zeros((2, *w.shape), w.dtype) for name, w in weights.items()}

    def step(self, gradients: dict[str, Array], rate: float) -> None:
        """Move all weights."""
        self.steps += 1
        for name, gradient in gradients.items():
            mean, square = self.moments[name]
            mean += 0.1 * (gradient - mean)
            square += 0.01 * (gradient * gradient - square)
            size = np.sqrt(square / (1 - 0.99**self.steps)) + 1e-8
            self.weights[name] -= rate / (1 - 0.9**self.steps) * mean / size
