"""Pictures and what moves: against hand-made channels, plain hooks, and a notebook that runs in a real kernel."""

import base64
import dataclasses
import io
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from bnlib import Config, InputError, analysis, data, features, interactive, plots
from bnlib.store import find


def channels(**gammas) -> pd.DataFrame:
    """What `analysis.affine` gives of runs with these γ: a training mode → a list of layers."""
    return pd.DataFrame([
        {"run": mode, "dataset": "cifar10", "model": "resnet8", "depth": 8, "width": 1, "trainable": mode, "epochs": 16,
         "seed": 0, "number": number, "layer": f"blocks.{number}.bn1", "channel": channel, "gamma": gamma, "beta": 0.0}
        for mode, layers in gammas.items() for number, layer in enumerate(layers, 1)
        for channel, gamma in enumerate(layer)])


def test_a_network_is_drawn_channel_by_channel_the_largest_gamma_lowest_and_the_dead_in_black():
    figure = plots.pictures.network(channels(bn=[[0.5, -2.0], [0.001, 1.0, -0.2]], all=[[1.0, 1.0], [1.0, 1.0, 1.0]]))
    bn, full = figure.axes[:2]
    mesh = bn.collections[0]
    cells = mesh.get_array()
    assert np.allclose(cells.filled(-1), [[2.0, 1.0], [0.5, 0.2], [-1, 0.001]])            # -1: no channel
    colours = mesh.get_cmap()(mesh.norm(cells))
    black = np.all(colours[..., :3] == 0, axis=-1) & (colours[..., 3] > 0)
    assert black.tolist() == [[False, False], [False, False], [False, True]]
    assert bn.get_title() == "BN only: 1 of 5 switched off (20.0%)" and "0 of 5" in full.get_title()
    assert [label.get_text() for label in bn.get_xticklabels()] == ["1 bn1", "2 bn1"]


@pytest.fixture(scope="module")
def maps(tiny_run):
    return features.feature_maps([tiny_run], images=2, each=3)


def test_feature_maps_are_those_that_a_plain_hook_sees(tiny_run, maps):
    digits, network, seen = data.load("digits"), tiny_run.network(), {}
    layer = maps[maps["layer"] != "image"]["layer"].unique()
    assert len(layer) == 1 and re.fullmatch(r"blocks\.\d\.bn1", layer[0])
    network.get_submodule(layer[0]).register_forward_hook(lambda m, i, o: seen.update(output=o))
    for row in maps[maps["layer"] != "image"].itertuples():
        image = digits.x_test[row.image:row.image + 1]
        with torch.no_grad():
            network(data.Normalise(digits, torch.device("cpu"), torch.float32)(image))
        assert np.allclose(features.as_map(row.values), seen["output"][0, row.channel].numpy(), rtol=6e-3, atol=1e-5)
        assert row.gamma == tiny_run.gamma[row.layer][row.channel]
    for number, rows in maps[maps["layer"] == "image"].groupby("image"):
        shown = np.stack([features.as_map(v) for v in rows.sort_values("channel")["values"]], axis=-1)
        assert np.array_equal(shown, digits.x_test[number].numpy())


def test_feature_maps_show_the_largest_and_the_smallest_gammas_on_images_that_are_predicted_right(tiny_run, maps):
    of_layer = maps[maps["layer"] != "image"].drop_duplicates("channel")
    sizes = np.sort(np.abs(tiny_run.gamma[of_layer["layer"].iloc[0]]))
    assert np.allclose(of_layer["gamma"].abs(), [*sizes[:-4:-1], *sizes[2::-1]])
    labels, predictions = data.load("digits").y_test.numpy(), tiny_run.predictions["predicted"]
    right = predictions[predictions == labels]
    assert len(maps["image"].unique()) == maps["class"].nunique() == min(2, right.nunique()) > 0
    confidence = tiny_run.predictions["confidence"]
    for image in maps["image"].unique():
        assert predictions[image] == labels[image]
        assert confidence[image] == confidence[right.index[right == labels[image]]].max()


