"""Break the code on purpose, and see a test fail: ``python tests/hazards.py [WORD ...]``.

Every hazard is a named patch to a copy of the package, where exactly one place must match, and the
test that must notice. The tests pass on an unpatched copy, and fail on the patched one; the exit
code is 0 only then. When code moves, a patch that no longer fits fails loudly.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Patch:
    """One textual replacement."""

    file: str
    old: str
    new: str

    def apply(self, package: Path) -> None:
        """Replace the one place that matches in the copy at ``package``.

        Raises:
            LookupError: None matches, or several do.
        """
        path = package / self.file
        text = path.read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise LookupError(
                f"expected one place in {self.file} to match, found {count}:\n{self.old}"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True)
class Hazard:
    """What must never be, how to bring it about, and the test that must fail then."""

    name: str
    test: str
    patches: tuple[Patch, ...]


def hazard(name: str, test: str, *patches: tuple[str, str, str]) -> Hazard:
    """A hazard of (file, old, new) patches."""
    return Hazard(name, f"tests/{test}", tuple(Patch(*patch) for patch in patches))


STREAMED = "backends/_streamed.py"
UPLOADS = "backends/_uploads.py"
WAN = "fast/_wan"
HAZARDS = (
    hazard(
        "a row of tiles is not faded into the one above",
        "codecs/test_bands.py::test_any_tiles",
        ("codecs/_bands.py", "            if tails:\n", "            if False:\n"),
    ),
    hazard(
        "a picture is given before its last band",
        "test_bands.py::test_frames_are_pictures",
        ("_bands.py", "        if not band.last:\n", "        if not band.rows:\n"),
    ),
    hazard(
        "a band is written over the one before",
        "test_bands.py::test_files_take_bands",
        (
            "sinks/_npy.py",
            "self._end(self._accepted) + self._top_bytes",
            "self._end(self._accepted)",
        ),
    ),
    hazard(
        "a frame of history is reused while it is read",
        "fast/test_wan_step.py::test_nothing_is_written_that_is_read",
        (
            f"{WAN}/step.py",
            "        source = given.read(first=self._first)\n",
            "        source = given.read(first=self._first)\n        given.end()\n",
        ),
        (f"{WAN}/pools.py", "HISTORY * inputs + 2 * chunk", "HISTORY * inputs + chunk"),
    ),
    hazard(
        "the frame of zeros is reused",
        "fast/test_wan_step.py::test_steps_of_many_latents",
        (f"{WAN}/pools.py", " for slot in slots if slot != self.zero)", " for slot in slots)"),
    ),
    hazard(
        "clips of a batch have one history",
        "fast/test_wan_step.py::test_batches",
        (f"{WAN}/step.py", "            for _ in range(clips)\n        ]", "        ] * clips"),
    ),
    hazard(
        "what a shortcut reads is overwritten",
        "fast/test_wan_families.py::test_other_families",
        (f"{WAN}/step.py", "index == 0 and level.shortcut is not None", "False"),
    ),
    hazard(
        "weights that were written to are not read again",
        "fast/test_wan_step.py::test_weights_written_through_data",
        (f"{WAN}/networks.py", "not look.sees(built.weights, decoder)", "False"),
    ),
    hazard(
        "levels hide that there are no numbers",
        "fast/test_wan_uint8.py::test_uint8_of_no_numbers",
        ("_recipe.py", "all_finite(decoded) if finite is None else finite", "all_finite(decoded)"),
    ),
    hazard(
        "a slot is read before its copy's event",
        "test_stream.py::test_every_frame_comes_in_order",
        (
            "stages.py",
            'await wait(copy.done, backend.device, stage="download", chunk=index, timeout=timeout)',
            "pass",
        ),
    ),
    hazard(
        "the copy stream does not wait for the launch",
        "test_stream.py::test_every_frame_comes_in_order",
        (STREAMED, 'self._driver.wait("copy", ready)\n', "pass\n"),
    ),
    hazard(
        "a slot's memory is reused before it was collected",
        "test_stream.py::test_streams_share_a_device",
        (
            STREAMED,
            "        return _Copy(flight)\n",
            "        self._pool.give_back(buffer)\n        return _Copy(flight)\n",
        ),
        (
            STREAMED,
            "        self._pool.give_back(flight.buffer)\n        flight.ticket",
            "        flight.ticket",
        ),
    ),
    hazard(
        "a slot's place is given back before its event",
        "backends/test_streamed.py::test_an_abandoned_copy_keeps_its_slot_until_its_event",
        (
            STREAMED,
            "self.ticket.leave(after=self.done)",
            "self.ticket.leave()",
        ),
    ),
    hazard(
        "a consumer gets a view of the slot",
        "test_stream.py::test_every_frame_comes_in_order",
        (
            STREAMED,
            "        target.copy_(pixels)",
            "        target = pixels",
        ),
    ),
    hazard(
        "the source of a copy is freed before the copy",
        "test_stream.py::test_every_frame_comes_in_order",
        (
            STREAMED,
            "flight = _Flight(rendered, buffer, done, slot)",
            "flight = _Flight(Rendered(pixels.clone(), finite.clone()), buffer, done, slot)",
        ),
    ),
    hazard(
        "latents are launched without their event",
        "test_stream.py::test_latents_that_are_still_being_written",
        ("stages.py", "turn, after=after, hold=hold)", "turn, after=(), hold=hold)"),
    ),
    hazard(
        "the compute stream does not wait for the latents",
        "test_stream.py::test_latents_that_are_still_being_written",
        (STREAMED, 'self._driver.wait("compute", event)', "pass"),
    ),
    hazard(
        "latents are let go before the kernels have read them",
        "test_stream.py::test_every_frame_comes_in_order",
        (STREAMED, "held = self._held.keep(hold)", "held = self._held.keep(())"),
    ),
    hazard(
        "a launch does not wait for latents on their way to the device",
        "test_uploads.py::test_every_frame_comes_in_order",
        ("stages.py", "(*chunk.arrived, *on_device.arrived, *whole.arrived)", "chunk.arrived"),
    ),
    hazard(
        "the memory that latents go through is used again before they have gone",
        "test_uploads.py::test_every_frame_comes_in_order",
        (
            UPLOADS,
            "        over = [flight for flight in self._flights if _happened(flight.done)]\n",
            "        over = list(self._flights)\n",
        ),
    ),
    hazard(
        "a place for latents on their way is given back before they have gone",
        "backends/test_uploads.py::test_slots_are_reused_after_their_event",
        (UPLOADS, "        slot.leave(after=flight.done)\n", "        slot.leave()\n"),
    ),
    hazard(
        "all latents at once are let go before the first launch has read them",
        "test_uploads.py::test_everything_is_held_until_the_first_launch_is_done",
        ("stages.py", "(*on_device.tensors, *whole.tensors)", "on_device.tensors"),
    ),
    hazard(
        "autocast is not carried to the launch thread",
        "test_caller.py::test_autocast_is_carried",
        ("_caller.py", "ThreadState(device=self.device, autocast=self.autocast)", "ThreadState()"),
    ),
    hazard(
        "two streams share a context",
        "test_caller.py::test_streams_side_by_side_have_each_its_own",
        (
            "_caller.py",
            "self._context = contextvars.copy_context()",
            "self._context = globals().setdefault('shared', contextvars.copy_context())",
        ),
    ),
    hazard(
        "latents of a launch that raised are not fenced",
        "backends/test_streamed.py::test_a_launch_that_raises_is_fenced_too",
        (STREAMED, "        turn.leave(after=ready)\n", "        turn.leave()\n"),
    ),
    hazard(
        "a turn is lost with the error of a launch whose event could not be recorded",
        "backends/test_streamed.py::test_a_turn_is_not_kept_by_an_error",
        (STREAMED, "            turn.leave()  # not with", "            pass  # not with"),
    ),
    hazard(
        "a finalizer waits for a turnstile's lock",
        "test_turns.py::test_a_finalizer_waits_for_nobody",
        (
            "_turns.py",
            "        self._given_back.append(",
            "        with self._lock:\n            pass\n        self._given_back.append(",
        ),
        (
            "_turns.py",
            "        over = [one for one in leaving if _over(one.event)]\n",
            (
                "        with self._lock:\n"
                "            over = [one for one in leaving if _over(one.event)]\n"
            ),
        ),
    ),
    hazard(
        "a lock that the parent held is held in a forked child",
        "test_locks.py::test_a_child_finds_every_lock_free",
        ("_locks.py", "        own._at_fork_reinit()\n", "        pass\n"),
    ),
    hazard(
        "the interpreter goes while a thread is inside torch",
        "test_exit.py::test_after_a_timeout",
        ("_threads.py", "        atexit.register(self.end)\n", ""),
    ),
    hazard(
        "a frame is delivered before the sink accepted it",
        "test_stream.py::test_a_frame_that_is_seen_was_accepted",
        (
            "stages.py",
            "                await tee.accept(chunk)\n",
            "                yield chunk\n                await tee.accept(chunk)\n",
        ),
    ),
    hazard(
        "the error of a sink that was left behind is lost",
        "test_tee.py::test_the_others_go_on",
        (
            "_tee.py",
            "        if self._failed:\n            raise self._failed[0].error\n",
            "",
        ),
    ),
    hazard(
        "a file has its name before its data are synced",
        "sinks/test_faults.py::test_sync",
        (
            "sinks/_partial.py",
            """        if self.sync != "none":
            sync_data(self._open_file.fileno())
