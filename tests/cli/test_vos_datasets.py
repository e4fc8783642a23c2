"""tools/vos_inference.py --dataset: every data set in its own layout, and what goes to its evaluation server."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from micro import OVERRIDES, SIDE, blob, micro_weights, one_thread, picture  # noqa: F401
from PIL import Image

from sam2_mem.cli.vos import main
from sam2_mem.evaluation.datasets import LAYOUTS, PROTOCOLS, DatasetOnDisk, open_dataset
from sam2_mem.evaluation.scoring import evaluate
from sam2_mem.evaluation.vots import mask_region, parse_region, read_regions, region_text
from sam2_mem.video import read_mask_png

COUNT = 6
LATE = 2
"""The frame on which object 2 is first annotated, where objects may be late."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def run(weights: Path, tmp_path: Path) -> Callable[..., int]:
    """Run the tool with the micro network; returns its exit code."""

    def call(out: str, *arguments: object) -> int:
        model = ["--sam2_cfg", "sam2.1_hiera_t", "--sam2_checkpoint", weights, "--device", "cpu"]
        return main([str(part) for part in (*model, "--output", tmp_path / out, *arguments, *OVERRIDES)])

    return call


# -- data sets ------------------------------------------------------------------------------------------------------


def ids(index: int, objects: Sequence[int] = (1, 2)) -> np.ndarray:
    shown = np.zeros((SIDE, SIDE), np.uint8)
    for obj_id in objects:
        shown[blob(obj_id - 1, index)] = obj_id
    return shown


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def frames(folder: Path, name: str = "{:05d}", count: int = COUNT, step: int = 1) -> None:
    for index in range(count):
        save(folder / f"{name.format(index * step)}.jpg", picture(index))


def masks(folder: Path, when: Sequence[int], name: str = "{:05d}", step: int = 1, scale: int = 1) -> None:
    """Objects 1 and 2; object 2 is a late one where the first frame is not its first."""
    for index in when:
        save(folder / f"{name.format(index * step)}.png", ids(index) * np.uint8(scale))


def davis2016(root: Path) -> None:
    frames(root / "JPEGImages/480p/v")
    for index in range(COUNT):
        save(root / f"Annotations/480p/v/{index:05d}.png", blob(0, index) * np.uint8(255))
    listed(root / "ImageSets/2016/val.txt", "v")
    (root / "Annotations/480p/unlisted").mkdir()


def davis2017(root: Path) -> None:
    frames(root / "JPEGImages/480p/v")
    masks(root / "Annotations/480p/v", range(COUNT))
    first = root / "Annotations/480p/v/00000.png"
    void = ids(0)
    void[:3] = 255
    save(first, void)
    listed(root / "ImageSets/2017/val.txt", "v")


def youtubevos(root: Path) -> None:
    frames(root / "valid_all_frames/JPEGImages/v")
    frames(root / "valid/JPEGImages/v", count=2, step=2)
    save(root / "valid/Annotations/v/00000.png", ids(0, [1]))
    save(root / f"valid/Annotations/v/{LATE:05d}.png", ids(LATE, [2]))
    objects = {"1": {"frames": ["00000", "00002"]}, "2": {"frames": ["00002", "00004"]}}
    meta = {"videos": {"v": {"objects": objects}}}
    (root / "valid/meta.json").write_text(json.dumps(meta))


def mose(root: Path) -> None:
    frames(root / "valid/JPEGImages/v")
    masks(root / "valid/Annotations/v", [0])


def lvos(root: Path) -> None:
    frames(root / "valid/JPEGImages/v", "{:08d}", step=5)
    for index in range(COUNT):
        save(root / f"valid/Annotations/v/{5 * index:08d}.png", ids(index, [1, 2] if index >= LATE else [1]))
    (root / "valid/valid_meta.json").write_text(json.dumps({"videos": {}}))


def sav(root: Path) -> None:
    frames(root / "JPEGImages_24fps/v")
    for obj_id, folder in ((1, "000"), (2, "003")):
        for index in (0, 4):
            save(root / f"Annotations_6fps/v/{folder}/{index:05d}.png", (ids(index) == obj_id).astype(np.uint8))
    listed(root / "sav_val.txt", "v")


