"""The exam's model grows the kind of layer that a plugin asks for, by name or by kind."""

import fnmatch

import pytest
from torch import nn

from regplug.errors import SelectionError
from regplug.testing.bench import Bench, Sample
from regplug.testing.candidate import attachable
from regplug.testing.checks import kinds
from regplug.testing.subject import Skip, Subject
from tests.testing.wrong_runs import Acts


def grown(source):
    """Return the model that an exam is held on, and the weights that the plugin moves there."""
    subject = Subject(source, Bench())
    attachable(subject)
    return subject.bench.model, subject.touched(subject.loud(subject.deliveries[0]))


@pytest.mark.parametrize(
    ("where", "model", "name"),
    [
        ("inner.*", Sample, "inner.weight"),
        ("conv.*", kinds.Convolutional, "conv.weight"),
        ("conv1d.weight", kinds.Convolutional, "conv1d.weight"),
        ("embedding.*", kinds.Embedded, "embedding.weight"),
        ("bn.*", kinds.Normalized, "bn.weight"),
        ("attn.*", kinds.Attentive, "attn.in_proj_weight"),
        ("*q_proj*", kinds.Attentive, "q_proj.weight"),
        ("lstm.*", kinds.LongMemory, "lstm.weight_hh_l0"),
        ("gru.*", kinds.GatedMemory, "gru.weight_hh_l0"),
        ("rnn.*", kinds.PlainMemory, "rnn.weight_hh_l0"),
        ("lm_head.*", kinds.Named, "lm_head.weight"),
        ("mlp.0.*", kinds.Named, "mlp.0.weight"),
    ],
)
def test_by_name(where, model, name):
    found, touched = grown(f"l2(1e-2, where={where!r})")
    assert found is model
    assert name in touched
    assert all(fnmatch.fnmatch(each, where) for each in touched)


class OnlyKind(Acts):
    """Acts on the layers of one kind, and on nothing where there are none."""

    kind: type[nn.Module]

    def act(self, session):
        for module in session.model.modules():
            if isinstance(module, self.kind):
                for p in module.parameters():
                    if p.grad is not None:
                        p.grad.add_(p.detach().sign(), alpha=self.signed(session))


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        (nn.Conv2d, kinds.Convolutional),
        (nn.Embedding, kinds.Embedded),
        (nn.GroupNorm, kinds.Normalized),
        (nn.MultiheadAttention, kinds.Attentive),
        (nn.GRU, kinds.GatedMemory),
    ],
)
def test_by_kind(kind, model):
    found, touched = grown(type("Only", (OnlyKind,), {"kind": kind}))
    assert found is model
    assert touched


def test_what_no_model_has_is_said():
    with pytest.raises(SelectionError, match="no_such_layer"):
        grown("l2(1e-2, where='no_such_layer.*')")
    with pytest.raises(Skip):
        grown(type("Only", (OnlyKind,), {"kind": nn.Transformer}))
