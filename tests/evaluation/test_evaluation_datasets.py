"""Data sets as they lie on disk, what may be wrong with them, and the command line."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam2_mem.cli.evaluate import main as score
from sam2_mem.evaluation.datasets import Selection, open_dataset
from sam2_mem.evaluation.reports import table, write_json
from sam2_mem.evaluation.results import Report
from sam2_mem.evaluation.scoring import evaluate, report_of
from sam2_mem.evaluation.shared_scoring import ScoreFolder, shared_outcomes
from sam2_mem.video import Frame, PaletteWriter, PerObjectWriter

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (24, 32)

# -- small data sets on disk ----------------------------------------------------------------------------------------


def ids(shift: int, *obj_ids: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """(H, W) uint8: each object a box in its own row, moved to the right by ``shift``."""
    picture = np.zeros(shape, np.uint8)
    for row, obj_id in enumerate(obj_ids):
        picture[2 + 10 * row : 10 + 10 * row, 4 + shift : 14 + shift] = obj_id
    return picture


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def save_video(folder: Path, count: int, *obj_ids: int, shift: int = 0, name: str = "{:05d}", step: int = 1) -> None:
    for frame in range(count):
        save(folder / f"{name.format(frame * step)}.png", ids(shift, *obj_ids))


def at(index: int) -> Frame:
    """What our writers want to know about a frame."""
    return Frame(index, f"{index:05d}", np.zeros((*SHAPE, 3), np.uint8))


J_SHIFTED = 8 / 12  # two of ten columns


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n\n")


def write_meta(path: Path, videos: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": videos}))


def davis(root: Path, *videos: str, count: int = 6) -> Path:
    """Every video has objects 1 and 2; predictions are off by two pixels."""
    for video in videos:
        save_video(root / "gt" / "Annotations" / "480p" / video, count, 1, 2)
        save_video(root / "pred" / video, count, 1, 2, shift=2)
    return root


def report(root: Path, name: str, gt: str = "gt", processes: int = 1, **selection: object) -> Report:
    dataset = open_dataset(name, root / gt, root / "pred", Selection(**selection))
    return evaluate(dataset.protocol, dataset.videos, processes=processes)


def objects(found: Report) -> list[tuple[str, str, int]]:
    return [(one.video, one.obj_id, len(one.frames)) for one in found.objects]


# -- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gt", ["gt", "gt/Annotations", "gt/Annotations/480p"])
def test_davis_from_its_root_or_its_annotations(tmp_path: Path, gt: str) -> None:
    davis(tmp_path, "a", "b", "c")
    write_lines(tmp_path / "gt" / "ImageSets" / "2017" / "val.txt", "c", "a")
    write_lines(tmp_path / "gt" / "ImageSets" / "2017" / "train.txt", "b")
    found = report(tmp_path, "davis2017", gt)
    assert objects(found) == [("c", "1", 4), ("c", "2", 4), ("a", "1", 4), ("a", "2", 4)]
    assert found.figure("J") == pytest.approx(J_SHIFTED) and not found.failures
    assert [one.video for one in report(tmp_path, "davis2017", gt, split="train").objects] == ["b", "b"]
    write_lines(tmp_path / "mine.txt", "a", "a")
    assert objects(report(tmp_path, "davis2017", gt, names=tmp_path / "mine.txt")) == [("a", "1", 4), ("a", "2", 4)]


def test_davis_2016(tmp_path: Path) -> None:
    save_video(tmp_path / "gt" / "Annotations" / "480p" / "a", 5, 255)
    save_video(tmp_path / "pred" / "a", 5, 255, shift=2)
    assert objects(report(tmp_path, "davis2016")) == [("a", "1", 3)]


def test_youtube_vos(tmp_path: Path) -> None:
    save_video(tmp_path / "gt" / "valid" / "Annotations" / "a", 4, 1, 2, step=5)
    save_video(tmp_path / "pred" / "a", 16, 1, 2, shift=2)
    shown = {
        "1": {"category": "ape", "frames": ["00000", "00005", "00010", "00015"]},
        "2": {"category": "yak", "frames": ["00005", "00010"]},
    }
    write_meta(tmp_path / "gt" / "valid" / "meta.json", {"a": {"objects": shown}})
    assert objects(report(tmp_path, "youtubevos")) == [("a", "1", 3), ("a", "2", 1)]
    write_lines(tmp_path / "unseen.txt", "yak")
    found = report(tmp_path, "youtubevos", unseen=tmp_path / "unseen.txt")
    assert [one.group for one in found.objects] == ["seen", "unseen"] and found.summary[0].name == "G"
    (tmp_path / "gt" / "valid" / "Annotations" / "a" / "00010.png").unlink()
    (failure,) = report(tmp_path, "youtubevos").failures
    assert "splits whose masks are not public can only be scored by the data set's server" in failure.reason


@pytest.mark.parametrize("gt", ["gt", "gt/valid", "gt/valid/Annotations"])
def test_lvos(tmp_path: Path, gt: str) -> None:
    name = "{:08d}"
    videos = {}
    for video in ("a", "b"):
        folder = tmp_path / "gt" / "valid" / "Annotations" / video
        for frame in range(1, 32, 5):
            save(folder / f"{frame:08d}.png", ids(0, 1, 2))
            save(tmp_path / "pred" / video / f"{name.format(frame)}.png", ids(2, 1, 2))
        videos[video] = {
            "objects": {
                "1": {"frame_range": {"start": "1", "end": "31", "frame_nums": "7"}},
                "2": {"frame_range": {"start": "11", "end": "32", "frame_nums": "5"}},
            }
        }
    write_meta(tmp_path / "gt" / "valid" / "valid_meta.json", videos)
    write_lines(tmp_path / "gt" / "unseen_videos.txt", "b")
    found = report(tmp_path, "lvosv2", gt)
    assert objects(found) == [("a", "1", 5), ("a", "2", 3), ("b", "1", 5), ("b", "2", 3)]
    assert found.objects[1].frames == ("00000016", "00000021", "00000026")
    assert [one.group for one in found.objects] == ["seen", "seen", "unseen", "unseen"]
    assert found.figure("J") == found.figure("J-unseen") == pytest.approx(J_SHIFTED) and found.figure("V") == 0


def test_sav_has_a_folder_for_each_object(tmp_path: Path) -> None:
    """Objects may overlap, begin with number 0, have frames of their own, and folders of other widths."""
    gt = tmp_path / "gt" / "Annotations_6fps" / "sav_1"
    save_video(gt / "000", 5, 1, step=4)
    save_video(gt / "012", 4, 255, step=4)
    save_video(tmp_path / "pred" / "sav_1" / "0", 20, 1)
    save_video(tmp_path / "pred" / "sav_1" / "012", 20, 9, shift=2)
    write_lines(tmp_path / "gt" / "sav_val.txt", "sav_1")
    found = report(tmp_path, "sav")
    assert objects(found) == [("sav_1", "000", 3), ("sav_1", "012", 2)]
    assert found.objects[0].values[1] == 1 and found.objects[1].values[1] == pytest.approx(J_SHIFTED)
    save(gt / "012" / "00004.png", ids(0, 1, 2))
    assert "mask of one object, 0 and one other value" in report(tmp_path, "sav").failures[0].reason


def test_sav_object_that_is_never_shown(tmp_path: Path) -> None:
    save_video(tmp_path / "gt" / "a" / "000", 5, 1)
    save_video(tmp_path / "gt" / "a" / "001", 5)
    for number in ("000", "001"):
        save_video(tmp_path / "pred" / "a" / number, 5, 1)
    found = report(tmp_path, "sav")
    assert objects(found) == [("a", "000", 3)] and found.notes[0].text.startswith("object 001: no object in the frames")


def test_vost_names_and_long_videos_lists(tmp_path: Path) -> None:
    save_video(tmp_path / "gt" / "Annotations" / "a", 6, 1, name="frame{:05d}", step=12)
    save_video(tmp_path / "pred" / "a", 61, 1, shift=2, name="frame{:05d}")
    write_lines(tmp_path / "gt" / "ImageSets" / "val.txt", "a")
    assert report(tmp_path, "vost").figure("J_tr") == pytest.approx(J_SHIFTED)
    write_lines(tmp_path / "gt" / "videos.txt", "a")
    assert objects(report(tmp_path, "longvideos")) == [("a", "1", 4)]
    assert objects(report(tmp_path, "longvideos-afburr")) == [("a", "1", 5)]


@pytest.mark.parametrize("listed", [["1", "2"], {"1": {}, "2": {}}, None])
def test_mosev2_objects(tmp_path: Path, listed: object) -> None:
    save_video(tmp_path / "gt" / "valid" / "Annotations" / "a", 5, 1, 2)
    save_video(tmp_path / "gt" / "valid" / "Annotations" / "b", 5, 1, 2)
    save_video(tmp_path / "pred" / "a", 5, 1, 2)
    if listed is not None:
        videos = {name: {"length": 5, "objects": listed} for name in "ab"}
        write_meta(tmp_path / "gt" / "meta_valid.json", videos)
    found = report(tmp_path, "mosev2")
    assert objects(found) == [("a", "1", 3), ("a", "2", 3), ("b", "1", 0), ("b", "2", 0)]
    assert found.figure("J&F_dot") == 0.5 and found.notes[0].video == "b"


def test_masks_that_our_writers_write(tmp_path: Path) -> None:
    with PaletteWriter(tmp_path / "gt", "a") as gt, PaletteWriter(tmp_path / "pred", "a") as pred:
        for frame in range(5):
            gt.write(at(frame), {1: ids(0, 1) > 0, 200: ids(0, 0, 1) > 0})
            pred.write(at(frame), {1: ids(2, 1) > 0, 200: ids(0, 0, 1) > 0})
    found = [(one.obj_id, round(one.values[1], 4)) for one in report(tmp_path, "vos").objects]
    assert found == [("1", 0.6667), ("200", 1)]


# -- what may be wrong ----------------------------------------------------------------------------------------------


def test_extra_files_do_not_matter(tmp_path: Path) -> None:
    davis(tmp_path, "a")
    folder = tmp_path / "gt" / "Annotations" / "480p" / "a"
    for name in (".hidden.png", "Thumbs.db", "notes.txt"):
        (folder / name).write_bytes(b"?")
    save_video(tmp_path / "pred" / "z", 2, 1)
    for frame in (0, 5):
        (tmp_path / "pred" / "a" / f"{frame:05d}.png").unlink()
    found = report(tmp_path, "davis2017")
    assert objects(found) == [("a", "1", 4), ("a", "2", 4)] and not found.failures


def spoil_size(root: Path) -> None:
    save(root / "pred" / "b" / "00003.png", ids(0, 1, 2, shape=(30, 32)))


def spoil_truth(root: Path) -> None:
    for path in (root / "gt" / "Annotations" / "480p" / "b").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda root: (root / "pred/b/00003.png").unlink(), "no prediction for this frame: expected '.*b/00003.png'"),
        (lambda root: (root / "pred/b").rename(root / "elsewhere"), "no prediction: expected the folder '.*pred/b'"),
        (spoil_size, "a prediction of 32 x 24 pixels on frame 00003, got 32 x 30"),
        (lambda root: save(root / "pred/b/00003.png", ids(0, 1, 3)), "ids up to 2, .*, got 3 in the prediction of"),
        (lambda root: (root / "pred/b/00003.png").write_bytes(b"\x89PNG"), "expected a PNG in '.*00003.png'"),
        (lambda root: save(root / "pred/b/00003.png", np.zeros((*SHAPE, 3), np.uint8)), "colours are not ids"),
        (spoil_truth, "no ground truth: expected PNG files in '.*b'"),
        (lambda root: (root / "gt/Annotations/480p/b").rename(root / "gone"), "no ground truth: expected the folder"),
    ],
)
@pytest.mark.parametrize("name", ["davis2017"])
def test_one_bad_video_leaves_the_others_scored(
    tmp_path: Path, name: str, spoil: Callable[[Path], object], reason: str
) -> None:
    davis(tmp_path, "a", "b", "c")
    spoil(tmp_path)
    write_lines(tmp_path / "list.txt", "a", "b", "c")
    found = report(tmp_path, name, names=tmp_path / "list.txt")
    assert {one.video for one in found.objects} == {"a", "c"} and found.num_videos == 3
    (failure,) = found.failures
    assert failure.video == "b"
    with pytest.raises(ValueError, match=reason):
        raise ValueError(failure.reason)
    assert "INCOMPLETE: 1 of 3 videos have no score" in table(found)


def test_missing_videos_can_be_left_out(tmp_path: Path) -> None:
    davis(tmp_path, "a", "b")
    (tmp_path / "pred" / "b").rename(tmp_path / "elsewhere")
    found = report(tmp_path, "davis2017", only_predicted=True)
    assert found.num_videos == 1 and not found.failures


@pytest.mark.parametrize(
    ("name", "selection", "message"),
    [
        ("davis2018", {}, "expected a data set of davis2016, .*, got 'davis2018'"),
        ("lvosv2", {}, "expected the meta file valid_meta.json or meta.json in .*; name it with --meta"),
        ("davis2017", {"names": Path("nowhere.txt")}, "expected a file, got 'nowhere.txt'"),
        ("davis2017", {"unseen": Path("setup.py")}, "scored without a list of what is unseen, got"),
        ("mosev2", {"unseen": Path("setup.py")}, "scored without a list of what is unseen, got"),
        ("davis2017", {"meta": Path("setup.py")}, "scored without a meta file, got"),
        ("mosev2", {"meta": Path(__file__)}, "expected a meta file with 'videos'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, selection: dict, message: str) -> None:
    davis(tmp_path, "a")
    with pytest.raises(ValueError, match=message):
        report(tmp_path, name, **selection)


def test_folders_must_exist(tmp_path: Path) -> None:
    davis(tmp_path, "a")
    with pytest.raises(ValueError, match="expected the folder of the ground truth, got '.*nothing'"):
        report(tmp_path, "davis2017", "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected at least one video"):
        report(tmp_path, "davis2017", "empty")


def test_a_meta_file_of_another_data_set_is_noticed(tmp_path: Path) -> None:
    davis(tmp_path, "a")
    write_meta(tmp_path / "meta.json", {"a": {"objects": {"1": {"frames": ["00000"]}}}})
    with pytest.raises(ValueError, match="is it the meta file of another data set"):
        report(tmp_path, "lvosv1", meta=tmp_path / "meta.json")
    with pytest.raises(ValueError, match="at least 1 process"):
        report(tmp_path, "davis2017", processes=0)


# -- processes, reports, the command line ---------------------------------------------------------------------------


def test_processes_do_not_change_the_report(tmp_path: Path) -> None:
    names = [f"v{index}" for index in range(5)]
    davis(tmp_path, *names)
    save_video(tmp_path / "pred" / "v3", 6, 1, 2, 3)
    save_video(tmp_path / "pred" / "v1", 6, 1, 2, shift=5)
    one, two = (report(tmp_path, "davis2017", processes=count) for count in (1, 2))
    assert table(one) == table(two) and [failure.video for failure in two.failures] == ["v3"]
    write_json(one, tmp_path / "one.json", per_frame=True)
    write_json(two, tmp_path / "two.json", per_frame=True)
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    assert one.objects[0].values != one.objects[2].values


TOOL = ROOT / "tools" / "evaluate.py"


@pytest.fixture(scope="module")
def tool() -> Callable[..., int]:
    """The script as a function of its arguments."""
    spec = importlib.util.spec_from_file_location("evaluate_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(part) for part in arguments])


def test_script_runs_from_anywhere(tmp_path: Path) -> None:
    davis(tmp_path, "a")
    command = [sys.executable, TOOL, "--dataset", "davis2017", "--gt", "gt", "--pred", "pred", "--processes", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert result.returncode == 0 and "66.67" in result.stdout, result.stderr


def test_command_line(tmp_path: Path, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    davis(tmp_path, "a", "b")
    (tmp_path / "pred" / "b" / "00002.png").unlink()
    folders = ("--dataset", "davis2017", "--gt", tmp_path / "gt", "--pred", tmp_path / "pred", "--processes", "1")
    files = ("--csv", tmp_path / "out" / "x.csv", "--json", tmp_path / "out" / "x.json", "--per_frame")
    assert tool(*folders, *files) == 1
    printed = capsys.readouterr().out
    assert "66.67" in printed and "failed: b: no prediction for this frame" in printed
    with (tmp_path / "out" / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["video"], row["object"], row["frames"]) for row in rows] == [("a", "1", "4"), ("a", "2", "4")]
    assert float(rows[0]["J"]) == pytest.approx(J_SHIFTED)
    assert (tmp_path / "out" / "x_summary.csv").read_text().splitlines()[1].startswith("J&F,0.")
    found = json.loads((tmp_path / "out" / "x.json").read_text())
    assert not found["complete"] and found["failures"][0]["video"] == "b"
    assert found["objects"][0]["per_frame"]["frame"] == ["00001", "00002", "00003", "00004"]
    write_lines(tmp_path / "list.txt", "a")
    assert tool(*folders, "--list", tmp_path / "list.txt") == 0


def test_command_line_mistakes(tmp_path: Path, tool: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("--dataset", "davis2017", "--gt", tmp_path / "no", "--pred", tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: expected the folder of the ground truth")
    with pytest.raises(SystemExit):
        tool("--dataset", "vos", "--gt", "a", "--pred", "b", "--per_frame")
    assert "--per_frame needs --json" in capsys.readouterr().err


def test_numbers_that_are_not_defined_are_null(tmp_path: Path) -> None:
    save_video(tmp_path / "gt" / "a", 5, 1)
    save_video(tmp_path / "pred" / "a", 5, 1)
    found = report(tmp_path, "mosev2")
    write_json(found, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["summary"]["J&F_dot-d"] is None
    assert table(found).splitlines()[3].split() == ["a", "1", *["100.00"] * 3, "-", "-", *["100.00"] * 2]


def test_per_object_writer_is_read(tmp_path: Path) -> None:
    with PerObjectWriter(tmp_path / "pred", "a") as writer:
        for frame in range(5):
            writer.write(at(frame), {1: ids(2, 1) > 0, 2: ids(2, 1) > 0})
    for number in ("001", "002"):
        save_video(tmp_path / "gt" / "a" / number, 5, 1)
    assert [(one.obj_id, round(one.values[1], 4)) for one in report(tmp_path, "sav").objects] == [
        ("001", 0.6667),
        ("002", 0.6667),
    ]


# -- scores that stay in a folder -------------------------------------------------------------------------------------


def test_scores_in_a_folder_are_those_without_one_and_follow_the_files(tmp_path: Path) -> None:
    for video in ("a", "b"):
        save_video(tmp_path / "gt" / video, 4, 1, 2)
        save_video(tmp_path / "pred" / video, 4, 1, 2, shift=2)
    save(tmp_path / "gt" / "c" / "00000.png", ids(0, 1))  # no prediction
    dataset = open_dataset("davis2017", tmp_path / "gt", tmp_path / "pred")
    folder = ScoreFolder(tmp_path / "scores", dataset.protocol)

    def report() -> str:
        outcomes = shared_outcomes(folder, dataset.videos)
        write_json(report_of(dataset.protocol, dataset.videos, outcomes), tmp_path / "report.json", per_frame=True)
        return (tmp_path / "report.json").read_text()

    first = report()
    write_json(evaluate(dataset.protocol, dataset.videos), tmp_path / "plain.json", per_frame=True)
    assert first == (tmp_path / "plain.json").read_text()
    before = {path.name: path.stat().st_mtime_ns for path in folder.root.glob("*.json")}
    assert report() == first
    after = {path.name: path.stat().st_mtime_ns for path in folder.root.glob("*.json")}
    assert sorted(before) == ["a.json", "b.json", "c.json"]
    assert [name for name in before if before[name] != after[name]] == ["c.json"], "a failure is tried again"
    save(tmp_path / "pred" / "b" / "00002.png", ids(5, 1, 2))
    changed = report()
    write_json(evaluate(dataset.protocol, dataset.videos), tmp_path / "plain.json", per_frame=True)
    assert changed == (tmp_path / "plain.json").read_text() != first


@pytest.mark.full
@pytest.mark.extended
def test_tasks_of_this_machine_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for video in ("a", "b"):
        save_video(tmp_path / "gt" / video, 4, 1, 2)
        save_video(tmp_path / "pred" / video, 4, 1, 2, shift=2)
    arguments = [
        "--dataset",
        "davis2017",
        "--gt",
        str(tmp_path / "gt"),
        "--pred",
        str(tmp_path / "pred"),
        "--processes",
        "1",
    ]
    assert score(arguments) == 0
    plain = capsys.readouterr().out
    assert score([*arguments, "--scores", str(tmp_path / "s"), "--launcher", "local", "--num_shards", "2"]) == 0
    shared = capsys.readouterr().out
    assert plain.split("masks scored")[0] == shared.split("masks scored")[0]
    assert (
        len(list((tmp_path / "s").glob("*.json"))) == 2 and len(list((tmp_path / "s" / "submitit").glob("*.out"))) == 2
    )
