"""The studies in eval/ that need no training to be tested."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ncode_gen.config import section
from ncode_gen.errors import UserError
from ncode_gen.runfolder.history import read_run
from ncode_gen.runfolder.records import read_record, write_record

from .conftest import ROOT
from .test_faults import results_of
from .test_trainer import fit, recipe_of


def test_a_refined_model_that_begins_with_its_autoencoder_is_the_one_trained_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    from generation import begin_with

    refiner = section("observation", kind="refined", width=8, epochs=1)
    plain = recipe_of(epochs=2, prior=section("prior", kind="mixture", components=2))
    refined = dataclasses.replace(
        plain, name="refined", prior=section("prior", kind="mixture", components=3), observation=refiner
    )
    assert not begin_with(tmp_path / "base", tmp_path / "run", refined)
    fit(plain, tmp_path / "base")
    assert not begin_with(tmp_path / "base", tmp_path / "run", dataclasses.replace(refined, seed=1))
    assert begin_with(tmp_path / "base", tmp_path / "run", refined)
    parts = fit(refined, tmp_path / "run", resume=True).state_dict()
    whole = fit(refined, tmp_path / "whole").state_dict()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert results_of(tmp_path / "run") == results_of(tmp_path / "whole")


@pytest.fixture
def generation_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    sys.modules.pop("generation_table", None)
    import generation_table

    return generation_table


def cell(folder, name, model, prior, seed, fid, **more):
    score = {"value": fid, "low": fid - 1, "high": fid + 1}
    common = {"features": "mnist-classifier", "samples": 100, "test_images": 50, "dim": 8, "scores": {"fid": score}}
    common["commit"] = "abc"
    (folder / f"{name}.json").write_text(json.dumps(common | {"model": model, "prior": prior, "seed": seed} | more))


def test_the_table_puts_seeds_together_and_the_best_first(generation_table: Any, tmp_path: Path) -> None:
    cell(tmp_path, "a-0", "a", "flow", 0, 5.0, fid_by_nfe={"4": 9.0, "8": 6.0})
    cell(tmp_path, "a-1", "a", "flow", 1, 7.0)
    cell(tmp_path, "a-d9-0", "a", "flow", 0, 8.0, dim=9)
    cell(tmp_path, "b-0", "b", "mixture", 0, 3.0, components=7, training_seconds=12.3, parameters=10, epochs=2)
    for seed, matching in ((0, 0.4), (1, 0.5)):
        cell(tmp_path, f"c-{seed}", "c", "flow", seed, 9.0, matching=matching, epochs=3)
    text = generation_table.table("mnist", tmp_path)
    rows = [line for line in text.splitlines() if line.startswith(("| a ", "| b "))]
    assert rows[0].startswith("| b | 8 | mixture (7) | 1 | 3.00 ± 1.00")
    # Two values a distance of 2 apart: their mean, and 12.706 standard errors of 1.
    assert rows[1].startswith("| a | 8 | flow | 2 | 6.00 ± 12.71")
    assert rows[2].startswith("| a | 9 | flow | 1 | 8.00 ± 1.00")
    assert rows[3] == "| a | 8 | flow | 9.00 | 6.00 |"
    assert "| c | 8 | 3 | 2 | 0.4500 ± 0.6353 |" in text
    assert "FID and KID[mnist-classifier, n=100, test]" in text


def test_rows_are_compared_seed_by_seed(generation_table: Any, tmp_path: Path) -> None:
    # Seeds differ by much more than the decoders do; only seeds that both have count.
    for seed, fid in ((0, 1.0), (1, 21.0), (2, 50.0)):
        cell(tmp_path, f"n-{seed}", "ncode-decoder", "flow", seed, fid)
    for seed, fid in ((0, 2.0), (1, 24.0)):
        cell(tmp_path, f"c-{seed}", "conv-decoder", "flow", seed, fid)
        cell(tmp_path, f"m-{seed}", "conv-decoder", "mixture10", seed, fid - seed)
        cell(tmp_path, f"d-{seed}", "conv-decoder", "flow", seed, 0.0, dim=9)
    text = generation_table.table("mnist", tmp_path)
    # Differences of -1 and -3: their mean, and 12.706 standard errors of 1.
    assert "| FID | ncode-decoder | conv-decoder | -2.00 ± 12.71 | 2 of 2 |" in text
    assert "| FID | conv-decoder, flow | conv-decoder, mixture10 | +0.50 ± 6.35 | 0 of 2 |" in text
    assert text.count("\n| FID | ") == 2 and "\n| distortion | " not in text


def test_the_table_marks_rows_of_unknown_commits(generation_table: Any, tmp_path: Path) -> None:
    cell(tmp_path, "a-0", "a", "flow", 0, 5.0)
    old = json.loads((tmp_path / "a-0.json").read_text()) | {"seed": 1}
    del old["commit"]
    (tmp_path / "a-1.json").write_text(json.dumps(old))
    assert "| a † | 8 | flow | 2 |" in generation_table.table("mnist", tmp_path)
    assert "| a † | 8 | flow |" in generation_table.short_table("mnist", tmp_path)


def test_the_table_says_where_a_model_was_trained(generation_table: Any, tmp_path: Path) -> None:
    for device in ("cpu", "NVIDIA H200"):
        cell(tmp_path, device, device, "flow", 0, 5.0, training_seconds=12.3, parameters=1, epochs=2, device=device)
    text = generation_table.table("mnist", tmp_path)
    assert "| 2 | 12 |" in text and "| 2 | 12 (NVIDIA H200) |" in text


@pytest.mark.parametrize("has_bf16", [True, False])
def test_draws_of_a_model_are_scored_beside_parts_of_its_training_images(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    import draws
    from draws import scored, table

    monkeypatch.setattr(draws, "computes_in_bf16", lambda device: has_bf16)
    found = scored("checkpoints/digits-ncode-open", 2, 400, torch.device("cpu"))
    assert len(found["draws"]) == 2 and len(found["parts"]) == 3
    # Training images are nearer to the test images than what a small model draws, and no two draws are alike.
    assert max(found["parts"]) < min(found["draws"]) and found["draws"][0] != found["draws"][1]
    assert "| samples, seeds 0 to 1 | " in table("digits", found)
    assert ("| the same, drawn in bf16 | " in table("digits", found)) is has_bf16
    if has_bf16:
        assert found["draws_bf16"] == pytest.approx(found["draws"], abs=1.0) and found["draws_bf16"] != found["draws"]


def test_devices_are_shown_with_what_was_measured_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    from devices import table

    one = {"device": "cpu", "torch": "2.6", "threads": 2, "steps": {"mnist/vae": {"plain": 8.0, "compiled": 4.0}}}
    rows = [one | {"sampling": {}, "scoring": {"a": 2.0}}, one | {"sampling": {"b": 3.0}, "scoring": {}, "steps": {}}]
    text = table(rows)
    assert "| cpu | mnist/vae | 8.00 | 4.00 | 2.0 | 32000 |" in text
    assert text.count("| cpu | 3.00 |") == 1 and text.count("| cpu | 2.0 |") == 1


def test_times_of_sampling_are_shown_without_imports_and_as_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    from sampling import table

    whole = {"command": 12.0, "command, memory given back": 18.0, "command, bf16": 7.0, "imports": 2.0}
    plain = whole | {"model": 0.1, "latents": 0.2} | {"pictures": 1.0, "images": 3.0, "images, operations shared": 4.0}
    refined = plain | {"images, zero mean": 2.0, "images, not zero mean": 4.0}
    text = table({"plain": plain, "refined": refined}, 100, 3)
    assert text.count(" | 12.0 | 2.0 | **10.0** | 16.0 | 0.62 | 5.0 | 0.50 | 0.1 | 0.2 | 1.0 | 3.0 |") == 2
    assert (
        "| plain | 3.0 | 4.0 | 0.75 | - | - | - |" in text
        and "| refined | 3.0 | 4.0 | 0.75 | 2.0 | 4.0 | 0.50 |" in text
    )


def test_a_device_is_measured_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    import devices

    small = {"BLOCKS": 1, "STEPS": 1, "SAMPLES": 20, "RECIPES": ("digits/ncode-open", "digits/ncode-refined")}
    for name, value in (small | {"WAYS": ("plain",), "SAMPLED": ("digits-ncode-open",), "SCORED": ()}).items():
        monkeypatch.setattr(devices, name, value)
    found = {}
    seen = [len(found["steps"]) + len(found["sampling"]) for _ in devices.measure(torch.device("cpu"), "", found)]
    assert seen == [1, 2, 3] and found["device"] == "cpu"
    assert all(spent["plain"] > 0 for spent in found["steps"].values()) and found["sampling"]["digits-ncode-open"] >= 0


def test_recipes_say_what_the_studies_measured_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    import publish

    printed = {}
    monkeypatch.setattr(publish, "_replace", printed.setdefault)
    for data in ("mnist", "fashion-mnist"):
        publish.write_studied_headers(ROOT / "eval" / "results" / "generation" / data)
    assert ROOT / "models" / "mnist" / "conv-decoder.toml" in printed
    assert all(line in path.read_text().splitlines() for path, line in printed.items())


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "checkpoints").glob("*/recipe.toml")), ids=lambda path: path.parent.name
)
def test_a_published_model_is_whole(folder: Any) -> None:
    record = read_run(folder.parent)
    assert record.notices == () and record.progress == "finished" and record.scores
    names = {"mnist-classifier", "fashion-classifier", "digits-classifier"}
    assert record.protocol["features"]["name"] in names and not record.protocol["warnings"]


def test_a_published_evaluation_names_the_published_folder_and_keeps_its_checksum(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    from export import record_evaluation

    held = ROOT / "checkpoints" / "digits-ncode-open" / "evaluation.json"
    result = read_record(held)
    command = result["protocol"]["environment"]["command"] = "evaluate.py /home/somebody/runs/a --data.root /data"
    result["protocol"]["features"]["name"], result["protocol"]["refiner"] = "inception", "left out"
    write_record(tmp_path / "evaluation.json", result)
    (tmp_path / "digits-ncode-open").mkdir()
    record_evaluation(tmp_path / "evaluation.json", tmp_path / "digits-ncode-open")
    published = read_record(tmp_path / "digits-ncode-open" / "evaluation.json")
    assert published["scores"] == result["scores"] and command not in str(published)
    printed = published["protocol"]["environment"]["command"]
    assert "checkpoints/digits-ncode-open --n 10000" in printed and printed.endswith("--features inception --no-refine")


def test_a_published_model_is_scored_again_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    import export

    folder, recipe = tmp_path / "checkpoints" / "digits-ncode-open", tmp_path / "models" / "digits" / "ncode-open.toml"
    shutil.copytree(ROOT / "checkpoints" / "digits-ncode-open", folder)
    recipe.parent.mkdir(parents=True)
    shutil.copy(ROOT / "models" / "digits" / "ncode-open.toml", recipe)
    before = read_record(folder / "evaluation.json")
    before["protocol"] |= {"n": 150, "particles": 3, "seed": 2}
    write_record(folder / "evaluation.json", before)
    monkeypatch.setattr(export, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["export.py", str(folder), "--again"])
    export.main()
    again = read_record(folder / "evaluation.json")["protocol"]
    assert (again["n"], again["particles"], again["seed"]) == (150, 3, 2)
    command = "python -m ncode_gen.evaluate checkpoints/digits-ncode-open --n 150 --particles 3 --seed 2"
    assert command in (folder / "README.md").read_text()
    assert "n=150" in next(line for line in recipe.read_text().splitlines() if line.startswith("# Measured"))
    monkeypatch.setattr("sys.argv", ["export.py", str(ROOT / "checkpoints" / "digits-ncode-open"), "--again"])
    with pytest.raises(UserError, match="is not published"):
        export.main()


def test_without_cells_the_table_says_so(generation_table: Any, tmp_path: Path) -> None:
    assert "No cell is finished" in generation_table.table("mnist", tmp_path)


def test_a_contact_sheet_holds_the_pictures_in_rows(generation_table: Any, tmp_path: Path) -> None:
    images = torch.rand(5, 1, 4, 6)
    generation_table.contact_sheet(images, tmp_path / "new" / "sheet.png", columns=3)
    assert Image.open(tmp_path / "new" / "sheet.png").size == (18, 8)


def test_readme_shows_what_the_results_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    from headline import headlines, published

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert headlines(ROOT / "eval" / "results") in text, "run python eval/publish.py"
    assert published(ROOT / "checkpoints") in text, "run python eval/publish.py"


def test_the_pages_of_results_are_those_of_the_cells(generation_table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    from publish import page

    results = ROOT / "eval" / "results"
    for folder in (results / "generation").iterdir():
        printed = (results / f"generation-{folder.name}.md").read_text(encoding="utf-8")
        assert printed == generation_table.table(folder.name, folder), (
            f"run python eval/generation.py {folder.name} --table"
        )
    assert (results / "README.md").read_text(encoding="utf-8") == page(results), "run python eval/publish.py"
