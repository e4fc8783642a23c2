"""Clips from several processes, ahead of their use: for sources that draw every clip anew."""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import cv2
import numpy as np
import torch

from sam2_mem.training.clips import Clip, ClipSource, ClipSpec

WAIT = 0.5  # seconds between two looks at whether the parent lives
END = 5.0  # seconds for a worker to end


class ClipStream:
    """Clips of a source, drawn by ``workers`` processes into shared memory; at most ``capacity`` of them wait.

    Clip ``number`` has the generator seeded by (seed, number), so that the set of clips does not depend on the workers; the
    order in which they are ready does. The workers are no forks of this process, which may use CUDA already; a script that
    makes a stream needs the guard ``if __name__ == "__main__"``.

    Args:
        source: of the clips.
        spec: of each clip.
        workers: processes.
        seed: of all clips.
        capacity: clips that wait at most.
    """

    def __init__(
        self, source: ClipSource, spec: ClipSpec, *, workers: int = 2, seed: int = 0, capacity: int = 64
    ) -> None:
        if workers < 1 or capacity < 1:
            raise ValueError(f"expected at least one worker and room for a clip, got {workers} and {capacity}")
        self._spec = spec
        self._capacity = capacity
        self._memory = SharedMemory(create=True, size=capacity * clip_bytes(spec))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._free: Any = context.Queue()
        self._drawn: Any = context.Queue()
        self._waiting: list[int] = []
        for slot in range(capacity):
            self._free.put(slot)
        arguments = (source, spec, seed, workers, self._memory.name, self._free, self._drawn)
        self._workers = [
            context.Process(target=_draw_clips, args=(number, *arguments), daemon=True) for number in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def ready(self) -> int:
        """How many clips can be taken without waiting.

        Raises:
            RuntimeError: a worker has failed.
        """
        while True:
            try:
                slot = self._drawn.get_nowait()
            except queue.Empty:
                return len(self._waiting)
            if isinstance(slot, str):
                raise RuntimeError(f"expected clips, got an error in a worker:\n{slot}")
            self._waiting.append(slot)

    def take(self, most: int) -> list[Clip]:
        """At most so many clips, those that are ready: perhaps none.

        Raises:
            RuntimeError: a worker has failed.
        """
        count = min(self.ready(), most)
        slots, self._waiting = self._waiting[:count], self._waiting[count:]
        clips = []
        for slot in slots:
            frames, ids = clip_arrays(self._memory, slot, self._spec)
            clips.append(Clip(frames.copy(), ids.copy()))
            self._free.put(slot)
        return clips

    def close(self) -> None:
        """End the workers and free the memory."""
        for _ in self._workers:
            self._free.put(None)
        for worker in self._workers:
            worker.join(END)
            if worker.is_alive():
                worker.terminate()
                worker.join()
        self._workers = []
        for channel in (self._free, self._drawn):
            channel.cancel_join_thread()
            channel.close()
        self._memory.close()
        self._memory.unlink()


def clip_bytes(spec: ClipSpec) -> int:
    """Of the frames and ids of a clip."""
    return 4 * spec.num_frames * spec.size**2


def clip_arrays(memory: SharedMemory, slot: int, spec: ClipSpec) -> tuple[np.ndarray, np.ndarray]:
    """The frames (T, S, S, 3) and ids (T, S, S), uint8, of a place in the memory; both are views of it."""
    start, pixels = slot * clip_bytes(spec), spec.num_frames * spec.size**2
    shape = (spec.num_frames, spec.size, spec.size)
    frames: np.ndarray = np.ndarray((*shape, 3), np.uint8, memory.buf, start)
    ids: np.ndarray = np.ndarray(shape, np.uint8, memory.buf, start + 3 * pixels)
    return frames, ids


def _draw_clips(
    first: int,
    source: ClipSource,
    spec: ClipSpec,
    seed: int,
    step: int,
    name: str,
    free: Any,
    drawn: Any,
) -> None:
    """Draws the clips ``first``, ``first`` + ``step``, ... until it is told to end, or its parent has ended."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    memory, number = SharedMemory(name=name), first
    parent = multiprocessing.parent_process()
    try:
        while parent is not None and parent.is_alive():
            try:
                slot = free.get(timeout=WAIT)
            except queue.Empty:
                continue
            if slot is None:
                break
            clip = source.sample(np.random.default_rng([seed, number]), spec)
            frames, ids = clip_arrays(memory, slot, spec)
            frames[:], ids[:] = clip.frames, clip.ids
            del frames, ids
            drawn.put(slot)
            number += step
    except BaseException:
        drawn.put(traceback.format_exc())
        raise
    finally:
        memory.close()