""",
            "",
        ),
    ),
    hazard(
        "streams share a decoder's state",
        "codecs/test_cached.py::test_interleaved",
        (
            "codecs/_cached.py",
            "        self._cache: Cache = []\n",
            "        self._cache: Cache = globals().setdefault('shared', [])\n",
        ),
    ),
    hazard(
        "three launches are unfinished",
        "test_overlap.py::test_two_unfinished_launches",
        (STREAMED, "LAUNCHES = 2\n", "LAUNCHES = 3\n"),
    ),
    hazard(
        "a launch gives its turn back before it is finished",
        "test_overlap.py::test_two_unfinished_launches",
        (STREAMED, "        turn.leave(after=ready)\n", "        turn.leave()\n"),
    ),
    hazard(
        "a cancelled stage looks like the end of the stream",
        "test_cancellation.py::test_one_stage_cancelled",
        ("_pipeline.py", "if group.cancel_scope.cancel_called:", "if False:"),
    ),
    hazard(
        "a frame is lost to a step that was broken off",
        "test_stream.py::test_a_broken_step_is_the_last",
        ("_stream.py", "            self._halt()\n            raise\n", "            raise\n"),
    ),
    hazard(
        "video goes on when its sound has failed, or the other way round",
        "test_av.py::test_after_an_error_it_is_closed",
        ("_merged.py", "            self._stream._halt()\n", "            pass\n"),
    ),
    hazard(
        "pictures come before the sound of their time",
        "test_av.py::test_sixty_seconds_on_one_clock",
        ("_merged.py", "min(going, key=_Side.time)", "going[-1]"),
    ),
    hazard(
        "a request ends before its client's stream has given everything back",
        "live/test_responses.py::test_a_task_that_is_cancelled",
        ("live/_hosted.py", '(gone and self._on_disconnect != "finish")', "False"),
    ),
    hazard(
        "a client that goes is noticed by its next frame only",
        "live/test_responses.py::test_a_client_that_takes_nothing_and_goes",
        (
            "live/_stay.py",
            "            endings.append(ending)\n            scope.cancel()\n",
            "            endings.append(ending)\n",
        ),
    ),
    hazard(
        "a full disk is taken for a client that has gone",
        "live/test_responses.py::test_an_error_of_the_disk_is_no_departure",
        (
            "live/_stay.py",
            "            except GoneError:\n",
            "            except (GoneError, OSError):\n",
        ),
    ),
    hazard(
        "a part of the frames is taken for all of them",
        "live/test_responses.py::test_shutdown",
        (
            "live/_asgi.py",
            '                raise ClosedError("the server stopped before the stream\'s end")\n',
            "                await body.finish()\n                return\n",
        ),
    ),
    hazard(
        "a browser shows every picture when the next one comes",
        "live/test_responses.py::test_mjpeg",
        (
            "live/_responses.py",
            "(_LAST if self._ended else _PART)",
            '(_LAST if self._ended else b"")',
        ),
    ),
    hazard(
        "a client gets more frames than it has credit for",
        "live/test_responses.py::test_credits",
        ("live/_sockets.py", "                    account.sent(packet.index)\n", ""),
    ),
    hazard(
        "a viewer who is slow holds the decode",
        "live/test_broadcast.py::test_sinks_and_viewers_are_not_slowed_by_a_stalled_viewer",
        (
            "live/_subscription.py",
            "        return isinstance(self.policy, Block)\n",
            "        return True\n",
        ),
    ),
    hazard(
        "a viewer who blocks is not waited for",
        "live/test_broadcast.py::test_a_viewer_who_blocks_gets_everything",
        (
            "live/_tracks.py",
            "        while self.lossless and len(self._inlet) >= ROOM and not self.over:\n",
            "        while False:\n",
        ),
    ),
    hazard(
        "a viewer gets what builds on a packet that it did not get",
        "live/test_policies.py::test_after_a_gap_comes_a_key",
        ("live/_subscription.py", "        self._torn = not self._items\n", ""),
    ),
    hazard(
        "what an encoder leaves out is not counted",
        "live/test_broadcast.py::test_the_decode_goes_on_when_one_who_blocks_leaves",
        ("live/_tracks.py", "                outlet.missed(missed)\n", "                pass\n"),
    ),
    hazard(
        "a frame that a viewer keeps keeps its chunk",
        "live/test_broadcast.py::test_frames_are_shared_and_read_only",
        ("live/_forms.py", "    owned = data.copy()\n", "    owned = data\n"),
    ),
    hazard(
        "frames are encoded when nobody watches any more",
        "live/test_broadcast.py::test_each_form_is_made_once_and_only_while_wanted",
        ("live/_tracks.py", "            self.stop()\n", "            pass\n"),
    ),
    hazard(
        "a late viewer waits for the next second's keyframe",
        "live/test_broadcast.py::test_a_late_joiner_begins_at_the_next_frame",
        ("live/_mp4.py", "key=key and not often)\n", "key=False)\n"),
    ),
    hazard(
        "the decode goes on for nobody",
        "live/test_broadcast.py::test_the_decode_stops_when_the_last_viewer_left",
        ("live/_hub.py", "            self._left()\n", "            pass\n"),
    ),
    hazard(
        "the last fragment of a viewer's video is in the next one's time",
        "live/test_packets.py::test_a_frame_that_was_dropped_is_a_gap_in_time",
        ("live/_mp4.py", "encoder.encode(picture, frame.index, ", "encoder.encode(picture, None, "),
    ),
)


def copy_of_the_package(folder: Path, patches: tuple[Patch, ...]) -> None:
    """Put the package, patched, and its tests into ``folder``."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for name in ("streamvae", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for patch in patches:
        patch.apply(folder / "streamvae")