def test_a_picture_of_feature_maps_holds_each_map_and_marks_the_dead(maps):
    changed = maps.copy()
    dead = changed["channel"] == changed[changed["layer"] != "image"]["channel"].iloc[-1]
    changed.loc[dead & (changed["layer"] != "image"), "gamma"] = -0.004
    figure = plots.pictures.feature_maps(changed)
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 7 * maps["image"].nunique()
    assert np.allclose(drawn[-1].images[0].get_array(), features.as_map(changed["values"].iloc[-1]))
    assert "γ = −0.004" in drawn[6].get_title() and drawn[6].title.get_fontweight() == "bold"
    assert drawn[1].title.get_fontweight() == "normal"


def test_a_threshold_switches_off_what_lies_below_it(tiny_run):
    gamma = tiny_run.gamma
    for below in (0.05, 0.4):
        shares = [100 * np.mean([abs(value) < below for value in layer]) for layer in gamma.values()]
        assert analysis.dead_by_layer([tiny_run], below)["dead"].tolist() == pytest.approx(shares)
        figure = plots.pictures.switched_off([tiny_run], pd.DataFrame(), below)
        assert figure.axes[0].lines[0].get_ydata() == pytest.approx(shares)
        total = 100 * np.mean([abs(value) < below for layer in gamma.values() for value in layer])
        assert f"{total:.1f} % of all" in figure.axes[0].texts[0].get_text()
    with pytest.raises(InputError, match="below=-1"):
        analysis.dead_by_layer([tiny_run], -1)


def test_of_pictures_of_nothing_a_sentence_is_left_and_no_file(tmp_path):
    draw, of_studies = plots.pictures, plots.studies
    (tmp_path / "drawn.png").touch()                       # what was drawn before the records went
    for figure in (draw.network(channels()), draw.feature_maps(pd.DataFrame()), draw.switched_off([], []),
                   of_studies.surfaces([]), of_studies.courses(analysis.histories([])),
                   of_studies.by_depth(analysis.residual_and_plain([]))):
        assert "Nothing to show" in plots.save(figure, "drawn", tmp_path)._repr_markdown_()
    assert list(tmp_path.iterdir()) == []


def test_what_never_moved_has_a_ridge_too(tiny_run):
    still = analysis.affine([tiny_run]).assign(beta=0.0)
    assert len(plots.ridges(still, "beta").axes) == 1


def test_of_ten_classes_top_1_is_shown_alone_and_variants_have_rows_of_their_own(tiny_run):
    other = SimpleNamespace(**vars(tiny_run) | {"config": dataclasses.replace(tiny_run.config, norm="group")})
    table = analysis.top1_and_top5([tiny_run, other])
    assert table["top"].tolist() == [1, 1] and set(table["chance"]) == {10}
    (axes,) = plots.top1_and_top5(table).axes
    assert len(axes.get_yticks()) == 3 and len({y for c in axes.containers for y in c.lines[0].get_ydata()}) == 2


def test_alternative_text_gives_the_values(tiny_run):
    table = analysis.accuracy([tiny_run])
    value = f"BN only, {tiny_run.config.epochs} epochs: {100 * tiny_run.metrics['test_accuracy']:.1f} (8)"
    assert value in plots.described(plots.accuracy_against(table, "depth"))
    assert value.replace("(8)", "(resnet8)") in plots.described(plots.accuracy_by_setting(table))


def test_a_surface_names_what_trained_in_the_words_of_its_study(tiny_run):
    assert "BN only" in plots.described(plots.studies.surfaces([tiny_run]))


def run_of(trainable: str, epochs: int, seed: int = 0, **options):
    return SimpleNamespace(config=Config(trainable=trainable, epochs=epochs, seed=seed, **options), status="done")


