"""A river is what trajectories held, number by number; a click on a candidate reaches the handler."""

import base64
import json
from dataclasses import replace

import pytest
import torch

import softar_lab as lab
from softar_lab import plots
from softar_lab.counting.exact import CountingModel
from softar_lab.evidence import masked
from softar_lab.widgets import GenerationPanel
from softar_lab.widgets.panel import RIVER
from softar_lab.widgets.river import River

MARKUP = "ab<&>\"'$\\ \n"


@pytest.fixture(scope="module")
def paths(tiny):
    """Two texts of one prompt that share a beginning."""
    model = tiny(objective="mse", letters=MARKUP)
    kinds = {"always": {}, "never": {"schedule": "never", "feedback": "raw"}}
    return {
        name: lab.generate(model, "a$ ", 30, temperature=0, **kind) for name, kind in kinds.items()
    }


def test_river_state_is_what_the_trajectories_held(paths):
    state = plots.river_state(paths)
    json.dumps(state, allow_nan=False)
    assert state["prompt"] == "a$␣"
    for river, path in zip(state["rivers"], paths.values(), strict=True):
        assert "".join(state["tokens"][i] for i in river["ids"]) == path.text
        assert river["soft"] == (~path.collapsed).int().tolist()
        assert torch.allclose(torch.tensor(river["strip"]), path.distance, rtol=5.1e-3)
        for t, (top, p) in enumerate(zip(river["top"], river["p"], strict=True)):
            known = dict(path.candidates(t))
            assert all(
                abs(known[state["tokens"][i]] - x / 1000) <= 5.1e-4
                for i, x in zip(top, p, strict=True)
            )
            assert river["ids"][t] in top
            # what is left out is too small to be seen
            assert sum(known.values()) - sum(p) / 1000 < 8 * 5.1e-4


def test_river_symbols_are_spelled_and_made_visible(paths):
    state = plots.river_state(paths, spell=lambda symbols: symbols.upper())
    assert len(state["tokens"]) > 3
    assert state["symbols"] == [plots.visible(token.upper()) for token in state["tokens"]]
    assert state["prompt"] == "A$␣"


def test_shared_steps_end_where_two_texts_part(paths):
    always, never = paths.values()
    same = (always.token_ids == never.token_ids).tolist()
    assert plots.shared_steps([always, never]) == (same.index(False) if False in same else 30)
    assert plots.shared_steps([always, always]) == 30
    assert plots.shared_steps([always]) == 0


def test_river_of_a_model_without_vectors_has_no_strip():
    tokenizer = lab.CharTokenizer.fit("abc")
    path = lab.generate(CountingModel.fit(["abababac"], 1, tokenizer=tokenizer), "a", 5)
    state = plots.river_state({"counts": path})
    assert state["strip"] is None
    assert state["rivers"][0]["strip"] == [None] * 5


def test_river_without_trajectories_is_empty():
    river = River()
    assert river.rivers["rivers"] == []
    assert river.still() is None
    assert repr(river) == "River()"


def test_river_drawn_says_the_texts_and_frames_each_step(paths):
    figure = plots.draw_river(paths, steps=12, begin=3)
    for ax, (name, path) in zip(figure.axes, paths.items(), strict=True):
        text = "".join(map(plots.visible, path.text[3:15]))
        assert ax.get_title(loc="left") == f"{name}:  {text}"
        frames = [patch for patch in ax.patches if not patch.get_fill()]
        soft = [patch.get_linestyle() not in ("-", "solid") for patch in frames]
        assert soft == (~path.collapsed[3:15]).tolist()


def test_river_repr_tells_the_texts_with_their_letters_masked(paths):
    texts = [f"{name} {masked(repr(path.text))}" for name, path in paths.items()]
    assert repr(River(paths)) == f"River({'; '.join(texts)})"


def test_river_mime_bundle_holds_a_still(paths):
    data = River(paths)._repr_mimebundle_()
    data = data[0] if isinstance(data, tuple) else data
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == repr(River(paths))


def test_river_mime_bundle_holds_its_data_for_pages_without_a_kernel(paths, tiny):
    river, panel = River(paths), GenerationPanel(tiny(), "ab", steps=5)
    for widget in (river, panel):
        data = widget._repr_mimebundle_()
        data = data[0] if isinstance(data, tuple) else data
        assert json.loads(data[RIVER]) == widget.river.rivers
    assert RIVER not in River()._repr_mimebundle_()


def click(river, name, step, symbol):
    """What the browser sends where a candidate is clicked."""
    number = list(river.trajectories).index(name)
    asked = {"river": number, "step": step, "symbol": river.rivers["tokens"].index(symbol)}
    river._handle_custom_msg({"force": asked}, [])


def test_river_click_on_a_candidate_reaches_the_handler(paths):
    river, asked = River(paths), []
    assert not river.rivers["forcing"]
    river.on_force(lambda *what: asked.append(what))
    assert river.rivers["forcing"]
    for step in range(30):
        for symbol, p in paths["never"].candidates(step):
            if p > 0.001:
                click(river, "never", step, symbol)
                assert asked[-1] == ("never", step, symbol)


def test_river_click_on_what_is_gone_is_ignored(paths):
    river, asked = River(paths), []
    river.on_force(lambda *what: asked.append(what))
    river.show({"always": paths["always"]})
    river._handle_custom_msg({"force": {"river": 1, "step": 0, "symbol": 0}}, [])
    river._handle_custom_msg({"force": {"river": 0, "step": 30, "symbol": 0}}, [])
    river._handle_custom_msg({"other": 1}, [])
    assert asked == []


def test_river_forced_steps_are_marked(paths):
    path = replace(paths["never"], settings={"forced": [[4, "a"], [9, "b"]]})
    assert plots.river_state({"one": path})["rivers"][0]["forced"] == [4, 9]


def test_river_of_two_thousand_letters_stays_small(tiny):
    """A message of at most 0.4 MB, as JSON."""
    model = tiny()
    texts = lab.generate(model, ["ab", "ab"], 2000, seed=[0, 1], schedule="never")
    assert len(json.dumps(River(dict(zip("AB", texts, strict=True))).rivers)) < 400_000
