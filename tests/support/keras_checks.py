"""What is asked of `attnfast.keras`: `KERAS_BACKEND=jax python -m support.keras_checks [NAME]`.

Keras reads KERAS_BACKEND when it is imported, so that tests/bridges/test_keras.py runs this in a
process for each backend.
"""

import doctest
import itertools
import json
import sys
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import keras
import numpy as np

import attnfast.keras
from attnfast.keras import _library

BACKEND = keras.backend.backend()
# Keras 3.15 refuses more, and has scores of symbols and Attention of any rank.
NEW = tuple(int(n) for n in keras.__version__.split(".")[:2]) >= (3, 15)
NAMES = ("Attention", "AdditiveAttention", "MultiHeadAttention", "GroupQueryAttention")
CHECKS = {}
B, T, S, E = 3, 13, 17, 24
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def check(function):
    CHECKS[function.__name__] = function
    return function


def on(*backends):
    """A check of these backends only; of the others it is one of nothing."""
    return lambda function: check(function) if BACKEND in backends else function


def thinned(things, step):
    """Every `step`-th of them on JAX, which compiles for each shape and option."""
    return list(things)[:: step if BACKEND == "jax" else 1]


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def numpy_of(x):
    return keras.ops.convert_to_numpy(x)


def close(found, expected, **tolerance):
    np.testing.assert_allclose(numpy_of(found), numpy_of(expected), **{**TOLERANCE, **tolerance})


@contextmanager
def calls():
    """Counts the calls that reach attnfast."""
    with mock.patch.object(_library.backend, "attend", wraps=_library.backend.attend) as counted:
        yield counted


def pair(name, *shapes, seed=7, **options):
    """A layer of ours and the original, built, with the same weights."""
    layers = [getattr(module, name)(**options) for module in (attnfast.keras, keras.layers)]
    for layer in layers:
        layer.build(*shapes) if name in HEADS else layer.build(list(shapes))
    rng = np.random.default_rng(seed)
    weights = [rng.normal(0, 0.5, w.shape).astype(np.float32) for w in layers[1].get_weights()]
    for layer in layers:
        layer.set_weights(weights)
    return layers


HEADS = {
    "MultiHeadAttention": {"num_heads": 4, "key_dim": 6},
    "GroupQueryAttention": {"head_dim": 6, "num_query_heads": 4, "num_key_value_heads": 2},
}
# JAX's attention, and with it Keras's, refuses values of another size than keys.
VALUE_DIM = 6 if BACKEND == "jax" else 5
# What each layer may be made with besides.
VARIANTS = [
    ("MultiHeadAttention", {}),
    ("MultiHeadAttention", {"value_dim": VALUE_DIM, "use_bias": False, "output_shape": 7}),
    ("MultiHeadAttention", {"dropout": 0.3}),  # not in training: nothing is dropped
    ("GroupQueryAttention", {}),
    ("GroupQueryAttention", {"num_key_value_heads": 4, "use_bias": False}),
    ("GroupQueryAttention", {"num_key_value_heads": 1, "dropout": 0.3}),
    ("Attention", {}),
    ("Attention", {"use_scale": True, "dropout": 0.3}),
    ("Attention", {"score_mode": "concat"}),
    ("Attention", {"score_mode": "concat", "use_scale": True}),
    ("AdditiveAttention", {}),
    ("AdditiveAttention", {"use_scale": False}),
]
NEWER = [
    ("MultiHeadAttention", {"sliding_window": 4}),
    ("GroupQueryAttention", {"sliding_window": 1}),
    ("MultiHeadAttention", {"use_gate": True}),
]


def supported(name, options):
    try:
        getattr(keras.layers, name)(**HEADS.get(name, {}), **options)
    except (TypeError, ValueError) as error:
        assert "unrecognized" in str(error).lower(), error
        return False
    return True


ALL = VARIANTS + [(name, options) for name, options in NEWER if supported(name, options)]


def tokens(*lengths, size):
    return np.arange(size) < np.array(lengths)[:, None]


def inputs(batch=B, queries=T, keys=S):
    return array(batch, queries, E), array(batch, keys, E, seed=1), array(batch, keys, E, seed=2)


