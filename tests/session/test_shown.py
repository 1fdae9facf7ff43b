"""What a notebook shows of a session."""

import re

import torch

import regplug


class Anchor(regplug.Penalty):
    """Has a name that HTML would take for a tag."""

    def value(self, w):
        return w.square().sum()


def test_a_notebook_shows_what_describe_tells():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = ["l1(1e-3)", Anchor(0.5, name="<b>mine")]
    with regplug.attach(model, optimizer, plugins) as session:
        shown = session._repr_html_()
        told = session.describe()
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", shown)
    assert len(cells) == 3 * 6
    assert cells[0] == "plugin"
    assert "&lt;b&gt;mine" in cells
    assert "<b>" not in shown
    for cell in cells:
        assert cell.replace("&lt;", "<").replace("&gt;", ">") in told
    assert told.splitlines()[0] in shown
    assert "detached" in session._repr_html_()