def test_a_pair_is_of_the_longest_training_that_both_have():
    bn, full, long, second = run_of("bn", 16), run_of("all", 16), run_of("bn", 160), run_of("bn", 16, seed=1)
    assert analysis.pair([second, long, full, bn]) == [bn, full]
    assert analysis.pair([second, long, bn]) == [long]
    assert analysis.pair([]) == []


def test_what_is_taken_apart_is_the_longest_training_with_one_choice_for_all_layers():
    study = {"model": "3c3d", "dataset": "cifar10", "conv_init": "xavier", "bn_init": "ones", "lr": 0.0226}
    everywhere, nowhere = (run_of("all", 100, **study, positions=p) for p in ("all", "none"))
    others = [run_of("all", 16, **study, positions="all"), run_of("all", 100, **study, positions="first2"),
              run_of("all", 100, **study | {"lr": 0.226}, positions="all"), run_of("all", 100)]
    assert analysis.taken_apart([*others, everywhere, nowhere]) == [everywhere, nowhere]
    assert analysis.taken_apart(others[:1]) == others[:1]


# ------------------------------------------------------------------------------------------ figures and their SVG

def test_a_figure_of_few_colours_keeps_its_colours(tmp_path):
    saved = plots.save(plots.accuracy_against(pd.DataFrame([
        {"dataset": "cifar10", "depth": d, "width": 1, "trainable": "bn", "epochs": 16, "mean": d, "std": 0.0, "n": 1}
        for d in (14, 32)]), "depth"), "few", tmp_path)
    pixels = Image.open(saved.png).convert("RGB").getcolors(1 << 16)
    seen = {to_hex(np.array(colour) / 255).upper() for _, colour in pixels}
    assert {"#FFFFFF", plots.colour("bn")} <= seen


def executed(source: list[str], folder) -> list:
    """The cells of a notebook of these sources after a real kernel has run it in a folder."""
    from nbclient import NotebookClient
    cells = [nbformat.v4.new_code_cell(text) for text in source]
    notebook = nbformat.v4.new_notebook(cells=cells)
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name="python3", timeout=120, resources=place).execute()
    return notebook.cells


@pytest.fixture(scope="module")
def open_notebook(tmp_path_factory):
    """A notebook that somebody looks at: trains with a live curve, saves the figure, and shows choices and a slider."""
    folder = tmp_path_factory.mktemp("open")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BNLIB_PROGRESS", "1")
        return executed([
            "from bnlib import Config, features, interactive, plots, run\n"
            "from IPython.display import Image\n"
            "config = Config(dataset='digits', model='resnet8', n_train=128, epochs=3, batch_size=64, augment='crop')",
            "r = run(config, results='results', watch=interactive.live_curve(config))",
            "Image(interactive._png(plots.history(r)))",
            "Image(interactive._png(plots.progress(config, r.history[:2])))",
            "plots.save(plots.history(r), 'curve', 'figures')",
            "interactive.panel(config, 'results')",
            "interactive.threshold([r], features.kept('thresholds', 'results', features.thresholds, [r]), 'figures')",
        ], folder), folder


def pictures_of(cell) -> list[bytes]:
    return [base64.b64decode(output["data"]["image/png"]) for output in cell.outputs
            if "image/png" in output.get("data", {})]


def differing(*pngs: bytes) -> float:
    """The mean difference of two pictures' pixels, of 255."""
    first, second = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float) for png in pngs)
    return float(np.abs(first - second).mean())


def test_training_shows_one_curve_that_ends_as_the_record_has_it(open_notebook):
    cells, _ = open_notebook
    assert len(pictures_of(cells[1])) == 1                       # drawn four times, in one place
    (drawn,), (whole,), (part,) = map(pictures_of, cells[1:4])
    assert differing(drawn, whole) < 0.001 < 0.1 < differing(drawn, part)


