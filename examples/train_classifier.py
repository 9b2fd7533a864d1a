"""Train a small attention classifier in NumPy: which symbol of a sequence carries a mark?"""

import numpy as np

from attnfast.layers import MultiHeadAttention

SYMBOLS, LONGEST, WIDTH = 10, 40, 32


def draw(rng, count):
    """Padded sequences, where their mark is, how long they are, and the symbol to find."""
    lengths = rng.integers(5, LONGEST + 1, count)
    symbols, marked = rng.integers(0, SYMBOLS, (count, LONGEST)), rng.integers(0, lengths)
    return symbols, marked, lengths, symbols[np.arange(count), marked]


def model(layer, own, symbols, marked, lengths):
    """Log-probabilities of the symbols, and a function from their gradients to all others."""
    rows = np.arange(len(symbols))
    x = own["embedding"][symbols]
    x[rows, marked] += own["mark"]
    seen, pullback = layer.vjp(own["query"], x, kv_lengths=lengths)  # one query for all sequences
    logits = seen[:, 0] @ own["readout"]
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    def backward(grad):
        by_logits = grad - np.exp(log_p) * grad.sum(axis=1, keepdims=True)
        inputs, grads = pullback((by_logits @ own["readout"].T)[:, None])
        by_embedding = np.zeros_like(own["embedding"])
        np.add.at(by_embedding, symbols, inputs["key"])
        grads |= {"embedding": by_embedding, "mark": inputs["key"][rows, marked].sum(axis=0)}
        return grads | {"query": inputs["query"], "readout": seen[:, 0].T @ by_logits}

    return log_p, backward


def main(steps=120, rate=0.3):
    """Train, then count how many of 1000 unseen sequences are answered rightly."""
    rng, layer = np.random.default_rng(0), MultiHeadAttention(WIDTH, num_heads=4, seed=0)
    shapes = {"embedding": (SYMBOLS, WIDTH), "readout": (WIDTH, SYMBOLS), "query": (1, 1, WIDTH)}
    own = {n: rng.normal(0, 0.3, s).astype("f4") for n, s in {**shapes, "mark": WIDTH}.items()}
    weights, losses = own | layer.weights.arrays(), []
    for step in range(steps):
        *batch, answer = draw(rng, 64)
        log_p, backward = model(layer, own, *batch)
        target = np.eye(SYMBOLS, dtype="f4")[answer] / 64
        losses.append(-(log_p * target).sum())
        for name, grad in backward(-target).items():
            weights[name] -= rate * grad
        if step % 20 == 0:
            print(f"step {step:3d}: loss {losses[-1]:.3f}")
    *batch, answer = draw(np.random.default_rng(1), 1000)
    accuracy = (model(layer, own, *batch)[0].argmax(axis=1) == answer).mean()
    print(f"right: {accuracy:.1%} of 1000 unseen sequences")
    assert losses[-1] < losses[0] / 10 and accuracy > 0.95


if __name__ == "__main__":
    main()