def attend(layer, q, v, k, *, query_mask=None, value_mask=None, attention_mask=None, **options):
    """Call a layer of either kind."""
    if isinstance(layer, keras.layers.Attention):
        if attention_mask is not None:
            return None
        mask = None if query_mask is value_mask is None else [query_mask, value_mask]
        return layer([q, v, k], mask=mask, **options)
    if query_mask is not None:
        q = keras.ops.convert_to_tensor(q)
        keras.src.backend.set_keras_mask(q, keras.ops.convert_to_tensor(query_mask))
    masks = {"value_mask": value_mask, "query_mask": query_mask, "attention_mask": attention_mask}
    return layer(q, v, k, **{n: x for n, x in masks.items() if x is not None}, **options)


def layers_and(shape=(B, T, E), other=(B, S, E)):
    for name, options in ALL:
        made = {**HEADS.get(name, {}), **options}
        yield name, options, pair(name, shape, other, other, **made)


PAIRS = np.random.default_rng(5).random((B, T, S)) < 0.6
PAIRS[:, :, 0] = True
MASKS = [
    {},
    {"value_mask": tokens(17, 5, 11, size=S)},
    {"value_mask": tokens(17, 5, 11, size=S)[:, ::-1].copy() | (np.arange(S) == 0)},
    {"query_mask": tokens(13, 4, 9, size=T)},
    {
        "query_mask": np.random.default_rng(6).random((B, T)) < 0.5,
        "value_mask": tokens(17, 5, 11, size=S),
    },
    {"attention_mask": PAIRS},
    {"attention_mask": PAIRS, "value_mask": tokens(17, 5, 11, size=S)},
    {"attention_mask": PAIRS[0]},
    {"attention_mask": PAIRS[:, :1]},
    {"attention_mask": PAIRS[:, None] & np.ones((1, 4, 1, 1), bool)},
    {"attention_mask": PAIRS.astype("int32")},
]


def rows_that_see(options, masks, causal, b=B, t=T, s=S):
    """Which queries see a key: of the others Keras returns the mean of all values, and ours 0."""
    i, j = np.arange(t)[:, None], np.arange(s)
    seen = np.ones((b, t, s), bool)
    if masks.get("value_mask") is not None:
        seen &= masks["value_mask"][:, None]
    if masks.get("query_mask") is not None:
        seen &= masks["query_mask"][:, :, None]
    pairs = masks.get("attention_mask")
    if pairs is not None:
        seen &= (pairs[:, 0] if pairs.ndim == 4 else pairs).astype(bool)
    if causal:
        seen &= j <= i
    if options.get("sliding_window"):
        seen &= np.abs(i - j) < options["sliding_window"]
    return seen.any(-1)


@check
def values_equal_those_of_keras():
    cases = itertools.product(layers_and(), MASKS, (False, True))
    for (name, options, (ours, theirs)), masks, causal in thinned(cases, 7):
        given = {**masks, "use_causal_mask": causal}
        with calls() as counted:
            found = attend(ours, *inputs(), **given)
        if found is None:
            continue
        expected = attend(theirs, *inputs(), **given)
        if "attention_mask" not in masks or masks["attention_mask"].dtype == bool:
            assert counted.call_count == 1, (name, options, given)
        assert tuple(found.shape) == tuple(expected.shape)
        seen = rows_that_see(options, masks, causal)
        close(
            *(numpy_of(x)[seen] for x in (found, expected)),
            err_msg=f"{name} {options} {masks.keys()} {causal}",
        )


@check
def returned_scores_are_those_of_keras():
    for n, (_, _, (ours, theirs)) in enumerate(layers_and()):
        given = {**MASKS[n % len(MASKS)], "use_causal_mask": n % 2 == 0}
        given["return_attention_scores"] = True
        found, expected = (attend(layer, *inputs(), **given) for layer in (ours, theirs))
        if found is not None:
            for x, y in zip(found, expected, strict=True):
                np.testing.assert_array_equal(numpy_of(x), numpy_of(y))


