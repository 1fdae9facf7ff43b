"""The built-in plugins sit the exam that everyone sits, from their entry points."""

import importlib.metadata

import pytest

from regplug.testing import check_plugin

# Arguments for each built-in, and whatever else of it deserves an exam of its own.
SPECS = {
    "activity": ["activity(1e-3)"],
    "cpr": ["cpr(init='dependent', kappa=0.5)", "cpr()", "cpr(init='warm_start', kappa=1)"],
    "decay_to_start": ["decay_to_start(0.1)", "decay_to_start(0.1, scale='lr_squared')"],
    "drop_path": ["drop_path(0.2)"],
    "dropout": ["dropout(0.2)", "dropout(linear(1, 0.5, steps=10), relative=True)"],
    "elastic_net": ["elastic_net(1e-3, cosine(1e-2, 0, steps=10))"],
    "gradient_noise": ["gradient_noise(0.1)"],
    "group_lasso": ["group_lasso(1e-3)", "group_lasso(per_layer(1e-3, decay=0.5))"],
    "hard_threshold": ["hard_threshold(0.5)"],
    "l1": ["l1(1e-3)", "l1({'inner.*': 1e-2, '*': linear(0, 1e-3, steps=4)})"],
    "l1_ball": ["l1_ball(1.0)"],
    "l2": ["l2(linear(0, 1e-2, steps=4))"],
    "l2_sp": ["l2_sp(1e-2)"],
    "label_smoothing": ["label_smoothing(0.2)", "label_smoothing(linear(0.3, 0, steps=9))"],
    "lora_l2": [f"lora_l2(1e-2, delivery={how!r})" for how in ("auto", "step", "loss")],
    "max_norm": ["max_norm(1.0)"],
    "non_negative": ["non_negative()"],
    "orthogonal": ["orthogonal(1e-3)"],
    "spectral_norm": ["spectral_norm(1e-3)"],
    "target_sparsity": ["target_sparsity(0.5)", "target_sparsity(0.8, by=4)"],
    "unit_norm": ["unit_norm()"],
    "weight_decay": [
        "weight_decay(0.1)",
        "weight_decay(0.1, existing='replace')",
        "weight_decay(0.1, cautious=True)",
        "weight_decay({'inner.*': 0.1, 'head.*': 0.2}, scale='schedule')",
    ],
}

# One that draws and one that has all deliveries; the others sit in `make soak`.
QUICK = ("dropout(0.2)", "l1(1e-3)")

# Checks that are known to fail, each with its reason, by spec.
EXPECTED_FAILURES: dict[str, dict[str, str]] = {
    "weight_decay(0.1, cautious=True)": {
        "memory": "it compares with the weights before the update, and says that it copies them"
    },
}


def built_ins():
    distribution = importlib.metadata.distribution("regplug")
    return sorted({e.name for e in distribution.entry_points if e.group == "regplug"})


def test_every_built_in_is_examined():
    assert sorted(SPECS) == built_ins()


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, marks=[] if spec in QUICK else [pytest.mark.slow])
        for name in built_ins()
        for spec in SPECS.get(name, ())
    ],
)
def test_built_in_passes_the_exam(spec):
    report = check_plugin(spec, expected_failures=EXPECTED_FAILURES.get(spec))
    assert report.passed, str(report)
