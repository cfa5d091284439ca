"""A picture on a page is the state of its figure: complete, as JSON has it, sent once a change."""

import base64
import json

import numpy as np
import plotly.graph_objects as go
import pytest

from softar_lab.widgets.picture import Picture


@pytest.fixture
def picture():
    figure = go.Figure(
        [
            go.Scatter(name="seen", x=[0, 1], y=[1, float("nan")]),
            go.Scatter3d(name="unseen", visible=False),
        ]
    )
    figure.update_layout(title="one", height=300)
    return Picture(figure)


@pytest.fixture
def sent(picture, monkeypatch):
    """The names of what is sent, one list a message."""
    messages = []

    def send(keys=None):
        if keys:  # ipywidgets sends nothing for no name
            messages.append(sorted([keys] if isinstance(keys, str) else keys))

    monkeypatch.setattr(picture, "send_state", send)
    return messages


def test_a_new_picture_holds_the_whole_figure(picture):
    (trace,) = picture.traces
    assert (trace["name"], trace["x"], trace["y"]) == ("seen", [0, 1], [1, None])
    assert picture.figure_layout["title"] == {"text": "one"}
    json.dumps(picture.get_state(["traces", "figure_layout"]), allow_nan=False)


def test_an_unseen_trace_is_not_on_the_page(picture):
    """The empty scene of an unseen 3-D trace would lie over the plane and catch the pointer."""
    picture.figure.data[0].visible, picture.figure.data[1].visible = False, True
    picture.draw()
    assert [trace["name"] for trace in picture.traces] == ["unseen"]


def test_what_has_changed_is_sent_in_one_message(picture, sent):
    picture.draw()
    assert sent == []
    picture.figure.layout.title.text = "two"
    assert sent == []
    picture.draw()
    assert sent == [["figure_layout"]]
    picture.figure.data[0].y, picture.figure.layout.height = [3, 4], 200
    picture.draw()
    assert sent[1:] == [["figure_layout", "traces"]]


def test_all_pictures_share_one_library(picture):
    other = Picture(go.Figure())
    assert other.library is picture.library
    assert len(picture.library.value) > 1_000_000
    state = {name: value for name, value in other.get_state().items() if name != "_esm"}
    assert len(json.dumps(state)) < 20_000
    assert len(str(other._esm)) < 5_000


def test_arrays_and_text_arrive_as_they_are(picture):
    picture.figure.data[0].x = np.array([0.5, 1.5])
    picture.figure.data[0].text = ["<b>a</b>", "␣"]
    picture.draw()
    assert picture.traces[0]["text"] == ["<b>a</b>", "␣"]
    sent = picture.traces[0]["x"]  # plotly packs arrays; plotly.js unpacks them
    found = np.frombuffer(base64.b64decode(sent["bdata"]), np.dtype(sent["dtype"]))
    assert found.tolist() == [0.5, 1.5]


def test_clicks_reach_the_handler(picture):
    seen = []
    picture.on_point_click(seen.append)
    picture._handle_custom_msg({"clicked": {"trace": 0, "x": 1, "y": "b"}}, [])
    assert seen == [{"trace": 0, "x": 1, "y": "b"}]