@check
def padding_has_no_influence():
    """Neither have its values, even NaN, nor is anything else than 0 made of it."""
    real, mask = tokens(13, 4, 9, size=T), tokens(17, 5, 11, size=S)
    real[0, 3] = False
    for name, options, (ours, _) in layers_and():
        if options.get("output_shape"):
            continue
        q, v, k = inputs()
        found = attend(ours, q, v, k, query_mask=real, value_mask=mask)
        v[~mask], k[~mask] = np.nan, np.nan
        again = attend(ours, q, v, k, query_mask=real, value_mask=mask)
        np.testing.assert_array_equal(numpy_of(found)[real], numpy_of(again)[real])
        if "Head" not in name and "Group" not in name:
            assert not numpy_of(found)[~real].any()
    layer, _ = pair("Attention", (B, T, E), (B, S, E))
    nothing = np.zeros((B, S), bool)
    assert not numpy_of(attend(layer, *inputs(), value_mask=nothing)).any()


@check
def empty_and_odd_shapes():
    shapes = [(0, T, S), (B, 0, S), (1, 1, 1), (B, 1, S), (B, T, 1), (2, 65, 129)]
    made = list(layers_and((None, None, E), (None, None, E)))
    for (name, options, (ours, theirs)), (b, t, s) in thinned(itertools.product(made, shapes), 5):
        given = inputs(b, t, s)
        found, expected = (attend(layer, *given, use_causal_mask=True) for layer in (ours, theirs))
        seen = rows_that_see(options, {}, True, b, t, s)
        close(
            *(numpy_of(x)[seen] for x in (found, expected)), err_msg=f"{name} {options} {b, t, s}"
        )


@check
def what_attnfast_cannot_do_is_done_by_keras():
    axes = {"num_heads": 2, "key_dim": 5, "attention_axes": (1, 2)}
    shape = (2, 3, 4, 8)
    ours, theirs = pair("MultiHeadAttention", shape, shape, **axes)
    with calls() as counted:
        close(ours(array(*shape), array(*shape)), theirs(array(*shape), array(*shape)))
        images = array(2, 3, 5, 8)
        ours, theirs = pair("Attention", images.shape, images.shape)
        if NEW:
            close(ours([images, images]), theirs([images, images]))
    assert counted.call_count == 0
    raised = []
    for module in (attnfast.keras, keras.layers):
        layer = module.MultiHeadAttention(2, 5, flash_attention=True)
        try:
            raised.append(layer(array(2, 4, 8), array(2, 4, 8)))
        except (RuntimeError, ValueError, ImportError) as error:
            raised.append(str(error))
    assert raised[0] == raised[1] and isinstance(raised[0], str), raised
    everything = [
        m.MultiHeadAttention(2, 5, dropout=1.0)(array(2, 4, 8), array(2, 4, 8), training=True)
        for m in (attnfast.keras, keras.layers)
    ]
    close(*everything)


@check
def bad_input_is_an_error_of_keras():
    bad = [
        lambda m: m.Attention()(array(2, 3, 4)),
        lambda m: m.Attention()([array(2, 3, 4)] * 2, mask=np.ones((2, 3), bool)),
        lambda m: m.Attention(score_mode="none"),
        lambda m: m.MultiHeadAttention(0, 4),
        lambda m: m.GroupQueryAttention(4, 3, 2),
    ]
    for make in bad:
        raised = []
        for module in (attnfast.keras, keras.layers):
            try:
                make(module)
            except ValueError as error:
                raised.append(str(error))
        assert raised or not NEW
        assert not raised or (len(raised) == 2 and raised[0] == raised[1]), raised


@check
def dropout_drops_its_share():
    """Values of 1 under equal weights: the output is the share that is kept, over that expected."""
    rate, keys = 0.25, 4096
    q, ones = np.zeros((4, 64, 8), np.float32), np.ones((4, keys, 8), np.float32)
    for name, options in (("Attention", {}), ("AdditiveAttention", {"use_scale": False})):
        layer = getattr(attnfast.keras, name)(dropout=rate, seed=3, **options)
        first, second = (numpy_of(layer([q, ones], training=True)) for _ in range(2))
        again = getattr(attnfast.keras, name)(dropout=rate, seed=3, **options)
        np.testing.assert_array_equal(first, numpy_of(again([q, ones], training=True)))
        assert (first != second).any()
        np.testing.assert_array_equal(numpy_of(layer([q, ones])), np.ones((4, 64, 8)))
        kept = first[..., 0] * (1 - rate) * keys
        deviation = (kept - keys * (1 - rate)) / np.sqrt(keys * rate * (1 - rate))
        assert abs(deviation.mean()) < 4 / 16 and 0.8 < deviation.std() < 1.2, deviation
    ours = attnfast.keras.MultiHeadAttention(2, 8, dropout=rate, seed=1)
    with calls() as counted:
        dropped = [numpy_of(ours(q, ones, training=True)) for _ in range(2)]
    assert counted.call_count == 2 and (dropped[0] != dropped[1]).any()
    assert counted.call_args.kwargs["dropout"] == rate


