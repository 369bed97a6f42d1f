"Heads on embeddings: exact solutions, classes without clips, soft targets, and weights of clips."

import numpy as np
import pytest
import torch
from audiotag.core.errors import AudiotagError
from audiotag.core.metrics import lwlrap
from audiotag.models.probes import PROBES, RARE, LinearProbe, MLPProbe, PrototypeProbe, probe

torch.set_num_threads(1)


def world(n=60, width=12, classes=4, seed=0):
    g = np.random.default_rng(seed)
    y = np.eye(classes)[g.integers(classes - 1, size=n)]  # the last class has no clips
    x = y @ g.normal(size=(classes, width)) * 3 + g.normal(size=(n, width)) + 5
    return x.astype(np.float32)[:, None, :, None], y


def logits(spec, x, y, weights=None):
    net = spec.build(y.shape[1])
    state = spec.solve(x, y, np.ones(len(x)) if weights is None else weights)
    net.load_state_dict({k: torch.as_tensor(v) for k, v in state.items()})
    with torch.inference_mode():
        return net.eval()(torch.from_numpy(x)).numpy()


def standardized(x):
    x = x.reshape(len(x), -1).astype(float)
    return (x - x.mean(0)) / x.std(0)


def test_the_logistic_head_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    x, y = world()
    found, z = logits(LinearProbe(width=12, c=0.5), x, y), standardized(x)
    for k in range(3):
        expected = LogisticRegression(C=0.5, max_iter=1000).fit(z, y[:, k]).decision_function(z)
        np.testing.assert_allclose(found[:, k], expected, atol=2e-3)
    np.testing.assert_allclose(found[:, 3], RARE)


@pytest.mark.parametrize("n", [60, 8])  # more windows than numbers, and fewer
def test_the_ridge_head_is_scikit_learns(n):
    from sklearn.linear_model import Ridge

    x, y = world(n)
    found, z = logits(LinearProbe(width=12, solver="ridge", c=0.5), x, y), standardized(x)
    # scikit-learn's penalty is on the sum of squares, ours on their mean: 1/(c n) of the mean is 1/c of the sum
    expected = 4 * (Ridge(alpha=2.0).fit(z, y).predict(z) - 0.5)
    known = y.max(0) > 0
    np.testing.assert_allclose(found[:, known], expected[:, known], atol=1e-4)
    np.testing.assert_allclose(found[:, ~known], RARE, atol=1e-4)


def test_the_prototype_head_orders_by_cosine():
    x, y = world()
    found, z = logits(PrototypeProbe(width=12), x, y), standardized(x)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    prototypes = y.T @ z
    prototypes[:3] /= np.linalg.norm(prototypes[:3], axis=1, keepdims=True)
    cosine = (z @ prototypes.T)[:, :3]
    slope, intercept = np.polyfit(cosine.ravel(), found[:, :3].ravel(), 1)
    np.testing.assert_allclose(found[:, :3], slope * cosine + intercept, atol=1e-4)
    assert slope > 1 and np.allclose(found[:, 3], RARE)
    # calibrated: the mean probability is the share of the labels
    p = 1 / (1 + np.exp(-(slope * z @ prototypes.T + intercept)))
    assert p.mean() == pytest.approx(y.mean(), abs=1e-3)


@pytest.mark.parametrize("name", ["linear", "ridge", "prototype"])
def test_a_clip_of_many_windows_counts_once(name):
    x, y = world(40)
    spec = probe(name, 12)
    once = logits(spec, x, y)
    # clip 0 as three equal windows, each with a third of the weight
    repeated = np.concatenate([x, x[:1], x[:1]])
    weights = np.array([1 / 3, *np.ones(39), 1 / 3, 1 / 3])
    again = logits(spec, repeated, np.concatenate([y, y[:1], y[:1]]), weights)
    np.testing.assert_allclose(again[:40], once, atol=5e-3)
    assert lwlrap(y, once) > 0.9


def test_soft_targets_and_classes_that_all_clips_have():
    x, y = world(40)
    soft = logits(LinearProbe(width=12), x, np.where(y > 0, 0.5, 0.0))
    hard = logits(LinearProbe(width=12), x, y)
    assert soft[y > 0].max() < 0.5 and hard[y > 0].mean() > 1  # half a label is no more likely than not
    assert np.allclose(logits(LinearProbe(width=12), x, np.ones((40, 1))), -RARE)


def test_what_does_not_fit_is_refused():
    x, y = world()
    with pytest.raises(AudiotagError, match="expects 13 numbers"):
        logits(LinearProbe(width=13), x, y)
    with pytest.raises(AudiotagError, match="expects 12 numbers"):
        MLPProbe(width=12).build(3)(torch.zeros(2, 1, 12, 2))
    with pytest.raises(AudiotagError, match="head"):
        probe("forest", 12)
    with pytest.raises(AudiotagError, match="solver"):
        LinearProbe(width=12, solver="svm")
    assert set(PROBES) == {"linear", "ridge", "prototype", "mlp"}