#: Room for a hazard's name.
WIDTH = max(len(h.name) for h in HAZARDS)


@contextlib.contextmanager
def running(tests: list[str], patches: tuple[Patch, ...] = ()) -> Iterator[Child]:
    """Run ``tests`` on a copy of the package, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="hazard-") as name:
        folder = Path(name)
        copy_of_the_package(folder, patches)
        with (folder / "said").open("w+") as said:
            process = os.fork()  # torch is imported already, and has no threads yet
            if not process:
                _be_the_child(folder, tests, said.fileno())
            child = Child(process, said)
            yield child
            child.wait()


@dataclass
class Child:
    """Tests under way."""

    process: int
    output: IO[str]
    code: int | None = None

    def wait(self) -> tuple[int, str]:
        """Pytest's exit code, and what it said."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        self.output.seek(0)
        return self.code, self.output.read()


def _be_the_child(folder: Path, tests: list[str], output: int) -> NoReturn:
    code = 3
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        sys.path[0] = str(folder)
        sys.dont_write_bytecode = True
        torch.set_num_threads(1)
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
        sys.stdout.flush()
    finally:
        os._exit(code)


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def try_out(h: Hazard) -> bool:
    """Whether the test of ``h`` fails under its patches."""
    with running([h.test], h.patches) as child:
        code, said = child.wait()
    if code not in (0, 1):  # neither passed nor failed
        say(f"{h.test} did not run:\n{said}")
    verdict = "caught by" if code == 1 else "NOT CAUGHT by"
    say(f"{h.name:<{WIDTH}}  {verdict} {h.test}")
    return code == 1


def main(wanted: list[str]) -> int:
    """Try every hazard whose name contains one of ``wanted`` (all, without any)."""
    assert "streamvae" not in sys.modules  # the children import their own
    chosen = [h for h in HAZARDS if not wanted or any(word in h.name for word in wanted)]
    with running(sorted({h.test for h in chosen})) as whole:
        caught = sum(map(try_out, chosen))
        code, said = whole.wait()
    if code:
        say(f"a test fails, or does not run, without any patch:\n{said}")
        return 1
    say(f"{caught} of {len(chosen)} hazards caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