@check
def mixed_precision():
    for kind, policy in (("bfloat16", "mixed_bfloat16"), ("float16", "mixed_float16")):
        for name, options in thinned(ALL, 2):
            ours, theirs = pair(
                *(name, (B, T, E), (B, S, E), (B, S, E)),
                **{**HEADS.get(name, {}), **options},
                dtype=policy,
            )
            with calls() as counted:
                found = attend(ours, *inputs(), value_mask=MASKS[1]["value_mask"])
            expected = attend(theirs, *inputs(), value_mask=MASKS[1]["value_mask"])
            assert counted.call_count == 1, (name, options)
            assert keras.backend.standardize_dtype(found.dtype) == kind
            seen = rows_that_see(options, MASKS[1], False)
            x, y = (numpy_of(keras.ops.cast(x, "float32"))[seen] for x in (found, expected))
            allowed = 0.08 if kind == "bfloat16" else 0.02
            close(x, y, atol=allowed * np.abs(y).max(), err_msg=f"{name} {options}")


@check
def names_configuration_and_symbols():
    for name, options in ALL:
        made = {**HEADS.get(name, {}), **options}
        ours = getattr(attnfast.keras, name)(**made, name="x")
        theirs = getattr(keras.layers, name)(**made, name="x")
        assert ours.get_config() == theirs.get_config()
        assert type(ours).__name__ == type(theirs).__name__
        assert isinstance(ours, getattr(keras.layers, name))
        again = type(ours).from_config(ours.get_config())
        assert again.get_config() == ours.get_config()
        q, v = keras.Input((T, E)), keras.Input((S, E))
        specs = []
        for layer in (ours, theirs):
            arguments = ([q, v],) if isinstance(layer, keras.layers.Attention) else (q, v)
            scores = NEW or "Group" not in name
            both = layer(*arguments, return_attention_scores=True) if scores else ()
            specs.append([(x.shape, x.dtype) for x in (layer(*arguments), *both)])
            assert isinstance(layer(*arguments), keras.KerasTensor)
        assert specs[0] == specs[1], specs
    ours, theirs = pair("Attention", (B, T, E), (B, S, E))
    mask = [keras.ops.ones((B, T), "bool"), keras.ops.ones((B, S), "bool")]
    given = [array(B, T, E), array(B, S, E)]
    for layer in (ours, theirs):
        assert tuple(layer.compute_mask(given, mask).shape) == (B, T)
        assert layer.compute_mask(given, None) is None


def model(layers, **options):
    """A classifier of padded texts."""
    ids = keras.Input((12,), dtype="int32")
    x = keras.layers.Embedding(20, 16, mask_zero=True)(ids)
    causal = options.get("use_causal_mask", False)
    x = layers.MultiHeadAttention(2, 8, **options.get("heads", {}))(x, x, use_causal_mask=causal)
    x = layers.GroupQueryAttention(8, 4, 2)(x, x, use_causal_mask=causal)
    x = layers.Attention(use_scale=True)([x, x])
    x = layers.AdditiveAttention()([x, x])
    x = layers.Attention(score_mode="concat")([x, x])
    x = keras.layers.GlobalAveragePooling1D()(x)
    found = keras.Model(ids, keras.layers.Dense(3)(x))
    rng = np.random.default_rng(1)
    found.set_weights([rng.normal(0, 0.3, w.shape) for w in found.get_weights()])
    return found


def texts(n=24):
    rng = np.random.default_rng(2)
    ids = rng.integers(1, 20, (n, 12))
    ids[np.arange(12) >= rng.integers(3, 13, (n, 1))] = 0
    return ids, ids.sum(1) % 3


def compile_model(made, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.Adam(0.01), loss, **options)
    return made