def vost(root: Path) -> None:
    frames(root / "JPEGImages_10fps/v", "frame{:05d}", step=6)
    masks(root / "Annotations/v", [0, 2, 5], "frame{:05d}", step=6)
    listed(root / "ImageSets/val.txt", "v")


def longvideos(root: Path) -> None:
    frames(root / "JPEGImages/v")
    masks(root / "Annotations/v", [0, 3, 5])
    listed(root / "val.txt", "v")


def vots(root: Path) -> None:
    frames(root / "sequences/v/color", "{:08d}")
    for obj_id, start in ((1, 0), (2, LATE)):
        lines = ["0" if index < start else region_text(blob(obj_id - 1, index)) for index in range(COUNT)]
        (root / f"sequences/v/groundtruth_obj{obj_id}.txt").write_text("\n".join(lines) + "\n")
    listed(root / "sequences/list.txt", "v")


def listed(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


@dataclass(frozen=True)
class Case:
    """How a data set lies on disk, what its name stands for, and what its archive holds."""

    make: Callable[[Path], None]
    spelled: tuple[str, ...]
    archive: tuple[str, ...]


EVERY = tuple(f"v/{index:05d}.png" for index in range(COUNT))
OLD = ("--base_video_dir", "{root}/JPEGImages/480p", "--input_mask_dir", "{root}/Annotations/480p", "--video_list_file")
VALID = ("--base_video_dir", "{root}/valid/JPEGImages", "--input_mask_dir", "{root}/valid/Annotations")
PLAIN = ("--base_video_dir", "{root}/JPEGImages", "--input_mask_dir", "{root}/Annotations")
LATER = "--track_object_appearing_later_in_video"
CASES = {
    "davis2016": Case(davis2016, (*OLD, "{root}/ImageSets/2016/val.txt"), EVERY),
    "davis2017": Case(davis2017, (*OLD, "{root}/ImageSets/2017/val.txt", "--ignore_ids", "255"), EVERY),
    "youtubevos": Case(
        youtubevos,
        ("--base_video_dir", "{root}/valid_all_frames/JPEGImages", *VALID[2:], LATER),
        tuple(f"Annotations/v/{index:05d}.png" for index in (0, 2, 4)),
    ),
    "mosev1": Case(mose, VALID, EVERY),
    "mosev2": Case(mose, VALID, EVERY),
    "lvosv1": Case(lvos, (*VALID, LATER), tuple(f"v/{5 * index:08d}.png" for index in range(COUNT))),
    "lvosv2": Case(lvos, (*VALID, LATER), tuple(f"v/{5 * index:08d}.png" for index in range(COUNT))),
    "sav": Case(
        sav,
        (
            "--base_video_dir",
            "{root}/JPEGImages_24fps",
            "--input_mask_dir",
            "{root}/Annotations_6fps",
            "--per_obj_png_file",
        ),
        tuple(f"v/{folder}/{index:05d}.png" for folder in ("000", "003") for index in (0, 4)),
    ),
    "vost": Case(
        vost,
        ("--base_video_dir", "{root}/JPEGImages_10fps", *PLAIN[2:], "--ignore_ids", "255"),
        tuple(f"v/frame{6 * index:05d}.png" for index in (0, 2, 5)),
    ),
    "longvideos": Case(longvideos, PLAIN, tuple(f"v/{index:05d}.png" for index in (0, 3, 5))),
}


def written(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


# -- what its name stands for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_name_stands_for_folders_prompts_and_flags(run: Callable[..., int], tmp_path: Path, name: str) -> None:
    case, root = CASES[name], tmp_path / "root"
    case.make(root)
    assert run("named", "--dataset", name, "--root", root) == 0
    assert run("spelled", *(part.format(root=root) for part in case.spelled)) == 0
    found = written(tmp_path / "named")
    assert found == written(tmp_path / "spelled") and found
    record = json.loads((tmp_path / "named" / "run.json").read_text())
    assert record["settings_hash"] == json.loads((tmp_path / "spelled" / "run.json").read_text())["settings_hash"]
    objects = {"davis2016": [255], "sav": [0, 3]}.get(name, [1, 2])
    assert [video["objects"] for video in record["videos"]] == [objects]
    with zipfile.ZipFile(tmp_path / "named" / "submission.zip") as archive:
        assert tuple(archive.namelist()) == case.archive
        inside = archive.read(case.archive[-1])
    assert inside == found[case.archive[-1].removeprefix("Annotations/")]
    assert not (tmp_path / "spelled" / "submission.zip").exists()


def test_late_objects_start_late(run: Callable[..., int], tmp_path: Path) -> None:
    youtubevos(tmp_path / "root")
    assert run("out", "--dataset", "youtubevos", "--root", tmp_path / "root") == 0
    shown = [read_mask_png(tmp_path / "out" / "v" / f"{index:05d}.png").ids == 2 for index in range(COUNT)]
    assert not shown[0].any() and not shown[1].any()
    assert (shown[LATE] & blob(1, LATE)).sum() > 0.5 * blob(1, LATE).sum()


def test_every_data_set_of_the_evaluation_has_a_layout() -> None:
    assert PROTOCOLS.keys() == LAYOUTS.keys()
    named = set(CASES) | {"vots", "vos", "synthetic", "longvideos-afburr", "lvos-2023"}
    assert named == set(LAYOUTS), "every one of them has a test here, or is a variant of one that has"


# -- regions --------------------------------------------------------------------------------------------------------


def test_vots_in_and_out(run: Callable[..., int], tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    vots(root)
    assert run("out", "--dataset", "vots", "--root", root) == 0
    first, late = (list(read_regions(out / "v" / f"v_obj{k}_001.txt")) for k in (1, 2))
    assert len(first) == len(late) == COUNT
    assert first[0].code == 1 == late[0].code and [region.code for region in late[1:LATE]] == [0] * (LATE - 1)
    for index in range(LATE, COUNT):
        shown = read_mask_png(out / "v" / f"{index:08d}.png").ids
        for obj_id, regions in ((1, first), (2, late)):
            again = mask_region(shown == obj_id)
            assert (regions[index].x, regions[index].y) == (again.x, again.y) or regions[index].code == 0
            assert np.array_equal(regions[index].mask, again.mask)
    assert late[LATE].mask.sum() > 0.5 * blob(1, LATE).sum(), "the frame of the prompt is scored on its mask"
    times = (out / "v" / "v_obj1_001_time.value").read_text().split()
    assert len(times) == COUNT and float(times[0]) > 0
    with zipfile.ZipFile(out / "submission.zip") as archive:
        stems = ("v_obj1_001", "v_obj2_001")
        assert archive.namelist() == sorted(f"v/{s}{end}" for s in stems for end in (".txt", "_time.value"))
    dataset = open_dataset("vots", root, out)
    report = evaluate(dataset.protocol, dataset.videos)
    assert not report.failures and [one.obj_id for one in report.objects] == ["obj1", "obj2"]
    assert [len(one.frames) for one in report.objects] == [COUNT, COUNT - LATE]


def test_a_sequence_of_one_object_has_no_object_in_its_name(run: Callable[..., int], tmp_path: Path) -> None:
    root = tmp_path / "root"
    vots(root)
    (root / "sequences/v/groundtruth_obj1.txt").rename(root / "sequences/v/groundtruth.txt")
    assert run("out", "--dataset", "vots", "--root", root, "--no-zip") == 0
    assert {path.name for path in (tmp_path / "out" / "v").glob("v_*")} == {"v_001.txt", "v_001_time.value"}
    assert not (tmp_path / "out" / "submission.zip").exists()


def test_regions_as_text() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random(rng.integers(1, 12, 2)) < rng.random()
        text, expected = region_text(mask), mask_region(mask)
        found = parse_region(text)
        if not mask.any():
            assert text == "0" and found.code == 0
            continue
        assert (found.x, found.y) == (expected.x, expected.y) and np.array_equal(found.mask, expected.mask)
    assert region_text(np.ones((2, 3), bool)) == "m0,0,3,2,0,6"
    assert region_text(np.array([[0, 0, 0], [0, 1, 0], [0, 1, 1]], bool)) == "m1,1,2,2,0,1,1,2"


# -- the archive ----------------------------------------------------------------------------------------------------


def test_the_archive_waits_for_all_shards(run: Callable[..., int], tmp_path: Path, capsys) -> None:
    root = tmp_path / "root"
    for name in ("v", "w"):
        frames(root / "valid/JPEGImages" / name)
        masks(root / "valid/Annotations" / name, [0])
    dataset = ["--dataset", "mosev1", "--root", root, "--num_shards", 2, "--shard_id"]
    assert run("out", *dataset, 0) == 0
    assert "no submission.zip: masks of 1 of 2 videos are not complete, e.g. w" in capsys.readouterr().out
    assert run("out", *dataset, 1) == 0
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert len(archive.namelist()) == 2 * COUNT


def test_a_video_that_fails_keeps_the_archive_back(run: Callable[..., int], tmp_path: Path, capsys) -> None:
    mose(tmp_path / "root")
    (tmp_path / "root/valid/Annotations/w").mkdir()
    assert run("out", "--dataset", "mosev1", "--root", tmp_path / "root") == 1
    assert "1 of 2 videos are not complete, e.g. w" in capsys.readouterr().out
    assert not (tmp_path / "out" / "submission.zip").exists()


def test_a_video_cut_short_keeps_the_archive_back(run: Callable[..., int], tmp_path: Path, capsys) -> None:
    mose(tmp_path / "root")
    assert run("out", "--dataset", "mosev1", "--root", tmp_path / "root", "--max_frames", 3) == 0
    assert "1 of 1 videos are not complete" in capsys.readouterr().out


def test_splits_and_lists(run: Callable[..., int], tmp_path: Path) -> None:
    root = tmp_path / "root"
    davis2017(root)
    listed(root / "ImageSets/2017/train.txt", "v", "w")
    assert DatasetOnDisk("davis2017", root).names == ["v"]
    listed(tmp_path / "mine.txt", "v")
    assert run("out", "--dataset", "davis2017", "--root", root, "--split", "train") == 1, "there is no w"
    assert run("own", "--dataset", "davis2017", "--root", root, "--video_list_file", tmp_path / "mine.txt") == 0


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dataset", "davis2017"], "expected --dataset together with --root"),
        (["--root", "."], "expected --dataset together with --root"),
        (["--dataset", "davis2017", "--root", ".", "--box", "1,2,3,4"], "got it with --box"),
        (["--dataset", "sav", "--root", ".", "--per_obj_png_file"], "got it with --per_obj_png_file"),
        (["--dataset", "davis2018", "--root", "."], "invalid choice"),
    ],
)
def test_mistakes_on_the_command_line(run: Callable[..., int], capsys, arguments: list[str], told: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("out", *arguments)
    assert stopped.value.code == 2 and told in capsys.readouterr().err


def test_a_root_that_is_not_one(run: Callable[..., int], tmp_path: Path, capsys) -> None:
    assert run("out", "--dataset", "davis2017", "--root", tmp_path / "nowhere") == 2
    assert "expected the root of the data set" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run("out", "--dataset", "sav", "--root", tmp_path / "empty") == 2
    assert "expected the frames of sav in JPEGImages_24fps or JPEGImages, got no such folder" in capsys.readouterr().err


def test_frames_of_the_meta_file_that_are_not_there(run: Callable[..., int], tmp_path: Path, capsys) -> None:
    root = tmp_path / "root"
    youtubevos(root)
    objects = {"1": {"frames": ["00000", "00077"]}, "2": {"frames": ["00002"]}}
    (root / "valid/meta.json").write_text(json.dumps({"videos": {"v": {"objects": objects}}}))
    assert run("out", "--dataset", "youtubevos", "--root", root) == 2
    assert "expected frame 00077 of 'v', which the meta file lists, among its images" in capsys.readouterr().err
