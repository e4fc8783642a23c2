"""Work shared through claims: two processes of which one is killed at random moments, and the rules one by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam2_mem.claims import Claim, ClaimFolder, ClaimLostError, shared

SCRIPT = Path(__file__).with_name("claim_workers.py")
KILLS = 50


def killed_workers(folder: Path, *arguments: object) -> dict:
    command = [sys.executable, str(SCRIPT), str(folder), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.full
@pytest.mark.parametrize("where", ["same", "other"])
def test_nothing_is_lost_or_done_twice_by_two_workers_of_which_one_is_killed_fifty_times(
    tmp_path: Path, where: str
) -> None:
    report = killed_workers(tmp_path, KILLS, 1.0, where, "claims")
    assert report["killed"] == KILLS
    assert report["unfinished"] == report["lost"] == report["twice"] == []


@pytest.mark.full
def test_work_without_claims_is_noticed(tmp_path: Path) -> None:
    assert killed_workers(tmp_path, 3, 0.3, "same", "none")["twice"] != []


# -- the rules --------------------------------------------------------------------------------------------------------


def test_a_claim_is_exclusive_until_it_is_released(tmp_path: Path) -> None:
    here, there = ClaimFolder(tmp_path, machine="here"), ClaimFolder(tmp_path, machine="there")
    claim = here.take("a/b,1")
    assert claim is not None
    assert there.take("a/b,1") is None
    other = there.take("a/b")  # the start of the other name
    assert other is not None
    claim.release()
    again = there.take("a/b,1")
    assert again is not None
    again.release()
    other.release()
    assert list(tmp_path.iterdir()) == []


def without_heartbeat(folder: ClaimFolder, name: str) -> Claim:
    claim = folder.take(name)
    assert claim is not None
    claim._stop.set()
    claim._thread.join()
    return claim


def test_a_slow_process_loses_its_claim_and_learns_of_it(tmp_path: Path) -> None:
    here, there = ClaimFolder(tmp_path, lapse=0.2, machine="here"), ClaimFolder(tmp_path, lapse=0.2, machine="there")
    slow = without_heartbeat(here, "a")
    slow.confirm()
    time.sleep(0.3)
    quick = there.take("a")
    assert quick is not None
    with pytest.raises(ClaimLostError, match="taken over 'a'"):
        slow.confirm()
    assert slow.lost
    slow.release()  # and does no harm
    quick.confirm()
    quick.release()
    fresh = there.take("a")  # whose file has the number of the slow one's
    assert fresh is not None
    with pytest.raises(ClaimLostError):
        slow.confirm()
    fresh.release()


def test_a_heartbeat_keeps_a_claim(tmp_path: Path) -> None:
    here, there = ClaimFolder(tmp_path, lapse=0.8, machine="here"), ClaimFolder(tmp_path, lapse=0.8, machine="there")
    claim = here.take("a")
    assert claim is not None
    for _ in range(6):
        time.sleep(0.2)
        assert there.take("a") is None
    claim.confirm()
    claim.release()


def test_a_dead_process_of_this_machine_is_noticed_at_once(tmp_path: Path) -> None:
    code = f"from sam2_mem.claims import *; import os; ClaimFolder(Path({str(tmp_path)!r})).take('a'); os._exit(1)"
    subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])})
    assert len(list(tmp_path.iterdir())) == 1
    claims = ClaimFolder(tmp_path, lapse=1000.0)
    if claims.machine == "":
        pytest.skip("this system has no /proc: a dead process is noticed by its lapse only")
    claim = claims.take("a")
    assert claim is not None
    claim.release()


def test_items_are_begun_in_order_and_those_of_others_are_waited_for(tmp_path: Path) -> None:
    other = ClaimFolder(tmp_path, machine="other").take("b")
    assert other is not None
    done = {"d"}
    begun = []
    for claim in shared("abcd", ClaimFolder(tmp_path, machine="this"), done.__contains__, wait=0.01):
        begun.append(claim.name)
        done.add(claim.name)
        if claim.name == "c":  # what was held is given up undone
            other.release()
    assert begun == ["a", "c", "b"]


def test_an_item_that_was_lost_is_waited_for(tmp_path: Path) -> None:
    done: set[str] = set()
    begun = []
    for claim in shared("a", ClaimFolder(tmp_path), done.__contains__, wait=0.01):
        begun.append(claim.name)
        if len(begun) == 1:
            claim._lost.set()
        else:
            done.add("a")
    assert begun == ["a", "a"]
