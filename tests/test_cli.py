"""The command line: each command, and one line without a traceback for a mistake."""

import re
import shutil
import sys

import pytest

from bnlib import campaign, grid, report
from bnlib.__main__ import main, parser
from tests.conftest import TINY

FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items() if name != "model"]


def test_train_then_test_list_and_show(tmp_path, capsys):
    results = f"--results={tmp_path / 'results'}"
    assert main(["train", "resnet8", *FLAGS, results]) == 0
    run_id = capsys.readouterr().out.split(":")[0]
    assert main(["list", results, "--model=resnet*"]) == 0
    listed = capsys.readouterr().out
    assert run_id in listed and "2 epochs" in listed
    assert main(["test", run_id, results]) == 0
    accuracy = capsys.readouterr().out.split("(")[1].split("%")[0]
    assert f"{accuracy}%" in listed
    assert main(["show", run_id, results]) == 0
    shown = capsys.readouterr().out
    assert '"frozen_sha256"' in shown and "train_loss" in shown


def test_verify_passes_sound_records_and_fails_for_a_damaged_one(tiny_run, tmp_path, capsys):
    copy = shutil.copytree(tiny_run.folder, tmp_path / "results/runs" / tiny_run.id)
    words = ["verify", f"--results={tmp_path / 'results'}", "--retrain=1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"ok  {tiny_run.id}" in said and "predictions" in said and "bit for bit" in said
    (copy / "history.csv").write_text("epoch\n")
    assert main(words) == 1
    said = capsys.readouterr().out
    assert f"BAD {tiny_run.id}" in said and "1 checked, 1 with faults" in said


def test_the_plan_of_a_profile_counts_runs_hours_energy_and_cost(capsys):
    assert main(["campaign", "--profile=paper", "--plan", "--price=2", "--watts=100"]) == 0
    said = capsys.readouterr().out
    hours, kwh, cost = (float(re.search(rf"([\d,.]+) {unit}", said)[1].replace(",", ""))
                        for unit in ("device-hours", "kWh", "at 2 an hour"))
    assert "measured" in said and abs(cost - 2 * hours) <= 1 and abs(kwh - hours / 10) <= 1


def test_a_plan_leaves_out_what_is_there(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(campaign, "profile_configs", lambda profile: [tiny_run.config])
    assert main(["campaign", "--profile=paper", "--plan", f"--results={tiny_run.folder.parent.parent}"]) == 0
    assert "all runs are there" in capsys.readouterr().out


def test_runs_that_fail_end_in_status_1(tiny, tmp_path, monkeypatch, capsys):
    runs = grid.Runs([], [tiny], {tiny: "no luck"})
    monkeypatch.setattr(report, "reproduce", lambda *_: runs)
    assert main(["reproduce", "--profile=smoke"]) == 1
    monkeypatch.setattr(grid, "run_all", lambda *_, **__: runs)
    assert main(["campaign", "--profile=smoke", f"--results={tmp_path}"]) == 1
    assert "failed: no luck" in capsys.readouterr().out


def test_an_untrained_network_is_tested_by_its_models_name(tmp_path, capsys):
    assert main(["test", "resnet8", "--dataset=digits", f"--results={tmp_path}"]) == 0
    assert "of 360 test images of digits right" in capsys.readouterr().out


def test_an_earlier_studys_spelling_says_what_trains(tmp_path, capsys):
    main(["train", "cifar_resnet_8", *FLAGS, f"--results={tmp_path}"])
    assert "-resnet8-all-" in capsys.readouterr().out
    main(["train", "cifar_freeze_8", *FLAGS, f"--results={tmp_path}"])
    assert "-resnet8-bn-" in capsys.readouterr().out


def test_data_checks_a_dataset(capsys):
    assert main(["data", "digits"]) == 0
    assert "1,437 training and 360 test images 32×32×1, 10 classes" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [
    (["train", "resnet15"], "nearest: resnet14"),
    (["train", "resnet14", "--trainable=bnn"], "did you mean 'bn'?"),
    (["train", "resnet14", "--epochs=0"], "epochs=0: must be at least 1"),
    (["train", "resnet14", "--epoch=3"], "unrecognized arguments: --epoch=3"),
    (["verify", "--retrain=some"], "invalid int value"),
    (["verify", "--retrain=-1"], "retrain=-1: must be at least 0"),
    (["verify", "--results=nowhere"], "nowhere: no folder of records"),
    (["train", "resnet14", "--dataset=cifar11"], "did you mean 'cifar10"),
    (["train", "resnet14", "--lr=0.123", "--device=gpu"], "not one of cuda, mps, cpu"),
    (["train", "resnt14"], "nearest: resnet14"),
    (["train", "resnet15x4"], "nearest: resnet14x4"),
    (["test", "nothing"], "not a network"),
    (["test", "cifar10-resnet14-bn-s0"], "run='cifar10-resnet14-bn-s0'"),
    (["show", "nothing"], "run='nothing'"),
    (["reproduce", "--set", "dephts=[14]"], "did you mean 'depths'?"),
    (["reproduce", "--set", "depths"], "must be NAME=VALUE"),
    (["reproduce", "--set", "epochs=2 depths=14"], "depths=14: must be a list, such as [14]"),
    (["reproduce", "--notebooks", "09_dissect_batchnorm", "--set", "masks=['1,0,0', '1']"],
     "positions='1,0,0': 3c3d takes 5 letters"),
    (["reproduce", "--set", "depths=14"], "depths=14: must be a list, such as [14]"),
    (["reproduce", "--set", "results=elsewhere"], "not one of changes, depths, epochs"),
    (["report", "--profile=paperr"], "did you mean 'paper'?"),
    (["show", "../../etc"], "must be a plain name"),
    (["data", "cifar"], "did you mean 'cifar10"),
    (["campaign", "--profile=papr"], "did you mean 'paper'?"),
    (["campaign", "--profile=smoke", "--budget=soon"], "must be a time such as 90s, 30m or 2h"),
    (["reproduce", "--notebooks=01_dept"], "did you mean '01_depth'?"),
    (["campaign", "--profile=smoke", "--results=build/no", "--cluster=nowhere"], "must be a number of local workers"),
    (["trian"], "invalid choice: 'trian'"),
])
def test_a_mistake_is_one_line_and_a_failing_exit_status(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BNLIB_DATA", str(tmp_path))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("bnlib: ") and said in error and error.count("\n") == 1


@pytest.mark.parametrize("command", next(action.choices for action in parser()._actions if action.choices))
def test_every_commands_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args([command, "--help"])
    assert stop.value.code == 0 and f"example: python -m bnlib {command}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("said", "parameters"), [
    (["depths=[14, 20] epochs=3"], {"depths": [14, 20], "epochs": 3}),
    ([" epochs=3 ", "first=[1]"], {"epochs": 3, "first": [1]}),
    (["text='a b=c' epochs=3"], {"text": "a b=c", "epochs": 3}),
    (['optimizers=[{"optimizer": "adam", "optimizer_options": "betas=(0.9,0.99) eps=1e-6"}] epochs=3'],
     {"optimizers": [{"optimizer": "adam", "optimizer_options": "betas=(0.9,0.99) eps=1e-6"}], "epochs": 3})])
def test_values_that_are_set_may_hold_spaces(said, parameters, monkeypatch):
    given = []
    monkeypatch.setattr(report, "reproduce", lambda *arguments: given.append(arguments[-1]) or grid.Runs([], []))
    assert main(["reproduce", "--set", *said]) == 0 and given == [parameters]


def test_a_package_that_training_alone_does_not_bring_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "papermill", None)
    assert main(["reproduce", "--profile", "smoke", "--notebooks", "01_depth"]) == 2
    assert capsys.readouterr().err == "bnlib: needs papermill: `pip install -e '.[report]'` has it\n"