def test_a_saved_figure_is_followed_by_a_link_to_its_svg(open_notebook):
    cells, folder = open_notebook
    picture, link = (output["data"] for output in cells[4].outputs)
    assert base64.b64decode(picture["image/png"]) == (folder / "figures/curve.png").read_bytes()
    name, target = re.fullmatch(r"\[(.+)\]\((.+)\)", link["text/markdown"]).groups()
    assert name == "accuracy (%) against epoch" and (folder / target).read_text().lstrip().startswith("<?xml")
    assert "accuracy (%) against epoch" in cells[4].outputs[0]["metadata"]["image/png"]["alt"]


def test_an_open_notebook_has_choices_and_a_slider(open_notebook):
    pytest.importorskip("ipywidgets")
    cells, _ = open_notebook
    for cell in cells[5:]:
        assert "application/vnd.jupyter.widget-view+json" in cell.outputs[0]["data"]


# --------------------------------------------------------------------------------------------- what moves

def test_where_nobody_looks_nothing_moves_and_the_same_is_shown(tiny_run, tmp_path):
    assert interactive.live_curve(tiny_run.config) is None                                # BNLIB_PROGRESS=0
    assert "parameters" in interactive.panel(tiny_run.config, tmp_path)[0]
    shown = interactive.threshold([tiny_run], pd.DataFrame(), tmp_path)
    assert isinstance(shown, plots.Saved) and (tmp_path / "switched_off.svg").exists()


def test_without_ipywidgets_the_same_is_shown(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(interactive, "watched", lambda: True)
    there = interactive.find_spec
    monkeypatch.setattr(interactive, "find_spec", lambda name: None if name == "ipywidgets" else there(name))
    assert isinstance(interactive.threshold([tiny_run], pd.DataFrame(), tmp_path), plots.Saved)
    assert "parameters" in interactive.panel(tiny_run.config, tmp_path)[0]


def test_the_slider_draws_its_threshold_and_trains_nothing(tiny_run, tmp_path, monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(interactive, "with_widgets", lambda: True)
    monkeypatch.setattr(interactive, "run", None)
    assert "Nothing to show" in interactive.threshold([], pd.DataFrame(), tmp_path)._repr_markdown_()
    slider, picture = interactive.threshold([tiny_run], pd.DataFrame(), tmp_path).children
    for value in (0.3, 0.02):
        slider.value = value
        assert picture.value == interactive._png(plots.pictures.switched_off([tiny_run], pd.DataFrame(), slider.value))


def test_the_button_trains_what_was_chosen_and_a_mistake_is_named(tiny, tmp_path, monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.setattr(interactive, "with_widgets", lambda: True)
    choices, curve, said = interactive.panel(tiny, tmp_path / "results").children
    *_, trainable, epochs, button = choices.children
    trainable.value, epochs.value = "gamma", 1
    button.click()
    chosen = Config(**tiny.to_dict() | {"trainable": "gamma", "epochs": 1})
    found = find(chosen, tmp_path / "results")
    assert found and repr(found) in said.value and curve.value == interactive._png(plots.history(found))
    monkeypatch.setattr(interactive, "run", lambda *_, **__: (_ for _ in ()).throw(InputError("no images here")))
    button.click()
    assert "no images here" in said.value and not button.disabled


def test_the_legend_names_what_only_the_second_network_has():
    table = pd.DataFrame([
        {"run": f"{depth}{trainable}", "dataset": "cifar10", "model": f"resnet{depth}", "depth": depth, "width": 1,
         "trainable": trainable, "epochs": 16, "seed": 0, "threshold": at, "zeroed": 0.0, "accuracy": 50.0}
        for depth, trainable in ((8, "bn"), (14, "bn"), (14, "all")) for at in (0.0, 0.1)])
    (legend,) = plots.thresholds(table).legends
    assert {text.get_text() for text in legend.get_texts()} == {"BN only", "all parameters"}