@on("torch", "jax")
def fit_has_the_losses_of_keras():
    ids, classes = texts()
    for causal in thinned((True, False), 2):
        found = []
        for layers in (attnfast.keras, keras.layers):
            made = compile_model(model(layers, use_causal_mask=causal))
            history = made.fit(ids, classes, batch_size=8, epochs=4, shuffle=False, verbose=0)
            found.append((history.history["loss"], made.predict(ids, verbose=0)))
        np.testing.assert_allclose(found[0][0], found[1][0], rtol=2e-4)
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-2, atol=2e-3)
        assert found[0][0][-1] < found[0][0][0]


@on("torch", "jax")
def fit_with_dropout_learns():
    ids, classes = texts()
    keras.utils.set_random_seed(0)
    made = compile_model(model(attnfast.keras, heads={"dropout": 0.2}))
    with calls() as counted:
        losses = made.fit(ids, classes, batch_size=8, epochs=15, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0], losses
    assert any(call.kwargs.get("dropout") == 0.2 for call in counted.call_args_list)


@check
def predictions_are_those_of_keras():
    ids, _ = texts()
    found, expected = (
        compile_model(model(layers, use_causal_mask=True)).predict(ids, verbose=0)
        for layers in (attnfast.keras, keras.layers)
    )
    np.testing.assert_allclose(found, expected, **TOLERANCE)


@check
def models_are_saved_and_loaded():
    ids, _ = texts()
    ours, theirs = ({n: getattr(m, n) for n in NAMES} for m in (attnfast.keras, keras.layers))
    with tempfile.TemporaryDirectory() as folder:
        path, weights = Path(folder, "model.keras"), Path(folder, "x.weights.h5")
        made = model(attnfast.keras)
        expected = made.predict(ids, verbose=0)
        made.save(path)
        config = keras.saving.serialize_keras_object(made.layers[2])
        assert config["module"] == "attnfast.keras", config
        again = keras.saving.load_model(path)
        assert set(ours.values()) <= {type(x) for x in again.layers}
        np.testing.assert_array_equal(again.predict(ids, verbose=0), expected)
        kinds = dict(zip(ours.values(), theirs.values(), strict=True))
        kinds |= {x: y for y, x in kinds.items()}

        def switch(layer):
            return kinds.get(type(layer), type(layer)).from_config(layer.get_config())

        plain = keras.models.clone_model(again, clone_function=switch)
        plain.set_weights(again.get_weights())
        assert set(theirs.values()) <= {type(x) for x in plain.layers}
        close(plain.predict(ids, verbose=0), expected)
        switched = keras.models.clone_model(plain, clone_function=switch)
        switched.set_weights(plain.get_weights())
        assert set(ours.values()) <= {type(x) for x in switched.layers}
        np.testing.assert_array_equal(switched.predict(ids, verbose=0), expected)
        made.save_weights(weights)
        other = model(keras.layers)
        other.load_weights(weights)
        close(other.predict(ids, verbose=0), expected)


@check
def subclasses_with_hooks_of_their_own():
    """One that computes scores is obeyed; one that wraps the attention gets real masks."""

    class Flat(attnfast.keras.MultiHeadAttention):
        def _masked_softmax(self, attention_scores, attention_mask=None):
            return super()._masked_softmax(0 * attention_scores, attention_mask)

    class Wrapped(attnfast.keras.MultiHeadAttention):
        def _compute_attention(self, query, key, value, attention_mask=None, *rest, **named):
            self.seen = attention_mask
            return super()._compute_attention(query, key, value, attention_mask, *rest, **named)

    class Scored(attnfast.keras.Attention):
        def _calculate_scores(self, query, key):
            return 0 * super()._calculate_scores(query, key)

    x = array(2, 6, 8)
    with calls() as counted:
        layer = Flat(2, 4, dropout=0.5)  # scores in Keras too
        means = numpy_of(layer(x, x))
        np.testing.assert_allclose(means, np.broadcast_to(means[:, :1], means.shape), rtol=1e-4)
        close(Scored()([x, x]), np.broadcast_to(x.mean(1, keepdims=True), x.shape), atol=1e-5)
    assert counted.call_count == 0
    layer = Wrapped(2, 4)
    with calls() as counted:
        found = layer(x, x, use_causal_mask=True)
    assert counted.call_count == 1 and tuple(layer.seen.shape) == (1, 6, 6)
    plain = keras.layers.MultiHeadAttention(2, 4)
    plain.build(x.shape, x.shape)
    plain.set_weights(layer.get_weights())
    close(found, plain(x, x, use_causal_mask=True))


@check
def grouped_heads_are_not_repeated():
    """But for Keras, and for a subclass that computes with them itself."""

    class Wrapped(attnfast.keras.GroupQueryAttention):
        def _compute_attention(self, query, key, value, *rest, **named):
            self.seen = query.shape[2], key.shape[2], value.shape[2]
            return super()._compute_attention(query, key, value, *rest, **named)

    x = array(2, 6, 8)
    plain = keras.layers.GroupQueryAttention(4, 6, 2)
    plain.build(x.shape, x.shape)
    for kind, heads in ((attnfast.keras.GroupQueryAttention, 2), (Wrapped, 6)):
        layer = kind(4, 6, 2)
        layer.build(x.shape, x.shape)
        layer.set_weights(plain.get_weights())
        with calls() as counted:
            close(layer(x, x, use_causal_mask=True), plain(x, x, use_causal_mask=True))
        assert counted.call_count == 1
        assert [y.shape[2] for y in counted.call_args.args[1:]] == [6, heads, heads]
    assert layer.seen == (6, 6, 6)


@check
def examples_run():
    assert doctest.testmod(attnfast.keras).failed == 0
    for name in NAMES:
        docs = doctest.DocTestFinder().find(getattr(attnfast.keras, name), name)
        examples = [test for test in docs if test.examples]
        assert examples
        for test in examples:
            assert doctest.DocTestRunner().run(test).failed == 0


def gradients_of(layer, given, options, seen):
    """Of the squared output, by inputs and weights, as arrays."""
    weights = layer.trainable_variables
    if BACKEND == "torch":
        import torch

        tensors = [torch.tensor(x, requires_grad=True) for x in given]
        loss = (attend(layer, *tensors, **options)[torch.tensor(seen)] ** 2).sum()
        loss.backward()
        return [x.grad.numpy() for x in (*tensors, *(w.value for w in weights))]
    import jax

    def loss(values, arrays):
        with keras.StatelessScope(state_mapping=zip(weights, values, strict=True)):
            return (attend(layer, *arrays, **options) ** 2)[seen].sum()

    values = [w.value for w in weights]
    by_weights, by_arrays = jax.jit(jax.grad(loss, (0, 1)))(values, list(given))
    return [np.asarray(x) for x in (*by_arrays, *by_weights)]


@on("torch", "jax")
def gradients_are_those_of_keras():
    for n, (name, made, pairs) in enumerate(layers_and()):
        masks = {"use_causal_mask": n % 3 > 0}  # each variant is compiled anew by JAX
        masks |= {"value_mask": MASKS[1]["value_mask"]} if n % 3 < 2 else {}
        seen = rows_that_see(made, masks, masks["use_causal_mask"])
        found, expected = (gradients_of(layer, inputs(), masks, seen) for layer in pairs)
        largest = max(np.abs(x).max() for x in expected)
        for x, y in zip(found, expected, strict=True):
            close(x, y, rtol=1e-3, atol=2e-6 * largest, err_msg=f"{name} {made} {masks.keys()}")


@on("torch")
def compiled_layers():
    import torch

    x = torch.as_tensor(array(2, 20, 24))
    for name in NAMES:
        layer, _ = pair(name, x.shape, x.shape, x.shape, **HEADS.get(name, {}))
        call = torch.compile(lambda x, layer=layer: attend(layer, x, x, x), backend="aot_eager")
        with calls() as counted:
            close(call(x), attend(layer, x, x, x))
        assert counted.call_count == 2, name


@on("torch")
def other_devices():
    import torch

    layer = attnfast.keras.MultiHeadAttention(2, 4)
    layer.build((2, 6, 8), (2, 6, 8))
    x = torch.zeros(2, 6, 2, 4, device="meta")
    with calls() as counted:
        layer._compute_attention(x, x, x)
    assert counted.call_count == 0


def main():
    """Run the checks that are named, or list them; print the tracebacks as JSON."""
    failed = {}
    for name in sys.argv[1:] or CHECKS:
        try:
            CHECKS[name]()
            failed[name] = ""
        except Exception:
            failed[name] = traceback.format_exc()
    print(json.dumps(failed))


if __name__ == "__main__":
    main()
